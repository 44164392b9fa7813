// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The VMBus server: what the host answers to the guest's channel messages. No I/O: each call
//! changes state and leaves [`Action`]s to be done by the caller, in order.
//!
//! ```text
//! connection:  Disconnected ──INITIATE_CONTACT──> Connected ──REQUESTOFFERS──> Connected, offers sent
//!                   ^                                │ ^                          │
//!                   └──────UNLOAD, VM reset──────────┘ └──INITIATE_CONTACT (kexec)┘
//! channel:     Idle ──offer──> Offered ──OPENCHANNEL──> Opening ──device──> Open
//!               ^ ^               │  ^─────CLOSECHANNEL────────────────────────┘
//!               │ └─RELID_RELEASED┤
//!               └─RELID_RELEASED─ Revoked <──rescind── (any of them)
//! ```
//!
//! Whatever breaks the protocol is refused, changes nothing, and is recorded as a violation. What a
//! conforming guest may do because it does not know yet that its channel was rescinded (close,
//! GPADL teardown, modify, open) is no violation.
//!
//! Facts about what Hyper-V does where the C headers are silent are taken from OpenVMM's
//! `vmbus_server` (`channels.rs`).

mod channel;
mod contact;
mod gpadl;
#[cfg(test)]
mod tests;
mod violations;

use std::collections::{BTreeMap, HashMap, VecDeque};

use hv_partition::{GuestRam, VpIndex};
use hvctl::Event;
use vmbus_proto::msg::{
    ChannelMessage, GpadlId, GuestMessage, MessageBuffer, OfferFlags, Relid, Status,
    TlConnectResult, USER_DATA_SIZE, VMBUS_MESSAGE_TYPE,
};
use vmbus_proto::{FeatureFlags, Guid, VmbusVersion};

pub use channel::{connection_id, relid_of_connection, OpenParams, OpenRequest};
pub use gpadl::{Gpadl, GpadlRange, SharedGpadl};
pub use violations::ViolationLog;

/// Index of an offer in the server, stable for the life of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OfferId(pub usize);

/// What the host offers for one channel.
#[derive(Clone, Debug)]
pub struct OfferSpec {
    /// Name for people.
    pub name: String,
    /// Interface type (class GUID).
    pub class: Guid,
    /// Instance GUID.
    pub instance: Guid,
    /// 0: the device's primary channel.
    pub subchannel: u16,
    /// Channel flags of the offer.
    pub flags: OfferFlags,
    /// MMIO the device needs, in MiB.
    pub mmio_megabytes: u16,
    /// The 120 bytes that belong to the device.
    pub user_data: [u8; USER_DATA_SIZE],
    /// Whether the guest shall signal by monitor page.
    pub monitored: bool,
}

/// Life of a channel as the server sees it.
#[derive(Clone, Debug)]
pub(crate) enum ChannelState {
    /// The guest does not know it.
    Idle,
    /// Offered and closed.
    Offered {
        /// Id in messages.
        relid: Relid,
    },
    /// The guest asked to open it; the device has not answered yet.
    Opening {
        /// Id in messages.
        relid: Relid,
        /// What was asked.
        request: OpenRequest,
    },
    /// Open.
    Open {
        /// Id in messages.
        relid: Relid,
        /// As it was opened; `target_vp` follows MODIFYCHANNEL.
        request: OpenRequest,
    },
    /// Rescinded; the guest has not released the relid.
    Revoked {
        /// Id in messages.
        relid: Relid,
    },
}

impl ChannelState {
    pub(crate) fn relid(&self) -> Option<Relid> {
        match *self {
            Self::Idle => None,
            Self::Offered { relid }
            | Self::Opening { relid, .. }
            | Self::Open { relid, .. }
            | Self::Revoked { relid } => Some(relid),
        }
    }
}

/// One channel that the host may offer.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) spec: OfferSpec,
    /// Whether the host wants it offered.
    pub(crate) wanted: bool,
    pub(crate) state: ChannelState,
    pub(crate) monitor_id: Option<u8>,
}

/// Guest-physical addresses of the two monitor pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MonitorPages {
    /// The guest reads it; unused by this host, which signals by event flags alone.
    pub parent_to_child: u64,
    /// The guest sets trigger bits in it.
    pub child_to_parent: u64,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) version: VmbusVersion,
    pub(crate) features: FeatureFlags,
    pub(crate) message_vp: VpIndex,
    pub(crate) monitor_pages: Option<MonitorPages>,
    pub(crate) offers_requested: bool,
}

