// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Messages to the guest: in order, held back while the ring is full, and malformed on request.

use std::collections::VecDeque;

use hv_vmbus_host::device::DeviceIo;
use hv_vmbus_host::SendError;
use hvctl::NetMessage;
use vmbus_proto::packet::{PacketFlags, PacketType, TransferPageHeader, TransferRange};

use crate::faults::{Fate, Faults};

/// A packet for the guest.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// For faults.
    pub(crate) kind: NetMessage,
    pub(crate) packet_type: PacketType,
    pub(crate) flags: PacketFlags,
    pub(crate) id: u64,
    /// Extra header of a transfer-page packet.
    pub(crate) transfer: Option<(TransferPageHeader, Vec<TransferRange>)>,
    /// NVSP message.
    pub(crate) payload: Vec<u8>,
}

impl Message {
    pub(crate) fn completion(kind: NetMessage, id: u64, payload: &[u8]) -> Self {
        Self {
            kind,
            packet_type: PacketType::COMPLETION,
            flags: PacketFlags::empty(),
            id,
            transfer: None,
            payload: payload.to_vec(),
        }
    }

    pub(crate) fn notice(kind: NetMessage, payload: &[u8]) -> Self {
        Self {
            packet_type: PacketType::DATA_INBAND,
            ..Self::completion(kind, 0, payload)
        }
    }

    fn put(&self, io: &mut DeviceIo<'_>, index: u16) -> Result<(), SendError> {
        match &self.transfer {
            // A fault may have made another packet of it.
            Some((header, ranges)) if self.packet_type == PacketType::DATA_USING_XFER_PAGES => {
                io.put_transfer_pages(index, *header, ranges, self.id, &self.payload)
            }
            _ => io.put(index, self.packet_type, self.flags, self.id, &self.payload),
        }
    }
}

/// What waits for room in a channel's ring.
#[derive(Default)]
pub(crate) struct Outbox {
    waiting: VecDeque<Message>,
    /// Something was put that the guest has not been shown.
    dirty: bool,
}

impl Outbox {
    /// Whether everything has gone out.
    pub(crate) fn is_clear(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sends a message behind those that wait, as often as faults want; `false`: they lost it.
    pub(crate) fn post(
        &mut self,
        io: &mut DeviceIo<'_>,
        index: u16,
        mut message: Message,
        faults: &mut Faults,
    ) -> bool {
        let copies = match faults.on_message(index, &mut message) {
            Fate::Lost => return false,
            Fate::Once => 1,
            Fate::Twice => 2,
        };
        for _ in 1..copies {
            self.waiting.push_back(message.clone());
        }
        self.waiting.push_back(message);
        self.flush(io, index);
        true
    }

    /// Sends what waits, as far as there is room.
    pub(crate) fn flush(&mut self, io: &mut DeviceIo<'_>, index: u16) {
        while let Some(message) = self.waiting.front() {
            match message.put(io, index) {
                Ok(()) => self.dirty = true,
                Err(SendError::Full) => return,
                // Can never be sent.
                Err(_) => {}
            }
            self.waiting.pop_front();
        }
    }

    /// Shows the guest what was put.
    pub(crate) fn commit(&mut self, io: &mut DeviceIo<'_>, index: u16) {
        if std::mem::take(&mut self.dirty) {
            io.commit(index);
        }
    }
}
