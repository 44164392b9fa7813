// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! KVP between driver and daemon: one [`DeviceMessage`] in each `read` and `write` of `/dev/vmbus/hv_kvp`.
//!
//! 1. The daemon writes a registration ([`DeviceMessage::registration`]) and reads one back, which names the driver's version.
//! 2. It reads a request ([`DeviceMessage::parse`]), writes the message back with the answer in it ([`DeviceMessage::answer`],
//!    [`answer_value`](DeviceMessage::answer_value) …), and so on. Requests come one at a time; an answer that is late (the driver waits 30 s) is
//!    refused with `EINVAL`.
//! 3. A daemon that gets an error from `read` or `write` closes the device, opens it and begins anew: the driver does that to it at
//!    hibernation.

use super::{
    wire::{IpFields, Pair},
    AddressFamily, IpConfig, Operation, Pool, Registration, Request, Value, KEY_SIZE,
};
use crate::ic::field::FieldError;
use crate::ic::text::{read_utf8, write_utf8, write_utf8_cut, TextError, Utf16};
use crate::ic::Status;
use core::mem::size_of;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, FromZeros};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A message of the device (Linux: `struct hv_kvp_msg`). 7.4 KB: keep it in a box.
#[repr(C)]
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct DeviceMessage {
    /// Operation and pool; in an answer, the status in their place.
    head: U32,
    /// By operation: [`Pair`]; a size and a key; an index and a [`Pair`]; [`IpFields`]; the driver's version. Text is UTF-8.
    body: IpFields,
    /// Zero. In C the body is a union that is aligned to 4 bytes, since `struct hv_kvp_msg_delete` is not packed.
    padding: [u8; 2],
}
assert_layout!(DeviceMessage, size = 7432, head = 0, body = 4);

impl Default for DeviceMessage {
    /// All zeros.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl DeviceMessage {
    /// Bytes of each message.
    pub const SIZE: usize = size_of::<Self>();

    /// Bytes of a pair's start in the body of ENUMERATE.
    const INDEX_SIZE: usize = 4;

    fn bytes(&self) -> &[u8] {
        zerocopy::IntoBytes::as_bytes(&self.body)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        zerocopy::IntoBytes::as_mut_bytes(&mut self.body)
    }

    /// The operation, in a request or a registration.
    pub fn operation(&self) -> Operation {
        let [operation, ..] = self.head.get().to_le_bytes();
        Operation(operation)
    }

    /// The status, in an answer.
    pub fn status(&self) -> Status {
        Status::new(self.head.get())
    }

    /// Makes it a message of `operation` without content.
    pub fn reset(&mut self, operation: Operation, pool: Pool) {
        self.zero();
        self.head = U32::from_bytes([operation.0, pool.0, 0, 0]);
    }

    /// Makes it the registration of a daemon, or with `version` the driver's answer to it.
    ///
    /// # Errors
    ///
    /// [`TextError::TooLong`].
    pub fn registration(&mut self, kind: Registration, version: &str) -> Result<(), TextError> {
        let operation = match kind {
            Registration::Current => Operation::REGISTER1,
            Registration::Old => Operation::GET_IP_INFO,
        };
        self.reset(operation, Pool::EXTERNAL);
        let field = self
            .bytes_mut()
            .get_mut(..KEY_SIZE)
            .ok_or(TextError::TooLong)?;
        write_utf8(version, field).map(drop)
    }

    /// Driver: how the daemon that wrote this registers.
    ///
    /// # Errors
    ///
    /// [`FieldError::Operation`].
    pub fn registers(&self) -> Result<Registration, FieldError> {
        match self.operation() {
            Operation::REGISTER1 => Ok(Registration::Current),
            Operation::GET_IP_INFO => Ok(Registration::Old),
            other => Err(FieldError::Operation(u32::from(other.0))),
        }
    }

    /// Daemon: the driver's version, in its answer to the registration.
    ///
    /// # Errors
    ///
    /// [`FieldError::Operation`] if this is no such answer, or [`FieldError::Text`].
    pub fn driver_version(&self) -> Result<&str, FieldError> {
        self.registers()?;
        let field = self.bytes().get(..KEY_SIZE).unwrap_or_default();
        read_utf8(field).map_err(|e| FieldError::Text("version", e))
    }

