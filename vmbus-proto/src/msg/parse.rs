// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Parsing of channel messages, by direction.

use core::fmt;
use zerocopy::FromBytes;

use super::{
    AllOffersDelivered, CloseChannel, CloseReservedChannel, CloseReservedResponse, ConnectionState,
    Direction, GpadlBody, GpadlCreated, GpadlHeader, GpadlTeardown, GpadlTorndown, InitiateContact,
    MessageHeader, MessageType, ModifyChannel, ModifyChannelResponse, ModifyConnection,
    ModifyConnectionResponse, OfferChannel, OpenChannel, OpenChannelExtra, OpenChannelResult,
    OpenReservedChannel, Pause, PauseResponse, RelidReleased, RequestOffers, RescindChannelOffer,
    Resume, TlConnectRequest, TlConnectResult, Unload, UnloadResponse, VersionResponse,
    VersionResponseFeatures, VersionResponseMonitor, MAX_MESSAGE_SIZE,
};
use crate::guid::Guid;
use crate::version::FeatureFlags;

/// Why bytes are not a channel message. One variant per cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// Shorter than the header.
    NoHeader {
        /// Bytes received.
        len: usize,
    },
    /// Longer than a SynIC message can be.
    TooLong {
        /// Bytes received.
        len: usize,
    },
    /// Shorter than its type requires.
    TooShort {
        /// Type in the header.
        message_type: MessageType,
        /// Bytes received.
        len: usize,
        /// Bytes required.
        min: usize,
    },
    /// No message has this type.
    UnknownType(MessageType),
    /// A type that only the receiver may send.
    WrongDirection(MessageType),
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader { len } => write!(f, "{len} bytes are too few for a message header"),
            Self::TooLong { len } => {
                write!(f, "{len} bytes exceed a message's {MAX_MESSAGE_SIZE}")
            }
            Self::TooShort {
                message_type,
                len,
                min,
            } => write!(f, "{message_type:?} of {len} bytes, needs {min}"),
            Self::UnknownType(t) => write!(f, "unknown message type {}", t.0),
            Self::WrongDirection(t) => write!(f, "{t:?} travels in the other direction"),
        }
    }
}

impl core::error::Error for ParseError {}

/// Checks header, direction and length.
fn check(bytes: &[u8], direction: Direction) -> Result<MessageType, ParseError> {
    let len = bytes.len();
    let (header, _) =
        MessageHeader::read_from_prefix(bytes).map_err(|_| ParseError::NoHeader { len })?;
    let message_type = header.message_type;
    if len > MAX_MESSAGE_SIZE {
        return Err(ParseError::TooLong { len });
    }
    let info = message_type
        .info()
        .ok_or(ParseError::UnknownType(message_type))?;
    if info.direction != direction {
        return Err(ParseError::WrongDirection(message_type));
    }
    let min = info.min_size;
    if len < min {
        return Err(ParseError::TooShort {
            message_type,
            len,
            min,
        });
    }
    Ok(message_type)
}

/// Splits a message of fixed size off `bytes`.
fn take<M: super::ChannelMessage>(bytes: &[u8]) -> Result<(M, &[u8]), ParseError> {
    M::read_from_prefix(bytes).map_err(|_| ParseError::TooShort {
        message_type: M::TYPE,
        len: bytes.len(),
        min: core::mem::size_of::<M>(),
    })
}

/// A message from the host, with its optional tails taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Each variant is the message of that name.
#[allow(clippy::large_enum_variant)] // Lives on the stack of the receiver; nothing to box with.
pub enum HostMessage {
    OfferChannel(OfferChannel),
    RescindChannelOffer(RescindChannelOffer),
    AllOffersDelivered(AllOffersDelivered),
    OpenChannelResult(OpenChannelResult),
    GpadlCreated(GpadlCreated),
    GpadlTorndown(GpadlTorndown),
    VersionResponse(VersionAnswer),
    UnloadResponse(UnloadResponse),
    CloseReservedResponse(CloseReservedResponse),
    TlConnectResult(TlConnectResult),
    ModifyChannelResponse(ModifyChannelResponse),
    ModifyConnectionResponse(ConnectionState),
    PauseResponse(PauseResponse),
}

/// A version response and the tails it came with. Whether a tail is valid depends on the version
/// asked for and on the features granted; the parser only says whether it was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionAnswer {
    /// The part every version has.
    pub base: VersionResponse,
    /// The features granted.
    pub features: Option<FeatureFlags>,
    /// Monitor pages of the server.
    pub monitor: Option<VersionResponseMonitor>,
}

