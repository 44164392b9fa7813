// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What the integration services have in common: a message pipe, a version negotiation after each open, and
//! requests that the guest answers.

use hvctl::Event;
use vmbus_proto::class;
use vmbus_proto::ic::{self, negotiate, IcVersion, MessageType, Negotiated, Status};
use vmbus_proto::msg::{OfferFlags, PipeMode, USER_DATA_SIZE};
use vmbus_proto::packet::{Packet, PacketFlags, PacketKind, PacketType};
use vmbus_proto::Guid;

use crate::channel::SendError;
use crate::device::{DeviceInfo, DeviceIo};

/// A request that was answered.
pub(super) struct Answer<'a> {
    /// The id that [`Ic::request`] gave.
    pub(super) id: u64,
    pub(super) status: Status,
    pub(super) body: &'a [u8],
}

/// What a packet brought.
pub(super) enum Incoming<'a> {
    /// Versions are agreed.
    Negotiated,
    /// A request was answered.
    Answer(Answer<'a>),
    /// Nothing to act on; a fault of the guest is recorded.
    Nothing,
}

/// Transaction id of a packet that has none. The message in it has an id of its own, which is all that Linux' `hv_fcopy_uio_daemon` sends back
/// (`rte_vmbus_chan_send()`, `VMBUS_RQST_ERROR`).
const NO_ID: u64 = u64::MAX;

/// The common part of an integration service.
pub(super) struct Ic {
    name: &'static str,
    class: Guid,
    instance: Guid,
    service: MessageType,
    frameworks: Vec<IcVersion>,
    versions: Vec<IcVersion>,
    monitored: bool,
    agreed: Option<Negotiated>,
    /// The negotiation could not be sent yet.
    propose_later: bool,
    next_id: u64,
}

fn version(text: &str) -> Result<IcVersion, String> {
    text.split_once('.')
        .and_then(|(major, minor)| Some(IcVersion::new(major.parse().ok()?, minor.parse().ok()?)))
        .ok_or_else(|| format!("{text:?} is not a version such as 3.0"))
}

/// Keeps the versions up to `max`; at least one must be left.
fn up_to(list: &mut Vec<IcVersion>, max: &str) -> Result<(), String> {
    let max = version(max)?;
    list.retain(|v| *v <= max);
    if list.is_empty() {
        return Err(format!("no version up to {max} exists"));
    }
    Ok(())
}

impl Ic {
    /// Arguments: `max=3.0` (newest version of the service), `framework=1.0` (newest framework version),
    /// `monitor=on` (the guest signals by monitor page).
    pub(super) fn new(
        name: &'static str,
        class: Guid,
        instance: Guid,
        service: MessageType,
        versions: &[IcVersion],
        args: &[(String, String)],
    ) -> Result<Self, String> {
        let mut ic = Self {
            name,
            class,
            instance,
            service,
            frameworks: ic::FRAMEWORK_VERSIONS.to_vec(),
            versions: versions.to_vec(),
            monitored: false,
            agreed: None,
            propose_later: false,
            next_id: 1,
        };
        for (key, value) in args {
            match (key.as_str(), value.as_str()) {
                ("max", v) => up_to(&mut ic.versions, v)?,
                ("framework", v) => up_to(&mut ic.frameworks, v)?,
                ("monitor", "on") => ic.monitored = true,
                ("monitor", "off") => ic.monitored = false,
                _ => {
                    return Err(format!(
                        "no argument {key}={value}; there are max, framework, monitor=on|off"
                    ))
                }
            }
        }
        Ok(ic)
    }

    pub(super) fn info(&self) -> DeviceInfo {
        let mut user_data = [0; USER_DATA_SIZE];
        user_data[..4].copy_from_slice(&PipeMode::MESSAGE.0.to_le_bytes());
        DeviceInfo {
            name: self.name.into(),
            class: self.class,
            instance: self.instance,
            flags: OfferFlags::ENUMERATE_DEVICE_INTERFACE | OfferFlags::NAMED_PIPE_MODE,
            user_data,
            mmio_megabytes: 0,
            monitored: self.monitored,
            max_subchannels: 0,
        }
    }

