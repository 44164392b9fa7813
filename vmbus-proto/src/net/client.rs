// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The guest's side of NVSP on a primary channel that has just been opened: version, buffers, sub-channels.
//!
//! [`Client`] decides, its owner does the I/O, step by step, and hands in what comes of it. RNDIS follows
//! ([`super::setup`]).
//!
//! ```text
//!  Idle ──start──> Version(6.1) ──refused──> … Version(1) ──refused──> Failed
//!                       └──accepted──┬───────────┘
//!                    [NdisConfig] ──> NdisVersion ──> ShareReceive ──> ReceiveSections ──> ShareSend
//!                                                                 Ready <── SendSections <──┘
//! ```

use core::fmt;

use super::nvsp::{
    ChannelType, Init, InitComplete, MessageType, NdisCapabilities, NdisConfig, NvspMessage,
    NvspStatus, NvspVersion, RevokeBuffer, SendBuffer, SendReceiveBufferComplete, SendRndisPacket,
    SendSendBufferComplete, SubchannelComplete, SubchannelOperation, SubchannelRequest, TooShort,
    MAX_SEND_BUFFER, NO_SECTION, RECEIVE_BUFFER_ID, SEND_BUFFER_ID,
};
use super::packet::ETHERNET_HEADER_SIZE;
use crate::msg::GpadlId;
use crate::PAGE_SIZE;

/// Bytes of a section at least: a smaller one could not even hold the smallest IPv4 packet (`ETH_MIN_MTU`, which
/// `netvsc.c`, `netvsc_init_buf`, asks for).
pub const MIN_SECTION_SIZE: u32 = 68;

/// What the owner of a client chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Newest version to ask for: [`NvspVersion::V6_1`] unless someone is debugging.
    pub newest: NvspVersion,
    /// MTU, without Ethernet header. Hosts of version 1 know 1500 alone.
    pub mtu: u32,
    /// The guest can use a virtual function beside this device.
    pub sriov: bool,
    /// The guest does not trust its host: nothing older than 6.1 (`netvsc.c`, `netvsc_connect_vsp`).
    pub isolated: bool,
    /// Bytes of the receive buffer wanted; rounded up to pages, and down to what the host takes.
    pub receive_bytes: u32,
    /// Bytes of the send buffer wanted.
    pub send_bytes: u32,
}

/// Sections of a buffer; checked: they lie in it, one after the other from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Sections {
    /// Bytes of the buffer.
    pub bytes: u32,
    /// Bytes of each section, at least [`MIN_SECTION_SIZE`].
    pub size: u32,
    /// How many, at least one.
    pub count: u32,
}

/// What client and host have agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The version spoken.
    pub version: NvspVersion,
    /// The receive buffer. What comes may lie anywhere in it, in ranges of at most a section's size.
    pub receive: Sections,
    /// The send buffer.
    pub send: Sections,
}

/// What the client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing sent yet.
    Idle,
    /// INIT sent for this version.
    Version(NvspVersion),
    /// SEND_NDIS_CONFIG is to be sent.
    NdisConfig,
    /// SEND_NDIS_VER is to be sent.
    NdisVersion,
    /// The receive buffer, of so many bytes, is to be shared.
    ShareReceive(u32),
    /// SEND_RECV_BUF sent.
    ReceiveSections(u32),
    /// The send buffer is to be shared.
    ShareSend(u32),
    /// SEND_SEND_BUF sent.
    SendSections(u32),
    /// RNDIS messages may be sent.
    Ready,
    /// Close the channel.
    Failed,
}

/// What the owner is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[allow(clippy::large_enum_variant)] // Lives on the stack of the caller.
pub enum Step {
    /// Send this in-band, all [`super::nvsp::MESSAGE_SIZE`] bytes as Linux does, with completion requested; hand the
    /// completion's payload to [`Client::on_answer`].
    Request(NvspMessage),
    /// Send this in-band without asking for a completion, then call [`Client::sent`].
    Notice(NvspMessage),
    /// Share a buffer of this many bytes, whole pages, by a GPADL of this channel, for the host to write to; then call
    /// [`Client::shared`].
    ShareReceive(u32),
    /// As above, for the host to read from.
    ShareSend(u32),
    /// RNDIS messages may be sent.
    Ready(Negotiated),
}

