// SPDX-License-Identifier: GPL-2.0

//! The incoming side of a channel.

use super::{PacketDescriptor, PacketView, RecvError, Sender, Shown, Step};
use crate::{open::OpenCore, ring::RingView};
use vmbus_proto::ring::{Consumer, Incoming};

/// A packet of which a part was copied; see [`Receiver::next_into`].
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// The checked descriptor.
    pub descriptor: PacketDescriptor,
    /// Bytes of payload that were copied.
    pub len: usize,
}

/// A packet in the incoming ring, whose descriptor was copied and checked. The host may change the rest at any time: copy each
/// byte once, and look at the copy.
#[derive(Clone, Copy)]
pub struct InRing<'a> {
    ring: &'a Consumer<RingView>,
    incoming: Incoming,
}

impl<'a> InRing<'a> {
    #[inline]
    pub(crate) fn new(ring: &'a Consumer<RingView>, incoming: Incoming) -> Self {
        Self { ring, incoming }
    }

    /// The checked descriptor.
    #[inline]
    pub fn descriptor(&self) -> &PacketDescriptor {
        &self.incoming.descriptor
    }

    /// `N` words of the packet, from `offset` (in bytes) within it on; `None` when there are not so many.
    #[inline]
    pub fn raw_words<const N: usize>(&self, offset: u32) -> Option<[u64; N]> {
        self.ring.copy_words(&self.incoming, offset)
    }

    /// Copies the payload, or as much of it as `out` takes; returns how much that was.
    pub fn copy_payload(&self, out: &mut [u8]) -> usize {
        let len = out.len().min(self.descriptor().payload_len() as usize);
        let Some(part) = out.get_mut(..len) else {
            return 0;
        };
        let offset = self.descriptor().payload_offset();
        if self.ring.copy(&self.incoming, offset, part) {
            len
        } else {
            0
        }
    }

    /// `N` words of the payload, from `offset` (in bytes) within it on; `None` when there are not so many.
    #[inline]
    pub fn words<const N: usize>(&self, offset: u32) -> Option<[u64; N]> {
        let start = self.descriptor().payload_offset().checked_add(offset)?;
        self.ring.copy_words(&self.incoming, start)
    }
}

/// Takes packets out of the incoming ring of an open channel.
///
/// # Invariants
/// The only receiver of `core`: it holds the receiving side.
pub struct Receiver<'a> {
    core: &'a OpenCore,
}

impl<'a> Receiver<'a> {
    /// # Safety
    /// The caller holds the receiving side of `core`, and gives it to the new receiver.
    pub(crate) unsafe fn new(core: &'a OpenCore) -> Self {
        // INVARIANT: By the requirement.
        Self { core }
    }

    /// The next packet, of which the first `N` bytes of payload are copied out of the ring into `payload`, and nothing else.
    /// `None` when there is none.
    ///
    /// The room that packets took is given back to the host when the receiver is dropped, which for a handler's is after it
    /// returns, or by [`commit`](Self::commit).
    ///
    /// # Errors
    /// When the host broke the rules of the ring: the channel can only be closed then. Logged once.
    #[inline]
    pub fn next_into<const N: usize>(
        &mut self,
        payload: &mut [u8; N],
    ) -> Result<Option<Received>, RecvError> {
        // SAFETY: This is the only receiver by the type's invariant.
        unsafe { self.core.recv_into(payload) }
    }

    /// See [`Consumer::take_completion`]; what goes wrong is left to [`next_with`](Self::next_with).
    #[inline]
    pub fn take_completion<const N: usize, R>(
        &mut self,
        payload: u32,
        take: impl FnOnce(u64, &[u64; N]) -> Option<R>,
    ) -> Option<R> {
        // SAFETY: This is the only receiver by the type's invariant.
        unsafe { self.core.recv_completion(payload, take) }
    }

    /// See [`Consumer::take_while`]; what goes wrong is left to [`next_with`](Self::next_with). The room that the packets took is given back
    /// with [`commit`](Self::commit) or [`finish`](Self::finish) alone: for who reads a limited number of packets at a time.
    #[inline(always)]
    pub fn take_while(&mut self, take: impl FnMut(&PacketView<'_>) -> Step) -> Shown {
        // SAFETY: This is the only receiver by the type's invariant.
        unsafe { self.core.recv_take_while(take) }
    }

    /// See [`Consumer::is_drained`].
    #[inline]
    pub fn is_drained(&self) -> bool {
        // SAFETY: This is the only receiver by the type's invariant.
        unsafe { self.core.is_drained() }
    }

    /// Shows the next packet to `take` where it lies in the ring, and moves on. `None` when there is none.
    ///
    /// # Errors
    /// When the host broke the rules of the ring: the channel can only be closed then. Logged once.
    #[inline]
    pub fn next_with<R>(
        &mut self,
        take: impl FnOnce(&InRing<'_>) -> R,
    ) -> Result<Option<R>, RecvError> {
        // SAFETY: This is the only receiver by the type's invariant.
        unsafe { self.core.recv_with(take) }
    }

    /// Has the handler called once more in softirq context, soon after it returned: for one that leaves packets in the ring
    /// since it was called for long enough.
    pub fn call_again(&self) {
        self.core.call_again();
    }

    /// Whether the host has taken the channel away: it puts nothing more into the ring.
    #[inline]
    pub fn is_rescinded(&self) -> bool {
        self.core.is_rescinded()
    }

    /// Gives the room of the packets read back to the host now, and signals it when it waits for that.
    #[inline]
    pub fn commit(&mut self) {
        // SAFETY: This is the only receiver by the type's invariant.
        unsafe { self.core.commit_read() };
    }

    /// Asks the host not to interrupt, until [`finish`](Self::finish). Batched mode does both by itself.
    #[inline]
    pub fn mask_interrupts(&mut self) {
        // SAFETY: This is the only receiver by the type's invariant.
        unsafe { self.core.mask() };
    }

    /// Commits, and lets the host interrupt again. True when packets came in meanwhile: read on, since the host will not
    /// interrupt for them.
    #[inline]
    #[must_use = "the host will not interrupt for packets that are there already"]
    pub fn finish(&mut self) -> bool {
        // SAFETY: This is the only receiver by the type's invariant.
        unsafe { self.core.finish_read() }
    }

    /// What sends into the same channel, to answer packets.
    #[inline]
    pub fn sender(&self) -> Sender<'a> {
        Sender { core: self.core }
    }
}

impl Drop for Receiver<'_> {
    #[inline]
    fn drop(&mut self) {
        self.commit();
        // SAFETY: The receiver holds the receiving side by the type's invariant, and is not used any more.
        unsafe { self.core.release_receiver() };
    }
}
