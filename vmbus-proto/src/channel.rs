// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The life of a channel on the client's side, and the judgement of offers.
//!
//! Like [`crate::connection`], this decides and does no I/O: methods that speak to the host return the
//! message to post, [`Channel::on_message`] takes what the host says about the channel.
//!
//! ```text
//!             share_ring           GPADL_CREATED            open            OPEN_CHANNEL_RESULT
//!  Offered ───────────────> Sharing ──────────> RingShared ──────> Opening ───────────> Open
//!     ▲  ▲───── refused ───────┘                 │  ▲  ▲─────── refused ──┘              │
//!     │                                          │  └──────────────── close ─────────────┘
//!     └──GPADL_TORNDOWN── Unsharing <──unshare───┘
//!
//!  any ──RESCIND──> Rescinded ──release──> Released
//!  any ──end of the connection──> Detached ──offered again──> Offered
//! ```
//!
//! Source: Linux `channel.c`, `__vmbus_open`, `vmbus_close_internal`; `channel_mgmt.c`,
//! `vmbus_process_offer`, `vmbus_onoffer_rescind`; OpenVMM `vmbus_server`, `channels.rs`.

use core::fmt;

use crate::class::class_of;
use crate::msg::{
    ChannelMessage, CloseChannel, GpadlId, GpadlTeardown, HostMessage, MessageType, ModifyChannel,
    OfferChannel, OfferFlags, OpenChannel, Relid, RelidReleased, Status, USER_DATA_SIZE,
};
use crate::version::VmbusVersion;

/// State of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The host offers the channel; no memory is shared.
    Offered,
    /// The messages of the rings' GPADL were given out; the host has not answered.
    Sharing(GpadlId),
    /// The host holds the rings' memory, and the channel is not open (yet, or any more).
    RingShared(GpadlId),
    /// OPEN_CHANNEL was given out; the host has not answered.
    Opening {
        /// The rings.
        ring: GpadlId,
        /// The request's number.
        open_id: u32,
    },
    /// Packets flow.
    Open {
        /// The rings.
        ring: GpadlId,
        /// MODIFY_CHANNEL was given out and will be answered; both VPs may be interrupted.
        moving: bool,
    },
    /// GPADL_TEARDOWN was given out; until the answer the host may use the rings.
    Unsharing(GpadlId),
    /// The host has taken the channel back. It uses no memory of it and listens to nothing about it,
    /// but keeps the relid until we release it.
    Rescinded,
    /// The relid was given back: it may mean another channel by now.
    Released,
    /// The connection has ended, and the relid with it; the device may be offered again.
    Detached,
}

impl State {
    /// Whether the host may use memory of the channel's rings.
    #[must_use]
    pub const fn host_may_use_ring(self) -> bool {
        match self {
            Self::Offered | Self::Rescinded | Self::Released | Self::Detached => false,
            Self::Sharing(_)
            | Self::RingShared(_)
            | Self::Opening { .. }
            | Self::Open { .. }
            | Self::Unsharing(_) => true,
        }
    }

    /// The GPADL of the rings, if there is one.
    #[must_use]
    pub const fn ring(self) -> Option<GpadlId> {
        match self {
            Self::Sharing(ring)
            | Self::RingShared(ring)
            | Self::Opening { ring, .. }
            | Self::Open { ring, .. }
            | Self::Unsharing(ring) => Some(ring),
            Self::Offered | Self::Rescinded | Self::Released | Self::Detached => None,
        }
    }
}

/// What the owner is to do about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// The host holds the rings: [`Channel::open`] is possible.
    RingShared,
    /// The host does not take the rings; the memory is ours.
    RingRefused(Status),
    /// Packets may flow.
    Opened,
    /// The channel stays closed; take the rings back with [`Channel::unshare_ring`].
    OpenRefused(Status),
    /// The rings' memory is ours again.
    RingFree,
    /// The interrupt was moved, or not: only with success is the old VP out of use.
    Moved(Status),
    /// Stop using the channel, let every waiter fail, then [`Channel::release`]. `was` says how far it
    /// had come.
    Rescinded {
        /// The state before.
        was: State,
    },
    /// About another GPADL of the channel, or another channel. What no channel takes has crossed with a
    /// release of its relid (the host reuses a relid only after the release, so that nobody else can
    /// be meant) and is to be ignored.
    NotMine,
    /// Nothing: an answer that crossed with a rescind.
    Late,
    /// The host broke the protocol, or is confused: report it. Nothing has changed.
    Unexpected(MessageType),
}

