// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Version negotiation, the first exchange on an IC channel.
//!
//! The host lists the framework versions and the versions of the service that it speaks. The guest answers with one of each, or with
//! two empty lists when there is nothing in common (Linux: `vmbus_prep_negotiate_resp()`).

use super::{parse_response, write_request, FRAMEWORK_VERSIONS};
use super::{split_mut, IcError, IcFlags, IcHeader, IcVersion, MessageType, Outcome, Status};
use core::mem::size_of;
use static_assertions::const_assert_eq;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The most versions in one list (Linux: `IC_VERSION_NEGOTIATION_MAX_VER_COUNT`).
pub const MAX_VERSIONS: u16 = 100;

/// Start of a negotiation's body (Linux: `struct icmsg_negotiate`). The framework versions follow, then the service's.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
pub struct NegotiateHeader {
    /// Framework versions in the list.
    pub framework_count: U16,
    /// Service versions in the list.
    pub message_count: U16,
    /// Zero.
    pub reserved: U32,
}
const_assert_eq!(size_of::<NegotiateHeader>(), 8);

/// Body of an answer that picks one version of each.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
pub struct NegotiateAnswer {
    /// Counts: 1 and 1, or 0 and 0 when nothing fits.
    pub header: NegotiateHeader,
    /// Framework version picked.
    pub framework: IcVersion,
    /// Service version picked.
    pub message: IcVersion,
}
const_assert_eq!(size_of::<NegotiateAnswer>(), 16);

/// The versions that both sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Of the IC framework.
    pub framework: IcVersion,
    /// Of the service.
    pub message: IcVersion,
}

impl Negotiated {
    /// 0.0 and 0.0: what the headers of the negotiation itself carry.
    pub const NONE: Self = Self {
        framework: IcVersion::new(0, 0),
        message: IcVersion::new(0, 0),
    };
}

/// The version lists of a proposal, checked against the packet's length.
fn lists(body: &[u8]) -> Result<(&[IcVersion], &[IcVersion]), IcError> {
    let short = IcError::short_body(size_of::<NegotiateHeader>(), body.len());
    let (header, rest) = NegotiateHeader::ref_from_prefix(body).map_err(|_| short)?;
    let (framework, message) = (header.framework_count.get(), header.message_count.get());
    if framework > MAX_VERSIONS || message > MAX_VERSIONS {
        return Err(IcError::TooManyVersions { framework, message });
    }
    let truncated = IcError::VersionListTruncated { framework, message };
    let (fw, rest) = <[IcVersion]>::ref_from_prefix_with_elems(rest, usize::from(framework))
        .map_err(|_| truncated)?;
    let (msg, _) = <[IcVersion]>::ref_from_prefix_with_elems(rest, usize::from(message))
        .map_err(|_| truncated)?;
    Ok((fw, msg))
}

/// The first of `ours` (best first) that `theirs` holds.
fn pick(ours: &[IcVersion], theirs: &[IcVersion]) -> Option<IcVersion> {
    ours.iter().copied().find(|v| theirs.contains(v))
}

/// Guest: the decision on the body of a proposal. `framework` and `message` are our versions, best first.
///
/// # Errors
///
/// A malformed list, or [`IcError::NoFrameworkVersion`] / [`IcError::NoMessageVersion`].
pub fn decide(
    body: &[u8],
    framework: &[IcVersion],
    message: &[IcVersion],
) -> Result<Negotiated, IcError> {
    let (fw, msg) = lists(body)?;
    Ok(Negotiated {
        framework: pick(framework, fw).ok_or(IcError::NoFrameworkVersion)?,
        message: pick(message, msg).ok_or(IcError::NoMessageVersion)?,
    })
}

/// Host: writes a proposal and returns the packet's length. Linux searches in its own order, so the lists' order is free; at
/// most [`MAX_VERSIONS`] each.
///
/// # Errors
///
/// [`IcError::TooManyVersions`], or [`IcError::BufferTooSmall`].
pub fn propose(
    out: &mut [u8],
    transaction_id: u8,
    framework: &[IcVersion],
    message: &[IcVersion],
) -> Result<usize, IcError> {
    let count = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    let (fw, msg) = (count(framework.len()), count(message.len()));
    if fw > MAX_VERSIONS || msg > MAX_VERSIONS {
        return Err(IcError::TooManyVersions {
            framework: fw,
            message: msg,
        });
    }
    const MAX_BODY: usize =
        size_of::<NegotiateHeader>() + 2 * MAX_VERSIONS as usize * size_of::<IcVersion>();
    let mut body = [0u8; MAX_BODY];
    let header = NegotiateHeader {
        framework_count: U16::new(fw),
        message_count: U16::new(msg),
        reserved: U32::new(0),
    };
    let parts: [&[u8]; 3] = [header.as_bytes(), framework.as_bytes(), message.as_bytes()];
    let mut at = 0usize;
    for part in parts {
        let end = at.saturating_add(part.len());
        let small = IcError::BufferTooSmall { need: end };
        part.write_to(body.get_mut(at..end).ok_or(small)?)
            .map_err(|_| small)?;
        at = end;
    }
    let body = body.get(..at).ok_or(IcError::BufferTooSmall { need: at })?;
    write_request(
        out,
        Negotiated::NONE,
        MessageType::NEGOTIATE,
        transaction_id,
        body,
    )
}

