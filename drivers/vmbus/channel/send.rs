// SPDX-License-Identifier: GPL-2.0

//! The outgoing side of a channel.

use super::{
    Filled, GpaDirectRoom, GpaRangeHeader, GpaRun, PacketFlags, PacketType, PacketWriter,
    PutRanges, SendError, Sending, Signal, WriteError,
};
use crate::{open::OpenCore, ring::RingView};
use core::sync::atomic::AtomicU64;
use vmbus_proto::ring::{Producer, RingMemory};

/// The outgoing ring's producer, for packets that [`Sender`] has no method for. See [`Sender::send_with`].
///
/// Only what writes packets can be reached: a driver that held the producer itself could exchange it for that of another
/// channel, or keep its memory beyond the channel's life.
pub struct RingProducer<'a>(&'a mut Producer<RingView>);

impl<'a> RingProducer<'a> {
    #[inline(always)]
    pub(crate) fn new(ring: &'a mut Producer<RingView>) -> Self {
        Self(ring)
    }

    /// Size in bytes of the ring's data area.
    #[inline]
    pub fn size(&self) -> u32 {
        self.0.size()
    }

    /// See [`Producer::has_room`].
    ///
    /// # Errors
    /// See there.
    #[inline]
    pub fn has_room(&mut self, bytes: u32) -> Result<bool, WriteError> {
        Ok(self.0.has_room(bytes)?)
    }

    /// See [`Producer::begin`].
    ///
    /// # Errors
    /// See there.
    #[inline]
    pub fn begin(
        &mut self,
        packet_type: PacketType,
        flags: PacketFlags,
        transaction_id: u64,
        extra: usize,
        payload: usize,
    ) -> Result<PacketWriter<'_, RingView>, WriteError> {
        self.0
            .begin(packet_type, flags, transaction_id, extra, payload)
    }

    /// See [`Producer::send_in_band`].
    ///
    /// # Errors
    /// See there.
    #[inline]
    pub fn send_in_band(
        &mut self,
        payload: &[u8],
        transaction_id: u64,
        completion: bool,
    ) -> Result<(), WriteError> {
        self.0.send_in_band(payload, transaction_id, completion)
    }

    /// See [`Producer::send_words`].
    ///
    /// # Errors
    /// See there.
    #[inline(always)]
    pub fn send_words<const N: usize>(
        &mut self,
        keep: u32,
        packet_type: PacketType,
        flags: PacketFlags,
        transaction_id: u64,
        payload: [u64; N],
    ) -> Result<(), WriteError> {
        self.0
            .send_words(keep, packet_type, flags, transaction_id, payload)
    }

    /// See [`Producer::put_words`].
    #[inline(always)]
    #[must_use]
    pub fn put_words<const N: usize>(
        &mut self,
        keep: u32,
        packet_type: PacketType,
        flags: PacketFlags,
        transaction_id: u64,
        payload: [u64; N],
    ) -> bool {
        self.0
            .put_words(keep, packet_type, flags, transaction_id, payload)
    }

    /// See [`Producer::send_gpa_ranges`].
    ///
    /// # Errors
    /// See there.
    #[inline(always)]
    pub fn send_gpa_ranges<const N: usize>(
        &mut self,
        keep: u32,
        ranges: &[GpaRun],
        transaction_id: u64,
        payload: [u64; N],
    ) -> Result<(), WriteError> {
        self.0
            .send_gpa_ranges(keep, ranges, transaction_id, payload)
    }

    /// See [`Producer::put_gpa_ranges`].
    #[inline(always)]
    #[must_use]
    pub fn put_gpa_ranges<const ROOM: usize, const N: usize>(
        &mut self,
        keep: u32,
        transaction_id: u64,
        payload: [u64; N],
        write: impl FnOnce(&[AtomicU64; ROOM]) -> Option<PutRanges>,
    ) -> bool {
        self.0.put_gpa_ranges(keep, transaction_id, payload, write)
    }

    /// See [`Producer::begin_gpa_direct`].
    #[inline(always)]
    pub fn begin_gpa_direct<const N: usize>(
        &self,
        keep: u32,
        range: GpaRangeHeader,
    ) -> Option<GpaDirectRoom<'_, N>> {
        self.0.begin_gpa_direct(keep, range)
    }

    /// See [`Producer::finish_gpa_direct`].
    #[inline(always)]
    pub fn finish_gpa_direct(&mut self, packet: Filled) {
        self.0.finish_gpa_direct(packet);
    }

    /// See [`Producer::send_gpa_direct`].
    ///
    /// # Errors
    /// See there.
    #[inline]
    pub fn send_gpa_direct(
        &mut self,
        range: GpaRangeHeader,
        pfns: impl IntoIterator<Item = u64>,
        payload: &[u8],
        transaction_id: u64,
    ) -> Result<(), WriteError> {
        self.0.send_gpa_direct(range, pfns, payload, transaction_id)
    }
}

