// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The client's connection: from the first INITIATE_CONTACT to the answer to UNLOAD.
//!
//! [`Connection`] decides, its owner does the I/O: it posts what it is told to, hands in each message
//! that arrives, and acts on the [`Action`] it gets back. A message that does not belong in the
//! present state changes nothing and comes back as [`Action::Unexpected`], to be reported.
//!
//! ```text
//!  Disconnected ──start──> Contacting ──accepted──> Connected ──unload──> Unloading
//!       ▲                   │     │ refused: next version                    │
//!       └──none accepted────┘◄────┘                                          │
//!       └────────────────────────────UNLOAD_RESPONSE─────────────────────────┘
//! ```
//!
//! Source: Linux `connection.c`, `vmbus_connect` and `vmbus_negotiate_version`; OpenVMM `vmbus_client`.

use core::fmt;

use crate::msg::{
    ChannelMessage, ConnectionState, HostMessage, InitiateContact, MessageBuffer, MessageType,
    RequestOffers, TargetInfo, Unload, VersionAnswer, MESSAGE_CONNECTION_ID,
    MESSAGE_CONNECTION_ID_4, MESSAGE_CONNECTION_ID_REDIRECT, VMBUS_SINT,
};
use crate::tlfs::hypercall::ConnectionId;
use crate::tlfs::HvStatus;
use crate::version::{FeatureFlags, VmbusVersion};

/// What the owner of a connection chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Newest version to offer; 6.0 unless someone is debugging.
    pub max_version: VmbusVersion,
    /// VP index that is to receive messages.
    pub target_vp: u32,
    /// Virtual trust level of the guest: 0, or 2 for a paravisor.
    pub vtl: u8,
    /// Guest-physical address of the interrupt page, for versions before 5.0.
    pub interrupt_page: u64,
    /// Guest-physical addresses of the monitor pages, host to guest first; or 0.
    pub monitor_pages: [u64; 2],
    /// Features to ask for, from 6.0 on.
    pub features: FeatureFlags,
    /// The guest does not trust the host: versions before 5.2 are not offered.
    pub isolated: bool,
}

/// What a connection has agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The version spoken.
    pub version: VmbusVersion,
    /// Features both sides know.
    pub features: FeatureFlags,
    /// Where all further messages go.
    pub connection_id: ConnectionId,
    /// Monitor pages that the host provides instead of ours: host to guest (or 0), guest to host.
    pub host_monitor_pages: Option<[u64; 2]>,
}

/// How far the offers have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offers {
    /// Not asked for: none may come.
    NotRequested,
    /// Asked for: those present at boot are coming.
    Requested,
    /// Those present at boot have come. More may follow at any time.
    Delivered,
}

/// State of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The host knows nothing of us and uses no memory of ours.
    Disconnected,
    /// INITIATE_CONTACT was given to the owner to post; the host has not answered.
    Contacting(Attempt),
    /// The host has accepted a version.
    Connected(Negotiated, Offers),
    /// UNLOAD was given to the owner to post; until the answer the host may use our memory.
    Unloading,
}

/// One INITIATE_CONTACT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The version offered.
    pub version: VmbusVersion,
    /// Where it was posted.
    pub connection_id: ConnectionId,
}

/// A message to post.
#[derive(Clone, Copy, Debug)]
pub struct Post {
    /// Where to.
    pub connection_id: ConnectionId,
    /// What.
    pub message: MessageBuffer,
}

/// What the owner is to do about a message.
#[derive(Clone, Copy, Debug)]
#[must_use]
#[allow(clippy::large_enum_variant)] // Lives on the stack of the receiver; nothing to box with.
pub enum Action {
    /// Post this: the next version to try.
    Post(Post),
    /// A version was accepted: ask for the offers.
    Connected(Negotiated),
    /// There is no connection; the state is [`State::Disconnected`].
    Failed(ConnectError),
    /// All boot-time offers have come.
    OffersDelivered,
    /// The host has let go of everything.
    Unloaded,
    /// For the channels: an offer, a rescind, or an answer about a channel.
    Channel,
    /// Nothing: it came too late to matter, as may happen while the connection ends.
    Late,
    /// The host broke the protocol, or is confused: report it. Nothing has changed.
    Unexpected(MessageType),
}

/// Why there is no connection. One variant per cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// The host accepts no version that we may use.
    NoCommonVersion,
    /// The host accepted a version but not the connection.
    Refused {
        /// The version.
        version: VmbusVersion,
        /// Its reason.
        state: ConnectionState,
    },
    /// The host named a connection id that cannot be.
    BadConnectionId {
        /// The id.
        connection_id: u32,
    },
    /// INITIATE_CONTACT could not be posted.
    Post(HvStatus),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCommonVersion => f.write_str("the host accepts no VMBus version we speak"),
            Self::Refused { version, state } => {
                write!(
                    f,
                    "the host speaks {version} but refuses the connection: {state:?}"
                )
            }
            Self::BadConnectionId { connection_id } => {
                write!(f, "the host names connection id {connection_id:#x}")
            }
            Self::Post(status) => write!(f, "posting to the host failed: {status:?}"),
        }
    }
}

