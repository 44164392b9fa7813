// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What the three services make of requests, registrations and answers.

use super::{Ask, Service, FREEZE_LIMIT, MAX_MESSAGE, TIME_LIMIT};
use crate::ic::field::FieldError;
use crate::ic::{fcopy, kvp, vss, IcVersion, MessageType, Status};
use kvp::{DeviceMessage, Operation, Registration};
use zerocopy::{FromBytes, IntoBytes};

/// The driver's version that KVP daemons show to the host (Linux: `HV_DRV_VERSION`; it has no meaning, tools print it).
const DRIVER_VERSION: &str = "3.1";

fn too_short(need: usize, have: usize) -> FieldError {
    FieldError::TooShort { need, have }
}

/// Key-value pairs and network settings.
pub struct Kvp {
    registration: Registration,
    /// What the daemon is asked.
    operation: Operation,
}

impl Kvp {
    /// A service without a daemon.
    pub const fn new() -> Self {
        Self {
            registration: Registration::Current,
            operation: Operation::GET,
        }
    }
}

impl Default for Kvp {
    fn default() -> Self {
        Self::new()
    }
}

fn kvp_message(to: &mut [u8; MAX_MESSAGE]) -> Result<&mut DeviceMessage, FieldError> {
    DeviceMessage::mut_from_prefix(to)
        .map(|(message, _)| message)
        .map_err(|_| too_short(DeviceMessage::SIZE, MAX_MESSAGE))
}

fn kvp_written(from: &[u8]) -> Result<&DeviceMessage, FieldError> {
    DeviceMessage::ref_from_prefix(from)
        .map(|(message, _)| message)
        .map_err(|_| too_short(DeviceMessage::SIZE, from.len()))
}

impl Service for Kvp {
    const NAME: &'static str = "KVP";
    const TYPE: MessageType = MessageType::KVP_EXCHANGE;
    const VERSIONS: &'static [IcVersion] = kvp::VERSIONS;
    const PATIENT: bool = true;

    fn is_length(len: usize) -> bool {
        len >= DeviceMessage::SIZE
    }

    fn is_registration(_from: &[u8]) -> bool {
        // A status of 100 or 4 could be in its place.
        false
    }

    fn register(&mut self, from: &[u8], to: &mut [u8; MAX_MESSAGE]) -> Result<usize, FieldError> {
        self.registration = kvp_written(from)?.registers()?;
        kvp_message(to)?
            .registration(self.registration, DRIVER_VERSION)
            .map_err(|e| FieldError::Text("version", e))?;
        Ok(DeviceMessage::SIZE)
    }

    fn request(
        &mut self,
        version: IcVersion,
        body: &mut [u8],
        to: &mut [u8; MAX_MESSAGE],
    ) -> Result<Ask, FieldError> {
        self.operation = kvp::wire::to_device(version, body, kvp_message(to)?)?;
        if self.registration == Registration::Old && self.operation > Operation::ENUMERATE {
            return Ok(Ask::Answer(Status::NOT_SUPPORTED));
        }
        Ok(Ask::Daemon(DeviceMessage::SIZE, TIME_LIMIT))
    }

    fn answer(&mut self, from: &[u8], body: &mut [u8]) -> Result<Status, FieldError> {
        let message = kvp_written(from)?;
        let status = match self.registration {
            Registration::Current => message.status(),
            Registration::Old if message.has_key() => Status::OK,
            Registration::Old => Status::NO_MORE_ITEMS,
        };
        if status != Status::OK {
            return Ok(status);
        }
        kvp::wire::from_device(self.operation, body, message)
    }
}

/// Backup.
pub struct Vss {
    /// What the daemon is asked.
    operation: vss::Operation,
}

impl Vss {
    /// A service without a daemon.
    pub const fn new() -> Self {
        Self {
            operation: vss::Operation::THAW,
        }
    }
}

impl Default for Vss {
    fn default() -> Self {
        Self::new()
    }
}

fn put<T: IntoBytes + zerocopy::Immutable>(value: T, to: &mut [u8; MAX_MESSAGE]) -> usize {
    // No message of these is as long as the buffer.
    match value.write_to_prefix(to.as_mut_slice()) {
        Ok(()) => core::mem::size_of::<T>(),
        Err(_) => 0,
    }
}

