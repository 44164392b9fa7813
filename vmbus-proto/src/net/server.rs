// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The host's side of NVSP: each message of a guest is measured and set against what has been agreed, before
//! anything is done for it.
//!
//! [`Server`] holds the state of a NIC, which all of its channels share. It answers what it can by itself; what
//! needs buffers, sub-channels or frames it hands out checked. What is wrong comes out as [`Verdict::Refuse`] with the
//! cause, changes nothing, and is answered with an error if the guest waits for an answer.
//!
//! Completions are for packets that asked for one; Linux does not ask for those of SEND_NDIS_VER, SEND_NDIS_CONFIG
//! and the revocations, UEFI does (OpenVMM `netvsp`, `initialize`).

use core::fmt;
use zerocopy::{Immutable, IntoBytes};

use super::nvsp::{
    ChannelType, DataPath, Init, InitComplete, MessageType, NdisCapabilities, NdisConfig,
    NdisVersion, NvspMessage, NvspStatus, NvspVersion, ReceiveSections, RevokeBuffer, SendBuffer,
    SendReceiveBufferComplete, SendRndisPacket, SendSendBufferComplete, StatusBody,
    SubchannelComplete, SubchannelOperation, SubchannelRequest, SwitchDataPath, TooShort,
    MESSAGE_SIZE,
};
use super::packet::ETHERNET_HEADER_SIZE;
use super::rndis::{Oid, RndisStatus};
use crate::msg::GpadlId;
use crate::packet::{Packet, PacketKind};

/// MTU of a guest that says nothing, or nonsense.
pub const DEFAULT_MTU: u32 = 1500;

/// Ranges of a GPA-direct packet that the guest is told it may send (OpenVMM `netvsp`, `initialize`). Linux sends one or
/// two more for headers; it is not enforced.
const MAX_MDL_CHAIN: u32 = 34;

/// What the owner of a server chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Newest version accepted.
    pub newest: NvspVersion,
    /// Largest MTU that the guest may choose, at least [`DEFAULT_MTU`]; beyond it, it gets the default, as from
    /// Hyper-V (OpenVMM `netvsp`, `initialize`).
    pub max_mtu: u32,
    /// Sub-channels that can be had.
    pub max_sub_channels: u16,
}

/// A message or nothing, for a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    message: [u8; MESSAGE_SIZE],
    len: usize,
}

impl Answer {
    /// A completion without payload.
    pub const EMPTY: Self = Self {
        message: [0; MESSAGE_SIZE],
        len: 0,
    };

    fn new<T: IntoBytes + Immutable>(
        version: NvspVersion,
        message_type: MessageType,
        body: &T,
    ) -> Self {
        let mut answer = Self::EMPTY;
        let message = NvspMessage::new(message_type, body);
        let bytes = message.bytes_for(version);
        // Of the size of the largest message at most.
        for (to, from) in answer.message.iter_mut().zip(bytes) {
            *to = *from;
        }
        answer.len = bytes.len();
        answer
    }

    /// The payload of the completion packet.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.message.get(..self.len).unwrap_or(&self.message)
    }

    /// The type of the message; `None`: there is none.
    #[must_use]
    pub fn message_type(&self) -> Option<MessageType> {
        super::nvsp::message_type(self.as_bytes())
    }
}

/// A buffer that the guest offers, with the choice of what to make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferOffer {
    /// Its pages.
    pub gpadl: GpadlId,
    /// Its name in transfer-page packets.
    pub id: u16,
}