/// Host: reads the guest's answer to a proposal of `framework` and `message`.
///
/// # Errors
///
/// [`IcError::Direction`] or [`IcError::UnknownType`] for what is no such answer, [`IcError::NoMessageVersion`] if the guest found
/// nothing, [`IcError::NotProposed`] if it picked something else.
pub fn parse_answer(
    packet: &[u8],
    framework: &[IcVersion],
    message: &[IcVersion],
) -> Result<Negotiated, IcError> {
    let (header, body) = parse_response(packet)?;
    if header.message_type != MessageType::NEGOTIATE {
        return Err(IcError::UnknownType(header.message_type));
    }
    let (fw, msg) = lists(body)?;
    match (fw, msg) {
        ([], _) | (_, []) => Err(IcError::NoMessageVersion),
        ([f], [m]) => {
            let chosen = Negotiated {
                framework: *f,
                message: *m,
            };
            if framework.contains(f) && message.contains(m) {
                Ok(chosen)
            } else {
                Err(IcError::NotProposed(chosen))
            }
        }
        _ => Err(IcError::TooManyVersions {
            framework: fw.len() as u16,
            message: msg.len() as u16,
        }),
    }
}

/// Guest: one open IC channel. Made anew at each open, because the host negotiates after each.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    service: MessageType,
    versions: &'static [IcVersion],
    agreed: Option<Negotiated>,
}

impl Session {
    /// A channel of `service` that has just been opened; `versions` are what we speak, best first.
    pub const fn new(service: MessageType, versions: &'static [IcVersion]) -> Self {
        Self {
            service,
            versions,
            agreed: None,
        }
    }

    /// What was agreed, if the host has negotiated.
    pub const fn agreed(&self) -> Option<Negotiated> {
        self.agreed
    }

    /// Handles one packet from the host and turns it into its answer.
    ///
    /// The negotiation is answered here (`negotiated` makes the event of it). For a message of the service, `serve` gets the
    /// agreed versions and the body, which it may change, and returns status and event; `Err` becomes [`Status::FAIL`]. A
    /// refused message changes nothing but its own status.
    pub fn on_packet<E>(
        &mut self,
        packet: &mut [u8],
        negotiated: impl FnOnce(Negotiated) -> E,
        serve: impl FnOnce(Negotiated, &mut [u8]) -> Result<(Status, E), IcError>,
    ) -> Outcome<E> {
        let (header, body) = match split_mut(packet) {
            Ok(x) => x,
            Err(e) => {
                return Outcome {
                    reply: false,
                    event: Err(e),
                }
            }
        };
        // Two sides that answer answers would never stop.
        if header.flags.contains(IcFlags::RESPONSE) {
            return Outcome {
                reply: false,
                event: Err(IcError::Direction(header.flags)),
            };
        }
        let (status, event) = if header.message_type == MessageType::NEGOTIATE {
            match self.negotiate(header, body) {
                Ok(n) => (Status::OK, Ok(negotiated(n))),
                Err(e) => (Status::FAIL, Err(e)),
            }
        } else if header.message_type != self.service {
            (Status::FAIL, Err(IcError::UnknownType(header.message_type)))
        } else {
            match self.agreed {
                None => (Status::FAIL, Err(IcError::NotNegotiated)),
                Some(agreed) => match serve(agreed, body) {
                    Ok((status, event)) => (status, Ok(event)),
                    Err(e) => (Status::FAIL, Err(e)),
                },
            }
        };
        header.status = status;
        header.flags = IcFlags::ANSWER;
        Outcome { reply: true, event }
    }

    fn negotiate(&mut self, header: &mut IcHeader, body: &mut [u8]) -> Result<Negotiated, IcError> {
        let decision = decide(body, FRAMEWORK_VERSIONS, self.versions);
        let (count, chosen) = match decision {
            Ok(n) => (1, n),
            Err(_) => (0, Negotiated::NONE),
        };
        // A proposal of two empty lists leaves no room for versions; the counts say that there are none.
        let counts = NegotiateHeader {
            framework_count: U16::new(count),
            message_count: U16::new(count),
            reserved: U32::new(0),
        };
        let answer = NegotiateAnswer {
            header: counts,
            framework: chosen.framework,
            message: chosen.message,
        };
        if answer.write_to_prefix(body).is_ok() {
            header.message_size = U16::new(size_of::<NegotiateAnswer>() as u16);
        } else if counts.write_to_prefix(body).is_ok() {
            header.message_size = U16::new(size_of::<NegotiateHeader>() as u16);
        }
        let agreed = decision?;
        self.agreed = Some(agreed);
        Ok(agreed)
    }
}
