// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The host's end of a channel: two rings in guest memory, signals, counters.

use std::collections::HashMap;

use hv_partition::{GuestRam, Partition, VpIndex};
use hvctl::{ChannelCounters, RingField, RingSide};
use vmbus_proto::msg::{Relid, VMBUS_SINT};
use vmbus_proto::packet::{Packet, PacketFlags, PacketType, MAX_PACKET_SIZE};
use vmbus_proto::ring::{Consumer, ControlWord, Producer, ReadError, RingMemory, WriteError};

use crate::ring::RingPages;
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

/// A packet to be written.
pub(crate) struct Outgoing<'a> {
    pub(crate) packet_type: PacketType,
    pub(crate) flags: PacketFlags,
    pub(crate) transaction_id: u64,
    /// Extra header, in two parts: together a multiple of 8 bytes.
    pub(crate) extra: [&'a [u8]; 2],
    pub(crate) payload: &'a [u8],
}

impl Outgoing<'_> {
    fn extra_len(&self) -> usize {
        self.extra[0].len() + self.extra[1].len()
    }

    fn write(&self, ring: &mut Producer<RingPages>) -> Result<(), WriteError> {
        let mut packet = ring.begin(
            self.packet_type,
            self.flags,
            self.transaction_id,
            self.extra_len(),
            self.payload.len(),
        )?;
        for part in self.extra {
            packet.put(part)?;
        }
        packet.put(self.payload)?;
        packet.finish()
    }

    fn len(&self) -> u64 {
        (16 + self.extra_len() + self.payload.len()).next_multiple_of(8) as u64
    }
}

/// What a read of the ring brought.
pub(crate) enum Received<'b> {
    Packet(Packet<'b>),
    Nothing,
    Broken(String),
}

/// An open channel.
pub(crate) struct OpenChannel {
    relid: Relid,
    event_flag: u16,
    target_vp: Option<VpIndex>,
    monitor_id: Option<u8>,
    input: Consumer<RingPages>,
    output: Producer<RingPages>,
    /// A ring was found in an impossible state.
    broken: bool,
    /// Space that a sender waits for, who was told [`SendError::Full`].
    wanted: Option<u32>,
    /// The guest has not been told yet that the channel is open: signals wait.
    corked: bool,
    /// A signal waits.
    signal_waits: bool,
    /// Transaction ids of packets that the guest must still complete, with how many have each.
    incomplete: HashMap<u64, u32>,
    /// Signals that the guest may rightly have sent and that did not arrive yet.
    signal_credit: u32,
    /// Signals of the present turn that no packet explained yet.
    unexplained: u32,
}