/// The call is not possible in the present state; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongState(pub State);

impl fmt::Display for WrongState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not possible for a channel that is {:?}", self.0)
    }
}

impl core::error::Error for WrongState {}

/// Why a channel's interrupt cannot be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveError {
    /// The channel is not open, or is being moved already.
    WrongState(State),
    /// The version has no MODIFY_CHANNEL (it came with 4.1).
    NotSupported(VmbusVersion),
}

impl fmt::Display for MoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongState(state) => WrongState(*state).fmt(f),
            Self::NotSupported(version) => {
                write!(f, "VMBus {version} cannot move a channel's interrupt")
            }
        }
    }
}

impl core::error::Error for MoveError {}

/// What OPEN_CHANNEL says besides the channel and its rings.
#[derive(Clone, Copy, Debug)]
pub struct OpenRequest {
    /// Number of the request, to tell its answer from others'.
    pub open_id: u32,
    /// VP to interrupt.
    pub target_vp: u32,
    /// Where in the rings' GPADL the host-to-guest ring starts, in pages of 4 KiB.
    pub downstream_page_offset: u32,
    /// Data for the device.
    pub user_data: [u8; USER_DATA_SIZE],
}

/// A channel on the client's side. Put it under a lock that the message handler may take.
#[derive(Clone, Debug)]
pub struct Channel {
    offer: OfferChannel,
    version: VmbusVersion,
    state: State,
    /// The state before the message last given out, for [`Channel::not_posted`].
    before: State,
}

impl Channel {
    /// A channel just offered (and judged, see [`judge_offer`]) on a connection of `version`.
    #[must_use]
    pub const fn new(offer: OfferChannel, version: VmbusVersion) -> Self {
        Self {
            offer,
            version,
            state: State::Offered,
            before: State::Offered,
        }
    }

    /// The offer.
    #[must_use]
    pub const fn offer(&self) -> &OfferChannel {
        &self.offer
    }

    /// The channel's state.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// The name of the channel in messages, while it has one.
    #[must_use]
    pub const fn relid(&self) -> Option<Relid> {
        match self.state {
            State::Released | State::Detached => None,
            _ => Some(self.offer.relid),
        }
    }

    fn go(&mut self, next: State) {
        self.before = self.state;
        self.state = next;
    }

    /// The rings' GPADL is about to be posted as `ring` (see [`crate::gpadl::GpadlMessages`]).
    ///
    /// # Errors
    /// [`WrongState`].
    pub fn share_ring(&mut self, ring: GpadlId) -> Result<(), WrongState> {
        if self.state != State::Offered {
            return Err(WrongState(self.state));
        }
        self.go(State::Sharing(ring));
        Ok(())
    }

    /// Opens the channel on the rings shared before.
    ///
    /// # Errors
    /// [`WrongState`].
    pub fn open(&mut self, request: &OpenRequest) -> Result<OpenChannel, WrongState> {
        let State::RingShared(ring) = self.state else {
            return Err(WrongState(self.state));
        };
        self.go(State::Opening {
            ring,
            open_id: request.open_id,
        });
        Ok(OpenChannel {
            relid: self.offer.relid,
            open_id: request.open_id,
            ring_gpadl: ring,
            target_vp: request.target_vp,
            downstream_page_offset: request.downstream_page_offset,
            user_data: request.user_data,
            ..OpenChannel::blank()
        })
    }

    /// Closes the channel. The host does not answer; the rings stay shared until
    /// [`unshare_ring`](Self::unshare_ring).
    ///
    /// # Errors
    /// [`WrongState`], for instance when the channel was rescinded: there is nothing to say then.
    pub fn close(&mut self) -> Result<CloseChannel, WrongState> {
        let State::Open { ring, .. } = self.state else {
            return Err(WrongState(self.state));
        };
        self.go(State::RingShared(ring));
        Ok(CloseChannel {
            relid: self.offer.relid,
            ..CloseChannel::blank()
        })
    }

    /// Takes the rings back.
    ///
    /// # Errors
    /// [`WrongState`].
    pub fn unshare_ring(&mut self) -> Result<GpadlTeardown, WrongState> {
        let State::RingShared(ring) = self.state else {
            return Err(WrongState(self.state));
        };
        self.go(State::Unsharing(ring));
        Ok(GpadlTeardown {
            relid: self.offer.relid,
            gpadl: ring,
            ..GpadlTeardown::blank()
        })
    }

