// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The host's end of a channel: two rings in guest memory, signals, counters.

use hv_partition::{GuestRam, Partition, VpIndex};
use hvctl::{ChannelCounters, RingField, RingSide};
use vmbus_proto::msg::{Relid, VMBUS_SINT};

use crate::ring::{Descriptor, ReadError, RingIn, RingMem, RingOut};
use crate::server::OpenParams;

/// Why a packet was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The channel is not open.
    #[error("channel is not open")]
    Closed,
    /// No room now; the guest signals when there is some, and `poll` is called then.
    #[error("ring is full")]
    Full,
    /// The packet could never fit in this ring.
    #[error("packet does not fit in the ring")]
    TooLarge,
    /// The guest's index in the ring is impossible; the channel is dead until it is opened anew.
    #[error("ring is broken")]
    Broken,
}

/// A packet from the guest.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Packet type of the descriptor (`hyperv.h`, `VM_PKT_*`).
    pub packet_type: u16,
    /// Flags; 1 asks for a completion.
    pub flags: u16,
    /// The guest's id for the packet.
    pub transaction_id: u64,
    /// What is between the 16 bytes of the descriptor and the payload (page lists).
    pub header: &'a [u8],
    /// Payload, padded to 8 bytes.
    pub payload: &'a [u8],
}

/// A packet whose bytes are in a buffer beside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PacketMeta {
    descriptor: Descriptor,
}

impl PacketMeta {
    pub(crate) fn packet<'a>(&self, buf: &'a [u8]) -> Packet<'a> {
        let d = &self.descriptor;
        let (header, payload) = buf.split_at_checked(d.header_len()).unwrap_or((buf, &[]));
        Packet {
            packet_type: d.packet_type,
            flags: d.flags,
            transaction_id: d.transaction_id,
            header,
            payload,
        }
    }
}

/// What a read of the ring brought.
pub(crate) enum Received {
    Packet(PacketMeta),
    Nothing,
    Broken(String),
}

/// An open channel.
pub(crate) struct OpenChannel {
    relid: Relid,
    event_flag: u16,
    target_vp: Option<VpIndex>,
    monitor_id: Option<u8>,
    input: RingIn,
    output: RingOut,
    /// A ring was found in an impossible state.
    broken: bool,
    /// A sender was told [`SendError::Full`].
    wants_room: bool,
    /// Signals that the guest may rightly have sent and that did not arrive yet.
    signal_credit: u32,
    /// Signals of the present turn that no packet explained yet.
    unexplained: u32,
}

impl OpenChannel {
    /// Maps the rings.
    pub(crate) fn new(ram: GuestRam, params: &OpenParams) -> Result<Self, String> {
        let [range] = &params.pages[..] else { return Err("ring GPADL has several ranges".into()) };
        let (first, second) = range
            .pfns
            .split_at_checked(params.ring_offset_pages as usize)
            .ok_or("ring offset beyond the GPADL")?;
        let input = RingMem::new(ram.clone(), first).ok_or("guest-to-host ring too small")?;
        let output = RingMem::new(ram, second).ok_or("host-to-guest ring too small")?;
        Ok(Self {
            relid: Relid(u32::from(params.event_flag)),
            event_flag: params.event_flag,
            target_vp: params.target_vp,
            monitor_id: params.monitor_id,
            input: RingIn::new(input)?,
            output: RingOut::new(output)?,
            broken: false,
            wants_room: false,
            signal_credit: 0,
            unexplained: 0,
        })
    }
}

/// A channel, open or not.
#[derive(Default)]
pub(crate) struct Channel {
    open: Option<OpenChannel>,
    counters: ChannelCounters,
}

impl Channel {
    pub(crate) fn set_open(&mut self, open: OpenChannel) {
        self.open = Some(open);
        self.counters.opens += 1;
    }