impl core::error::Error for ConnectError {}

/// The call is not possible in the present state; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongState;

impl fmt::Display for WrongState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not possible in this state of the connection")
    }
}

impl core::error::Error for WrongState {}

/// The client's side of a connection. Put it under a lock that the message handler may take.
#[derive(Clone, Debug)]
pub struct Connection {
    config: Config,
    state: State,
    /// Only one version is tried.
    fixed: bool,
}

impl Connection {
    /// A connection not yet started.
    #[must_use]
    pub const fn new(config: Config) -> Self {
        Self {
            config,
            state: State::Disconnected,
            fixed: false,
        }
    }

    /// Its state.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// What was agreed on, while connected.
    #[must_use]
    pub const fn negotiated(&self) -> Option<Negotiated> {
        match self.state {
            State::Connected(negotiated, _) => Some(negotiated),
            _ => None,
        }
    }

    /// Whether the host may use memory of ours.
    #[must_use]
    pub const fn host_may_use_memory(&self) -> bool {
        !matches!(self.state, State::Disconnected)
    }

    /// Begins with the newest version allowed. Post the message, and tell
    /// [`on_post_failed`](Self::on_post_failed) if that fails.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(&mut self) -> Result<Post, StartError> {
        if self.state != State::Disconnected {
            return Err(StartError::WrongState);
        }
        let first = VmbusVersion::SUPPORTED
            .into_iter()
            .find(|version| self.may_offer(*version))
            .ok_or(StartError::NoVersion)?;
        self.fixed = false;
        Ok(self.attempt(first, self.first_connection_id(first)))
    }

    /// Begins with `version` and tries no other: after hibernation the devices expect the version they
    /// had.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn restart(&mut self, version: VmbusVersion) -> Result<Post, StartError> {
        if self.state != State::Disconnected {
            return Err(StartError::WrongState);
        }
        if !version.is_supported() || !self.may_offer(version) {
            return Err(StartError::NoVersion);
        }
        self.fixed = true;
        Ok(self.attempt(version, self.first_connection_id(version)))
    }

    fn may_offer(&self, version: VmbusVersion) -> bool {
        version <= self.config.max_version
            && (!self.config.isolated || version.allowed_in_isolated())
    }

    fn first_connection_id(&self, version: VmbusVersion) -> u32 {
        if !version.has_message_connection_id() {
            MESSAGE_CONNECTION_ID
        } else if self.config.vtl == 2 {
            MESSAGE_CONNECTION_ID_REDIRECT
        } else {
            MESSAGE_CONNECTION_ID_4
        }
    }

    fn attempt(&mut self, version: VmbusVersion, connection_id: u32) -> Post {
        let connection_id = ConnectionId(connection_id);
        self.state = State::Contacting(Attempt {
            version,
            connection_id,
        });
        let config = &self.config;
        let target = TargetInfo {
            sint: VMBUS_SINT,
            vtl: config.vtl,
            reserved: [0; 2],
            features: if version.has_feature_flags() {
                config.features
            } else {
                FeatureFlags::empty()
            },
        };
        let [monitor_page1, monitor_page2] = config.monitor_pages;
        let message = InitiateContact {
            version,
            target_vp: config.target_vp,
            interrupt_page_or_target: if version.has_message_connection_id() {
                target.to_u64()
            } else {
                config.interrupt_page
            },
            monitor_page1,
            monitor_page2,
            ..InitiateContact::blank()
        };
        Post {
            connection_id,
            message: MessageBuffer::from_message(&message),
        }
    }

    /// The next version below `version`, if others may be tried.
    fn next_version(&self, version: VmbusVersion) -> Option<VmbusVersion> {
        if self.fixed {
            return None;
        }
        VmbusVersion::SUPPORTED
            .into_iter()
            .find(|next| *next < version && self.may_offer(*next))
    }

    fn try_next(&mut self, refused: VmbusVersion) -> Action {
        match self.next_version(refused) {
            Some(version) => Action::Post(self.attempt(version, self.first_connection_id(version))),
            None => self.fail(ConnectError::NoCommonVersion),
        }
    }

    fn fail(&mut self, error: ConnectError) -> Action {
        self.state = State::Disconnected;
        Action::Failed(error)
    }

    /// The INITIATE_CONTACT last given out could not be posted; transient failures have been retried
    /// (see [`HvStatus::is_transient_for_post`]), but an invalid connection id has not: hosts
    /// before 5.0 have no connection 4, hosts without redirection none for it.
    ///
    /// In other states nothing happens, and `Unexpected(INVALID)` is returned.
    pub fn on_post_failed(&mut self, status: HvStatus) -> Action {
        let State::Contacting(attempt) = self.state else {
            return Action::Unexpected(MessageType::INVALID);
        };
        if status != HvStatus::INVALID_CONNECTION_ID {
            return self.fail(ConnectError::Post(status));
        }
        if attempt.connection_id.0 == MESSAGE_CONNECTION_ID_REDIRECT {
            return Action::Post(self.attempt(attempt.version, MESSAGE_CONNECTION_ID_4));
        }
        self.try_next(attempt.version)
    }

    /// A message has arrived. See [`Action`] for what to do.
    pub fn on_message(&mut self, message: &HostMessage) -> Action {
        let unexpected = Action::Unexpected(message.message_type());
        match (self.state, message) {
            (State::Contacting(attempt), HostMessage::VersionResponse(answer)) => {
                self.on_version_response(attempt, answer)
            }
            (State::Unloading, HostMessage::UnloadResponse(_)) => {
                self.state = State::Disconnected;
                Action::Unloaded
            }
            // What was on its way when we sent UNLOAD.
            (State::Unloading, other) => match other {
                HostMessage::VersionResponse(_) => unexpected,
                _ => Action::Late,
            },
            (
                State::Connected(negotiated, Offers::Requested),
                HostMessage::AllOffersDelivered(_),
            ) => {
                self.state = State::Connected(negotiated, Offers::Delivered);
                Action::OffersDelivered
            }
            (State::Connected(negotiated, offers), other) => {
                let message_type = other.message_type();
                let known = message_type.allowed_at(negotiated.version, negotiated.features);
                let for_channels = match other {
                    HostMessage::OfferChannel(_) => offers != Offers::NotRequested,
                    HostMessage::RescindChannelOffer(_)
                    | HostMessage::OpenChannelResult(_)
                    | HostMessage::GpadlCreated(_)
                    | HostMessage::GpadlTorndown(_)
                    | HostMessage::CloseReservedResponse(_)
                    | HostMessage::TlConnectResult(_)
                    | HostMessage::ModifyChannelResponse(_)
                    | HostMessage::ModifyConnectionResponse(_)
                    | HostMessage::PauseResponse(_) => true,
                    HostMessage::AllOffersDelivered(_)
                    | HostMessage::VersionResponse(_)
                    | HostMessage::UnloadResponse(_) => false,
                };
                if known && for_channels {
                    Action::Channel
                } else {
                    unexpected
                }
            }
            (State::Disconnected | State::Contacting(_), _) => unexpected,
        }
    }

    fn on_version_response(&mut self, attempt: Attempt, answer: &VersionAnswer) -> Action {
        let version = attempt.version;
        if answer.base.version_supported == 0 {
            return self.try_next(version);
        }
        if answer.base.connection_state != ConnectionState::SUCCESSFUL {
            return self.fail(ConnectError::Refused {
                version,
                state: answer.base.connection_state,
            });
        }
        let connection_id = if version.has_message_connection_id() {
            ConnectionId(answer.base.connection_id)
        } else {
            attempt.connection_id
        };
        if connection_id.0 == 0 || !connection_id.is_valid() {
            return self.fail(ConnectError::BadConnectionId {
                connection_id: connection_id.0,
            });
        }
        // The host cannot grant what was not asked for.
        let features = match answer.features {
            Some(granted) if version.has_feature_flags() => {
                granted.intersection(self.config.features)
            }
            _ => FeatureFlags::empty(),
        };
        let join = |[low, high]: [u32; 2]| u64::from(low) | (u64::from(high) << 32);
        let host_monitor_pages = answer
            .monitor
            .filter(|_| features.contains(FeatureFlags::SERVER_SPECIFIED_MONITOR_PAGES))
            .map(|pages| [join(pages.parent_to_child), join(pages.child_to_parent)]);
        let negotiated = Negotiated {
            version,
            features,
            connection_id,
            host_monitor_pages,
        };
        self.state = State::Connected(negotiated, Offers::NotRequested);
        Action::Connected(negotiated)
    }

    /// Asks for the offers. Once per connection.
    ///
    /// # Errors
    /// [`WrongState`].
    pub fn request_offers(&mut self) -> Result<Post, WrongState> {
        let State::Connected(negotiated, Offers::NotRequested) = self.state else {
            return Err(WrongState);
        };
        self.state = State::Connected(negotiated, Offers::Requested);
        Ok(Post {
            connection_id: negotiated.connection_id,
            message: MessageBuffer::from_message(&RequestOffers::blank()),
        })
    }

    /// Ends the connection. The host lets go of all memory with its answer, whatever channels and GPADLs
    /// there are. Also for a crashing guest.
    ///
    /// # Errors
    /// [`WrongState`] when there is no connection, or it is ending already.
    pub fn unload(&mut self) -> Result<Post, WrongState> {
        let State::Connected(negotiated, _) = self.state else {
            return Err(WrongState);
        };
        self.state = State::Unloading;
        Ok(Post {
            connection_id: negotiated.connection_id,
            message: MessageBuffer::from_message(&Unload::blank()),
        })
    }
}

/// Why [`Connection::start`] did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The connection has been started.
    WrongState,
    /// The configuration leaves no version to offer.
    NoVersion,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WrongState => "the connection has been started already",
            Self::NoVersion => "no VMBus version may be offered",
        })
    }
}

impl core::error::Error for StartError {}

#[cfg(test)]
mod tests;