impl HostMessage {
    /// Parses a message that the guest received. `bytes` is a private copy.
    ///
    /// # Errors
    /// See [`ParseError`]. Whether the message is allowed at the negotiated version and in the
    /// present state is for the state machines to say (see [`MessageType::allowed_at`]).
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let message_type = check(bytes, Direction::ToGuest)?;
        Ok(match message_type {
            MessageType::OFFER_CHANNEL => Self::OfferChannel(take(bytes)?.0),
            MessageType::RESCIND_CHANNEL_OFFER => Self::RescindChannelOffer(take(bytes)?.0),
            MessageType::ALL_OFFERS_DELIVERED => Self::AllOffersDelivered(take(bytes)?.0),
            MessageType::OPEN_CHANNEL_RESULT => Self::OpenChannelResult(take(bytes)?.0),
            MessageType::GPADL_CREATED => Self::GpadlCreated(take(bytes)?.0),
            MessageType::GPADL_TORNDOWN => Self::GpadlTorndown(take(bytes)?.0),
            MessageType::VERSION_RESPONSE => {
                let (base, rest) = take::<VersionResponse>(bytes)?;
                let (features, monitor) = match VersionResponseFeatures::read_from_prefix(rest) {
                    Ok((tail, rest)) => (
                        Some(tail.features),
                        VersionResponseMonitor::read_from_prefix(rest)
                            .ok()
                            .map(|(tail, _)| tail),
                    ),
                    Err(_) => (None, None),
                };
                Self::VersionResponse(VersionAnswer {
                    base,
                    features,
                    monitor,
                })
            }
            MessageType::UNLOAD_RESPONSE => Self::UnloadResponse(take(bytes)?.0),
            MessageType::CLOSE_RESERVED_RESPONSE => Self::CloseReservedResponse(take(bytes)?.0),
            MessageType::TL_CONNECT_RESULT => Self::TlConnectResult(take(bytes)?.0),
            MessageType::MODIFY_CHANNEL_RESPONSE => Self::ModifyChannelResponse(take(bytes)?.0),
            MessageType::MODIFY_CONNECTION_RESPONSE => {
                let state = bytes
                    .get(core::mem::offset_of!(
                        ModifyConnectionResponse,
                        connection_state
                    ))
                    .copied()
                    .ok_or(ParseError::NoHeader { len: bytes.len() })?;
                Self::ModifyConnectionResponse(ConnectionState(state))
            }
            MessageType::PAUSE_RESPONSE => Self::PauseResponse(take(bytes)?.0),
            other => return Err(ParseError::UnknownType(other)),
        })
    }

    /// The type of the message.
    #[must_use]
    pub const fn message_type(&self) -> MessageType {
        match self {
            Self::OfferChannel(_) => MessageType::OFFER_CHANNEL,
            Self::RescindChannelOffer(_) => MessageType::RESCIND_CHANNEL_OFFER,
            Self::AllOffersDelivered(_) => MessageType::ALL_OFFERS_DELIVERED,
            Self::OpenChannelResult(_) => MessageType::OPEN_CHANNEL_RESULT,
            Self::GpadlCreated(_) => MessageType::GPADL_CREATED,
            Self::GpadlTorndown(_) => MessageType::GPADL_TORNDOWN,
            Self::VersionResponse(_) => MessageType::VERSION_RESPONSE,
            Self::UnloadResponse(_) => MessageType::UNLOAD_RESPONSE,
            Self::CloseReservedResponse(_) => MessageType::CLOSE_RESERVED_RESPONSE,
            Self::TlConnectResult(_) => MessageType::TL_CONNECT_RESULT,
            Self::ModifyChannelResponse(_) => MessageType::MODIFY_CHANNEL_RESPONSE,
            Self::ModifyConnectionResponse(_) => MessageType::MODIFY_CONNECTION_RESPONSE,
            Self::PauseResponse(_) => MessageType::PAUSE_RESPONSE,
        }
    }
}

/// A message from the guest, with its optional tails taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Each variant is the message of that name.
#[allow(clippy::large_enum_variant)] // Lives on the stack of the receiver; nothing to box with.
pub enum GuestMessage<'a> {
    RequestOffers(RequestOffers),
    OpenChannel {
        base: OpenChannel,
        /// The tail of 6.0. Look at it only if a feature that defines it was granted; it is `None`
        /// when the message was too short for it.
        extra: Option<OpenChannelExtra>,
    },
    CloseChannel(CloseChannel),
    GpadlHeader {
        base: GpadlHeader,
        /// Range data in this message.
        data: &'a [u8],
    },
    GpadlBody {
        base: GpadlBody,
        /// Range data in this message.
        data: &'a [u8],
    },
    GpadlTeardown(GpadlTeardown),
    RelidReleased(RelidReleased),
    InitiateContact {
        base: InitiateContact,
        /// What follows; look at it only with [`FeatureFlags::CLIENT_ID`] among the features.
        client_id: Option<Guid>,
    },
    Unload(Unload),
    OpenReservedChannel(OpenReservedChannel),
    CloseReservedChannel(CloseReservedChannel),
    TlConnectRequest {
        base: TlConnectRequest,
        /// What follows; look at it only from 5.2 on.
        silo_id: Option<Guid>,
    },
    ModifyChannel(ModifyChannel),
    ModifyConnection(ModifyConnection),
    Pause(Pause),
    Resume(Resume),
}

