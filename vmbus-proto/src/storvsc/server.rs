// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The host's checks: each packet of a guest is taken apart, measured and set against what has been
//! agreed, before anything is done for it.
//!
//! [`Server`] holds the state of a controller, which all of its channels share. It answers what it can
//! by itself; commands, resets and the creation of sub-channels it hands out once they are checked.
//! What is wrong comes out as [`Verdict::Refuse`] with the cause, changes nothing, and is answered with
//! an error if the guest waits for an answer (as OpenVMM `storvsp` does for packets out of order; it
//! gives up the channel on malformed ones).

use core::fmt;
use zerocopy::{FromBytes, IntoBytes};

use super::srb::{DataIn, ScsiAddress, ScsiRequest, ScsiStatus, SrbCode, Transfer};
use super::wire::{
    ChannelProperties, FcHbaData, NtStatus, Operation, PropertyFlags, StorVersion, SubChannelCount,
    VersionBody, VstorHeader, VstorPacket, HEADER_SIZE, VSTOR_PACKET_SIZE,
};
use crate::packet::{Packet, PacketKind};

/// What the owner of a server chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Newest version accepted: 6.2, or 6.0 to stand for an older host.
    pub newest: StorVersion,
    /// Bytes that one command may transfer.
    pub max_transfer_bytes: u32,
    /// Sub-channels that can be had. 0: none, and the guest is told so.
    pub max_sub_channels: u16,
    /// Names, for a Fibre Channel adapter; `None` for others, which know no FCHBA_DATA.
    pub fc: Option<FcHbaData>,
}

/// How far the guest has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waits for BEGIN_INITIALIZATION.
    Begin,
    /// Waits for a version that is spoken.
    Version,
    /// Waits for QUERY_PROPERTIES.
    Properties(StorVersion),
    /// Waits for END_INITIALIZATION; sub-channels may be asked for before.
    End(StorVersion),
    /// Commands may come.
    Ready(StorVersion),
}

/// An answer, of the size that the guest expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    packet: VstorPacket,
    len: usize,
}

impl Answer {
    /// The payload of the completion packet.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        let bytes = self.packet.as_bytes();
        bytes.get(..self.len).unwrap_or(bytes)
    }

    /// Its status.
    #[must_use]
    pub const fn status(&self) -> NtStatus {
        self.packet.header.status
    }
}

/// A request that the owner answers once it is done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Pending {
    len: usize,
}

impl Pending {
    /// The answer.
    #[must_use]
    pub const fn answer(self, status: NtStatus) -> Answer {
        Answer {
            packet: VstorPacket::answer(status),
            len: self.len,
        }
    }
}

/// What the owner is to do about a packet. Completions carry the packet's transaction id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[allow(clippy::large_enum_variant)] // Lives on the stack of the caller.
pub enum Verdict {
    /// Send the completion.
    Answer(Answer),
    /// The guest has agreed on a version and ended the initialization: send the completion. SCSI
    /// commands follow.
    Ready(Answer, StorVersion),
    /// Offer `count` sub-channels in all, then answer. A count above the maximum has been refused.
    CreateSubChannels {
        /// How many, the primary channel not counted.
        count: u16,
        /// For the answer.
        pending: Pending,
    },
    /// Carry out the command: [`ScsiPacket::complete`](super::ScsiPacket::complete) makes the completion. `transfer` has been
    /// set against the packet's range: the data lie within the first `transfer.len()` bytes of it.
    Execute {
        /// The command.
        request: ScsiRequest,
        /// Its data.
        transfer: Transfer,
    },
    /// Reset, then answer.
    Reset {
        /// RESET_LUN, RESET_BUS or RESET_ADAPTER.
        operation: Operation,
        /// What to reset. For RESET_BUS Linux fills in the path alone; zero when a short packet says
        /// nothing.
        address: ScsiAddress,
        /// For the answer.
        pending: Pending,
    },
    /// Count a violation. Send the answer, if there is one.
    Refuse(Refusal, Option<Answer>),
}