/// What the owner is to do about a message. Completions carry the packet's transaction id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[allow(clippy::large_enum_variant)] // Lives on the stack of the caller.
pub enum Verdict {
    /// Send the completion, if the packet asked for one.
    Answer(Answer),
    /// A version is agreed on: send the completion.
    Agreed(Answer, NvspVersion),
    /// Look at the receive buffer, then call [`Server::receive_buffer`] for the answer.
    ReceiveBuffer(BufferOffer),
    /// Look at the send buffer, then call [`Server::send_buffer`] for the answer.
    SendBuffer(BufferOffer),
    /// The receive buffer is no longer to be used; then complete the packet.
    RevokeReceiveBuffer,
    /// The send buffer is no longer to be used; then complete the packet.
    RevokeSendBuffer,
    /// RNDIS messages. To be completed with [`Server::rndis_complete`], always.
    Rndis(SendRndisPacket),
    /// The guest is done with RNDIS messages that the host sent with this transaction id.
    RndisComplete(NvspStatus),
    /// Offer `count` sub-channels in all, which are not more than there can be, and send the completion.
    SubChannels {
        /// How many, the primary channel not counted.
        count: u16,
        /// For the completion.
        answer: Answer,
    },
    /// Which way frames shall take; then complete the packet.
    SwitchDataPath(DataPath),
    /// The guest completed a notice that nobody has to complete.
    NoticeComplete,
    /// Count a violation, unless the refusal is none. Send the answer, if there is one and the packet asked for it.
    Refuse(Refusal, Option<Answer>),
}

/// Why a message is refused. One variant per cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A version that is not spoken. No violation: guests try one after the other.
    Version(NvspVersion),
    /// Shorter than it must be.
    TooShort(TooShort),
    /// A type that no guest sends, or not in this version.
    Unexpected(MessageType),
    /// Before a version was agreed on.
    NoVersion(MessageType),
    /// What is there only once was there already.
    Again(MessageType),
    /// Something else must come before.
    OutOfOrder(MessageType),
    /// A transaction of another kind of packet than this type has.
    PacketKind(MessageType),
    /// On a sub-channel, which carries RNDIS messages alone.
    OnSubChannel(MessageType),
    /// The buffer does not have this name.
    BufferId(u16),
    /// Neither data nor control.
    ChannelType(ChannelType),
    /// Another operation than to allocate. Answered as failed.
    SubChannelOperation(SubchannelOperation),
    /// More sub-channels than there can be, or none. Answered as failed; no violation.
    SubChannelCount(u32),
    /// An OID query outside of RNDIS. Answered as not supported; no violation.
    OidQueryEx(Oid),
}

impl Refusal {
    /// Whether the guest broke the protocol.
    #[must_use]
    pub const fn is_violation(&self) -> bool {
        !matches!(
            self,
            Self::Version(_) | Self::SubChannelCount(_) | Self::OidQueryEx(_)
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "NVSP version {version:?} is not spoken"),
            Self::TooShort(e) => e.fmt(f),
            Self::Unexpected(t) => write!(f, "unexpected NVSP message {t:?}"),
            Self::NoVersion(t) => write!(f, "{t:?} before a version was agreed on"),
            Self::Again(t) => write!(f, "{t:?} again"),
            Self::OutOfOrder(t) => write!(f, "{t:?} out of order"),
            Self::PacketKind(t) => write!(f, "{t:?} in a packet of another kind"),
            Self::OnSubChannel(t) => write!(f, "{t:?} on a sub-channel"),
            Self::BufferId(id) => write!(f, "no buffer has id {id:#x}"),
            Self::ChannelType(t) => write!(f, "RNDIS on channel type {t:?}"),
            Self::SubChannelOperation(op) => write!(f, "sub-channel operation {op:?}"),
            Self::SubChannelCount(n) => write!(f, "{n} sub-channels asked for"),
            Self::OidQueryEx(oid) => write!(f, "OID query {oid:?} outside of RNDIS"),
        }
    }
}

impl core::error::Error for Refusal {}

/// A buffer of the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Buffer {
    /// Not there yet.
    #[default]
    None,
    /// Offered, and not decided on.
    Offered(u16),
    /// In use, by this name.
    Live(u16),
    /// Taken back: there is no other.
    Revoked,
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    config: Config,
    version: Option<NvspVersion>,
    ndis: Option<NdisVersion>,
    mtu: Option<u32>,
    capabilities: NdisCapabilities,
    receive: Buffer,
    send: Buffer,
}

impl Server {
    /// A NIC whose channel was just opened.
    #[must_use]
    pub const fn new(config: Config) -> Self {
        Self {
            config,
            version: None,
            ndis: None,
            mtu: None,
            capabilities: NdisCapabilities::empty(),
            receive: Buffer::None,
            send: Buffer::None,
        }
    }

    /// The version agreed on.
    #[must_use]
    pub const fn version(&self) -> Option<NvspVersion> {
        self.version
    }

