// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The guest's side of the initialization of an open channel.
//!
//! [`Client`] decides, its owner does the I/O: it sends what it is told to (in-band, with
//! completion requested, one packet at a time), waits for the answer at most
//! [`REPLY_TIMEOUT_SECS`](super::wire::REPLY_TIMEOUT_SECS) and hands it in.
//!
//! ```text
//!  Idle ──start──> Begin ──> Version(6.2) ──refused──> Version(6.0) ──refused──> Failed
//!                                 └────accepted───┬────────┘
//!                                             Properties ──> [FcNames] ──> End ──> [SubChannels] ──> Ready
//! ```
//!
//! Any answer that is malformed, or a status other than success where that is required, leads to
//! Failed. A refusal of sub-channels does not: the primary channel carries everything
//! (storvsc_drv.c, `handle_multichannel_storage`).

use core::fmt;

use super::wire::{
    ChannelProperties, FcHbaData, FcNames, NtStatus, Operation, PropertyFlags, StorVersion,
    SubChannelCount, VersionBody, VstorPacket, VSTOR_PACKET_SIZE,
};
use crate::packet::{DESCRIPTOR_SIZE, EXTRA_HEADER_SIZE, MAX_PACKET_SIZE};
use crate::PAGE_SIZE;
use zerocopy::FromBytes;

/// Bytes of one transfer at most, whatever the host allows: what the page frame numbers of one packet can
/// name, less a page for an unaligned start.
pub const MAX_TRANSFER_BYTES: u32 = {
    let fixed = DESCRIPTOR_SIZE
        .wrapping_add(EXTRA_HEADER_SIZE)
        .wrapping_add(8) // header of the range
        .wrapping_add(VSTOR_PACKET_SIZE as u32);
    let pages = MAX_PACKET_SIZE.wrapping_sub(fixed) >> 3;
    pages.wrapping_sub(1).wrapping_mul(PAGE_SIZE as u32)
};

/// What the owner of a client chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Newest version to ask for: [`StorVersion::V6_2`] unless someone is debugging.
    pub newest: StorVersion,
    /// The device is a Fibre Channel adapter: ask for its names.
    pub fibre_channel: bool,
    /// Sub-channels that the guest can use; Linux: online CPUs less one. 0 asks for none.
    pub sub_channels: u16,
}

/// What client and host have agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The version spoken.
    pub version: StorVersion,
    /// Bytes of one transfer at most: whole pages, at least one, at most [`MAX_TRANSFER_BYTES`].
    pub max_transfer_bytes: u32,
    /// Sub-channels that the host has agreed to offer. It may offer fewer, later, or more: bound it.
    pub sub_channels: u16,
    /// Why the host refused sub-channels, if it did.
    pub sub_channels_refused: Option<NtStatus>,
    /// Names of a Fibre Channel adapter.
    pub fc_names: Option<FcNames>,
}

/// What the client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing sent yet.
    Idle,
    /// BEGIN_INITIALIZATION sent.
    Begin,
    /// QUERY_PROTOCOL_VERSION sent for this version.
    Version(StorVersion),
    /// QUERY_PROPERTIES sent.
    Properties,
    /// FCHBA_DATA sent.
    FcNames,
    /// END_INITIALIZATION sent.
    End,
    /// CREATE_SUB_CHANNELS sent for this many.
    SubChannels(u16),
    /// SCSI commands may be sent.
    Ready,
    /// Close the channel.
    Failed,
}

/// What the owner is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[allow(clippy::large_enum_variant)] // Lives on the stack of the caller.
pub enum Step {
    /// Send this and hand in the answer.
    Send(VstorPacket),
    /// SCSI commands may be sent.
    Ready(Negotiated),
}

/// Why the initialization failed. One variant per cause. The client is then in [`State::Failed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitError {
    /// The host speaks no version that we do.
    NoCommonVersion,
    /// The host refused a step.
    Refused {
        /// The step.
        state: State,
        /// Its reason.
        status: NtStatus,
    },
    /// An answer is shorter than a vstor packet.
    ShortAnswer {
        /// The step.
        state: State,
        /// Bytes that came.
        len: usize,
    },
    /// What came is no answer.
    NotAnAnswer {
        /// The step.
        state: State,
        /// What came.
        operation: Operation,
    },
    /// The host allows transfers of less than a page: no disk can be used so.
    TransferTooSmall {
        /// Bytes allowed.
        bytes: u32,
    },
    /// The owner handed in an answer in a state that expects none.
    NothingSent,
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCommonVersion => f.write_str("no common protocol version"),
            Self::Refused { state, status } => write!(f, "{state:?}: refused with {status:?}"),
            Self::ShortAnswer { state, len } => write!(f, "{state:?}: answer of {len} bytes"),
            Self::NotAnAnswer { state, operation } => {
                write!(f, "{state:?}: {operation:?} in place of an answer")
            }
            Self::TransferTooSmall { bytes } => {
                write!(f, "transfers of at most {bytes} bytes allowed")
            }
            Self::NothingSent => f.write_str("answer to nothing"),
        }
    }
}

