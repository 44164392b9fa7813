// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Misbehaviour on request.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use hv_partition::VpIndex;
use hvctl::Fault;
use vmbus_proto::msg::{Status, MAX_MESSAGE_SIZE, VMBUS_SINT};
use vmbus_proto::packet::{PacketFlags, PacketType};

use super::Engine;
use crate::channel::Outgoing;
use crate::server::OfferId;

/// Faults that are armed.
#[derive(Default)]
pub(super) struct Faults {
    /// Messages to let pass before one is dropped.
    drop_after: Option<u32>,
    delay: Option<(u32, Duration)>,
    duplicate: bool,
    /// Channels whose ring is not read.
    pub(super) stalled: HashSet<OfferId>,
}

impl Faults {
    /// What becomes of a message to the guest: one entry for each copy, with the time before which it may not
    /// be sent.
    pub(super) fn on_message(&mut self, now: Instant) -> Vec<Option<Instant>> {
        if let Some(left) = self.drop_after {
            self.drop_after = left.checked_sub(1);
            if left == 0 {
                return Vec::new();
            }
        }
        let not_before = self.delay.map(|(_, by)| now + by);
        self.delay = self
            .delay
            .and_then(|(count, by)| (count > 1).then(|| (count - 1, by)));
        if std::mem::take(&mut self.duplicate) {
            vec![not_before; 2]
        } else {
            vec![not_before]
        }
    }
}

pub(crate) fn bytes(hex: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
    digits
        .chunks(2)
        .map(|pair| match *pair {
            [high, low] => Some((digit(high)? << 4) | digit(low)?),
            _ => None,
        })
        .collect::<Option<Vec<u8>>>()
        .ok_or_else(|| "hex: expected pairs of hexadecimal digits".into())
}

impl Engine {
    pub(super) fn inject(&mut self, fault: &Fault) -> Result<(), String> {
        tracing::info!(?fault, "fault injected");
        match fault {
            Fault::DropMessage { skip } => self.faults.drop_after = Some(*skip),
            Fault::DelayMessages { count, ms } => {
                self.faults.delay =
                    (*count > 0).then(|| (*count, Duration::from_millis((*ms).min(600_000))));
            }
            Fault::DuplicateMessage => self.faults.duplicate = true,
            Fault::PostMessage { hex, msg_type, vp } => {
                let bytes = bytes(hex)?;
                if bytes.len() > MAX_MESSAGE_SIZE {
                    return Err(format!(
                        "{} bytes exceed a message's {MAX_MESSAGE_SIZE}",
                        bytes.len()
                    ));
                }
                self.partition
                    .post_message(VpIndex(*vp), VMBUS_SINT, *msg_type, &bytes)
                    .map_err(|e| e.to_string())?;
            }
            Fault::RefusePost { count, status } => self.inbox.refuse_posts(*count, *status),
            Fault::RefuseOpen { count, status } => {
                self.server.refuse_opens(*count, Status(*status))
            }
            Fault::RefuseGpadl { count, status } => {
                self.server.refuse_gpadls(*count, Status(*status))
            }
            Fault::CorruptRing {
                device,
                ring,
                field,
                value,
            } => {
                let id = self.primary(device)?;
                self.channels[id.0].corrupt(&*self.partition, *ring, *field, *value)?;
            }
            Fault::SendPacket {
                device,
                packet_type,
                flags,
                transaction_id,
                hex,
            } => {
                let id = self.primary(device)?;
                let packet = Outgoing {
                    packet_type: PacketType(*packet_type),
                    flags: PacketFlags::from_bits_retain(*flags),
                    transaction_id: *transaction_id,
                    extra: [&[], &[]],
                    payload: &bytes(hex)?,
                };
                let channel = &mut self.channels[id.0];
                channel
                    .put(&*self.partition, &packet)
                    .map_err(|e| e.to_string())?;
                channel.commit(&*self.partition);
            }
            Fault::SendRaw { device, hex } => {
                let id = self.primary(device)?;
                self.channels[id.0].send_raw(&*self.partition, &bytes(hex)?)?;
            }
            Fault::SignalEvent { vp, flag } => {
                self.partition
                    .signal_event(VpIndex(*vp), VMBUS_SINT, *flag)
                    .map_err(|e| e.to_string())?;
            }
            Fault::StallDevice { device, on } => {
                let offers = self.devices[self.find_device(device)?].offers.clone();
                for id in offers {
                    if *on {
                        self.faults.stalled.insert(id);
                    } else if self.faults.stalled.remove(&id) {
                        self.backlog.push(id);
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_read_or_refused() {
        assert_eq!(bytes("00 ff\n1A"), Ok(vec![0, 0xff, 0x1a]));
        assert_eq!(bytes(""), Ok(vec![]));
        assert!(bytes("0").is_err());
        assert!(bytes("zz").is_err());
        assert!(bytes("é").is_err());
    }

    #[test]
    fn each_message_fault_hits_what_it_says() {
        let now = Instant::now();
        let mut faults = Faults {
            drop_after: Some(1),
            ..Faults::default()
        };
        assert_eq!(faults.on_message(now).len(), 1);
        assert_eq!(faults.on_message(now).len(), 0);
        assert_eq!(faults.on_message(now).len(), 1);
        faults.duplicate = true;
        assert_eq!(faults.on_message(now).len(), 2);
        assert_eq!(faults.on_message(now).len(), 1);
        faults.delay = Some((2, Duration::from_secs(1)));
        assert_eq!(faults.on_message(now), [Some(now + Duration::from_secs(1))]);
        assert_eq!(faults.on_message(now), [Some(now + Duration::from_secs(1))]);
        assert_eq!(faults.on_message(now), [None]);
    }
}