    /// Whether it was open.
    pub(crate) fn set_closed(&mut self) -> bool {
        self.open.take().is_some()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether a ring was found in an impossible state.
    pub(crate) fn is_broken(&self) -> bool {
        self.open.as_ref().is_some_and(|o| o.broken)
    }

    pub(crate) fn relid(&self) -> Option<Relid> {
        self.open.as_ref().map(|o| o.relid)
    }

    pub(crate) fn monitor_id(&self) -> Option<u8> {
        self.open.as_ref().and_then(|o| o.monitor_id)
    }

    pub(crate) fn target_vp(&self) -> Option<VpIndex> {
        self.open.as_ref().and_then(|o| o.target_vp)
    }

    /// Data bytes of both rings, guest to host first.
    pub(crate) fn ring_sizes(&self) -> Option<(u32, u32)> {
        self.open.as_ref().map(|o| (o.input.data_len(), o.output.data_len()))
    }

    pub(crate) fn counters(&self) -> ChannelCounters {
        self.counters
    }

    pub(crate) fn reset_counters(&mut self) {
        self.counters = ChannelCounters::default();
    }

    pub(crate) fn count_monitor_signal(&mut self) {
        self.counters.monitor_signals += 1;
    }

    pub(crate) fn retarget(&mut self, vp: Option<VpIndex>) {
        if let Some(open) = &mut self.open {
            open.target_vp = vp;
        }
    }

    /// Starts reading, with `signals` signals since the last time.
    pub(crate) fn begin_service(&mut self, signals: u32) {
        self.counters.signals += u64::from(signals);
        let Some(open) = &mut self.open else { return };
        if signals > 0 {
            // Some may be for packets that were read before their signal arrived.
            open.unexplained += signals - signals.min(open.signal_credit);
            open.signal_credit = 0;
        }
        if !open.broken {
            open.input.mask(true);
            open.input.begin();
        }
        if open.wants_room && signals > 0 {
            // The guest signals room as well as packets.
            open.unexplained = open.unexplained.saturating_sub(1);
        }
    }

    /// The next packet; its bytes after the descriptor are put in `buf`.
    pub(crate) fn receive(&mut self, buf: &mut Vec<u8>) -> Received {
        let Some(open) = &mut self.open else { return Received::Nothing };
        if open.broken {
            return Received::Nothing;
        }
        loop {
            match open.input.read(buf) {
                Ok(Some(descriptor)) => {
                    self.counters.packets_in += 1;
                    self.counters.bytes_in += u64::from(descriptor.len());
                    open.unexplained = open.unexplained.saturating_sub(1);
                    return Received::Packet(PacketMeta { descriptor });
                }
                Ok(None) => {
                    // Unmask, then look again: what the guest wrote while masked it did not signal.
                    open.input.mask(false);
                    match open.input.is_empty() {
                        Ok(true) => return Received::Nothing,
                        Ok(false) => {
                            // It may have been written just after the mask was cleared; then its signal is on
                            // its way.
                            open.signal_credit += 1;
                            open.input.mask(true);
                        }
                        Err(e) => return self.broken(e),
                    }
                }
                Err(e) => return self.broken(e),
            }
        }
    }

    fn broken(&mut self, e: ReadError) -> Received {
        if let Some(open) = &mut self.open {
            open.broken = true;
        }
        Received::Broken(format!("guest-to-host ring: {e}"))
    }

    /// Ends reading; whether a device that found the ring full may try again. The guest is signalled if it
    /// waits for the room that was made.
    pub(crate) fn end_service(&mut self, partition: &dyn Partition) -> bool {
        let Some(open) = &mut self.open else { return false };
        self.counters.unneeded_signals += u64::from(std::mem::take(&mut open.unexplained));
        if open.broken {
            return false;
        }
        if open.input.guest_waits_for_room() {
            signal(open, &mut self.counters, partition);
        }
        let retry = open.wants_room && open.output.has_wanted_room();
        if retry {
            open.wants_room = false;
        }
        retry
    }

    /// Sends a packet and signals the guest if it wants that.
    pub(crate) fn send(
        &mut self,
        partition: &dyn Partition,
        packet_type: u16,
        flags: u16,
        transaction_id: u64,
        payload: &[u8],
    ) -> Result<(), SendError> {
        let bytes = Descriptor::frame(packet_type, flags, transaction_id, payload).ok_or(SendError::TooLarge)?;
        self.send_frame(partition, &bytes)
    }

    fn send_frame(&mut self, partition: &dyn Partition, bytes: &[u8]) -> Result<(), SendError> {
        let open = self.open.as_mut().ok_or(SendError::Closed)?;
        if open.broken {
            return Err(SendError::Broken);
        }
        match open.output.write(bytes) {
            Ok(wants_signal) => {
                self.counters.packets_out += 1;
                self.counters.bytes_out += bytes.len() as u64;
                if wants_signal {
                    signal(open, &mut self.counters, partition);
                }
                Ok(())
            }
            Err(e) => {
                open.wants_room |= e == SendError::Full;
                open.broken |= e == SendError::Broken;
                Err(e)
            }
        }
    }

    /// Fault injection: bytes as they are, in place of a packet.
    pub(crate) fn send_raw(&mut self, partition: &dyn Partition, bytes: &[u8]) -> Result<(), String> {
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        self.send_frame(partition, &bytes).map_err(|e| e.to_string())
    }

    /// Fault injection: overwrites a word of a ring's control page, and signals.
    pub(crate) fn corrupt(
        &mut self,
        partition: &dyn Partition,
        side: RingSide,
        field: RingField,
        value: u32,
    ) -> Result<(), String> {
        let open = self.open.as_mut().ok_or("channel is not open")?;
        match side {
            RingSide::GuestToHost => open.input.corrupt(field, value),
            RingSide::HostToGuest => open.output.corrupt(field, value),
        }
        signal(open, &mut self.counters, partition);
        Ok(())
    }
}

fn signal(open: &OpenChannel, counters: &mut ChannelCounters, partition: &dyn Partition) {
    let Some(vp) = open.target_vp else { return };
    match partition.signal_event(vp, VMBUS_SINT, open.event_flag) {
        Ok(true) => counters.interrupts += 1,
        Ok(false) => counters.interrupts_merged += 1,
        Err(e) => tracing::debug!("event flag {} of VP {}: {e}", open.event_flag, vp.0),
    }
}