impl core::error::Error for InitError {}

/// The guest's side of the initialization.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    config: Config,
    state: State,
    agreed: Negotiated,
    /// Sub-channels to ask for: what both sides can do.
    ask: u16,
}

impl Client {
    /// A client for a channel that has just been opened.
    #[must_use]
    pub const fn new(config: Config) -> Self {
        Self {
            config,
            state: State::Idle,
            agreed: Negotiated {
                version: StorVersion(0),
                max_transfer_bytes: 0,
                sub_channels: 0,
                sub_channels_refused: None,
                fc_names: None,
            },
            ask: 0,
        }
    }

    /// What the client waits for.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// The first packet to send. Starts over if the client had started before.
    #[must_use]
    pub fn start(&mut self) -> VstorPacket {
        *self = Self::new(self.config);
        self.state = State::Begin;
        VstorPacket::request(Operation::BEGIN_INITIALIZATION)
    }

    /// Takes the answer to the packet sent last: the payload of the completion, a private copy.
    ///
    /// # Errors
    /// [`InitError`]; only [`InitError::NothingSent`] leaves the state as it was.
    pub fn on_answer(&mut self, answer: &[u8]) -> Result<Step, InitError> {
        if matches!(self.state, State::Idle | State::Ready | State::Failed) {
            return Err(InitError::NothingSent);
        }
        let step = self.advance(answer);
        if step.is_err() {
            self.state = State::Failed;
        }
        step
    }

    fn advance(&mut self, answer: &[u8]) -> Result<Step, InitError> {
        let state = self.state;
        let (answer, _) =
            VstorPacket::read_from_prefix(answer).map_err(|_| InitError::ShortAnswer {
                state,
                len: answer.len(),
            })?;
        if answer.header.operation != Operation::COMPLETE_IO {
            return Err(InitError::NotAnAnswer {
                state,
                operation: answer.header.operation,
            });
        }
        let status = answer.header.status;
        let refused = status != NtStatus::SUCCESS;
        match state {
            // The version that a host names in a refusal is no promise: go down the list.
            State::Version(version) if refused => self
                .query_version(|next| next < version)
                .ok_or(InitError::NoCommonVersion),
            State::SubChannels(_) if refused => {
                self.agreed.sub_channels_refused = Some(status);
                Ok(self.ready())
            }
            _ if refused => Err(InitError::Refused { state, status }),
            State::Idle | State::Ready | State::Failed => Err(InitError::NothingSent),
            State::Begin => self
                .query_version(|_| true)
                .ok_or(InitError::NoCommonVersion),
            State::Version(version) => {
                self.agreed.version = version;
                Ok(self.send(State::Properties, Operation::QUERY_PROPERTIES))
            }
            State::Properties => {
                self.take_properties(&answer.body_as())?;
                Ok(if self.config.fibre_channel {
                    self.send(State::FcNames, Operation::FCHBA_DATA)
                } else {
                    self.send(State::End, Operation::END_INITIALIZATION)
                })
            }
            State::FcNames => {
                self.agreed.fc_names = Some(answer.body_as::<FcHbaData>().active());
                Ok(self.send(State::End, Operation::END_INITIALIZATION))
            }
            State::End if self.ask > 0 => {
                self.state = State::SubChannels(self.ask);
                let count = SubChannelCount { count: self.ask };
                Ok(Step::Send(
                    VstorPacket::request(Operation::CREATE_SUB_CHANNELS).with_body(&count),
                ))
            }
            State::End => Ok(self.ready()),
            State::SubChannels(count) => {
                self.agreed.sub_channels = count;
                Ok(self.ready())
            }
        }
    }

    fn send(&mut self, state: State, operation: Operation) -> Step {
        self.state = state;
        Step::Send(VstorPacket::request(operation))
    }

    fn ready(&mut self) -> Step {
        self.state = State::Ready;
        Step::Ready(self.agreed)
    }

    /// Asks for the best version that `may` be asked for.
    fn query_version(&mut self, may: impl Fn(StorVersion) -> bool) -> Option<Step> {
        let version = StorVersion::SPOKEN
            .into_iter()
            .find(|version| *version <= self.config.newest && may(*version))?;
        self.state = State::Version(version);
        let body = VersionBody {
            version,
            revision: 0,
        };
        Some(Step::Send(
            VstorPacket::request(Operation::QUERY_PROTOCOL_VERSION).with_body(&body),
        ))
    }

    fn take_properties(&mut self, properties: &ChannelProperties) -> Result<(), InitError> {
        let bytes = properties.max_transfer_bytes;
        let pages = bytes & !(PAGE_SIZE as u32).wrapping_sub(1);
        if pages == 0 {
            return Err(InitError::TransferTooSmall { bytes });
        }
        self.agreed.max_transfer_bytes = pages.min(MAX_TRANSFER_BYTES);
        self.ask = if properties.flags.contains(PropertyFlags::MULTI_CHANNEL) {
            properties.max_sub_channels.min(self.config.sub_channels)
        } else {
            0
        };
        Ok(())
    }
}
