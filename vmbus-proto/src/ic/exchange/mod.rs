// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The guest's side of the services that a daemon in user space serves: KVP, backup, file copy.
//!
//! ```text
//! host ── packet ──▶ Machine ── message ──▶ daemon        one request at a time;
//! host ◀── reply ─── Machine ◀── answer ─── daemon        packets behind it stay in the ring
//! ```
//!
//! [`Machine`] decides, without I/O: the driver brings packets, what the daemon writes and the time, and does what the [`Step`] says. The two
//! buffers are the driver's, since they are large: [`Buffers`].
//!
//! A daemon opens the device, registers, reads the driver's answer to that, and is ready then; closing the device ends it.
//! Requests for which there is no daemon are refused, those of KVP after waiting for one: a host that sets a network address
//! at failover asks before the guest has booted so far (Linux: `hv_kvp_onchannelcallback()`).

use super::field::FieldError;
use super::{split, split_mut, IcError, IcVersion, MessageType, Negotiated, Session, Status};
use zerocopy_derive::{FromBytes, IntoBytes};

mod services;

pub use services::{Fcopy, Kvp, Vss};

#[cfg(test)]
mod tests;

/// Time in milliseconds, of a clock that only goes forward.
pub type Millis = u64;

/// The longest packet that is served; longer ones the driver drops. The longest request is that of KVP network settings: 7,456
/// bytes.
pub const MAX_PACKET: usize = 8192;
/// The longest message between driver and daemon.
pub const MAX_MESSAGE: usize = 8192;

/// How long a negotiation waits for a daemon (Linux: `HV_UTIL_NEGO_TIMEOUT`; hosts wait 60 s).
pub const NEGOTIATION_PATIENCE: Millis = 55_000;
/// How long a request waits for a daemon, or for its answer (Linux: `HV_UTIL_TIMEOUT`).
pub const TIME_LIMIT: Millis = 30_000;
/// How long a daemon may take to freeze the file systems (Linux: `VSS_FREEZE_TIMEOUT`).
pub const FREEZE_LIMIT: Millis = 15 * 60 * 1000;

/// The two messages on their way. 16 KiB: keep it in a box.
#[repr(C)]
#[derive(FromBytes, IntoBytes)]
pub struct Buffers {
    /// The request of the host, which becomes its answer.
    pub packet: [u8; MAX_PACKET],
    /// What the daemon reads.
    pub message: [u8; MAX_MESSAGE],
}

/// What a service makes of a request.
pub enum Ask {
    /// The daemon is asked: the message's length, and how long it may take.
    Daemon(usize, Millis),
    /// It is answered with this status.
    Answer(Status),
}

/// A service.
pub trait Service: Sized {
    /// Name in log lines, as the C driver writes it.
    const NAME: &'static str;
    /// Its messages' type.
    const TYPE: MessageType;
    /// Its versions, best first.
    const VERSIONS: &'static [IcVersion];
    /// Whether requests wait for a daemon.
    const PATIENT: bool;

    /// Whether a daemon may write so many bytes.
    fn is_length(len: usize) -> bool;

    /// Whether what a daemon wrote is a registration, when it need not be one.
    fn is_registration(from: &[u8]) -> bool;

    /// A daemon registers. Writes the answer; its length, 0 if this daemon expects none.
    ///
    /// # Errors
    ///
    /// No registration, or one of a daemon that is not understood.
    fn register(&mut self, from: &[u8], to: &mut [u8; MAX_MESSAGE]) -> Result<usize, FieldError>;

    /// Checks a request, and writes what the daemon is asked.
    ///
    /// # Errors
    ///
    /// The field that is out of range.
    fn request(
        &mut self,
        version: IcVersion,
        body: &mut [u8],
        to: &mut [u8; MAX_MESSAGE],
    ) -> Result<Ask, FieldError>;

    /// Writes the daemon's answer to the last request into that.
    ///
    /// # Errors
    ///
    /// The field of the daemon's answer that is out of range.
    fn answer(&mut self, from: &[u8], body: &mut [u8]) -> Result<Status, FieldError>;

    /// What the daemon is to read when the channel goes away under it, for hibernation: its length, 0 for nothing.
    fn farewell(to: &mut [u8; MAX_MESSAGE]) -> usize {
        let _ = to;
        0
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Versions were agreed.
    Negotiated(Negotiated),
    /// A daemon registered.
    Registered,
    /// The daemon was asked.
    Asked,
    /// A request was answered with this status.
    Answered(Status),
    /// A request was refused: there is no daemon.
    NoDaemon,
    /// A request was refused: the daemon has not answered in time.
    TimedOut,
}

/// What the driver is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Step {
    /// Send so many bytes of [`Buffers::packet`], with this transaction id.
    pub reply: Option<(usize, u64)>,
    /// What happened, for the log; an error is worth a rate-limited line.
    pub event: Option<Result<Event, IcError>>,
}