impl OpenChannel {
    /// Maps the rings.
    pub(crate) fn new(ram: GuestRam, params: &OpenParams) -> Result<Self, String> {
        let [range] = &params.pages[..] else {
            return Err("ring GPADL has several ranges".into());
        };
        let (first, second) = range
            .pfns
            .split_at_checked(params.ring_offset_pages as usize)
            .ok_or("ring offset beyond the GPADL")?;
        let input =
            RingPages::new(ram.clone(), first).ok_or("guest-to-host ring has no data pages")?;
        let output = RingPages::new(ram, second).ok_or("host-to-guest ring has no data pages")?;
        Ok(Self {
            relid: Relid(u32::from(params.event_flag)),
            event_flag: params.event_flag,
            target_vp: params.target_vp,
            monitor_id: params.monitor_id,
            input: Consumer::attach(input).map_err(|e| format!("guest-to-host ring: {e}"))?,
            output: Producer::attach(output).map_err(|e| format!("host-to-guest ring: {e}"))?,
            broken: false,
            wanted: None,
            corked: true,
            signal_waits: false,
            incomplete: HashMap::new(),
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
        self.open
            .as_ref()
            .map(|o| (o.input.size(), o.output.size()))
    }

    pub(crate) fn counters(&self) -> ChannelCounters {
        let incomplete = self
            .open
            .as_ref()
            .map_or(0, |o| o.incomplete.values().map(|n| u64::from(*n)).sum());
        ChannelCounters {
            incomplete,
            ..self.counters
        }
    }

    /// The guest completes the packet with this id; whether there was one.
    pub(crate) fn complete(&mut self, transaction_id: u64) -> bool {
        let Some(open) = &mut self.open else {
            return false;
        };
        let Some(count) = open.incomplete.get_mut(&transaction_id) else {
            return false;
        };
        *count -= 1;
        if *count == 0 {
            open.incomplete.remove(&transaction_id);
        }
        true
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

    /// The guest has been told that the channel is open: signals that waited are sent. Linux reckons with none
    /// before (`channel_mgmt.c`, `vmbus_channel_map_relid`).
    pub(crate) fn uncork(&mut self, partition: &dyn Partition) {
        if let Some(open) = &mut self.open {
            open.corked = false;
            if std::mem::take(&mut open.signal_waits) {
                signal(open, &mut self.counters, partition);
            }
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
            open.input.mask();
        }
        if open.wanted.is_some() && signals > 0 {
            // The guest signals room as well as packets.
            open.unexplained = open.unexplained.saturating_sub(1);
        }
    }

    /// The next packet, copied to `buf`.
    pub(crate) fn receive<'b>(
        &mut self,
        partition: &dyn Partition,
        buf: &'b mut Vec<u8>,
    ) -> Received<'b> {
        let Some(open) = self.open.as_mut().filter(|o| !o.broken) else {
            return Received::Nothing;
        };
        loop {
            match open.input.peek() {
                Ok(incoming) => {
                    let len = incoming.descriptor.packet_len() as usize;
                    if buf.len() < len {
                        buf.resize(len.next_power_of_two().min(MAX_PACKET_SIZE as usize), 0);
                    }
                    break;
                }
                Err(ReadError::Empty) => {
                    let drained = give_room(open, &mut self.counters, partition, |input| {
                        let drained = input.finish();
                        (drained.signal, drained)
                    });
                    if !drained.more {
                        return Received::Nothing;
                    }
                    // Written just before or just after the mask was cleared; if after, its signal is on its
                    // way.
                    open.signal_credit += 1;
                    open.input.mask();
                }
                Err(e) => {
                    open.broken = true;
                    return Received::Broken(format!("guest-to-host ring: {e}"));
                }
            }
        }
        match open.input.read(buf) {
            Ok(packet) => {
                self.counters.packets_in += 1;
                self.counters.bytes_in += u64::from(packet.descriptor.packet_len());
                open.unexplained = open.unexplained.saturating_sub(1);
                Received::Packet(packet)
            }
            // Looked at a moment ago, but the guest may have changed it since.
            Err(e) => {
                open.broken = true;
                Received::Broken(format!("guest-to-host ring: {e}"))
            }
        }
    }

    /// Gives the room of the packets read back to the guest, in the middle of a turn.
    pub(crate) fn pause_service(&mut self, partition: &dyn Partition) {
        if let Some(open) = self.open.as_mut().filter(|o| !o.broken) {
            give_room(open, &mut self.counters, partition, |input| {
                (input.commit(), ())
            });
        }
    }

    /// Ends reading, with nothing left to read.
    pub(crate) fn end_service(&mut self) {
        if let Some(open) = &mut self.open {
            self.counters.unneeded_signals += u64::from(std::mem::take(&mut open.unexplained));
        }
    }

    /// Whether a device that found the ring full may try again.
    pub(crate) fn take_room(&mut self) -> bool {
        let Some(open) = self.open.as_mut().filter(|o| !o.broken) else {
            return false;
        };
        let Some(wanted) = open.wanted else {
            return false;
        };
        let room = open.output.free().is_ok_and(|free| free >= wanted);
        if room {
            open.wanted = None;
        }
        room
    }

    /// Writes a packet, which the guest sees after the next [`Channel::commit`].
    pub(crate) fn put(
        &mut self,
        partition: &dyn Partition,
        packet: &Outgoing<'_>,
    ) -> Result<(), SendError> {
        let open = self.open.as_mut().ok_or(SendError::Closed)?;
        if open.broken {
            return Err(SendError::Broken);
        }
        let written = match packet.write(&mut open.output) {
            // What is written already must be readable, or it is never read and there is never room.
            Err(WriteError::Full { needed }) => {
                show(open, &mut self.counters, partition);
                match open.output.request_space(needed) {
                    // The guest has made room meanwhile; no signal will come.
                    Ok(true) => packet.write(&mut open.output),
                    Ok(false) => {
                        open.wanted = Some(needed);
                        return Err(SendError::Full);
                    }
                    Err(e) => Err(e),
                }
            }
            other => other,
        };
        match written {
            Ok(()) => {}
            Err(WriteError::Corrupt(_)) => {
                open.broken = true;
                return Err(SendError::Broken);
            }
            Err(WriteError::Full { .. }) => return Err(SendError::Full),
            Err(WriteError::TooLarge | WriteError::WrongLength) => return Err(SendError::TooLarge),
        }
        open.wanted = None;
        if packet.flags.contains(PacketFlags::COMPLETION_REQUESTED) {
            *open.incomplete.entry(packet.transaction_id).or_default() += 1;
        }
        self.counters.packets_out += 1;
        self.counters.bytes_out += packet.len();
        Ok(())
    }

    /// Shows the guest what was written, and signals it if it wants that.
    pub(crate) fn commit(&mut self, partition: &dyn Partition) {
        if let Some(open) = self.open.as_mut().filter(|o| !o.broken) {
            show(open, &mut self.counters, partition);
        }
    }

    /// Fault injection: bytes as they are, in place of a packet. What the host sends later on this channel
    /// overwrites them.
    pub(crate) fn send_raw(
        &mut self,
        partition: &dyn Partition,
        bytes: &[u8],
    ) -> Result<(), String> {
        let open = self.open.as_mut().ok_or("channel is not open")?;
        let free = open.output.free().map_err(|e| e.to_string())?;
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        if bytes.len() > free as usize {
            return Err("ring is full".into());
        }
        let at = open.output.write_index();
        let memory = open.output.memory();
        memory.write(at, &bytes);
        memory.store_and_fence(
            ControlWord::WriteIndex,
            (at + bytes.len() as u32) % memory.data_size(),
        );
        signal(open, &mut self.counters, partition);
        Ok(())
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
        let word = match field {
            RingField::Write => ControlWord::WriteIndex,
            RingField::Read => ControlWord::ReadIndex,
            RingField::Mask => ControlWord::InterruptMask,
            RingField::Pending => ControlWord::PendingSendSize,
        };
        let memory = match side {
            RingSide::GuestToHost => open.input.memory(),
            RingSide::HostToGuest => open.output.memory(),
        };
        memory.store_and_fence(word, value);
        signal(open, &mut self.counters, partition);
        Ok(())
    }
}

/// Whether a guest that has read up to `read` cannot have wanted a signal for what was written from `old` to `new` since: something older is
/// still unread, so the ring was not empty. (Whether it masked signals cannot be told afterwards: it may have changed its mind twice.)
fn not_empty(read: u32, old: u32, new: u32, size: u32) -> bool {
    let distance = |from: u32, to: u32| (to + size - from % size) % size;
    distance(read, new) > distance(old, new)
}

/// Shows the guest what was written, and signals it if it wants that. Looks as well, apart from the ring's own rule, whether it can have
/// wanted it.
fn show(open: &mut OpenChannel, counters: &mut ChannelCounters, partition: &dyn Partition) {
    let old = open.output.write_index();
    if !open.output.commit() {
        return;
    }
    let read = open.output.memory().load_acquire(ControlWord::ReadIndex);
    let (new, size) = (open.output.write_index(), open.output.size());
    counters.unneeded_interrupts += u64::from(not_empty(read, old, new, size));
    signal(open, counters, partition);
}

/// Gives room back to the guest by `give`, which tells whether to signal, and signals. No such signal is needed if the guest did not wait for
/// room before and does not afterwards.
fn give_room<T>(
    open: &mut OpenChannel,
    counters: &mut ChannelCounters,
    partition: &dyn Partition,
    give: impl FnOnce(&mut Consumer<RingPages>) -> (bool, T),
) -> T {
    let waits = |open: &OpenChannel| {
        let memory = open.input.memory();
        memory.load_acquire(ControlWord::PendingSendSize) != 0
    };
    let before = waits(open);
    let (wanted, result) = give(&mut open.input);
    if wanted {
        counters.unneeded_interrupts += u64::from(!before && !waits(open));
        signal(open, counters, partition);
    }
    result
}

fn signal(open: &mut OpenChannel, counters: &mut ChannelCounters, partition: &dyn Partition) {
    if open.corked {
        open.signal_waits = true;
        return;
    }
    let Some(vp) = open.target_vp else { return };
    match partition.signal_event(vp, VMBUS_SINT, open.event_flag) {
        Ok(true) => counters.interrupts += 1,
        Ok(false) => counters.interrupts_merged += 1,
        Err(e) => tracing::debug!("event flag {} of VP {}: {e}", open.event_flag, vp.0),
    }
}

#[cfg(test)]
mod tests {
    use super::not_empty;

    #[test]
    fn signals_that_nobody_wanted_are_known() {
        let not_empty = |read, old, new| not_empty(read, old, new, 4096);
        // Empty before, and not read yet, in part, or all; also across the end.
        for (read, old, new) in [
            (96, 96, 160),
            (128, 96, 160),
            (160, 96, 160),
            (4080, 4080, 16),
            (16, 4080, 16),
        ] {
            assert!(!not_empty(read, old, new), "{read} {old} {new}");
        }
        // Something older is unread.
        for (read, old, new) in [(64, 96, 128), (4000, 4080, 16), (136, 96, 128)] {
            assert!(not_empty(read, old, new), "{read} {old} {new}");
        }
        // A guest that lies does no harm.
        let _ = not_empty(u32::MAX, 96, 128);
    }
}