    /// Moves the channel's interrupt to `target_vp`. Up to 5.2 the host does not answer, and the old
    /// VP may be interrupted once more at any time; later it answers with [`Action::Moved`].
    ///
    /// # Errors
    /// See [`MoveError`].
    pub fn move_to(&mut self, target_vp: u32) -> Result<ModifyChannel, MoveError> {
        if !self.version.has_modify_channel() {
            return Err(MoveError::NotSupported(self.version));
        }
        let State::Open {
            ring,
            moving: false,
        } = self.state
        else {
            return Err(MoveError::WrongState(self.state));
        };
        self.go(State::Open {
            ring,
            moving: self.version.has_modify_channel_response(),
        });
        Ok(ModifyChannel {
            relid: self.offer.relid,
            target_vp,
            ..ModifyChannel::blank()
        })
    }

    /// Gives the relid of a rescinded channel back, or of one that we do not want (and that shares no
    /// memory).
    ///
    /// # Errors
    /// [`WrongState`].
    pub fn release(&mut self) -> Result<RelidReleased, WrongState> {
        if !matches!(self.state, State::Rescinded | State::Offered) {
            return Err(WrongState(self.state));
        }
        self.go(State::Released);
        Ok(RelidReleased {
            relid: self.offer.relid,
            ..RelidReleased::blank()
        })
    }

    /// The message last given out could not be posted (of a GPADL: its last part): the host knows
    /// nothing of it, and the channel is in the state before. Not to be called once the host
    /// may have answered.
    pub fn not_posted(&mut self) {
        // A rescind in between wins.
        if !matches!(self.state, State::Rescinded | State::Detached) {
            self.state = self.before;
        }
    }

    /// The connection has ended: the host has let go of all memory and forgotten the relid.
    pub fn detach(&mut self) {
        if self.state != State::Released {
            self.go(State::Detached);
        }
    }

    /// The device is offered again on a new connection (of the same version, see
    /// [`crate::connection::Connection::restart`]).
    ///
    /// # Errors
    /// [`WrongState`] unless detached.
    pub fn offered_again(&mut self, offer: OfferChannel) -> Result<(), WrongState> {
        if self.state != State::Detached {
            return Err(WrongState(self.state));
        }
        self.offer = offer;
        self.go(State::Offered);
        Ok(())
    }

    /// A message about channels has arrived ([`crate::connection::Action::Channel`]).
    pub fn on_message(&mut self, message: &HostMessage) -> Action {
        // A channel without relid has nothing to be told.
        let Some(relid) = self.relid() else {
            return Action::NotMine;
        };
        let unexpected = Action::Unexpected(message.message_type());
        let rescinded = self.state == State::Rescinded;
        match message {
            HostMessage::RescindChannelOffer(m) if m.relid == relid => {
                if rescinded {
                    return unexpected;
                }
                let was = self.state;
                self.go(State::Rescinded);
                Action::Rescinded { was }
            }
            HostMessage::GpadlCreated(m) if m.relid == relid => match self.state {
                State::Sharing(ring) if ring == m.gpadl => {
                    if m.status.is_success() {
                        self.go(State::RingShared(ring));
                        Action::RingShared
                    } else {
                        self.go(State::Offered);
                        Action::RingRefused(m.status)
                    }
                }
                State::Rescinded => Action::Late,
                _ if self.state.ring() == Some(m.gpadl) => unexpected,
                _ => Action::NotMine,
            },
            // The one answer that does not name the channel.
            HostMessage::GpadlTorndown(m) => match self.state {
                State::Unsharing(ring) if ring == m.gpadl => {
                    self.go(State::Offered);
                    Action::RingFree
                }
                // The rescind and our teardown crossed.
                State::Rescinded if self.before.ring() == Some(m.gpadl) => Action::Late,
                _ if self.state.ring() == Some(m.gpadl) => unexpected,
                _ => Action::NotMine,
            },
            HostMessage::OpenChannelResult(m) if m.relid == relid => match self.state {
                State::Opening { ring, open_id } if open_id == m.open_id => {
                    if m.status.is_success() {
                        self.go(State::Open {
                            ring,
                            moving: false,
                        });
                        Action::Opened
                    } else {
                        self.go(State::RingShared(ring));
                        Action::OpenRefused(m.status)
                    }
                }
                State::Rescinded => Action::Late,
                _ => unexpected,
            },
            HostMessage::ModifyChannelResponse(m) if m.relid == relid => match self.state {
                State::Open { ring, moving: true } => {
                    self.go(State::Open {
                        ring,
                        moving: false,
                    });
                    Action::Moved(m.status)
                }
                // Closed while it was being moved.
                State::RingShared(_)
                | State::Opening { .. }
                | State::Unsharing(_)
                | State::Offered
                | State::Rescinded
                    if self.version.has_modify_channel_response() =>
                {
                    Action::Late
                }
                _ => unexpected,
            },
            _ => Action::NotMine,
        }
    }
}