    pub(super) fn agreed(&self) -> Option<String> {
        self.agreed
            .map(|n| format!("{}/{}", n.framework, n.message))
    }

    pub(super) fn negotiated(&self) -> Option<Negotiated> {
        self.agreed
    }

    /// The channel was opened: the host speaks first.
    pub(super) fn opened(&mut self, io: &mut DeviceIo<'_>) {
        self.agreed = None;
        self.propose_later = true;
        self.poll(io);
    }

    pub(super) fn closed(&mut self) {
        self.agreed = None;
        self.propose_later = false;
    }

    /// The ring may have room again.
    pub(super) fn poll(&mut self, io: &mut DeviceIo<'_>) {
        if !std::mem::take(&mut self.propose_later) {
            return;
        }
        let mut buf = [0; 512];
        let sent = negotiate::propose(&mut buf, 0, &self.frameworks, &self.versions)
            .map_err(|e| format!("{e:?}"))
            .and_then(|n| {
                io.send(
                    0,
                    PacketType::DATA_INBAND,
                    PacketFlags::empty(),
                    0,
                    &buf[..n],
                )
                .or_else(|e| self.retry(e))
            });
        if let Err(e) = sent {
            tracing::warn!("{}: negotiation: {e}", self.name);
        }
    }

    fn retry(&mut self, e: SendError) -> Result<(), String> {
        match e {
            SendError::Full => {
                self.propose_later = true;
                Ok(())
            }
            other => Err(other.to_string()),
        }
    }

    /// Sends a request of the service; its id.
    ///
    /// # Errors
    /// [`SendError::Closed`] also when versions are not agreed yet.
    pub(super) fn request(&mut self, io: &mut DeviceIo<'_>, body: &[u8]) -> Result<u64, SendError> {
        let versions = self.agreed.ok_or(SendError::Closed)?;
        let id = self.next_id;
        let mut buf = vec![0; ic::HEADERS_SIZE + body.len()];
        let n = ic::write_request(&mut buf, versions, self.service, id as u8, body)
            .map_err(|_| SendError::TooLarge)?;
        io.send(
            0,
            PacketType::DATA_INBAND,
            PacketFlags::empty(),
            id,
            &buf[..n],
        )?;
        self.next_id += 1;
        Ok(id)
    }