/// Why the set-up failed. One variant per cause. The client is then in [`State::Failed`]; but see
/// [`InitError::Unexpected`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitError {
    /// The host speaks no version that we do.
    NoCommonVersion,
    /// The host speaks no version that an isolated guest may use.
    TooOldForIsolated(NvspVersion),
    /// The host refused a step.
    Refused {
        /// The step.
        state: State,
        /// Its reason.
        status: NvspStatus,
    },
    /// An answer is too short.
    ShortAnswer(TooShort),
    /// What came is not the answer to what was asked.
    NotAnAnswer {
        /// The step.
        state: State,
        /// What came.
        message_type: MessageType,
    },
    /// The receive buffer is to have other than one run of sections from its start.
    Runs {
        /// Runs.
        count: u32,
        /// Where the first starts.
        offset: u32,
    },
    /// Sections are too small, do not fit the buffer, or there is none.
    Sections(Sections),
    /// The owner did something else than what it was told to; the state is as it was.
    Unexpected(State),
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCommonVersion => f.write_str("no common protocol version"),
            Self::TooOldForIsolated(version) => {
                write!(f, "{version:?} is too old for an isolated guest")
            }
            Self::Refused { state, status } => write!(f, "{state:?}: refused with {status:?}"),
            Self::ShortAnswer(e) => e.fmt(f),
            Self::NotAnAnswer {
                state,
                message_type,
            } => write!(f, "{state:?}: {message_type:?} in place of an answer"),
            Self::Runs { count, offset } => {
                write!(
                    f,
                    "{count} runs of receive sections, the first at offset {offset}"
                )
            }
            Self::Sections(Sections { bytes, size, count }) => {
                write!(
                    f,
                    "{count} sections of {size} bytes in a buffer of {bytes} bytes"
                )
            }
            Self::Unexpected(state) => write!(f, "{state:?}: not the time for this"),
        }
    }
}

impl core::error::Error for InitError {}

impl Sections {
    fn check(self) -> Result<Self, InitError> {
        let used = u64::from(self.size).saturating_mul(self.count.into());
        if self.size < MIN_SECTION_SIZE || self.count == 0 || used > self.bytes.into() {
            return Err(InitError::Sections(self));
        }
        Ok(self)
    }
}

/// The guest's side of NVSP.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    config: Config,
    state: State,
    agreed: Negotiated,
}

impl Client {
    /// A client for a primary channel that has just been opened.
    #[must_use]
    pub const fn new(config: Config) -> Self {
        const NONE: Sections = Sections {
            bytes: 0,
            size: 0,
            count: 0,
        };
        Self {
            config,
            state: State::Idle,
            agreed: Negotiated {
                version: NvspVersion(0),
                receive: NONE,
                send: NONE,
            },
        }
    }

    /// What the client waits for.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// The version agreed on; 0 before.
    #[must_use]
    pub const fn version(&self) -> NvspVersion {
        self.agreed.version
    }

    /// The first step. Starts over if the client had started before.
    ///
    /// # Errors
    /// [`InitError::NoCommonVersion`] when `newest` is older than all.
    pub fn start(&mut self) -> Result<Step, InitError> {
        *self = Self::new(self.config);
        self.ask_version(|_| true)
    }

    /// Takes the answer to the request sent last: the payload of the completion, a private copy.
    ///
    /// # Errors
    /// [`InitError`].
    pub fn on_answer(&mut self, payload: &[u8]) -> Result<Step, InitError> {
        let expected = match self.state {
            State::Version(_) => MessageType::INIT_COMPLETE,
            State::ReceiveSections(_) => MessageType::SEND_RECV_BUF_COMPLETE,
            State::SendSections(_) => MessageType::SEND_SEND_BUF_COMPLETE,
            state => return Err(InitError::Unexpected(state)),
        };
        let step = self.answered(payload, expected);
        if step.is_err() {
            self.state = State::Failed;
        }
        step
    }