/// What decides whether offers are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfferPolicy {
    /// The version spoken.
    pub version: VmbusVersion,
    /// The guest does not trust its host: only some classes are accepted.
    pub isolated: bool,
    /// The guest has a paravisor that offers confidential channels.
    pub confidential: bool,
}

/// What to do with an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A new device.
    Primary,
    /// A further channel of the device that has the same GUIDs.
    Subchannel,
    /// The device with the same GUIDs lost its connection and has it back:
    /// [`Channel::offered_again`].
    Again,
    /// The device with the same GUIDs was rescinded and is still being removed: add this one when that
    /// is done.
    AfterOlder,
}

/// Why an offer is not accepted. One variant per cause. The relid is to be released
/// ([`Channel::release`]) but for the first two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfferError {
    /// The relid is 0 or has no event flag.
    BadRelid(Relid),
    /// The relid belongs to a channel that has not been released.
    RelidInUse(Relid),
    /// A class that an isolated guest does not accept.
    NotAllowed,
    /// Encrypted buffers with unencrypted rings.
    ConfidentialMemoryOnly,
    /// A confidential channel without a paravisor, or before 6.0.
    ConfidentialUnsupported,
    /// A primary channel with the GUIDs of a device that exists.
    DuplicateDevice,
    /// A subchannel of a device that does not exist.
    NoPrimary,
}

impl fmt::Display for OfferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadRelid(relid) => write!(f, "offer with relid {relid}"),
            Self::RelidInUse(relid) => write!(f, "offer with relid {relid}, which is in use"),
            Self::NotAllowed => f.write_str("offer of a class that isolated guests refuse"),
            Self::ConfidentialMemoryOnly => {
                f.write_str("offer with encrypted buffers and unencrypted rings")
            }
            Self::ConfidentialUnsupported => {
                f.write_str("offer of a confidential channel to a guest without paravisor")
            }
            Self::DuplicateDevice => f.write_str("offer of a device that exists"),
            Self::NoPrimary => f.write_str("offer of a subchannel without its device"),
        }
    }
}

impl core::error::Error for OfferError {}

/// Whether two offers are of the same device: same class and instance.
#[must_use]
pub fn same_device(a: &OfferChannel, b: &OfferChannel) -> bool {
    a.class_id == b.class_id && a.instance_id == b.instance_id
}

/// Judges an offer. `relid_in_use`: some channel that has not released it has the offer's relid;
/// `primary`: state of the primary channel of the [`same_device`], if there is one.
///
/// # Errors
/// See [`OfferError`].
pub fn judge_offer(
    offer: &OfferChannel,
    policy: OfferPolicy,
    relid_in_use: bool,
    primary: Option<State>,
) -> Result<Verdict, OfferError> {
    let relid = offer.relid;
    if !relid.is_valid() {
        return Err(OfferError::BadRelid(relid));
    }
    if relid_in_use {
        return Err(OfferError::RelidInUse(relid));
    }
    if policy.isolated && !offer.is_hvsock() && !class_of(&offer.class_id).allowed_in_isolated {
        return Err(OfferError::NotAllowed);
    }
    let rings = offer.flags.contains(OfferFlags::CONFIDENTIAL_RING_BUFFER);
    let memory = offer
        .flags
        .contains(OfferFlags::CONFIDENTIAL_EXTERNAL_MEMORY);
    if memory && !rings {
        return Err(OfferError::ConfidentialMemoryOnly);
    }
    if rings && (!policy.confidential || !policy.version.has_feature_flags()) {
        return Err(OfferError::ConfidentialUnsupported);
    }
    match (primary, offer.is_subchannel()) {
        (None | Some(State::Released), false) => Ok(Verdict::Primary),
        (None | Some(State::Released | State::Rescinded | State::Detached), true) => {
            Err(OfferError::NoPrimary)
        }
        (Some(State::Detached), false) => Ok(Verdict::Again),
        (Some(State::Rescinded), false) => Ok(Verdict::AfterOlder),
        (Some(_), false) => Err(OfferError::DuplicateDevice),
        (Some(_), true) => Ok(Verdict::Subchannel),
    }
}

#[cfg(test)]
mod tests;
