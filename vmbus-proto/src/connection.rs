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
mod tests {
    use super::*;
    use crate::msg::{
        AllOffersDelivered, GuestMessage, ModifyChannelResponse, OfferChannel, UnloadResponse,
        VersionResponse, VersionResponseMonitor,
    };
    use std::vec::Vec;

    fn config() -> Config {
        Config {
            max_version: VmbusVersion::V6_0,
            target_vp: 3,
            vtl: 0,
            interrupt_page: 0x1000,
            monitor_pages: [0x2000, 0x3000],
            features: FeatureFlags::empty(),
            isolated: false,
        }
    }

    fn answer(supported: bool, connection_id: u32) -> HostMessage {
        HostMessage::VersionResponse(VersionAnswer {
            base: VersionResponse {
                version_supported: supported.into(),
                connection_id,
                ..VersionResponse::blank()
            },
            features: None,
            monitor: None,
        })
    }

    fn contact(post: &Post) -> InitiateContact {
        match GuestMessage::parse(post.message.as_bytes()) {
            Ok(GuestMessage::InitiateContact { base, .. }) => base,
            other => panic!("{other:?}"),
        }
    }

    /// A host that speaks one version: what is tried, where it is posted, what comes of it.
    fn negotiate(
        config: Config,
        host: VmbusVersion,
    ) -> (Vec<(VmbusVersion, u32)>, Action, Connection) {
        let mut connection = Connection::new(config);
        let mut tried = Vec::new();
        let mut post = connection.start().unwrap();
        loop {
            let base = contact(&post);
            tried.push((base.version, post.connection_id.0));
            let action = connection.on_message(&answer(base.version == host, 0x1234));
            match action {
                Action::Post(next) => post = next,
                other => return (tried, other, connection),
            }
        }
    }

    #[test]
    fn each_version_is_found_and_older_ones_are_tried_in_order() {
        for (i, host) in VmbusVersion::SUPPORTED.into_iter().enumerate() {
            let (tried, action, connection) = negotiate(config(), host);
            let Action::Connected(negotiated) = action else {
                panic!("{action:?}")
            };
            assert_eq!(negotiated.version, host);
            let new = host >= VmbusVersion::V5_0;
            assert_eq!(negotiated.connection_id.0, if new { 0x1234 } else { 1 });
            let expect: Vec<_> = VmbusVersion::SUPPORTED[..=i]
                .iter()
                .map(|v| (*v, if *v >= VmbusVersion::V5_0 { 4 } else { 1 }))
                .collect();
            assert_eq!(tried, expect);
            assert_eq!(connection.negotiated(), Some(negotiated));
        }
    }

    #[test]
    fn max_version_and_isolation_narrow_what_is_tried() {
        let (tried, action, _) = negotiate(
            Config {
                max_version: VmbusVersion::V5_2,
                isolated: true,
                ..config()
            },
            VmbusVersion::V4_0,
        );
        assert_eq!(tried, [(VmbusVersion::V5_2, 4)]);
        assert!(matches!(
            action,
            Action::Failed(ConnectError::NoCommonVersion)
        ));
        let mut none = Connection::new(Config {
            max_version: VmbusVersion::V3_0,
            ..config()
        });
        assert_eq!(none.start().err(), Some(StartError::NoVersion));
        assert_eq!(none.state(), State::Disconnected);
    }

    #[test]
    fn failure_leaves_a_connection_that_can_be_started_again() {
        let (_, action, mut connection) = negotiate(config(), VmbusVersion::V3_0);
        assert!(matches!(
            action,
            Action::Failed(ConnectError::NoCommonVersion)
        ));
        assert!(!connection.host_may_use_memory());
        assert!(connection.start().is_ok());
    }