/// Puts packets into the outgoing ring of an open channel. Any context; a spinlock with interrupts off is held for the time
/// of the copy. The host is signalled when the ring was empty before, as the protocol wants.
#[derive(Clone, Copy)]
pub struct Sender<'a> {
    pub(super) core: &'a OpenCore,
}

impl<'a> Sender<'a> {
    /// Sends `payload`. With `completion`, asks the host to answer with a completion packet that carries `transaction_id`.
    ///
    /// # Errors
    /// [`SendError::Full`]: try later, when the host has made room. Others: for good.
    #[doc(alias = "vmbus_sendpacket")]
    pub fn send_inband(
        &self,
        payload: &[u8],
        transaction_id: u64,
        completion: bool,
    ) -> Result<(), SendError> {
        self.core
            .send(|ring| ring.send_in_band(payload, transaction_id, completion))
    }

    /// Sends the completion of the host's packet `transaction_id`.
    ///
    /// # Errors
    /// As for [`send_inband`](Self::send_inband).
    pub fn send_completion(&self, transaction_id: u64, payload: &[u8]) -> Result<(), SendError> {
        self.core
            .send(|ring| ring.send_completion(transaction_id, payload))
    }

    /// Writes packets of any kind with `write`, which runs with interrupts off; all of them become visible to the host
    /// together, or none when it fails.
    ///
    /// # Errors
    /// As for [`send_inband`](Self::send_inband).
    #[inline]
    pub fn send_with(
        &self,
        write: impl FnOnce(&mut RingProducer<'_>) -> Result<(), WriteError>,
    ) -> Result<(), SendError> {
        self.core.send(|ring| write(&mut RingProducer(ring)))
    }

    /// As [`send_with`](Self::send_with), for a packet that stands for `value`, in the fewest instructions: `write` takes that when
    /// the packet is written, and gives it back when it is not. It tells whether the host is to be signalled now.
    ///
    /// # Errors
    /// `value`, when nothing was sent: another way of sending tells why.
    #[inline(always)] // For the caller who sends much.
    pub fn try_send_value<T>(
        &self,
        value: T,
        write: impl FnOnce(&mut RingProducer<'_>, T) -> Result<Signal, T>,
    ) -> Result<(), T> {
        self.core
            .try_send_value(value, |ring, value| write(&mut RingProducer(ring), value))
    }

    /// As [`send_with`](Self::send_with), for a packet that stands for `value`: `write` takes it when the packet is written, and
    /// gives it back with the error when not; so does this.
    ///
    /// # Errors
    /// As for [`send_inband`](Self::send_inband).
    #[inline]
    pub fn send_value<T>(
        &self,
        value: T,
        write: impl FnOnce(&mut RingProducer<'_>, T) -> Result<(), (WriteError, T)>,
    ) -> Result<(), (SendError, T)> {
        self.core
            .send_value(value, |ring, value| write(&mut RingProducer(ring), value))
    }

    /// Gives the signal that packets sent with [`Signal::Later`] are owed, if no later packet has done so and the host has not read
    /// them by itself.
    pub fn signal_owed(&self) {
        self.core.signal_owed();
    }

    /// After [`SendError::Full`]: asks the host for a signal, and so for a call of the handler, once there is room. True
    /// when there is room already: try again at once, no signal will come.
    ///
    /// # Errors
    /// [`SendError`], but for `Full`.
    pub fn request_space(&self, needed: u32) -> Result<bool, SendError> {
        self.core.request_space(needed)
    }

    /// Takes the outgoing ring, to write packets that become visible to the host together with [`Sending::commit`], and do not
    /// exist when the result is dropped before. With interrupts off, so for a short time. `None`: nothing may be sent; another way of
    /// sending tells why.
    #[inline(always)] // For the caller who sends much.
    pub fn begin(self) -> Option<Sending<'a>> {
        self.core.begin_send()
    }

    /// Size in bytes of the outgoing ring's data area.
    pub fn ring_size(&self) -> u32 {
        self.core.view(true).data_size()
    }

    /// Bytes that are free in the outgoing ring, about: it changes at any time.
    pub fn free_bytes(&self) -> u32 {
        self.ring_size().saturating_sub(self.core.view(true).used())
    }

    /// CPU that the host interrupts for the channel.
    #[inline]
    pub fn target_cpu(&self) -> u32 {
        self.core.target_cpu()
    }

    /// Whether the host has taken the channel away.
    #[inline]
    pub fn is_rescinded(&self) -> bool {
        self.core.is_rescinded()
    }
}
