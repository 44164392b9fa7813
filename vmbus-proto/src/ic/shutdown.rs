// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Guest shutdown: the host asks for power off, reboot or hibernation.

use super::{IcError, IcVersion, MessageType, Negotiated, Outcome, Session, Status};
use core::mem::size_of;
use static_assertions::const_assert_eq;
use zerocopy::little_endian::U32;
use zerocopy::FromBytes;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Shutdown 3.2 (Linux: `SD_VERSION_3_2`), the first with hibernation.
pub const VERSION_3_2: IcVersion = IcVersion::new(3, 2);
/// Shutdown 3.1 (Linux: `SD_VERSION_3_1`).
pub const VERSION_3_1: IcVersion = IcVersion::new(3, 1);
/// Shutdown 3.0 (Linux: `SD_VERSION`).
pub const VERSION_3_0: IcVersion = IcVersion::new(3, 0);
/// Shutdown 1.0 (Linux: `SD_VERSION_1`).
pub const VERSION_1_0: IcVersion = IcVersion::new(1, 0);
/// What we speak, best first.
pub const VERSIONS: &[IcVersion] = &[VERSION_3_2, VERSION_3_1, VERSION_3_0, VERSION_1_0];

/// `reason_code` of a planned shutdown (Windows SDK: `SHTDN_REASON_FLAG_PLANNED`).
pub const REASON_PLANNED: u32 = 0x8000_0000;

/// Bytes of the text for people in a shutdown request.
pub const DISPLAY_MESSAGE_SIZE: usize = 2048;

/// What is asked for. Unknown bits are kept.
#[repr(transparent)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
pub struct ShutdownFlags(U32);

impl ShutdownFlags {
    /// Power off: no bit.
    pub const POWER_OFF: Self = Self(U32::new(0));
    /// Do not wait for applications. May join each of the three; Linux acts the same with and without it.
    pub const FORCE: Self = Self(U32::new(1));
    /// Reboot.
    pub const RESTART: Self = Self(U32::new(2));
    /// Hibernate.
    pub const HIBERNATE: Self = Self(U32::new(4));

    /// The flags with the bits of `raw`.
    pub const fn from_bits(raw: u32) -> Self {
        Self(U32::new(raw))
    }

    /// The bits on the wire.
    pub const fn bits(self) -> u32 {
        self.0.get()
    }

    /// Both sets of bits.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self::from_bits(self.bits() | other.bits())
    }
}

/// Fixed part of a request, all that a guest needs (start of Linux' `struct shutdown_msg_data`).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
pub struct ShutdownRequest {
    /// Windows' shutdown reason, such as [`REASON_PLANNED`].
    pub reason_code: U32,
    /// Seconds that the guest may take.
    pub timeout_seconds: U32,
    /// What to do.
    pub flags: ShutdownFlags,
}
const_assert_eq!(size_of::<ShutdownRequest>(), 12);
const_assert_eq!(core::mem::offset_of!(ShutdownRequest, flags), 8);

/// A whole request (Linux: `struct shutdown_msg_data`).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
pub struct ShutdownMessage {
    /// What to do.
    pub request: ShutdownRequest,
    /// Text for people, NUL-terminated. Not read by a guest.
    pub display_message: [u8; DISPLAY_MESSAGE_SIZE],
}
const_assert_eq!(size_of::<ShutdownMessage>(), 2060);
const_assert_eq!(core::mem::offset_of!(ShutdownMessage, display_message), 12);

impl ShutdownMessage {
    /// Host: a planned shutdown of kind `flags`. Of `text` as much is kept as leaves room for a terminating NUL.
    pub fn request(flags: ShutdownFlags, timeout_seconds: u32, text: &[u8]) -> Self {
        let mut display_message = [0; DISPLAY_MESSAGE_SIZE];
        for (to, from) in display_message
            .iter_mut()
            .take(DISPLAY_MESSAGE_SIZE - 1)
            .zip(text)
        {
            *to = *from;
        }
        Self {
            request: ShutdownRequest {
                reason_code: U32::new(REASON_PLANNED),
                timeout_seconds: U32::new(timeout_seconds),
                flags,
            },
            display_message,
        }
    }
}

/// What the guest is to do once the answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Shut down and power off.
    PowerOff,
    /// Shut down and reboot.
    Reboot,
    /// Tell user space to hibernate (a uevent).
    Hibernate,
    /// Nothing: hibernation was asked for and this guest cannot (answered with [`Status::FAIL`]).
    RefuseHibernate,
    /// Nothing: the flags have no meaning (answered with [`Status::FAIL`]).
    RefuseFlags(ShutdownFlags),
}

impl Action {
    /// Decides on the flags of a request. `can_hibernate`: the guest has ACPI S4 and the host allows it (Linux:
    /// `hv_is_hibernation_supported()`).
    pub const fn decide(flags: ShutdownFlags, can_hibernate: bool) -> Self {
        match flags.bits() {
            0 | 1 => Self::PowerOff,
            2 | 3 => Self::Reboot,
            4 | 5 if can_hibernate => Self::Hibernate,
            4 | 5 => Self::RefuseHibernate,
            _ => Self::RefuseFlags(flags),
        }
    }

    /// What the host is told.
    pub const fn status(self) -> Status {
        match self {
            Self::PowerOff | Self::Reboot | Self::Hibernate => Status::OK,
            Self::RefuseHibernate | Self::RefuseFlags(_) => Status::FAIL,
        }
    }
}

/// What a packet brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Versions were agreed.
    Negotiated(Negotiated),
    /// A request; act on it after the answer has been sent, so that the host gets it.
    Request(Action),
}

/// The guest's side of one open shutdown channel.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    session: Session,
    can_hibernate: bool,
}

impl Guest {
    /// A channel that has just been opened.
    pub const fn new(can_hibernate: bool) -> Self {
        Self {
            session: Session::new(MessageType::SHUTDOWN, VERSIONS),
            can_hibernate,
        }
    }

    /// Handles one packet and turns it into its answer.
    ///
    /// The text is not needed: a request that ends before it is valid.
    pub fn on_packet(&mut self, packet: &mut [u8]) -> Outcome<Event> {
        let can_hibernate = self.can_hibernate;
        self.session
            .on_packet(packet, Event::Negotiated, |_, body| {
                let (request, _) = ShutdownRequest::read_from_prefix(body)
                    .map_err(|_| IcError::short_body(size_of::<ShutdownRequest>(), body.len()))?;
                let action = Action::decide(request.flags, can_hibernate);
                Ok((action.status(), Event::Request(action)))
            })
    }
}