/// What is wrong with a packet. One variant per cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A completion: the host asks for none.
    Completion,
    /// Neither in-band nor GPA-direct.
    PacketType,
    /// The guest asks for no completion, or with transaction id 0, which no completion can carry.
    NotTransactional,
    /// Too short for the operation.
    TooShort {
        /// The operation; `None` when even the header is cut.
        operation: Option<Operation>,
        /// Bytes that came.
        len: usize,
    },
    /// Not an operation that a guest asks for.
    UnknownOperation(Operation),
    /// Not in this state.
    WrongState {
        /// The operation.
        operation: Operation,
        /// The state.
        state: State,
    },
    /// On a sub-channel, which carries commands and resets alone.
    NotOnSubChannel(Operation),
    /// A version that is not spoken: no violation, guests try several.
    Version(StorVersion),
    /// More sub-channels than there can be, or none.
    SubChannelCount {
        /// Wanted.
        count: u16,
        /// Can be had.
        max: u16,
    },
    /// `length` is not the size of a request.
    RequestLength(u16),
    /// The command descriptor block is empty or longer than its place.
    CdbLength(u8),
    /// More than one range.
    Ranges(u32),
    /// The range is smaller than the transfer.
    DataBeyondRange {
        /// Bytes to transfer.
        transfer: u32,
        /// Bytes in the range.
        range: u32,
    },
    /// More than one command may transfer.
    TransferTooLarge {
        /// Bytes to transfer.
        transfer: u32,
        /// Allowed.
        max: u32,
    },
    /// Data, but neither to nor from the device.
    Direction(DataIn),
}

impl Refusal {
    /// What the guest is told.
    #[must_use]
    pub const fn status(&self) -> NtStatus {
        match self {
            Self::WrongState { .. } | Self::NotOnSubChannel(_) => NtStatus::INVALID_DEVICE_STATE,
            Self::Version(_) => NtStatus::REVISION_MISMATCH,
            Self::UnknownOperation(_) => NtStatus::INVALID_DEVICE_REQUEST,
            _ => NtStatus::INVALID_PARAMETER,
        }
    }

    /// Whether a guest that keeps to the protocol never does so.
    #[must_use]
    pub const fn is_violation(&self) -> bool {
        !matches!(self, Self::Version(_))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Completion => f.write_str("completion for nothing"),
            Self::PacketType => f.write_str("packet neither in-band nor GPA-direct"),
            Self::NotTransactional => f.write_str("request that no completion can answer"),
            Self::TooShort {
                operation: Some(operation),
                len,
            } => write!(f, "{operation:?} of {len} bytes"),
            Self::TooShort { len, .. } => write!(f, "vstor packet of {len} bytes"),
            Self::UnknownOperation(operation) => write!(f, "unknown request {operation:?}"),
            Self::WrongState { operation, state } => write!(f, "{operation:?} in state {state:?}"),
            Self::NotOnSubChannel(operation) => write!(f, "{operation:?} on a sub-channel"),
            Self::Version(version) => write!(f, "version {version} not spoken"),
            Self::SubChannelCount { count, max } => {
                write!(f, "{count} sub-channels wanted, 1 to {max} can be had")
            }
            Self::RequestLength(length) => write!(f, "SCSI request of length {length}"),
            Self::CdbLength(length) => write!(f, "command of {length} bytes"),
            Self::Ranges(count) => write!(f, "{count} ranges with one command"),
            Self::DataBeyondRange { transfer, range } => {
                write!(f, "transfer of {transfer} bytes in a range of {range}")
            }
            Self::TransferTooLarge { transfer, max } => {
                write!(f, "transfer of {transfer} bytes, {max} allowed")
            }
            Self::Direction(data_in) => write!(f, "data in direction {data_in:?}"),
        }
    }
}

impl core::error::Error for Refusal {}

/// The state of a controller.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    config: Config,
    state: State,
}

impl Server {
    /// A controller whose primary channel has just been opened. Make a new one each time.
    #[must_use]
    pub const fn new(config: Config) -> Self {
        Self {
            config,
            state: State::Begin,
        }
    }