    /// The NDIS version that the guest named.
    #[must_use]
    pub const fn ndis_version(&self) -> Option<NdisVersion> {
        self.ndis
    }

    /// The MTU that the guest chose.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.mtu.unwrap_or(DEFAULT_MTU)
    }

    /// What the guest said it can do.
    #[must_use]
    pub const fn capabilities(&self) -> NdisCapabilities {
        self.capabilities
    }

    /// The receive buffer's name, while it may be used.
    #[must_use]
    pub const fn receive_buffer_id(&self) -> Option<u16> {
        match self.receive {
            Buffer::Live(id) => Some(id),
            _ => None,
        }
    }

    /// Whether the send buffer may be used.
    #[must_use]
    pub const fn has_send_buffer(&self) -> bool {
        matches!(self.send, Buffer::Live(_))
    }

    fn answer<T: IntoBytes + Immutable>(&self, message_type: MessageType, body: &T) -> Answer {
        Answer::new(self.version.unwrap_or(NvspVersion::V1), message_type, body)
    }

    /// Decides on the receive buffer that was offered, and gives the completion. `None` refuses it; another may be
    /// offered then.
    pub fn receive_buffer(&mut self, sections: Option<ReceiveSections>) -> Answer {
        self.receive = match (self.receive, sections) {
            (Buffer::Offered(id), Some(_)) => Buffer::Live(id),
            (Buffer::Offered(_), None) => Buffer::None,
            (other, _) => other,
        };
        self.answer(
            MessageType::SEND_RECV_BUF_COMPLETE,
            &SendReceiveBufferComplete {
                status: status(sections.is_some()),
                runs: u32::from(sections.is_some()),
                first: sections.unwrap_or_default(),
            },
        )
    }

    /// Decides on the send buffer that was offered, and gives the completion. `None` refuses it; another may be
    /// offered then.
    pub fn send_buffer(&mut self, section_size: Option<u32>) -> Answer {
        self.send = match (self.send, section_size) {
            (Buffer::Offered(id), Some(_)) => Buffer::Live(id),
            (Buffer::Offered(_), None) => Buffer::None,
            (other, _) => other,
        };
        self.answer(
            MessageType::SEND_SEND_BUF_COMPLETE,
            &SendSendBufferComplete {
                status: status(section_size.is_some()),
                section_size: section_size.unwrap_or_default(),
            },
        )
    }

    /// The GPADL of the receive buffer is gone without a revocation.
    pub fn receive_buffer_gone(&mut self) {
        self.receive = Buffer::Revoked;
    }

    /// The GPADL of the send buffer is gone without a revocation.
    pub fn send_buffer_gone(&mut self) {
        self.send = Buffer::Revoked;
    }

    /// The completion of RNDIS messages.
    #[must_use]
    pub fn rndis_complete(&self, status: NvspStatus) -> Answer {
        self.answer(MessageType::SEND_RNDIS_PKT_COMPLETE, &StatusBody { status })
    }

    /// Judges a packet that came on channel `index` (0: the primary one).
    pub fn on_packet(&mut self, index: u16, packet: &Packet<'_>) -> Verdict {
        let completion = packet.kind == PacketKind::Completion;
        if completion && packet.payload.is_empty() {
            return Verdict::NoticeComplete;
        }
        let message = match NvspMessage::parse(packet.payload) {
            Ok(message) => message,
            Err(e) => return Verdict::Refuse(Refusal::TooShort(e), self.failure(e.message_type)),
        };
        let t = message.message_type;
        let refuse = |refusal, answer| Verdict::Refuse(refusal, answer);
        if completion {
            return match t {
                MessageType::SEND_RNDIS_PKT_COMPLETE => {
                    Verdict::RndisComplete(message.body_as::<StatusBody>().status)
                }
                // Windows completes notices with the message itself (OpenVMM `netvsp`, `parse_packet`).
                MessageType::SEND_VF_ASSOCIATION | MessageType::SWITCH_DATA_PATH => {
                    Verdict::NoticeComplete
                }
                _ => refuse(Refusal::Unexpected(t), None),
            };
        }
        let Some(version) = self.version else {
            return self.before_version(index, packet, &message);
        };
        if t == MessageType::INIT {
            return refuse(Refusal::Again(t), self.failure(Some(t)));
        }
        if t.since().is_none_or(|since| since > version) {
            return refuse(Refusal::Unexpected(t), self.failure(Some(t)));
        }
        if index != 0 && t != MessageType::SEND_RNDIS_PKT {
            return refuse(Refusal::OnSubChannel(t), self.failure(Some(t)));
        }
        let in_band = packet.kind == PacketKind::InBand;
        let direct = matches!(packet.kind, PacketKind::GpaDirect(_));
        if !(in_band || direct && t == MessageType::SEND_RNDIS_PKT) {
            return refuse(Refusal::PacketKind(t), self.failure(Some(t)));
        }
        match self.in_version(version, &message) {
            Ok(verdict) => verdict,
            Err(refusal) => refuse(refusal, self.failure(Some(t))),
        }
    }

    fn before_version(
        &mut self,
        index: u16,
        packet: &Packet<'_>,
        message: &NvspMessage,
    ) -> Verdict {
        let t = message.message_type;
        if t != MessageType::INIT || index != 0 {
            return Verdict::Refuse(Refusal::NoVersion(t), self.failure(Some(t)));
        }
        if packet.kind != PacketKind::InBand {
            return Verdict::Refuse(Refusal::PacketKind(t), None);
        }
        let init: Init = message.body_as();
        let asked = init.min;
        let spoken = NvspVersion::SPOKEN.contains(&asked) && asked <= self.config.newest;
        let complete = InitComplete {
            version: if spoken && asked == NvspVersion::V1 {
                asked.0
            } else {
                u32::MAX
            },
            max_mdl_chain: MAX_MDL_CHAIN,
            // Hosts refuse with NONE.
            status: if spoken {
                NvspStatus::SUCCESS
            } else {
                NvspStatus::NONE
            },
        };
        // Before there is a version messages are short; from 6.1 on long.
        let answer = Answer::new(
            if spoken { asked } else { NvspVersion::V1 },
            MessageType::INIT_COMPLETE,
            &complete,
        );
        if !spoken {
            return Verdict::Refuse(Refusal::Version(asked), Some(answer));
        }
        self.version = Some(asked);
        Verdict::Agreed(answer, asked)
    }

    fn in_version(
        &mut self,
        version: NvspVersion,
        message: &NvspMessage,
    ) -> Result<Verdict, Refusal> {
        let t = message.message_type;
        match t {
            MessageType::SEND_NDIS_CONFIG => {
                if self.mtu.is_some() {
                    return Err(Refusal::Again(t));
                }
                if self.receive != Buffer::None {
                    return Err(Refusal::OutOfOrder(t));
                }
                let config: NdisConfig = message.body_as();
                let mtu = config
                    .mtu
                    .checked_sub(ETHERNET_HEADER_SIZE)
                    .filter(|mtu| (DEFAULT_MTU..=self.config.max_mtu).contains(mtu));
                self.mtu = Some(mtu.unwrap_or(DEFAULT_MTU));
                self.capabilities = config.capabilities;
                Ok(Verdict::Answer(Answer::EMPTY))
            }
            MessageType::SEND_NDIS_VER => {
                if self.ndis.is_some() {
                    return Err(Refusal::Again(t));
                }
                self.ndis = Some(message.body_as());
                Ok(Verdict::Answer(Answer::EMPTY))
            }
            MessageType::SEND_RECV_BUF => {
                // The sections depend on the MTU.
                if version.has_ndis_config() && self.mtu.is_none() {
                    return Err(Refusal::OutOfOrder(t));
                }
                let offer = offered(message, &mut self.receive)?;
                Ok(Verdict::ReceiveBuffer(offer))
            }
            MessageType::SEND_SEND_BUF => {
                let offer = offered(message, &mut self.send)?;
                Ok(Verdict::SendBuffer(offer))
            }
            MessageType::REVOKE_RECV_BUF => {
                revoke(message, &mut self.receive)?;
                Ok(Verdict::RevokeReceiveBuffer)
            }
            MessageType::REVOKE_SEND_BUF => {
                revoke(message, &mut self.send)?;
                Ok(Verdict::RevokeSendBuffer)
            }
            MessageType::SEND_RNDIS_PKT => {
                if self.ndis.is_none() || self.receive_buffer_id().is_none() {
                    return Err(Refusal::OutOfOrder(t));
                }
                let packet: SendRndisPacket = message.body_as();
                match packet.channel {
                    ChannelType::DATA | ChannelType::CONTROL => Ok(Verdict::Rndis(packet)),
                    other => Err(Refusal::ChannelType(other)),
                }
            }
            MessageType::SUBCHANNEL => {
                let request: SubchannelRequest = message.body_as();
                if request.operation != SubchannelOperation::ALLOCATE {
                    return Err(Refusal::SubChannelOperation(request.operation));
                }
                let count = u16::try_from(request.count)
                    .ok()
                    .filter(|n| (1..=self.config.max_sub_channels).contains(n))
                    .ok_or(Refusal::SubChannelCount(request.count))?;
                let answer = self.answer(
                    t,
                    &SubchannelComplete {
                        status: NvspStatus::SUCCESS,
                        count: count.into(),
                    },
                );
                Ok(Verdict::SubChannels { count, answer })
            }
            MessageType::SWITCH_DATA_PATH => Ok(Verdict::SwitchDataPath(
                message.body_as::<SwitchDataPath>().active,
            )),
            MessageType::OID_QUERY_EX => {
                // The header of an NDIS structure, then the OID (OpenVMM `protocol.rs`, `Message5OidQueryEx`).
                let [_, oid] = message.body_as::<[u32; 2]>();
                Err(Refusal::OidQueryEx(Oid(oid)))
            }
            _ => Err(Refusal::Unexpected(t)),
        }
    }

    /// What a guest that waits for an answer to a message of this type gets when it is refused.
    fn failure(&self, message_type: Option<MessageType>) -> Option<Answer> {
        let fail = StatusBody {
            status: NvspStatus::FAIL,
        };
        match message_type? {
            MessageType::INIT => Some(self.answer(
                MessageType::INIT_COMPLETE,
                &InitComplete {
                    version: u32::MAX,
                    max_mdl_chain: MAX_MDL_CHAIN,
                    status: NvspStatus::FAIL,
                },
            )),
            MessageType::SEND_RECV_BUF => Some(self.answer(
                MessageType::SEND_RECV_BUF_COMPLETE,
                &SendReceiveBufferComplete {
                    status: NvspStatus::FAIL,
                    ..SendReceiveBufferComplete::default()
                },
            )),
            MessageType::SEND_SEND_BUF => Some(self.answer(
                MessageType::SEND_SEND_BUF_COMPLETE,
                &SendSendBufferComplete {
                    status: NvspStatus::FAIL,
                    section_size: 0,
                },
            )),
            MessageType::SEND_RNDIS_PKT => {
                Some(self.answer(MessageType::SEND_RNDIS_PKT_COMPLETE, &fail))
            }
            MessageType::SUBCHANNEL => Some(self.answer(
                MessageType::SUBCHANNEL,
                &SubchannelComplete {
                    status: NvspStatus::FAIL,
                    count: 0,
                },
            )),
            MessageType::OID_QUERY_EX => Some(self.answer(
                MessageType::OID_QUERY_EX_COMPLETE,
                &[RndisStatus::NOT_SUPPORTED.0, 0],
            )),
            _ => Some(Answer::EMPTY),
        }
    }
}

fn status(good: bool) -> NvspStatus {
    if good {
        NvspStatus::SUCCESS
    } else {
        NvspStatus::FAIL
    }
}

fn offered(message: &NvspMessage, buffer: &mut Buffer) -> Result<BufferOffer, Refusal> {
    if *buffer != Buffer::None {
        return Err(Refusal::Again(message.message_type));
    }
    let offer: SendBuffer = message.body_as();
    *buffer = Buffer::Offered(offer.id);
    Ok(BufferOffer {
        gpadl: offer.gpadl,
        id: offer.id,
    })
}

fn revoke(message: &NvspMessage, buffer: &mut Buffer) -> Result<(), Refusal> {
    let id = message.body_as::<RevokeBuffer>().id;
    match *buffer {
        Buffer::Live(live) if live == id => {
            *buffer = Buffer::Revoked;
            Ok(())
        }
        Buffer::Live(_) => Err(Refusal::BufferId(id)),
        _ => Err(Refusal::OutOfOrder(message.message_type)),
    }
}
