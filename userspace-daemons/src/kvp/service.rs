// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Answers to requests, and the loop that reads and writes them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use log::{debug, error, info, warn};
use vmbus_proto::ic::kvp::{DeviceMessage, Operation, Pool, Registration, Request, Value};
use zerocopy::{FromBytes, IntoBytes};

use super::ip::IpInfo;
use super::pool::Pools;
use super::system::System;
use crate::device::{next_event, End, Event, Serve};
use crate::net::Network;
use crate::program::Running;
use vmbus_proto::ic::Status;

/// What answers requests.
#[derive(Debug)]
pub struct Service {
    /// The pools.
    pub pools: Pools,
    /// Facts about the system.
    pub system: System,
    /// Reads and sets addresses.
    pub network: Network,
}

/// The content of an answer.
enum Answer {
    Done,
    Value(String),
    Pair(String, String),
    Ip(IpInfo),
}

impl Service {
    /// Turns a request into its answer.
    pub fn answer(&mut self, message: &mut DeviceMessage) {
        let answer = match message.parse() {
            Ok(request) => {
                let answer = self.result(&request);
                debug!(
                    "{:?} {:?}: {:?}",
                    request.operation(),
                    request.pool(),
                    answer.as_ref().err()
                );
                answer
            }
            Err(error) => {
                warn!("request refused: {error}");
                Err(match message.operation() {
                    Operation::GET
                    | Operation::SET
                    | Operation::DELETE
                    | Operation::ENUMERATE
                    | Operation::GET_IP_INFO
                    | Operation::SET_IP_INFO => Status::INVALID_ARGUMENT,
                    _ => Status::NOT_SUPPORTED,
                })
            }
        };
        let written = match answer {
            Err(status) => {
                message.answer(status);
                return;
            }
            Ok(Answer::Done) => {
                message.answer(Status::OK);
                return;
            }
            Ok(Answer::Value(value)) => message.answer_value(&value),
            Ok(Answer::Pair(key, value)) => message.answer_pair(&key, &value),
            Ok(Answer::Ip(info)) => info.answer(message),
        };
        if let Err(error) = written {
            error!("no answer: {error}");
            message.answer(Status::FAIL);
        }
    }

    fn result(&self, request: &Request<'_>) -> Result<Answer, Status> {
        match request {
            Request::Get { pool, key } => {
                let value = self.pools.get(pool.0, key.as_bytes());
                let value = value.map_err(|error| failed("read a key", &error))?;
                value
                    .map(|value| Answer::Value(text(&value)))
                    .ok_or(Status::NO_MORE_ITEMS)
            }
            Request::Set { pool, key, value } => {
                let value = match value {
                    Value::Text(text) => (*text).to_owned(),
                    // The driver hands numbers on as text.
                    _ => return Err(Status::INVALID_ARGUMENT),
                };
                self.pools
                    .set(pool.0, key.as_bytes(), value.as_bytes())
                    .map_err(|error| failed("set a key", &error))?;
                Ok(Answer::Done)
            }
            Request::Delete { pool, key } => match self.pools.delete(pool.0, key.as_bytes()) {
                Ok(true) => Ok(Answer::Done),
                Ok(false) => Err(Status::NO_MORE_ITEMS),
                Err(error) => Err(failed("delete a key", &error)),
            },
            // Made up by the daemon, not kept.
            Request::Enumerate { pool, index } if *pool == Pool::AUTO => {
                let (key, value) = self.system.auto(*index).ok_or(Status::NO_MORE_ITEMS)?;
                Ok(Answer::Pair(key.into(), value.replace('\0', "")))
            }
            Request::Enumerate { pool, index } => match self.pools.at(pool.0, *index) {
                Ok(Some(record)) => Ok(Answer::Pair(text(&record.key), text(&record.value))),
                Ok(None) => Err(Status::NO_MORE_ITEMS),
                Err(error) => Err(failed("read a pool", &error)),
            },
            Request::GetIp { adapter, .. } => {
                let info = self.network.ip_info(adapter);
                info.map(Answer::Ip).ok_or_else(|| {
                    debug!("no adapter {adapter}");
                    Status::GUID_NOT_FOUND
                })
            }
            Request::SetIp(config) => match self.network.set(&IpInfo::of(config)) {
                Ok(()) => Ok(Answer::Done),
                Err(error) => {
                    error!("cannot set addresses of {}: {error}", config.adapter);
                    Err(error.status())
                }
            },
        }
    }
}

/// What is in a pool need not be UTF-8; what the host gets must be.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn failed(what: &str, error: &io::Error) -> Status {
    error!("cannot {what}: {error}");
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Status::DISK_FULL
        }
        io::ErrorKind::InvalidInput => Status::INVALID_ARGUMENT,
        _ => Status::FAIL,
    }
}

/// The service on a device.
#[derive(Debug)]
pub struct Daemon(pub Service);

impl Serve for Daemon {
    fn serve(&mut self, device: File, running: &mut Running) -> End {
        self.exchange(device, running)
            .unwrap_or_else(|error| End::Again(error.to_string()))
    }
}

impl Daemon {
    /// Registers and answers until something ends it.
    ///
    /// # Errors
    ///
    /// Of the device: it has to be opened again.
    pub fn exchange(
        &mut self,
        mut device: impl Read + Write + AsFd,
        running: &mut Running,
    ) -> io::Result<End> {
        let mut message = Box::<DeviceMessage>::default();
        message
            .registration(Registration::Current, "")
            .map_err(|error| io::Error::other(error.to_string()))?;
        send(&mut device, &message)?;
        // One byte more than a message, so that a longer one is noticed.
        let mut buffer = vec![0; DeviceMessage::SIZE + 1];
        let mut registered = false;
        loop {
            match next_event(device.as_fd(), running.signals.as_fd(), None, None)? {
                Event::Readable => {}
                Event::Stop => return Ok(End::Stop),
                _ => return Ok(End::Again("the device is gone".into())),
            }
            let length = device.read(&mut buffer)?;
            let received = buffer.get(..length).unwrap_or_default();
            let Ok(received) = DeviceMessage::ref_from_bytes(received) else {
                return Ok(End::Again(format!("the driver sent {length} bytes")));
            };
            (*message).clone_from(received);
            if message.operation() == Operation::REGISTER1 && !registered {
                registered = true;
                let version = message.driver_version().unwrap_or("Unknown version");
                info!("registered; driver version {version}");
                self.0.system.driver_version = version.to_owned();
                running.ready("serving the host's requests");
                continue;
            }
            self.0.answer(&mut message);
            send(&mut device, &message)?;
        }
    }
}

/// The driver takes a message whole or not at all.
fn send(device: &mut impl Write, message: &DeviceMessage) -> io::Result<()> {
    match device.write(message.as_bytes())? {
        DeviceMessage::SIZE => Ok(()),
        written => Err(io::Error::other(format!("the driver took {written} bytes"))),
    }
}