    /// How far the guest has come.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// The version agreed on, once there is one.
    #[must_use]
    pub const fn version(&self) -> Option<StorVersion> {
        match self.state {
            State::Begin | State::Version => None,
            State::Properties(version) | State::End(version) | State::Ready(version) => {
                Some(version)
            }
        }
    }

    /// Whether commands may come, and notices be sent.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready(_))
    }

    /// Judges a packet, a private copy, from channel `index` (0: the primary one).
    pub fn on_packet(&mut self, index: u16, packet: &Packet<'_>) -> Verdict {
        let len = packet.payload.len().min(VSTOR_PACKET_SIZE);
        match self.judge(index, packet, Pending { len }) {
            Ok(verdict) => verdict,
            Err(refusal) => {
                let answer = match refusal {
                    Refusal::Completion | Refusal::PacketType | Refusal::NotTransactional => None,
                    _ if len < HEADER_SIZE => None,
                    _ => Some(Self::refusal_answer(refusal, packet.payload, len)),
                };
                Verdict::Refuse(refusal, answer)
            }
        }
    }

    /// A refused version is named again (OpenVMM `storvsp`, `process_primary`). A refused command gets an
    /// SRB status, as Linux looks at nothing else.
    fn refusal_answer(refusal: Refusal, payload: &[u8], len: usize) -> Answer {
        let packet = VstorPacket::answer(refusal.status());
        let operation = VstorHeader::read_from_prefix(payload).map(|(header, _)| header.operation);
        let packet = match (refusal, operation) {
            (Refusal::Version(version), _) => packet.with_body(&VersionBody {
                version,
                revision: 0,
            }),
            (_, Ok(Operation::EXECUTE_SRB)) => packet.with_body(&ScsiRequest::result(
                SrbCode::INVALID_REQUEST,
                ScsiStatus::GOOD,
                0,
                &[],
            )),
            _ => packet,
        };
        Answer { packet, len }
    }

    fn judge(
        &mut self,
        index: u16,
        packet: &Packet<'_>,
        pending: Pending,
    ) -> Result<Verdict, Refusal> {
        match packet.kind {
            PacketKind::InBand | PacketKind::GpaDirect(_) => {}
            PacketKind::Completion => return Err(Refusal::Completion),
            PacketKind::TransferPages { .. } | PacketKind::Other { .. } => {
                return Err(Refusal::PacketType)
            }
        }
        if !packet.wants_completion() || packet.transaction_id() == 0 {
            return Err(Refusal::NotTransactional);
        }
        let len = packet.payload.len();
        let (header, body) =
            VstorHeader::read_from_prefix(packet.payload).map_err(|_| Refusal::TooShort {
                operation: None,
                len,
            })?;
        let operation = header.operation;
        let too_short = Refusal::TooShort {
            operation: Some(operation),
            len,
        };
        let state = self.state;
        let wrong_state = Refusal::WrongState { operation, state };
        let on_primary = if index == 0 {
            Ok(())
        } else {
            Err(Refusal::NotOnSubChannel(operation))
        };
        let answer = |packet| Answer {
            packet,
            len: pending.len,
        };
        let done = answer(VstorPacket::answer(NtStatus::SUCCESS));
        match operation {
            Operation::EXECUTE_SRB => {
                let (request, _) = ScsiRequest::read_from_prefix(body).map_err(|_| too_short)?;
                if !self.is_ready() {
                    return Err(wrong_state);
                }
                let transfer = self.transfer(packet, &request)?;
                Ok(Verdict::Execute { request, transfer })
            }
            Operation::RESET_LUN | Operation::RESET_BUS | Operation::RESET_ADAPTER => {
                if !self.is_ready() {
                    return Err(wrong_state);
                }
                let address = ScsiRequest::read_from_prefix(body)
                    .map_or_else(|_| ScsiAddress::default(), |(request, _)| request.address);
                Ok(Verdict::Reset {
                    operation,
                    address,
                    pending,
                })
            }
            Operation::BEGIN_INITIALIZATION => {
                on_primary?;
                if state != State::Begin {
                    return Err(wrong_state);
                }
                self.state = State::Version;
                Ok(Verdict::Answer(done))
            }
            Operation::QUERY_PROTOCOL_VERSION => {
                on_primary?;
                let (asked, _) = VersionBody::read_from_prefix(body).map_err(|_| too_short)?;
                if state != State::Version {
                    return Err(wrong_state);
                }
                let version = asked.version;
                if !StorVersion::SPOKEN.contains(&version) || version > self.config.newest {
                    return Err(Refusal::Version(version));
                }
                self.state = State::Properties(version);
                let body = VersionBody {
                    version,
                    revision: 0,
                };
                Ok(Verdict::Answer(answer(
                    VstorPacket::answer(NtStatus::SUCCESS).with_body(&body),
                )))
            }
            Operation::QUERY_PROPERTIES => {
                on_primary?;
                let State::Properties(version) = state else {
                    return Err(wrong_state);
                };
                self.state = State::End(version);
                Ok(Verdict::Answer(answer(
                    VstorPacket::answer(NtStatus::SUCCESS).with_body(&self.properties()),
                )))
            }
            Operation::FCHBA_DATA => {
                on_primary?;
                let fc = self.config.fc.ok_or(Refusal::UnknownOperation(operation))?;
                if !matches!(state, State::End(_) | State::Ready(_)) {
                    return Err(wrong_state);
                }
                Ok(Verdict::Answer(answer(
                    VstorPacket::answer(NtStatus::SUCCESS).with_body(&fc),
                )))
            }
            Operation::END_INITIALIZATION => {
                on_primary?;
                let State::End(version) = state else {
                    return Err(wrong_state);
                };
                self.state = State::Ready(version);
                Ok(Verdict::Ready(done, version))
            }
            Operation::CREATE_SUB_CHANNELS => {
                on_primary?;
                let (asked, _) = SubChannelCount::read_from_prefix(body).map_err(|_| too_short)?;
                // Before the end, too: some guests do so (OpenVMM `storvsp`, `InitState`).
                if !matches!(state, State::End(_) | State::Ready(_)) {
                    return Err(wrong_state);
                }
                let (count, max) = (asked.count, self.config.max_sub_channels);
                if count == 0 || count > max {
                    return Err(Refusal::SubChannelCount { count, max });
                }
                Ok(Verdict::CreateSubChannels { count, pending })
            }
            _ => Err(Refusal::UnknownOperation(operation)),
        }
    }

    fn properties(&self) -> ChannelProperties {
        ChannelProperties {
            max_sub_channels: self.config.max_sub_channels,
            flags: if self.config.max_sub_channels > 0 {
                PropertyFlags::MULTI_CHANNEL
            } else {
                PropertyFlags::empty()
            },
            max_transfer_bytes: self.config.max_transfer_bytes,
            ..ChannelProperties::default()
        }
    }

    /// The data of a command, set against the packet's range.
    fn transfer(&self, packet: &Packet<'_>, request: &ScsiRequest) -> Result<Transfer, Refusal> {
        if usize::from(request.length) != core::mem::size_of::<ScsiRequest>() {
            return Err(Refusal::RequestLength(request.length));
        }
        if request.cdb_length == 0 || usize::from(request.cdb_length) > super::srb::CDB_SIZE {
            return Err(Refusal::CdbLength(request.cdb_length));
        }
        let len = request.data_transfer_length;
        let range = match packet.kind {
            PacketKind::GpaDirect(ranges) if ranges.len() > 1 => {
                return Err(Refusal::Ranges(ranges.len()))
            }
            PacketKind::GpaDirect(ranges) => ranges.iter().next().map_or(0, |r| r.byte_count),
            _ => 0,
        };
        if len > range {
            return Err(Refusal::DataBeyondRange {
                transfer: len,
                range,
            });
        }
        let max = self.config.max_transfer_bytes;
        if len > max {
            return Err(Refusal::TransferTooLarge { transfer: len, max });
        }
        match request.data_in {
            _ if len == 0 => Ok(Transfer::None),
            DataIn::WRITE => Ok(Transfer::ToDevice(len)),
            DataIn::READ => Ok(Transfer::FromDevice(len)),
            other => Err(Refusal::Direction(other)),
        }
    }
}