impl Service for Vss {
    const NAME: &'static str = "VSS";
    const TYPE: MessageType = MessageType::VSS;
    const VERSIONS: &'static [IcVersion] = vss::VERSIONS;
    const PATIENT: bool = false;

    fn is_length(len: usize) -> bool {
        len == vss::DeviceMessage::SIZE
    }

    fn is_registration(from: &[u8]) -> bool {
        vss::DeviceMessage::read_from_bytes(from).is_ok_and(|m| {
            matches!(
                m.operation(),
                vss::Operation::REGISTER | vss::Operation::REGISTER_OLD
            )
        })
    }

    fn register(&mut self, from: &[u8], to: &mut [u8; MAX_MESSAGE]) -> Result<usize, FieldError> {
        let message = vss::DeviceMessage::read_from_bytes(from)
            .map_err(|_| too_short(vss::DeviceMessage::SIZE, from.len()))?;
        match message.operation() {
            vss::Operation::REGISTER => Ok(put(vss::REGISTERED, to)),
            vss::Operation::REGISTER_OLD => Ok(0),
            other => Err(FieldError::Operation(u32::from(other.0))),
        }
    }

    fn request(
        &mut self,
        _version: IcVersion,
        body: &mut [u8],
        to: &mut [u8; MAX_MESSAGE],
    ) -> Result<Ask, FieldError> {
        match vss::parse(body)? {
            vss::Request::Daemon(operation) => {
                self.operation = operation;
                let limit = match operation {
                    vss::Operation::FREEZE => FREEZE_LIMIT,
                    _ => TIME_LIMIT,
                };
                Ok(Ask::Daemon(
                    put(vss::DeviceMessage::request(operation), to),
                    limit,
                ))
            }
            vss::Request::GetDmInfo => {
                vss::write_flags(body, 0);
                Ok(Ask::Answer(Status::OK))
            }
            vss::Request::Nothing => Ok(Ask::Answer(Status::OK)),
        }
    }

    fn answer(&mut self, from: &[u8], body: &mut [u8]) -> Result<Status, FieldError> {
        let message = vss::DeviceMessage::read_from_bytes(from)
            .map_err(|_| too_short(vss::DeviceMessage::SIZE, from.len()))?;
        let status = message.status();
        if self.operation == vss::Operation::HOT_BACKUP {
            vss::write_flags(
                body,
                if status.is_ok() {
                    vss::NO_AUTO_RECOVERY
                } else {
                    0
                },
            );
        }
        Ok(status)
    }

    fn farewell(to: &mut [u8; MAX_MESSAGE]) -> usize {
        // The file systems may be frozen, and no THAW comes any more.
        put(vss::DeviceMessage::request(vss::Operation::THAW), to)
    }
}

/// File copy.
#[derive(Default)]
pub struct Fcopy;

impl Service for Fcopy {
    const NAME: &'static str = "FCopy";
    const TYPE: MessageType = MessageType::FCOPY;
    const VERSIONS: &'static [IcVersion] = fcopy::VERSIONS;
    const PATIENT: bool = false;

    fn is_length(len: usize) -> bool {
        len == 4
    }

    fn is_registration(_from: &[u8]) -> bool {
        false
    }

    fn register(&mut self, from: &[u8], to: &mut [u8; MAX_MESSAGE]) -> Result<usize, FieldError> {
        let version = u32::read_from_bytes(from).map_err(|_| too_short(4, from.len()))?;
        match version {
            fcopy::DEVICE_VERSION => Ok(put(fcopy::DEVICE_VERSION, to)),
            fcopy::DEVICE_VERSION_OLD => Ok(0),
            other => Err(FieldError::Operation(other)),
        }
    }

    fn request(
        &mut self,
        _version: IcVersion,
        body: &mut [u8],
        to: &mut [u8; MAX_MESSAGE],
    ) -> Result<Ask, FieldError> {
        let (to, _) = to
            .split_first_chunk_mut::<{ fcopy::MAX_BODY }>()
            .ok_or(too_short(fcopy::MAX_BODY, MAX_MESSAGE))?;
        Ok(Ask::Daemon(fcopy::to_device(body, to)?, TIME_LIMIT))
    }

    fn answer(&mut self, from: &[u8], _body: &mut [u8]) -> Result<Status, FieldError> {
        u32::read_from_bytes(from)
            .map(Status::new)
            .map_err(|_| too_short(4, from.len()))
    }
}
