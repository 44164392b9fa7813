// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Heartbeat: the host asks every two seconds whether the guest is alive.

use super::{IcError, IcVersion, MessageType, Negotiated, Outcome, Session, Status};
use core::mem::size_of;
use static_assertions::const_assert_eq;
use zerocopy::little_endian::{U32, U64};
use zerocopy::FromBytes;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Heartbeat 3.0 (Linux: `HB_VERSION`).
pub const VERSION_3_0: IcVersion = IcVersion::new(3, 0);
/// Heartbeat 1.0 (Linux: `HB_VERSION_1`).
pub const VERSION_1_0: IcVersion = IcVersion::new(1, 0);
/// What we speak, best first.
pub const VERSIONS: &[IcVersion] = &[VERSION_3_0, VERSION_1_0];

/// What the guest tells of its applications (OpenVMM `hyperv_ic_protocol::heartbeat`). Chosen by the peer, so open.
#[repr(transparent)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
pub struct ApplicationState(U32);

impl ApplicationState {
    /// Nothing is known. Linux always leaves the host's zero here.
    pub const UNKNOWN: Self = Self(U32::new(0));
    /// All is well.
    pub const HEALTHY: Self = Self(U32::new(1));
    /// A critical error.
    pub const CRITICAL: Self = Self(U32::new(2));
    /// Not running any more.
    pub const STOPPED: Self = Self(U32::new(3));

    /// The number on the wire.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

/// Body of request and response (Linux: `struct heartbeat_msg_data`, which names only the sequence number).
///
/// A host need not send all of it: Hyper-V may leave the reserved part out, and only the sequence number is required.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
pub struct HeartbeatMessage {
    /// Counter of the host; the guest answers with the next number.
    pub sequence: U64,
    /// State of the guest's applications, in the response.
    pub application_state: ApplicationState,
    /// Zero.
    pub reserved: [U32; 7],
}
const_assert_eq!(size_of::<HeartbeatMessage>(), 40);
const_assert_eq!(
    core::mem::offset_of!(HeartbeatMessage, application_state),
    8
);

impl HeartbeatMessage {
    /// Host: the request with sequence number `sequence`.
    pub const fn request(sequence: u64) -> Self {
        Self {
            sequence: U64::new(sequence),
            application_state: ApplicationState::UNKNOWN,
            reserved: [U32::new(0); 7],
        }
    }
}

/// What a packet brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Versions were agreed.
    Negotiated(Negotiated),
    /// A beat with this sequence number was answered.
    Beat(u64),
}

/// The guest's side of one open heartbeat channel.
#[derive(Clone, Copy, Debug)]
pub struct Guest(Session);

impl Guest {
    /// A channel that has just been opened.
    pub const fn new() -> Self {
        Self(Session::new(MessageType::HEARTBEAT, VERSIONS))
    }

    /// Handles one packet and turns it into its answer.
    pub fn on_packet(&mut self, packet: &mut [u8]) -> Outcome<Event> {
        self.0.on_packet(packet, Event::Negotiated, |_, body| {
            let have = body.len();
            let (sequence, _) = U64::mut_from_prefix(body)
                .map_err(|_| IcError::short_body(size_of::<U64>(), have))?;
            let asked = sequence.get();
            sequence.set(asked.wrapping_add(1));
            Ok((Status::OK, Event::Beat(asked)))
        })
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

/// Host: checks the body of the response to the request with number `asked`.
///
/// Returns the state that the guest reports; a body without the field counts as unknown. `None` if the sequence number is not the next one.
///
/// # Errors
///
/// [`IcError::TooShort`] without a sequence number.
pub fn check_answer(body: &[u8], asked: u64) -> Result<Option<ApplicationState>, IcError> {
    let (sequence, rest) = U64::ref_from_prefix(body)
        .map_err(|_| IcError::short_body(size_of::<U64>(), body.len()))?;
    if sequence.get() != asked.wrapping_add(1) {
        return Ok(None);
    }
    Ok(Some(
        ApplicationState::read_from_prefix(rest).map_or(ApplicationState::UNKNOWN, |(s, _)| s),
    ))
}