/// What the caller has to do, in order.
#[derive(Debug)]
pub enum Action {
    /// Post a channel message to the guest.
    Post {
        /// Where to.
        vp: VpIndex,
        /// Channel message, header included.
        message: MessageBuffer,
    },
    /// Ask the device to open; answer with [`Server::open_complete`].
    Open {
        /// Which channel.
        offer: OfferId,
        /// With what.
        params: OpenParams,
    },
    /// The channel is closed: rings must not be touched any more.
    Close {
        /// Which channel.
        offer: OfferId,
    },
    /// Interrupts of the open channel go to another VP from now on.
    Retarget {
        /// Which channel.
        offer: OfferId,
        /// `None`: no interrupts.
        vp: Option<VpIndex>,
    },
    /// A GPADL of the channel is gone and must not be used any more.
    GpadlGone {
        /// Which channel.
        offer: OfferId,
        /// Which GPADL.
        id: GpadlId,
    },
    /// Tell watchers.
    Event(Event),
}

/// The server. See the module's documentation.
pub struct Server {
    max_version: VmbusVersion,
    vp_count: u32,
    ram: GuestRam,
    pub(crate) connection: Option<Connection>,
    pub(crate) offers: Vec<Offer>,
    relids: BTreeMap<Relid, OfferId>,
    gpadls: HashMap<GpadlId, Gpadl>,
    gpadl_pages: usize,
    violations: ViolationLog,
    actions: VecDeque<Action>,
    /// Times a guest connected.
    pub(crate) connects: u64,
    /// Times a guest unloaded.
    pub(crate) unloads: u64,
    refuse_open: (u32, Status),
    refuse_gpadl: (u32, Status),
}

impl Server {
    /// A server that no guest has contacted. `ram` is used to tell RAM from other addresses only.
    pub fn new(max_version: VmbusVersion, vp_count: u32, ram: GuestRam) -> Self {
        Self {
            max_version,
            vp_count,
            ram,
            connection: None,
            offers: Vec::new(),
            relids: BTreeMap::new(),
            gpadls: HashMap::new(),
            gpadl_pages: 0,
            violations: ViolationLog::default(),
            actions: VecDeque::new(),
            connects: 0,
            unloads: 0,
            refuse_open: (0, Status::SUCCESS),
            refuse_gpadl: (0, Status::SUCCESS),
        }
    }

    /// The next thing to do.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Takes a message that the guest posted to `connection_id`.
    pub fn on_guest_message(&mut self, connection_id: u32, msg_type: u32, payload: &[u8]) {
        if let Err(text) = self.take_message(connection_id, msg_type, payload) {
            self.violation(text);
        }
    }

    fn take_message(
        &mut self,
        connection_id: u32,
        msg_type: u32,
        payload: &[u8],
    ) -> Result<(), String> {
        if msg_type != VMBUS_MESSAGE_TYPE {
            return Err(format!(
                "SynIC message type {msg_type}, expected {VMBUS_MESSAGE_TYPE}"
            ));
        }
        let message = GuestMessage::parse(payload).map_err(|e| e.to_string())?;
        tracing::trace!(?message, connection_id, "message from guest");
        let message_type = message.message_type();
        if let GuestMessage::InitiateContact { base, client_id } = &message {
            return self.on_initiate_contact(connection_id, base, *client_id);
        }
        let Some(connection) = &self.connection else {
            return Err(format!("{message_type:?} without a connection"));
        };
        let (version, features) = (connection.version, connection.features);
        if !message_type.allowed_at(version, features) {
            return Err(format!(
                "{message_type:?} does not exist in version {version} with features {features:?}"
            ));
        }
        match message {
            GuestMessage::InitiateContact { .. } => Ok(()),
            GuestMessage::Unload(_) => self.on_unload(),
            GuestMessage::RequestOffers(_) => self.on_request_offers(),
            GuestMessage::GpadlHeader { base, data } => self.on_gpadl_header(&base, data),
            GuestMessage::GpadlBody { base, data } => self.on_gpadl_body(base.gpadl, data),
            GuestMessage::GpadlTeardown(m) => self.on_gpadl_teardown(m.relid, m.gpadl),
            GuestMessage::OpenChannel { base, .. } => self.on_open(&base),
            GuestMessage::CloseChannel(m) => self.on_close(m.relid),
            GuestMessage::RelidReleased(m) => self.on_relid_released(m.relid),
            GuestMessage::ModifyChannel(m) => self.on_modify(m.relid, m.target_vp),
            GuestMessage::ModifyConnection(m) => self.on_modify_connection(&m),
            GuestMessage::TlConnectRequest { base, .. } => {
                // No socket service exists here. Before 4.1 there is no way to say so; the guest's
                // connect times out.
                if version.has_tl_connect_result() {
                    self.send(&TlConnectResult {
                        endpoint_id: base.endpoint_id,
                        service_id: base.service_id,
                        status: Status::CONNECTION_REFUSED,
                        ..TlConnectResult::blank()
                    });
                }
                Ok(())
            }
            // For channels without an offer, which this host does not have.
            GuestMessage::OpenReservedChannel(m) => {
                Err(format!("{message_type:?}: no reserved channel {}", m.relid))
            }
            GuestMessage::CloseReservedChannel(m) => {
                Err(format!("{message_type:?}: no reserved channel {}", m.relid))
            }
            // Not granted, so stopped above.
            GuestMessage::Pause(_) | GuestMessage::Resume(_) => Ok(()),
        }
    }