    #[test]
    fn third_field_by_version() {
        let mut connection = Connection::new(Config {
            features: FeatureFlags::MODIFY_CONNECTION,
            vtl: 1,
            ..config()
        });
        let post = connection.start().unwrap();
        let base = contact(&post);
        assert_eq!(base.interrupt_page_or_target, 0x4_0000_0102);
        assert_eq!(base.features(), FeatureFlags::MODIFY_CONNECTION);
        assert_eq!((base.monitor_page1, base.monitor_page2), (0x2000, 0x3000));
        assert_eq!(base.target_vp, 3);
        let Action::Post(post) = connection.on_message(&answer(false, 0)) else {
            panic!()
        };
        assert_eq!(
            contact(&post).interrupt_page_or_target,
            0x102,
            "5.3: no features"
        );
        let mut old = Connection::new(Config {
            max_version: VmbusVersion::V4_1,
            ..config()
        });
        let base = contact(&old.start().unwrap());
        assert_eq!(base.interrupt_page(), Some(0x1000));
        assert_eq!(base.target_info(), None);
    }

    /// A host before 5.0 has no connection 4, so posting fails rather than an answer coming.
    #[test]
    fn connection_4_missing() {
        let mut connection = Connection::new(config());
        let mut post = connection.start().unwrap();
        let mut tried = 1;
        while post.connection_id.0 == 4 {
            let Action::Post(next) = connection.on_post_failed(HvStatus::INVALID_CONNECTION_ID)
            else {
                panic!()
            };
            post = next;
            tried += 1;
        }
        assert_eq!(tried, 6);
        assert_eq!(contact(&post).version, VmbusVersion::V4_1);
        assert!(matches!(
            connection.on_post_failed(HvStatus::ACCESS_DENIED),
            Action::Failed(ConnectError::Post(HvStatus::ACCESS_DENIED))
        ));
        assert!(matches!(
            connection.on_post_failed(HvStatus::ACCESS_DENIED),
            Action::Unexpected(_)
        ));
    }

    #[test]
    fn redirection_is_tried_first_in_vtl_2() {
        let mut connection = Connection::new(Config { vtl: 2, ..config() });
        let post = connection.start().unwrap();
        assert_eq!(post.connection_id.0, 0x80_0074);
        let Action::Post(post) = connection.on_post_failed(HvStatus::INVALID_CONNECTION_ID) else {
            panic!()
        };
        assert_eq!(post.connection_id.0, 4);
        assert_eq!(contact(&post).version, VmbusVersion::V6_0);
    }

    #[test]
    fn features_are_granted_only_if_asked_for() {
        let asked = FeatureFlags::MODIFY_CONNECTION | FeatureFlags::SERVER_SPECIFIED_MONITOR_PAGES;
        let full = |connection_id| {
            let HostMessage::VersionResponse(mut a) = answer(true, connection_id) else {
                panic!()
            };
            a.features =
                Some(asked | FeatureFlags::PAUSE_RESUME | FeatureFlags::from_bits_retain(1 << 31));
            a.monitor = Some(VersionResponseMonitor {
                padding: 0,
                parent_to_child: [0, 0],
                child_to_parent: [0x5000, 1],
            });
            HostMessage::VersionResponse(a)
        };
        let connect = |features, max_version| {
            let mut connection = Connection::new(Config {
                features,
                max_version,
                ..config()
            });
            connection.start().unwrap();
            match connection.on_message(&full(9)) {
                Action::Connected(n) => n,
                other => panic!("{other:?}"),
            }
        };
        let n = connect(asked, VmbusVersion::V6_0);
        assert_eq!(n.features, asked);
        assert_eq!(n.host_monitor_pages, Some([0, 0x1_0000_5000]));
        let n = connect(FeatureFlags::empty(), VmbusVersion::V6_0);
        assert_eq!(
            (n.features, n.host_monitor_pages),
            (FeatureFlags::empty(), None)
        );
        let n = connect(asked, VmbusVersion::V5_3);
        assert_eq!(
            (n.features, n.host_monitor_pages),
            (FeatureFlags::empty(), None)
        );
    }