impl Step {
    /// Nothing.
    pub const NONE: Self = Self {
        reply: None,
        event: None,
    };
}

/// Why a daemon's write was refused. It is told `EINVAL` in all cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// Not as long as messages are.
    Length(usize),
    /// Nothing was asked, or it was not read yet, or the host has been told already that it took too long.
    Unexpected,
    /// A field of the registration.
    Registration(FieldError),
}

/// Another process has the device open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// The daemon's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Daemon {
    /// Nobody has the device open.
    Away,
    /// It is open, nobody has registered.
    Open,
    /// The daemon has registered, and is to read the answer.
    Greeted,
    /// It answers requests.
    Ready,
}

/// The host's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The next packet is welcome.
    Idle,
    /// A packet waits for a daemon, not longer than this.
    Held(Millis),
    /// The daemon is asked.
    Asked {
        /// When the host is told that it failed.
        until: Millis,
        /// Whether the daemon has read the message.
        read: bool,
    },
}

/// The guest's side of a service.
pub struct Machine<S: Service> {
    service: S,
    session: Session,
    daemon: Daemon,
    phase: Phase,
    /// Length of the packet that is not answered, and its transaction id.
    packet: (usize, u64),
    /// Length of the message that the daemon has not read; 0: none.
    message: usize,
}

impl<S: Service> Machine<S> {
    /// A device whose channel has not been opened.
    pub const fn new(service: S) -> Self {
        Self {
            service,
            session: Session::new(S::TYPE, S::VERSIONS),
            daemon: Daemon::Away,
            phase: Phase::Idle,
            packet: (0, 0),
            message: 0,
        }
    }