    /// The pair at `at` in the body.
    fn pair_at(&self, at: usize) -> Result<&Pair, FieldError> {
        let bytes = self.bytes().get(at..).unwrap_or_default();
        Pair::ref_from_prefix(bytes)
            .map(|(pair, _)| pair)
            .map_err(|_| FieldError::TooShort {
                need: size_of::<Pair>(),
                have: bytes.len(),
            })
    }

    fn pair_at_mut(&mut self, at: usize) -> Option<&mut Pair> {
        let bytes = self.bytes_mut().get_mut(at..)?;
        Pair::mut_from_prefix(bytes).ok().map(|(pair, _)| pair)
    }

    /// Driver: key and value of GET or SET.
    pub(super) fn pair_mut(&mut self) -> Result<&mut Pair, FieldError> {
        let have = size_of::<IpFields>();
        self.pair_at_mut(0).ok_or(FieldError::TooShort {
            need: size_of::<Pair>(),
            have,
        })
    }

    pub(super) fn ip_mut(&mut self) -> &mut IpFields {
        &mut self.body
    }

    /// Driver: the key of DELETE.
    pub(super) fn set_delete_key(&mut self, key: Utf16<'_>) -> Result<(), TextError> {
        let bytes = self.bytes_mut();
        let (size, rest) = bytes
            .split_at_mut_checked(size_of::<U32>())
            .ok_or(TextError::TooLong)?;
        let field = rest.get_mut(..KEY_SIZE).ok_or(TextError::TooLong)?;
        let len = key.to_utf8(field)?;
        size.copy_from_slice(&(len.saturating_add(1) as u32).to_le_bytes());
        Ok(())
    }

    /// Driver: the index of ENUMERATE.
    pub(super) fn set_index(&mut self, index: u32) {
        if let Some(field) = self.bytes_mut().get_mut(..Self::INDEX_SIZE) {
            field.copy_from_slice(&index.to_le_bytes());
        }
    }

    /// Driver: whether there is a key where ENUMERATE's answer has it.
    pub(in crate::ic) fn has_key(&self) -> bool {
        self.pair_at(Self::INDEX_SIZE)
            .is_ok_and(|pair| pair.key.first() != Some(&0))
    }

    /// Driver: key and value that the daemon answered to ENUMERATE.
    pub(super) fn enumerated(&self) -> Result<(&str, &str), FieldError> {
        let pair = self.pair_at(Self::INDEX_SIZE)?;
        Ok((
            read_utf8(&pair.key).map_err(|e| FieldError::Text("key", e))?,
            read_utf8(&pair.value).map_err(|e| FieldError::Text("value", e))?,
        ))
    }

    /// Driver: the value that the daemon answered to GET.
    ///
    /// The C daemon writes it where the request's value would be, the C driver reads it where ENUMERATE's answer is, four bytes on. Daemons
    /// of both kinds are understood: where there is no text in the one place it is in the other.
    pub(super) fn got(&self) -> Result<&str, FieldError> {
        let value = |pair: &Pair| -> bool { pair.value.first() != Some(&0) };
        let mut pair = self.pair_at(0)?;
        if !value(pair) {
            pair = self.pair_at(Self::INDEX_SIZE)?;
        }
        read_utf8(&pair.value).map_err(|e| FieldError::Text("value", e))
    }