    #[test]
    fn attack_version_responses() {
        let start = || {
            let mut connection = Connection::new(config());
            connection.start().unwrap();
            connection
        };
        for id in [0, 0x100_0000, u32::MAX] {
            let mut connection = start();
            assert!(matches!(
                connection.on_message(&answer(true, id)),
                Action::Failed(ConnectError::BadConnectionId { connection_id }) if connection_id == id
            ));
        }
        let mut refused = answer(true, 4);
        if let HostMessage::VersionResponse(a) = &mut refused {
            a.base.connection_state = ConnectionState::FAILED_LOW_RESOURCES;
        }
        let mut connection = start();
        assert!(matches!(
            connection.on_message(&refused),
            Action::Failed(ConnectError::Refused { .. })
        ));
        // A second answer, and one nobody asked for.
        assert!(matches!(
            connection.on_message(&answer(true, 4)),
            Action::Unexpected(MessageType::VERSION_RESPONSE)
        ));
        let mut connection = start();
        assert!(matches!(
            connection.on_message(&answer(true, 5)),
            Action::Connected(_)
        ));
        let before = connection.state();
        assert!(matches!(
            connection.on_message(&answer(true, 6)),
            Action::Unexpected(MessageType::VERSION_RESPONSE)
        ));
        assert_eq!(connection.state(), before);
    }

    #[test]
    fn offers_and_unload() {
        let offer = HostMessage::OfferChannel(OfferChannel::blank());
        let all = HostMessage::AllOffersDelivered(AllOffersDelivered::blank());
        let unloaded = HostMessage::UnloadResponse(UnloadResponse::blank());
        let mut connection = Connection::new(config());
        assert!(connection.request_offers().is_err() && connection.unload().is_err());
        assert!(matches!(
            connection.on_message(&offer),
            Action::Unexpected(_)
        ));
        connection.start().unwrap();
        assert_eq!(connection.start().err(), Some(StartError::WrongState));
        assert!(connection.request_offers().is_err() && connection.unload().is_err());
        let _ = connection.on_message(&answer(true, 5));

        assert!(
            matches!(connection.on_message(&offer), Action::Unexpected(_)),
            "not asked for"
        );
        assert!(matches!(connection.on_message(&all), Action::Unexpected(_)));
        let post = connection.request_offers().unwrap();
        assert_eq!(post.connection_id.0, 5);
        assert_eq!(post.message.message_type(), MessageType::REQUEST_OFFERS);
        assert!(connection.request_offers().is_err(), "once");
        assert!(matches!(connection.on_message(&offer), Action::Channel));
        assert!(matches!(
            connection.on_message(&all),
            Action::OffersDelivered
        ));
        assert!(
            matches!(connection.on_message(&all), Action::Unexpected(_)),
            "twice"
        );
        assert!(
            matches!(connection.on_message(&offer), Action::Channel),
            "hot-added"
        );
        assert!(matches!(
            connection.on_message(&unloaded),
            Action::Unexpected(_)
        ));

        let post = connection.unload().unwrap();
        assert_eq!(post.message.message_type(), MessageType::UNLOAD);
        assert!(connection.unload().is_err());
        assert!(connection.host_may_use_memory());
        assert!(matches!(connection.on_message(&offer), Action::Late));
        assert!(matches!(connection.on_message(&unloaded), Action::Unloaded));
        assert!(matches!(
            connection.on_message(&unloaded),
            Action::Unexpected(_)
        ));
        assert!(!connection.host_may_use_memory());
        let post = connection.restart(VmbusVersion::V5_1).unwrap();
        assert_eq!(contact(&post).version, VmbusVersion::V5_1);
        assert!(
            matches!(
                connection.on_message(&answer(false, 0)),
                Action::Failed(ConnectError::NoCommonVersion)
            ),
            "no other version is tried"
        );
    }

    #[test]
    fn messages_newer_than_the_version_are_reported() {
        let response = HostMessage::ModifyChannelResponse(ModifyChannelResponse::blank());
        for (version, expect) in [(VmbusVersion::V5_2, false), (VmbusVersion::V5_3, true)] {
            let mut connection = Connection::new(Config {
                max_version: version,
                ..config()
            });
            connection.start().unwrap();
            let _ = connection.on_message(&answer(true, 5));
            assert_eq!(
                matches!(connection.on_message(&response), Action::Channel),
                expect
            );
        }
    }
}