    /// Forgets the guest without a word to it: the VM was reset.
    pub fn reset(&mut self) {
        self.disconnect();
        self.actions.push_back(Action::Event(Event::VmReset));
    }

    /// Records a violation that was found outside of messages (a malformed packet, a bad ring).
    pub fn violation(&mut self, text: String) {
        tracing::warn!("protocol violation: {text}");
        self.violations.add(text.clone());
        self.actions
            .push_back(Action::Event(Event::Violation { text }));
    }

    /// What was recorded.
    pub fn violations(&self) -> &ViolationLog {
        &self.violations
    }

    /// Forgets what was recorded.
    pub fn clear_violations(&mut self) {
        self.violations = ViolationLog::default();
    }

    /// Where the connection is in its life.
    pub fn connection_state(&self) -> hvctl::ConnectionState {
        match &self.connection {
            None => hvctl::ConnectionState::Disconnected,
            Some(c) if c.offers_requested => hvctl::ConnectionState::OffersDelivered,
            Some(_) => hvctl::ConnectionState::Connected,
        }
    }

    /// Whether the guest asked for offers on this connection.
    pub fn offers_delivered(&self) -> bool {
        self.connection.as_ref().is_some_and(|c| c.offers_requested)
    }

    /// The version agreed on.
    pub fn version(&self) -> Option<VmbusVersion> {
        self.connection.as_ref().map(|c| c.version)
    }

    /// The channel that the guest knows under `relid`.
    pub fn offer_of(&self, relid: Relid) -> Option<OfferId> {
        self.relids.get(&relid).copied()
    }

    /// Where channel messages go.
    pub fn message_vp(&self) -> Option<VpIndex> {
        self.connection.as_ref().map(|c| c.message_vp)
    }

    /// The guest's monitor pages.
    pub fn monitor_pages(&self) -> Option<MonitorPages> {
        self.connection.as_ref().and_then(|c| c.monitor_pages)
    }

    /// Whether the channel is open.
    pub fn is_open(&self, id: OfferId) -> bool {
        matches!(self.offers[id.0].state, ChannelState::Open { .. })
    }

    /// Whether the channel is rescinded and its relid not released.
    pub fn is_revoked(&self, id: OfferId) -> bool {
        matches!(self.offers[id.0].state, ChannelState::Revoked { .. })
    }

    /// State for people, and the relid the guest knows it by.
    pub fn channel_state(&self, id: OfferId) -> (hvctl::ChannelState, Option<Relid>) {
        let state = &self.offers[id.0].state;
        let public = match state {
            ChannelState::Idle => hvctl::ChannelState::Hidden,
            ChannelState::Offered { .. } | ChannelState::Opening { .. } => {
                hvctl::ChannelState::Offered
            }
            ChannelState::Open { .. } => hvctl::ChannelState::Open,
            ChannelState::Revoked { .. } => hvctl::ChannelState::Rescinded,
        };
        (public, state.relid())
    }

    /// Live and unfinished GPADLs.
    pub fn gpadl_count(&self) -> usize {
        self.gpadls.len()
    }

    /// Fault injection: the next `count` opens get `status`.
    pub fn refuse_opens(&mut self, count: u32, status: Status) {
        self.refuse_open = (count, status);
    }

    /// Fault injection: the next `count` GPADLs get `status`.
    pub fn refuse_gpadls(&mut self, count: u32, status: Status) {
        self.refuse_gpadl = (count, status);
    }

    fn send<M: ChannelMessage + std::fmt::Debug>(&mut self, message: &M) {
        let vp = self
            .connection
            .as_ref()
            .map_or(VpIndex(0), |c| c.message_vp);
        self.send_to(vp, message);
    }

    fn send_to<M: ChannelMessage + std::fmt::Debug>(&mut self, vp: VpIndex, message: &M) {
        tracing::trace!(?message, vp = vp.0, "message to guest");
        self.actions.push_back(Action::Post {
            vp,
            message: MessageBuffer::from_message(message),
        });
    }

    fn event(&mut self, event: Event) {
        self.actions.push_back(Action::Event(event));
    }

    /// The offer that the guest knows under `relid`.
    fn by_relid(&self, relid: Relid, what: &str) -> Result<OfferId, String> {
        self.relids
            .get(&relid)
            .copied()
            .ok_or_else(|| format!("{what}: relid {relid} is not offered"))
    }

    fn is_ram_page(&self, gpa: u64) -> bool {
        gpa % 4096 == 0 && self.ram.is_ram(gpa, 4096)
    }

    fn valid_vp(&self, vp: u32) -> bool {
        vp < self.vp_count
    }
}

/// Takes one from a counted fault; the status if there was one left.
fn take_fault(fault: &mut (u32, Status)) -> Option<Status> {
    if fault.0 == 0 {
        return None;
    }
    fault.0 -= 1;
    Some(fault.1)
}