impl<'a> GuestMessage<'a> {
    /// Parses a message that the host received. `bytes` is a private copy.
    ///
    /// # Errors
    /// See [`ParseError`]. Whether the message is allowed at the negotiated version and in the
    /// present state is for the server to say (see [`MessageType::allowed_at`]).
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let message_type = check(bytes, Direction::ToHost)?;
        Ok(match message_type {
            MessageType::REQUEST_OFFERS => Self::RequestOffers(take(bytes)?.0),
            MessageType::OPEN_CHANNEL => {
                let (base, rest) = take(bytes)?;
                let extra = OpenChannelExtra::read_from_prefix(rest).ok().map(|x| x.0);
                Self::OpenChannel { base, extra }
            }
            MessageType::CLOSE_CHANNEL => Self::CloseChannel(take(bytes)?.0),
            MessageType::GPADL_HEADER => {
                let (base, data) = take(bytes)?;
                Self::GpadlHeader { base, data }
            }
            MessageType::GPADL_BODY => {
                let (base, data) = take(bytes)?;
                Self::GpadlBody { base, data }
            }
            MessageType::GPADL_TEARDOWN => Self::GpadlTeardown(take(bytes)?.0),
            MessageType::RELID_RELEASED => Self::RelidReleased(take(bytes)?.0),
            MessageType::INITIATE_CONTACT => {
                let (base, rest) = take(bytes)?;
                let client_id = Guid::read_from_prefix(rest).ok().map(|x| x.0);
                Self::InitiateContact { base, client_id }
            }
            MessageType::UNLOAD => Self::Unload(take(bytes)?.0),
            MessageType::OPEN_RESERVED_CHANNEL => Self::OpenReservedChannel(take(bytes)?.0),
            MessageType::CLOSE_RESERVED_CHANNEL => Self::CloseReservedChannel(take(bytes)?.0),
            MessageType::TL_CONNECT_REQUEST => {
                let (base, rest) = take(bytes)?;
                let silo_id = Guid::read_from_prefix(rest).ok().map(|x| x.0);
                Self::TlConnectRequest { base, silo_id }
            }
            MessageType::MODIFY_CHANNEL => Self::ModifyChannel(take(bytes)?.0),
            MessageType::MODIFY_CONNECTION => Self::ModifyConnection(take(bytes)?.0),
            MessageType::PAUSE => Self::Pause(take(bytes)?.0),
            MessageType::RESUME => Self::Resume(take(bytes)?.0),
            other => return Err(ParseError::UnknownType(other)),
        })
    }

    /// The type of the message.
    #[must_use]
    pub const fn message_type(&self) -> MessageType {
        match self {
            Self::RequestOffers(_) => MessageType::REQUEST_OFFERS,
            Self::OpenChannel { .. } => MessageType::OPEN_CHANNEL,
            Self::CloseChannel(_) => MessageType::CLOSE_CHANNEL,
            Self::GpadlHeader { .. } => MessageType::GPADL_HEADER,
            Self::GpadlBody { .. } => MessageType::GPADL_BODY,
            Self::GpadlTeardown(_) => MessageType::GPADL_TEARDOWN,
            Self::RelidReleased(_) => MessageType::RELID_RELEASED,
            Self::InitiateContact { .. } => MessageType::INITIATE_CONTACT,
            Self::Unload(_) => MessageType::UNLOAD,
            Self::OpenReservedChannel(_) => MessageType::OPEN_RESERVED_CHANNEL,
            Self::CloseReservedChannel(_) => MessageType::CLOSE_RESERVED_CHANNEL,
            Self::TlConnectRequest { .. } => MessageType::TL_CONNECT_REQUEST,
            Self::ModifyChannel(_) => MessageType::MODIFY_CHANNEL,
            Self::ModifyConnection(_) => MessageType::MODIFY_CONNECTION,
            Self::Pause(_) => MessageType::PAUSE,
            Self::Resume(_) => MessageType::RESUME,
        }
    }
}