    /// Checks a packet from the guest.
    pub(super) fn packet<'a>(
        &mut self,
        io: &mut DeviceIo<'_>,
        packet: &Packet<'a>,
    ) -> Incoming<'a> {
        // The next request may go at once, and its answer must find room: two of file copy are more than the ring of Linux'
        // drivers, of which none tries again (`vmbus_sendpacket` in `hv_fcopy.c` and `hv_fcopy_uio_daemon.c`).
        io.give_room(0);
        if packet.kind != PacketKind::InBand {
            io.violation(format!(
                "packet of type {:?}, expected in-band data",
                packet.descriptor.packet_type
            ));
            return Incoming::Nothing;
        }
        let (header, body) = match ic::parse_response(packet.payload) {
            Ok(parsed) => parsed,
            Err(e) => {
                io.violation(format!("answer of {} bytes: {e:?}", packet.payload.len()));
                return Incoming::Nothing;
            }
        };
        let message_type = header.message_type;
        if message_type == MessageType::NEGOTIATE {
            if self.agreed.is_some() {
                io.violation("second answer to the version negotiation");
                return Incoming::Nothing;
            }
            return match negotiate::parse_answer(packet.payload, &self.frameworks, &self.versions) {
                Ok(agreed) => {
                    self.agreed = Some(agreed);
                    let text = self.agreed().unwrap_or_default();
                    tracing::info!("{}: agreed on {text}", self.name);
                    io.event(Event::Negotiated {
                        device: self.name.into(),
                        agreed: text,
                    });
                    Incoming::Negotiated
                }
                // Nothing in common is a lawful answer: the service stays silent.
                Err(ic::IcError::NoMessageVersion) => {
                    tracing::warn!("{}: the guest speaks none of our versions", self.name);
                    Incoming::Nothing
                }
                Err(e) => {
                    io.violation(format!("answer to the version negotiation: {e:?}"));
                    Incoming::Nothing
                }
            };
        }
        if message_type != self.service {
            io.violation(format!(
                "answer to a request of another service: {message_type:?}"
            ));
            return Incoming::Nothing;
        }
        let id = match packet.transaction_id() {
            NO_ID => self.last_with(header.transaction_id),
            id => id,
        };
        if id == 0 || id >= self.next_id {
            io.violation(format!("answer to request {id} that was not made"));
            return Incoming::Nothing;
        }
        if header.transaction_id != id as u8 {
            io.violation(format!(
                "answer {id} names transaction {}",
                header.transaction_id
            ));
            return Incoming::Nothing;
        }
        Incoming::Answer(Answer {
            id,
            status: header.status,
            body,
        })
    }

    /// The last request whose message bears this id; 0 if there is none.
    fn last_with(&self, message_id: u8) -> u64 {
        let last = self.next_id - 1;
        let back = (last as u8).wrapping_sub(message_id);
        last.saturating_sub(back.into())
    }
}

/// Instance GUIDs as Hyper-V has them (OpenVMM `hyperv_ic_protocol`; heartbeat: `lsvmbus -vv` of Hyper-V guests).
pub(super) mod instance {
    use super::Guid;

    pub(crate) const HEARTBEAT: Guid = Guid::new(
        0xfd14_9e91,
        0x82e0,
        0x4a7d,
        [0xaf, 0xa6, 0x2a, 0x41, 0x66, 0xcb, 0xd7, 0xc0],
    );
    pub(crate) const SHUTDOWN: Guid = Guid::new(
        0xb665_0ff7,
        0x33bc,
        0x4840,
        [0x80, 0x48, 0xe0, 0x67, 0x67, 0x86, 0xf3, 0x93],
    );
    /// `lsvmbus -vv` of Hyper-V guests, as for the two below.
    pub(crate) const VSS: Guid = Guid::new(
        0x2450_ee40,
        0x33bf,
        0x4fbd,
        [0x89, 0x2e, 0x9f, 0xb0, 0x6e, 0x92, 0x14, 0xcf],
    );
    /// Also in Linux' `tools/hv/hv_fcopy_uio_daemon.c`, which finds the device by it.
    pub(crate) const FCOPY: Guid = Guid::new(
        0xeb76_5408,
        0x105f,
        0x49b6,
        [0xb4, 0xaa, 0xc1, 0x23, 0xb6, 0x4d, 0x17, 0xd4],
    );
    pub(crate) const KVP: Guid = Guid::new(
        0x242f_f919,
        0x07db,
        0x4180,
        [0x9c, 0x2e, 0xb8, 0x6c, 0xb6, 0x8c, 0x8c, 0x55],
    );
    pub(crate) const TIMESYNC: Guid = Guid::new(
        0x2dd1_ce17,
        0x079e,
        0x403c,
        [0xb3, 0x52, 0xa1, 0x92, 0x1e, 0xe2, 0x07, 0xee],
    );
}

/// Class GUIDs, for the models beside.
pub(super) use class::{
    FCOPY as CLASS_FCOPY, HEARTBEAT as CLASS_HEARTBEAT, KVP as CLASS_KVP,
    SHUTDOWN as CLASS_SHUTDOWN, TIMESYNC as CLASS_TIMESYNC, VSS as CLASS_VSS,
};