    fn answered(&mut self, payload: &[u8], expected: MessageType) -> Result<Step, InitError> {
        let state = self.state;
        let answer = NvspMessage::parse(payload).map_err(InitError::ShortAnswer)?;
        if answer.message_type != expected {
            return Err(InitError::NotAnAnswer {
                state,
                message_type: answer.message_type,
            });
        }
        let granted = |status: NvspStatus| {
            if status == NvspStatus::SUCCESS {
                Ok(())
            } else {
                Err(InitError::Refused { state, status })
            }
        };
        match state {
            State::Version(version) => {
                // The version in the answer means nothing: see `InitComplete`.
                if answer.body_as::<InitComplete>().status != NvspStatus::SUCCESS {
                    return self.ask_version(|next| next < version);
                }
                if self.config.isolated && version < NvspVersion::V6_1 {
                    return Err(InitError::TooOldForIsolated(version));
                }
                self.agreed.version = version;
                Ok(if version.has_ndis_config() {
                    self.state = State::NdisConfig;
                    Step::Notice(self.ndis_config())
                } else {
                    self.send_ndis_version()
                })
            }
            State::ReceiveSections(bytes) => {
                let sections: SendReceiveBufferComplete = answer.body_as();
                granted(sections.status)?;
                let first = sections.first;
                if sections.runs != 1 || first.offset != 0 {
                    return Err(InitError::Runs {
                        count: sections.runs,
                        offset: first.offset,
                    });
                }
                self.agreed.receive = Sections {
                    bytes,
                    size: first.size,
                    count: first.count,
                }
                .check()?;
                let bytes = whole_pages(self.config.send_bytes, MAX_SEND_BUFFER);
                self.state = State::ShareSend(bytes);
                Ok(Step::ShareSend(bytes))
            }
            State::SendSections(bytes) => {
                let sections: SendSendBufferComplete = answer.body_as();
                granted(sections.status)?;
                self.agreed.send = Sections {
                    bytes,
                    size: sections.section_size,
                    count: bytes.checked_div(sections.section_size).unwrap_or(0),
                }
                .check()?;
                self.state = State::Ready;
                Ok(Step::Ready(self.agreed))
            }
            state => Err(InitError::Unexpected(state)),
        }
    }

    /// The notice has been sent.
    ///
    /// # Errors
    /// [`InitError::Unexpected`] when there was none to send.
    pub fn sent(&mut self) -> Result<Step, InitError> {
        match self.state {
            State::NdisConfig => Ok(self.send_ndis_version()),
            State::NdisVersion => {
                let max = self.agreed.version.max_receive_buffer();
                let bytes = whole_pages(self.config.receive_bytes, max);
                self.state = State::ShareReceive(bytes);
                Ok(Step::ShareReceive(bytes))
            }
            state => Err(InitError::Unexpected(state)),
        }
    }

    /// The buffer has been shared as `gpadl`.
    ///
    /// # Errors
    /// [`InitError::Unexpected`] when none was to be shared.
    pub fn shared(&mut self, gpadl: GpadlId) -> Result<Step, InitError> {
        let (state, message_type, id) = match self.state {
            State::ShareReceive(bytes) => (
                State::ReceiveSections(bytes),
                MessageType::SEND_RECV_BUF,
                RECEIVE_BUFFER_ID,
            ),
            State::ShareSend(bytes) => (
                State::SendSections(bytes),
                MessageType::SEND_SEND_BUF,
                SEND_BUFFER_ID,
            ),
            state => return Err(InitError::Unexpected(state)),
        };
        self.state = state;
        let body = SendBuffer {
            gpadl,
            id,
            reserved: 0,
        };
        Ok(Step::Request(NvspMessage::new(message_type, &body)))
    }