    /// Whether the next packet may be taken from the ring. What is there stays there otherwise.
    pub fn wants_packet(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// When to call [`on_time`](Self::on_time).
    pub fn deadline(&self) -> Option<Millis> {
        match self.phase {
            Phase::Idle => None,
            Phase::Held(until) | Phase::Asked { until, .. } => Some(until),
        }
    }

    /// A packet of `len` bytes is in the buffer. Only if [`wants_packet`](Self::wants_packet).
    pub fn on_packet(&mut self, now: Millis, len: usize, id: u64, buf: &mut Buffers) -> Step {
        self.packet = (len, id);
        if S::PATIENT && self.daemon != Daemon::Ready {
            // What has no header is not worth waiting.
            let patience = match buf.packet.get(..len).map(split) {
                Some(Ok((header, _))) if header.message_type == MessageType::NEGOTIATE => {
                    Some(NEGOTIATION_PATIENCE)
                }
                Some(Ok(_)) => Some(TIME_LIMIT),
                _ => None,
            };
            if let Some(patience) = patience {
                self.phase = Phase::Held(now.saturating_add(patience));
                return Step::NONE;
            }
        }
        self.take(now, buf)
    }

    /// Handles the packet in the buffer.
    fn take(&mut self, now: Millis, buf: &mut Buffers) -> Step {
        self.phase = Phase::Idle;
        let (len, id) = self.packet;
        let Buffers { packet, message } = buf;
        let Some(packet) = packet.get_mut(..len) else {
            return Step::NONE;
        };
        let ready = self.daemon == Daemon::Ready;
        let service = &mut self.service;
        let mut asked = None;
        let outcome = self
            .session
            .on_packet(packet, Event::Negotiated, |v, body| {
                match service.request(v.message, body, message) {
                    Ok(Ask::Answer(status)) => Ok((status, Event::Answered(status))),
                    Ok(Ask::Daemon(..)) if !ready => Ok((Status::FAIL, Event::NoDaemon)),
                    Ok(Ask::Daemon(len, limit)) => {
                        asked = Some((len, limit));
                        Ok((Status::OK, Event::Asked))
                    }
                    Err(e) => Err(IcError::Field(e)),
                }
            });
        if let Some((len, limit)) = asked {
            self.message = len;
            self.phase = Phase::Asked {
                until: now.saturating_add(limit),
                read: false,
            };
        }
        Step {
            reply: (outcome.reply && asked.is_none()).then_some((len, id)),
            event: Some(outcome.event),
        }
    }

    /// Ends the request in the buffer.
    fn end(&mut self, status: Status, event: Event, buf: &mut Buffers) -> Step {
        let (len, id) = self.packet;
        self.phase = Phase::Idle;
        // The session has made an answer of all but the status.
        if let Some(Ok((header, _))) = buf.packet.get_mut(..len).map(split_mut) {
            header.status = status;
        }
        Step {
            reply: Some((len, id)),
            event: Some(Ok(event)),
        }
    }

    /// Time has passed.
    pub fn on_time(&mut self, now: Millis, buf: &mut Buffers) -> Step {
        match self.phase {
            Phase::Held(until) if now >= until => self.take(now, buf),
            Phase::Asked { until, read } if now >= until => {
                if !read {
                    self.message = 0;
                }
                self.end(Status::FAIL, Event::TimedOut, buf)
            }
            _ => Step::NONE,
        }
    }

    /// A process opens the device.
    ///
    /// # Errors
    ///
    /// [`Busy`].
    pub fn on_open(&mut self) -> Result<(), Busy> {
        match self.daemon {
            Daemon::Away => {
                self.daemon = Daemon::Open;
                Ok(())
            }
            _ => Err(Busy),
        }
    }

    /// The process that had opened the device closes it, or is dead.
    pub fn on_close(&mut self, buf: &mut Buffers) -> Step {
        self.daemon = Daemon::Away;
        self.message = 0;
        match self.phase {
            Phase::Asked { .. } => self.end(Status::FAIL, Event::NoDaemon, buf),
            _ => Step::NONE,
        }
    }

    /// The message that there is to read, if any.
    pub fn message<'a>(&self, buf: &'a Buffers) -> Option<&'a [u8]> {
        match self.message {
            0 => None,
            len => buf.message.get(..len),
        }
    }

    /// The message was read.
    pub fn on_read(&mut self, now: Millis, buf: &mut Buffers) -> Step {
        self.message = 0;
        if self.daemon == Daemon::Greeted {
            return self.ready(now, buf);
        }
        if let Phase::Asked { read, .. } = &mut self.phase {
            *read = true;
        }
        Step::NONE
    }

    /// The daemon answers requests from now on.
    fn ready(&mut self, now: Millis, buf: &mut Buffers) -> Step {
        self.daemon = Daemon::Ready;
        match self.phase {
            Phase::Held(_) => self.take(now, buf),
            _ => Step {
                reply: None,
                event: Some(Ok(Event::Registered)),
            },
        }
    }

    /// The daemon has written `from`.
    ///
    /// # Errors
    ///
    /// See [`WriteError`]; nothing has changed then.
    pub fn on_write(
        &mut self,
        now: Millis,
        from: &[u8],
        buf: &mut Buffers,
    ) -> Result<Step, WriteError> {
        if !S::is_length(from.len()) {
            return Err(WriteError::Length(from.len()));
        }
        match (self.daemon, self.phase) {
            (Daemon::Open, _) => self.register(now, from, buf),
            (Daemon::Ready, Phase::Asked { read: true, .. }) => {
                let (len, _) = self.packet;
                let body = buf.packet.get_mut(..len).map(split_mut);
                let status = match body {
                    Some(Ok((_, body))) => self.service.answer(from, body),
                    _ => Ok(Status::FAIL),
                };
                Ok(match status {
                    Ok(status) => self.end(status, Event::Answered(status), buf),
                    Err(e) => Step {
                        event: Some(Err(IcError::Field(e))),
                        ..self.end(Status::FAIL, Event::Answered(Status::FAIL), buf)
                    },
                })
            }
            (Daemon::Ready, Phase::Idle | Phase::Held(_)) if S::is_registration(from) => {
                self.register(now, from, buf)
            }
            _ => Err(WriteError::Unexpected),
        }
    }

    fn register(
        &mut self,
        now: Millis,
        from: &[u8],
        buf: &mut Buffers,
    ) -> Result<Step, WriteError> {
        let len = self
            .service
            .register(from, &mut buf.message)
            .map_err(WriteError::Registration)?;
        self.message = len;
        if len == 0 {
            return Ok(self.ready(now, buf));
        }
        self.daemon = Daemon::Greeted;
        Ok(Step::NONE)
    }

    /// The channel is closed, with what was asked on it. A daemon that is at work on that is told so when it answers.
    pub fn on_channel_closed(&mut self, buf: &mut Buffers) {
        self.phase = Phase::Idle;
        self.session = Session::new(S::TYPE, S::VERSIONS);
        if self.daemon == Daemon::Ready {
            self.message = S::farewell(&mut buf.message);
        }
    }
}