    /// The settings of a request to set them, or of an answer to a request to get them.
    ///
    /// # Errors
    ///
    /// [`FieldError::Text`], [`FieldError::AddressFamily`].
    pub fn ip_config(&self) -> Result<IpConfig<'_>, FieldError> {
        let text = |name, field| read_utf8(field).map_err(|e: TextError| FieldError::Text(name, e));
        let ip = &self.body;
        Ok(IpConfig {
            adapter: text("adapter", &ip.adapter)?,
            family: AddressFamily::checked(ip.family)?,
            dhcp: ip.dhcp != 0,
            addresses: text("addresses", &ip.addresses)?,
            subnets: text("subnets", &ip.subnets)?,
            gateways: text("gateways", &ip.gateways)?,
            dns: text("dns", &ip.dns)?,
        })
    }

    /// Daemon: the request that was read.
    ///
    /// # Errors
    ///
    /// The field that is out of range; the C driver checks few of what the host sends.
    pub fn parse(&self) -> Result<Request<'_>, FieldError> {
        let [operation, pool, ..] = self.head.get().to_le_bytes();
        let text = |name, field| read_utf8(field).map_err(|e: TextError| FieldError::Text(name, e));
        let key = |field| match text("key", field) {
            Ok("") => Err(FieldError::Text("key", TextError::Empty)),
            other => other,
        };
        Ok(match Operation(operation) {
            Operation::GET => Request::Get {
                pool: Pool::checked(pool)?,
                key: key(&self.pair_at(0)?.key)?,
            },
            Operation::SET => {
                let pair = self.pair_at(0)?;
                Request::Set {
                    pool: Pool::checked(pool)?,
                    key: key(&pair.key)?,
                    value: Value::Text(text("value", &pair.value)?),
                }
            }
            Operation::DELETE => {
                let field = self.bytes().get(size_of::<U32>()..).unwrap_or_default();
                Request::Delete {
                    pool: Pool::checked(pool)?,
                    key: key(field.get(..KEY_SIZE).unwrap_or_default())?,
                }
            }
            Operation::ENUMERATE => {
                let (index, _) =
                    U32::read_from_prefix(self.bytes()).map_err(|_| FieldError::TooShort {
                        need: Self::INDEX_SIZE,
                        have: 0,
                    })?;
                Request::Enumerate {
                    pool: Pool::checked(pool)?,
                    index: index.get(),
                }
            }
            Operation::GET_IP_INFO => Request::GetIp {
                adapter: text("adapter", &self.body.adapter)?,
                family: AddressFamily::checked(self.body.family)?,
            },
            Operation::SET_IP_INFO => Request::SetIp(self.ip_config()?),
            other => return Err(FieldError::Operation(u32::from(other.0))),
        })
    }

    /// Daemon: makes it an answer that tells only of `status`. [`Status::FAIL`] for what failed, [`Status::NO_MORE_ITEMS`] for a key
    /// or an index that does not exist, [`Status::GUID_NOT_FOUND`] for an adapter that does not.
    pub fn answer(&mut self, status: Status) {
        self.head = U32::new(status.get());
    }

    /// Daemon: the answer to ENUMERATE. Text that is too long is cut.
    ///
    /// # Errors
    ///
    /// [`TextError::Encoding`] for text with a NUL in it.
    pub fn answer_pair(&mut self, key: &str, value: &str) -> Result<(), TextError> {
        self.answer(Status::OK);
        let pair = self
            .pair_at_mut(Self::INDEX_SIZE)
            .ok_or(TextError::TooLong)?;
        pair.key_size = U32::new(write_utf8_cut(key, &mut pair.key)? as u32);
        pair.value_size = U32::new(write_utf8_cut(value, &mut pair.value)? as u32);
        Ok(())
    }

    /// Daemon: the answer to GET, where C and Rust drivers alike look for it. Text that is too long is cut.
    ///
    /// # Errors
    ///
    /// [`TextError::Encoding`] for text with a NUL in it.
    pub fn answer_value(&mut self, value: &str) -> Result<(), TextError> {
        // Without the key: its last bytes would lie where a value can be, too.
        self.zero();
        self.answer_pair("", value)
    }

    /// Daemon: the answer to GET_IP_INFO. Lists that are too long are cut.
    ///
    /// # Errors
    ///
    /// [`TextError::Encoding`] for text with a NUL in it.
    pub fn answer_ip(&mut self, config: &IpConfig<'_>) -> Result<(), TextError> {
        self.answer(Status::OK);
        let ip = &mut self.body;
        ip.family = config.family.0;
        ip.dhcp = u8::from(config.dhcp);
        write_utf8_cut(config.adapter, &mut ip.adapter)?;
        write_utf8_cut(config.addresses, &mut ip.addresses)?;
        write_utf8_cut(config.subnets, &mut ip.subnets)?;
        write_utf8_cut(config.gateways, &mut ip.gateways)?;
        write_utf8_cut(config.dns, &mut ip.dns)?;
        Ok(())
    }
}