    /// Asks for the best version that `may` be asked for.
    fn ask_version(&mut self, may: impl Fn(NvspVersion) -> bool) -> Result<Step, InitError> {
        let next = NvspVersion::SPOKEN
            .into_iter()
            .find(|version| *version <= self.config.newest && may(*version));
        let Some(version) = next else {
            self.state = State::Failed;
            return Err(InitError::NoCommonVersion);
        };
        self.state = State::Version(version);
        let body = Init {
            min: version,
            max: version,
        };
        Ok(Step::Request(NvspMessage::new(MessageType::INIT, &body)))
    }

    /// What Linux says of itself (`netvsc.c`, `negotiate_nvsp_ver`).
    fn ndis_config(&self) -> NvspMessage {
        let version = self.agreed.version;
        let mut capabilities = NdisCapabilities::IEEE_8021Q;
        if version >= NvspVersion::V5 {
            capabilities.set(
                NdisCapabilities::SRIOV,
                self.config.sriov && !self.config.isolated,
            );
            capabilities |= NdisCapabilities::TEAMING;
        }
        if version >= NvspVersion::V6_1 {
            capabilities |= NdisCapabilities::RSC;
        }
        let body = NdisConfig {
            mtu: self.config.mtu.saturating_add(ETHERNET_HEADER_SIZE),
            reserved: 0,
            capabilities,
        };
        NvspMessage::new(MessageType::SEND_NDIS_CONFIG, &body)
    }

    fn send_ndis_version(&mut self) -> Step {
        self.state = State::NdisVersion;
        let body = self.agreed.version.ndis_version();
        Step::Notice(NvspMessage::new(MessageType::SEND_NDIS_VER, &body))
    }
}

/// `bytes` in whole pages, at least one, at most `max`.
fn whole_pages(bytes: u32, max: u32) -> u32 {
    let page = PAGE_SIZE as u32;
    bytes
        .clamp(1, max)
        .checked_next_multiple_of(page)
        .unwrap_or(page)
}

/// Tells the host not to use the receive buffer any more; no answer comes. Unshare the buffer once the channel is
/// closed.
#[must_use]
pub fn revoke_receive_buffer() -> NvspMessage {
    let body = RevokeBuffer {
        id: RECEIVE_BUFFER_ID,
    };
    NvspMessage::new(MessageType::REVOKE_RECV_BUF, &body)
}

/// As [`revoke_receive_buffer`], for the send buffer.
#[must_use]
pub fn revoke_send_buffer() -> NvspMessage {
    let body = RevokeBuffer { id: SEND_BUFFER_ID };
    NvspMessage::new(MessageType::REVOKE_SEND_BUF, &body)
}

/// Asks for `count` sub-channels, with completion requested; see [`subchannels_granted`].
#[must_use]
pub fn request_subchannels(count: u32) -> NvspMessage {
    let body = SubchannelRequest {
        operation: SubchannelOperation::ALLOCATE,
        count,
    };
    NvspMessage::new(MessageType::SUBCHANNEL, &body)
}

/// How many sub-channels the host offers of the `asked` ones; it does so before or after.
///
/// # Errors
/// [`InitError::ShortAnswer`], [`InitError::NotAnAnswer`], [`InitError::Refused`]; the last also when the host claims to
/// offer more than asked for. The primary channel then carries everything.
pub fn subchannels_granted(payload: &[u8], asked: u32) -> Result<u32, InitError> {
    let state = State::Ready;
    let answer = NvspMessage::parse(payload).map_err(InitError::ShortAnswer)?;
    if answer.message_type != MessageType::SUBCHANNEL {
        return Err(InitError::NotAnAnswer {
            state,
            message_type: answer.message_type,
        });
    }
    let SubchannelComplete { status, count } = answer.body_as();
    if status != NvspStatus::SUCCESS || count > asked {
        return Err(InitError::Refused { state, status });
    }
    Ok(count)
}

/// The ring packet's payload for an RNDIS control message in the guest's own memory (GPA-direct).
pub const CONTROL_MESSAGE: SendRndisPacket = SendRndisPacket {
    channel: ChannelType::CONTROL,
    section_index: NO_SECTION,
    section_size: 0,
};
