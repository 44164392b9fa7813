// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Client of the control socket.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::{
    Burst, ChannelInfo, Command, Counters, Event, Fault, HeartbeatStatus, Reply, Request,
    SampleKind, ShutdownKind, ShutdownReply, Status, TimesyncStatus, Until, Violations,
};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No host listens there.
    #[error("no host listens on {}: {source} (is the VM running? scripts/vm prints the path of its control socket)", path.display())]
    NoHost {
        /// The path tried.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The connection broke, as when the VM ends.
    #[error("the host closed the control connection (the VM has ended)")]
    Closed,
    /// Another failure of the socket.
    #[error("control socket: {0}")]
    Io(std::io::Error),
    /// The host sent what this client does not understand.
    #[error("answer not understood: {0}")]
    Garbled(String),
    /// The host refused, with its sentence.
    #[error("{0}")]
    Refused(String),
}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        match e.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => {
                Self::Closed
            }
            _ => Self::Io(e),
        }
    }
}

/// One connection to a host. Calls are made one after another; open a second connection to do something while a
/// `wait` is under way.
pub struct Client {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    next_id: u64,
    patience: u32,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`Error::NoHost`].
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let writer = UnixStream::connect(path).map_err(|source| Error::NoHost {
            path: path.to_path_buf(),
            source,
        })?;
        let reader = BufReader::new(writer.try_clone()?);
        Ok(Self {
            reader,
            writer,
            next_id: 1,
            patience: 1,
        })
    }

    /// Connects as soon as the host listens, within `limit`: for use right after QEMU was started.
    ///
    /// # Errors
    /// [`Error::NoHost`] with the last reason.
    pub fn connect_within(path: impl AsRef<Path>, limit: Duration) -> Result<Self, Error> {
        let end = Instant::now() + limit;
        loop {
            match Self::connect(path.as_ref()) {
                Err(e) if Instant::now() >= end => return Err(e),
                // The socket file appears at some point of QEMU's start; there is nothing to block on before it.
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
                Ok(client) => return Ok(client),
            }
        }
    }

    /// Makes the time limits of all waits of this client so many times as long, for guests that are slow.
    pub fn set_patience(&mut self, times: u32) {
        self.patience = times;
    }

    fn limit_ms(&self, limit: Duration) -> u64 {
        let limit = limit.saturating_mul(self.patience);
        u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn call(&mut self, cmd: Command) -> Result<serde_json::Value, Error> {
        let id = self.next_id;
        self.next_id += 1;
        let mut line = serde_json::to_string(&Request { id, cmd })
            .map_err(|e| Error::Garbled(e.to_string()))?;
        line.push('\n');
        self.writer.write_all(line.as_bytes())?;
        loop {
            let line = read_line(&mut self.reader)?;
            let reply: Reply = match serde_json::from_str(&line) {
                Ok(reply) => reply,
                Err(_) if serde_json::from_str::<Event>(&line).is_ok() => continue,
                Err(e) => return Err(Error::Garbled(format!("{e}: {line}"))),
            };
            // An answer to a call that failed before (timed out here) is of no interest any more.
            if reply.id != id && reply.id != 0 {
                continue;
            }
            return match reply.err {
                Some(err) => Err(Error::Refused(err)),
                None => Ok(reply.ok.unwrap_or_default()),
            };
        }
    }

    fn typed<T: DeserializeOwned>(&mut self, cmd: Command) -> Result<T, Error> {
        serde_json::from_value(self.call(cmd)?).map_err(|e| Error::Garbled(e.to_string()))
    }

    fn unit(&mut self, cmd: Command) -> Result<(), Error> {
        self.call(cmd).map(|_| ())
    }

    /// See [`Command::Status`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn status(&mut self) -> Result<Status, Error> {
        self.typed(Command::Status)
    }

    /// See [`Command::Channels`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn channels(&mut self) -> Result<Vec<ChannelInfo>, Error> {
        self.typed(Command::Channels)
    }

    /// The primary channel of the device with this name or instance GUID.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Refused`] when there is no such device.
    pub fn channel(&mut self, device: &str) -> Result<ChannelInfo, Error> {
        self.channels()?
            .into_iter()
            .find(|c| {
                c.subchannel == 0 && (c.device == device || c.instance.eq_ignore_ascii_case(device))
            })
            .ok_or_else(|| Error::Refused(format!("no device {device}")))
    }

    /// See [`Command::Counters`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn counters(&mut self) -> Result<Counters, Error> {
        self.typed(Command::Counters)
    }

    /// See [`Command::ResetCounters`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reset_counters(&mut self) -> Result<(), Error> {
        self.unit(Command::ResetCounters)
    }

    /// See [`Command::Violations`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn violations(&mut self) -> Result<Violations, Error> {
        self.typed(Command::Violations)
    }

    /// See [`Command::Offer`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn offer(&mut self, device: &str) -> Result<(), Error> {
        self.unit(Command::Offer {
            device: device.into(),
        })
    }

    /// See [`Command::Rescind`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn rescind(&mut self, device: &str) -> Result<(), Error> {
        self.unit(Command::Rescind {
            device: device.into(),
        })
    }

    /// See [`Command::Wait`].
    ///
    /// # Errors
    /// [`Error::Refused`] when the time is over; see [`Error`].
    pub fn wait(&mut self, until: Until, limit: Duration) -> Result<(), Error> {
        let timeout_ms = self.limit_ms(limit);
        self.unit(Command::Wait { until, timeout_ms })
    }

    /// Waits until offers are delivered.
    ///
    /// # Errors
    /// See [`Client::wait`].
    pub fn wait_connected(&mut self, limit: Duration) -> Result<(), Error> {
        self.wait(Until::Connected, limit)
    }

    /// Waits until a device's integration service is negotiated.
    ///
    /// # Errors
    /// See [`Client::wait`].
    pub fn wait_negotiated(&mut self, device: &str, limit: Duration) -> Result<(), Error> {
        self.wait(
            Until::Negotiated {
                device: device.into(),
            },
            limit,
        )
    }

    /// Heartbeat statistics.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn heartbeat(&mut self) -> Result<HeartbeatStatus, Error> {
        self.typed(Command::Heartbeat {
            interval_ms: None,
            burst: None,
        })
    }

    /// Changes the interval of heartbeats.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn heartbeat_interval(&mut self, interval: Duration) -> Result<HeartbeatStatus, Error> {
        let ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        self.typed(Command::Heartbeat {
            interval_ms: Some(ms),
            burst: None,
        })
    }

    /// Starts a burst of heartbeats; wait with [`Until::Beats`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn heartbeat_burst(&mut self, count: u32, every_ms: u64) -> Result<HeartbeatStatus, Error> {
        self.typed(Command::Heartbeat {
            interval_ms: None,
            burst: Some(Burst { count, every_ms }),
        })
    }

    /// Sends a shutdown request and waits for the guest's answer.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn shutdown(
        &mut self,
        kind: ShutdownKind,
        force: bool,
        wait: Duration,
    ) -> Result<ShutdownReply, Error> {
        let wait_ms = Some(self.limit_ms(wait));
        self.typed(Command::Shutdown {
            kind,
            force,
            reason: String::new(),
            wait_ms,
        })
    }

    /// Statistics of time synchronisation.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn timesync(&mut self) -> Result<TimesyncStatus, Error> {
        self.typed(Command::Timesync {
            send: None,
            offset_ms: 0,
            unix_ms: None,
            keep: false,
            interval_ms: None,
            sync_after_stop: None,
        })
    }

    /// How often time samples are sent by themselves; zero: never.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn timesync_interval(&mut self, interval: Duration) -> Result<TimesyncStatus, Error> {
        self.typed(Command::Timesync {
            send: None,
            offset_ms: 0,
            unix_ms: None,
            keep: false,
            interval_ms: Some(interval.as_millis() as u64),
            sync_after_stop: None,
        })
    }

    /// Sends one time sample, `offset_ms` off the host's clock.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn time_sample(
        &mut self,
        kind: SampleKind,
        offset_ms: i64,
        keep: bool,
    ) -> Result<TimesyncStatus, Error> {
        self.typed(Command::Timesync {
            send: Some(kind),
            offset_ms,
            unix_ms: None,
            keep,
            interval_ms: None,
            sync_after_stop: None,
        })
    }

    /// See [`Command::Fault`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn fault(&mut self, fault: Fault) -> Result<(), Error> {
        self.unit(Command::Fault { fault })
    }

    /// Turns this connection into a stream of events.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn watch(mut self) -> Result<Watch, Error> {
        self.unit(Command::Watch)?;
        Ok(Watch {
            reader: self.reader,
        })
    }
}

/// Events as they happen.
pub struct Watch {
    reader: BufReader<UnixStream>,
}

impl Watch {
    /// Gives up on an event that does not come within `limit` (`None`: waits without limit).
    ///
    /// # Errors
    /// See [`Error`].
    pub fn set_limit(&self, limit: Option<Duration>) -> Result<(), Error> {
        Ok(self.reader.get_ref().set_read_timeout(limit)?)
    }

    /// The next event.
    ///
    /// # Errors
    /// [`Error::Closed`] when the VM ends; see [`Error`].
    pub fn next_event(&mut self) -> Result<Event, Error> {
        let line = read_line(&mut self.reader)?;
        serde_json::from_str(&line).map_err(|e| Error::Garbled(format!("{e}: {line}")))
    }
}

fn read_line(reader: &mut BufReader<UnixStream>) -> Result<String, Error> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(Error::Closed);
    }
    Ok(line)
}
