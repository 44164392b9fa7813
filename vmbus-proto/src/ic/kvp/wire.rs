// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! KVP between host and guest: bodies of IC messages of type [`KVP_EXCHANGE`](crate::ic::MessageType::KVP_EXCHANGE).
//!
//! The answer is the request with the fields that were asked for written into it.

use super::{
    device::DeviceMessage, AddressFamily, IpConfig, Operation, Pool, Request, Value, ValueType,
    ADAPTER_SIZE, ADDRESSES_SIZE, GATEWAYS_SIZE, KEY_SIZE, VALUE_SIZE, VERSION_4_0,
};
use crate::ic::field::FieldError;
use crate::ic::text::{write_utf16, write_utf16_cut, TextError, Utf16};
use crate::ic::{IcVersion, Status};
use core::mem::size_of;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};
use zerocopy_derive::{
    FromBytes as FromBytesDerive, Immutable as ImmutableDerive, IntoBytes as IntoBytesDerive,
    KnownLayout as KnownLayoutDerive, Unaligned as UnalignedDerive,
};

/// Start of every body (Linux: `struct hv_kvp_hdr` without its padding, which network settings do not have).
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    FromBytesDerive,
    IntoBytesDerive,
    ImmutableDerive,
    KnownLayoutDerive,
    UnalignedDerive,
)]
pub struct Header {
    /// What is asked for.
    pub operation: Operation,
    /// Pool of the key.
    pub pool: u8,
}
assert_layout!(Header, size = 2, operation = 0, pool = 1);

/// A key and its value (Linux: `struct hv_kvp_exchg_msg_value`).
#[repr(C)]
#[derive(
    Clone,
    Copy,
    FromBytesDerive,
    IntoBytesDerive,
    ImmutableDerive,
    KnownLayoutDerive,
    UnalignedDerive,
)]
pub struct Pair {
    /// Type of the value: [`ValueType`].
    pub value_type: U32,
    /// Bytes of the key, its NUL included.
    pub key_size: U32,
    /// Bytes of the value; of a text with its NUL.
    pub value_size: U32,
    /// The key, UTF-16.
    pub key: [u8; KEY_SIZE],
    /// The value: UTF-16, or a number at its start.
    pub value: [u8; VALUE_SIZE],
}
assert_layout!(
    Pair,
    size = 2572,
    value_type = 0,
    key_size = 4,
    value_size = 8,
    key = 12,
    value = 524
);

/// Body of GET and SET (Linux: `struct hv_kvp_msg_get`, `struct hv_kvp_msg_set`).
#[repr(C)]
#[derive(
    Clone,
    Copy,
    FromBytesDerive,
    IntoBytesDerive,
    ImmutableDerive,
    KnownLayoutDerive,
    UnalignedDerive,
)]
pub struct PairBody {
    /// Operation and pool.
    pub header: Header,
    /// Zero.
    pub padding: U16,
    /// Key and value.
    pub pair: Pair,
}
assert_layout!(PairBody, size = 2576, pair = 4);

/// Body of DELETE (Linux: `struct hv_kvp_msg_delete`).
#[repr(C)]
#[derive(
    Clone,
    Copy,
    FromBytesDerive,
    IntoBytesDerive,
    ImmutableDerive,
    KnownLayoutDerive,
    UnalignedDerive,
)]
pub struct DeleteBody {
    /// Operation and pool.
    pub header: Header,
    /// Zero.
    pub padding: U16,
    /// Bytes of the key, its NUL included.
    pub key_size: U32,
    /// The key, UTF-16.
    pub key: [u8; KEY_SIZE],
}
assert_layout!(DeleteBody, size = 520, key_size = 4, key = 8);

/// Body of ENUMERATE (Linux: `struct hv_kvp_msg_enumerate`).
#[repr(C)]
#[derive(
    Clone,
    Copy,
    FromBytesDerive,
    IntoBytesDerive,
    ImmutableDerive,
    KnownLayoutDerive,
    UnalignedDerive,
)]
pub struct EnumerateBody {
    /// Operation and pool.
    pub header: Header,
    /// Zero.
    pub padding: U16,
    /// 0 for the first key.
    pub index: U32,
    /// Key and value, in the answer.
    pub pair: Pair,
}
assert_layout!(EnumerateBody, size = 2580, index = 4, pair = 8);

/// Bytes of each body that is not about network settings, as Hyper-V sends it whatever the operation (OpenVMM: `KvpMessage`).
pub const BODY_SIZE: usize = size_of::<EnumerateBody>();

/// Network settings (Linux: `struct hv_kvp_ipaddr_value`). Text is UTF-16 here, and UTF-8 in the same fields on the device.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    FromBytesDerive,
    IntoBytesDerive,
    ImmutableDerive,
    KnownLayoutDerive,
    UnalignedDerive,
)]
pub struct IpFields {
    /// Adapter.
    pub adapter: [u8; ADAPTER_SIZE],
    /// [`AddressFamily`].
    pub family: u8,
    /// Not 0: addresses come from DHCP.
    pub dhcp: u8,
    /// Addresses.
    pub addresses: [u8; ADDRESSES_SIZE],
    /// Masks.
    pub subnets: [u8; ADDRESSES_SIZE],
    /// Gateways.
    pub gateways: [u8; GATEWAYS_SIZE],
    /// Name servers.
    pub dns: [u8; ADDRESSES_SIZE],
}
assert_layout!(
    IpFields,
    size = 7426,
    family = 256,
    dhcp = 257,
    addresses = 258,
    subnets = 2306,
    gateways = 4354,
    dns = 5378
);

/// Body of GET_IP_INFO and SET_IP_INFO (Linux: `struct hv_kvp_ip_msg`): without padding, unlike the others.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    FromBytesDerive,
    IntoBytesDerive,
    ImmutableDerive,
    KnownLayoutDerive,
    UnalignedDerive,
)]
pub struct IpBody {
    /// Operation; the pool is not used.
    pub header: Header,
    /// The settings.
    pub ip: IpFields,
}
assert_layout!(IpBody, size = 7428, ip = 2);

/// The longest body.
pub const MAX_BODY: usize = size_of::<IpBody>();

fn body_of<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    body: &[u8],
) -> Result<&T, FieldError> {
    T::ref_from_prefix(body)
        .map(|(t, _)| t)
        .map_err(|_| FieldError::TooShort {
            need: size_of::<T>(),
            have: body.len(),
        })
}

fn body_of_mut<T: FromBytes + IntoBytes + KnownLayout + Unaligned>(
    body: &mut [u8],
) -> Result<&mut T, FieldError> {
    let have = body.len();
    T::mut_from_prefix(body)
        .map(|(t, _)| t)
        .map_err(|_| FieldError::TooShort {
            need: size_of::<T>(),
            have,
        })
}

/// The key in a field of which the host says that `size` bytes are used.
fn key(field: &[u8; KEY_SIZE], size: U32) -> Result<Utf16<'_>, FieldError> {
    let bytes = usize::try_from(size.get())
        .ok()
        .and_then(|n| field.get(..n))
        .ok_or(FieldError::KeySize(size.get()))?;
    let text = Utf16::new(bytes).map_err(|_| FieldError::KeySize(size.get()))?;
    if text.is_empty() {
        return Err(FieldError::Text("key", TextError::Empty));
    }
    Ok(text)
}

/// Text of a network setting; it may fill its field.
fn setting<'a>(name: &'static str, field: &'a [u8]) -> Result<Utf16<'a>, FieldError> {
    Utf16::new(field).map_err(|e| FieldError::Text(name, e))
}

/// Decimal digits of `n` and a NUL, in `out`; bytes written, the NUL included.
fn write_number(mut n: u64, out: &mut [u8; VALUE_SIZE]) -> usize {
    let mut digits = [0u8; 20];
    let mut used = 0usize;
    loop {
        let digit = (n % 10) as u8;
        if let Some(d) = digits.get_mut(used) {
            *d = b'0'.saturating_add(digit);
        }
        used = used.saturating_add(1);
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.fill(0);
    for (to, from) in out.iter_mut().zip(digits.iter().take(used).rev()) {
        *to = *from;
    }
    used.saturating_add(1)
}

/// The value of a SET, for the daemon: bytes with its NUL.
fn value_to_utf8(pair: &Pair, out: &mut [u8; VALUE_SIZE]) -> Result<usize, FieldError> {
    let size = pair.value_size.get();
    let bad = FieldError::ValueSize(size);
    let bytes = usize::try_from(size)
        .ok()
        .and_then(|n| pair.value.get(..n))
        .ok_or(bad)?;
    match ValueType(pair.value_type.get()) {
        ValueType::TEXT | ValueType::EXPAND_TEXT => {
            let text = Utf16::new(bytes).map_err(|_| bad)?;
            let len = text
                .to_utf8(out)
                .map_err(|e| FieldError::Text("value", e))?;
            Ok(len.saturating_add(1))
        }
        ValueType::U32 => {
            let (n, _) = U32::read_from_prefix(bytes).map_err(|_| bad)?;
            Ok(write_number(u64::from(n.get()), out))
        }
        ValueType::U64 | ValueType::QWORD => {
            let (n, _) = zerocopy::little_endian::U64::read_from_prefix(bytes).map_err(|_| bad)?;
            Ok(write_number(n.get(), out))
        }
        other => Err(FieldError::ValueType(other.0)),
    }
}

/// Guest: checks a request and writes it in the daemon's format to `out`. Every length, number and text is checked against `body`, a
/// private copy; `out` holds only what was checked.
///
/// # Errors
///
/// The field that is out of range. `out` holds nothing of use then.
pub fn to_device(
    version: IcVersion,
    body: &[u8],
    out: &mut DeviceMessage,
) -> Result<Operation, FieldError> {
    let header: &Header = body_of(body)?;
    let operation = header.operation;
    if matches!(operation, Operation::GET_IP_INFO | Operation::SET_IP_INFO) {
        if version < VERSION_4_0 {
            return Err(FieldError::Operation(u32::from(operation.0)));
        }
        let ip = &body_of::<IpBody>(body)?.ip;
        out.reset(operation, Pool::EXTERNAL);
        ip_to_device(operation, ip, out.ip_mut())?;
        return Ok(operation);
    }
    if operation > Operation::ENUMERATE {
        return Err(FieldError::Operation(u32::from(operation.0)));
    }
    out.reset(operation, Pool::checked(header.pool)?);
    match operation {
        Operation::GET | Operation::SET => {
            let from = &body_of::<PairBody>(body)?.pair;
            let to = out.pair_mut()?;
            let len = key(&from.key, from.key_size)?
                .to_utf8(&mut to.key)
                .map_err(|e| FieldError::Text("key", e))?;
            to.key_size = U32::new(len.saturating_add(1) as u32);
            if operation == Operation::GET {
                // The C daemon copies this many bytes of the value, and would copy none.
                to.value_size = U32::new(VALUE_SIZE as u32);
            } else {
                to.value_size = U32::new(value_to_utf8(from, &mut to.value)? as u32);
            }
        }
        Operation::DELETE => {
            let from: &DeleteBody = body_of(body)?;
            let len = key(&from.key, from.key_size)?;
            out.set_delete_key(len)
                .map_err(|e| FieldError::Text("key", e))?;
        }
        _ => out.set_index(body_of::<EnumerateBody>(body)?.index.get()),
    }
    Ok(operation)
}

fn ip_to_device(
    operation: Operation,
    from: &IpFields,
    to: &mut IpFields,
) -> Result<(), FieldError> {
    to.family = AddressFamily::checked(from.family)?.0;
    let copy = |name: &'static str, from: &[u8], to: &mut [u8]| {
        let text = setting(name, from)?;
        text.to_utf8(to)
            .map(drop)
            .map_err(|e| FieldError::Text(name, e))
    };
    copy("adapter", &from.adapter, &mut to.adapter)?;
    if to.adapter.first() == Some(&0) {
        return Err(FieldError::Text("adapter", TextError::Empty));
    }
    if operation == Operation::SET_IP_INFO {
        to.dhcp = u8::from(from.dhcp != 0);
        copy("addresses", &from.addresses, &mut to.addresses)?;
        copy("subnets", &from.subnets, &mut to.subnets)?;
        copy("gateways", &from.gateways, &mut to.gateways)?;
        copy("dns", &from.dns, &mut to.dns)?;
    }
    Ok(())
}

/// Guest: writes the daemon's answer into the request that it answers. `operation` is what [`to_device`] returned for `body`.
///
/// A value or an address list that is too long for the host is cut.
///
/// # Errors
///
/// A text that is not terminated or no UTF-8: the host is to be told that the request failed. `body` is of no use then, but as long as before.
pub fn from_device(
    operation: Operation,
    body: &mut [u8],
    answer: &DeviceMessage,
) -> Result<Status, FieldError> {
    match operation {
        Operation::GET => {
            let value = answer.got()?;
            let pair = &mut body_of_mut::<PairBody>(body)?.pair;
            put_value(pair, value);
        }
        Operation::ENUMERATE => {
            let (key, value) = answer.enumerated()?;
            let pair = &mut body_of_mut::<EnumerateBody>(body)?.pair;
            let (size, _) = write_utf16_cut(key, &mut pair.key);
            pair.key_size = U32::new(size as u32);
            put_value(pair, value);
        }
        Operation::GET_IP_INFO => {
            let from = answer.ip_config()?;
            let to = &mut body_of_mut::<IpBody>(body)?.ip;
            write_utf16_cut(from.adapter, &mut to.adapter);
            to.family = from.family.0;
            to.dhcp = u8::from(from.dhcp);
            write_utf16_cut(from.addresses, &mut to.addresses);
            write_utf16_cut(from.subnets, &mut to.subnets);
            write_utf16_cut(from.gateways, &mut to.gateways);
            write_utf16_cut(from.dns, &mut to.dns);
        }
        _ => {}
    }
    Ok(Status::OK)
}

fn put_value(pair: &mut Pair, value: &str) {
    let (size, _) = write_utf16_cut(value, &mut pair.value);
    pair.value_size = U32::new(size as u32);
    pair.value_type = U32::new(ValueType::TEXT.0);
}

/// Host: writes the body of `request`; its length, which is that of Hyper-V for the operation.
///
/// # Errors
///
/// A text that is too long, by the name of its field.
pub fn write(request: &Request<'_>, out: &mut [u8; MAX_BODY]) -> Result<usize, FieldError> {
    out.fill(0);
    let text = |name: &'static str, text: &str, field: &mut [u8]| {
        write_utf16(text, field)
            .map(|n| U32::new(n as u32))
            .map_err(|e| FieldError::Text(name, e))
    };
    let header = Header {
        operation: request.operation(),
        pool: request.pool().0,
    };
    let body = out.as_mut_slice();
    *body_of_mut::<Header>(body)? = header;
    match request {
        Request::Get { key, .. } => {
            let pair = &mut body_of_mut::<PairBody>(body)?.pair;
            pair.key_size = text("key", key, &mut pair.key)?;
        }
        Request::Set { key, value, .. } => {
            let pair = &mut body_of_mut::<PairBody>(body)?.pair;
            pair.key_size = text("key", key, &mut pair.key)?;
            let (value_type, size) = match value {
                Value::Text(value) => (
                    ValueType::TEXT,
                    text("value", value, &mut pair.value)?.get(),
                ),
                Value::U32(n) => {
                    let _ = n.write_to_prefix(&mut pair.value);
                    (ValueType::U32, 4)
                }
                Value::U64(n) => {
                    let _ = n.write_to_prefix(&mut pair.value);
                    (ValueType::U64, 8)
                }
            };
            pair.value_type = U32::new(value_type.0);
            pair.value_size = U32::new(size);
        }
        Request::Delete { key, .. } => {
            let body: &mut DeleteBody = body_of_mut(body)?;
            body.key_size = text("key", key, &mut body.key)?;
        }
        Request::Enumerate { index, .. } => {
            body_of_mut::<EnumerateBody>(body)?.index = U32::new(*index);
        }
        Request::GetIp { adapter, family } => {
            let ip = &mut body_of_mut::<IpBody>(body)?.ip;
            text("adapter", adapter, &mut ip.adapter)?;
            ip.family = family.0;
            return Ok(MAX_BODY);
        }
        Request::SetIp(config) => {
            let ip = &mut body_of_mut::<IpBody>(body)?.ip;
            write_ip(config, ip)?;
            return Ok(MAX_BODY);
        }
    }
    Ok(BODY_SIZE)
}

fn write_ip(config: &IpConfig<'_>, ip: &mut IpFields) -> Result<(), FieldError> {
    let fields: [(&'static str, &str, &mut [u8]); 5] = [
        ("adapter", config.adapter, &mut ip.adapter),
        ("addresses", config.addresses, &mut ip.addresses),
        ("subnets", config.subnets, &mut ip.subnets),
        ("gateways", config.gateways, &mut ip.gateways),
        ("dns", config.dns, &mut ip.dns),
    ];
    for (name, text, field) in fields {
        write_utf16(text, field).map_err(|e| FieldError::Text(name, e))?;
    }
    ip.family = config.family.0;
    ip.dhcp = u8::from(config.dhcp);
    Ok(())
}

/// Host: what a successful answer tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// Done; nothing was asked for.
    Done,
    /// A value, of GET; of ENUMERATE with its key.
    Pair {
        /// The key, of ENUMERATE.
        key: Option<Utf16<'a>>,
        /// The value.
        value: Utf16<'a>,
    },
    /// Network settings.
    Ip {
        /// Adapter, as the guest names it.
        adapter: Utf16<'a>,
        /// Families.
        family: AddressFamily,
        /// Whether addresses come from DHCP.
        dhcp: bool,
        /// Addresses.
        addresses: Utf16<'a>,
        /// Masks.
        subnets: Utf16<'a>,
        /// Gateways.
        gateways: Utf16<'a>,
        /// Name servers.
        dns: Utf16<'a>,
    },
}

/// Host: reads the answer to a request of `operation`, whose status told of success.
///
/// # Errors
///
/// The field that is out of range: the guest's driver is broken.
pub fn parse_answer(operation: Operation, body: &[u8]) -> Result<Answer<'_>, FieldError> {
    let value = |pair: &'_ Pair| -> Result<(), FieldError> {
        match ValueType(pair.value_type.get()) {
            ValueType::TEXT => Ok(()),
            other => Err(FieldError::ValueType(other.0)),
        }
    };
    match operation {
        Operation::GET => {
            let pair = &body_of::<PairBody>(body)?.pair;
            value(pair)?;
            Ok(Answer::Pair {
                key: None,
                value: value_text(pair)?,
            })
        }
        Operation::ENUMERATE => {
            let pair = &body_of::<EnumerateBody>(body)?.pair;
            value(pair)?;
            Ok(Answer::Pair {
                key: Some(key(&pair.key, pair.key_size)?),
                value: value_text(pair)?,
            })
        }
        Operation::GET_IP_INFO => {
            let ip = &body_of::<IpBody>(body)?.ip;
            Ok(Answer::Ip {
                adapter: setting("adapter", &ip.adapter)?,
                family: AddressFamily::checked(ip.family)?,
                dhcp: ip.dhcp != 0,
                addresses: setting("addresses", &ip.addresses)?,
                subnets: setting("subnets", &ip.subnets)?,
                gateways: setting("gateways", &ip.gateways)?,
                dns: setting("dns", &ip.dns)?,
            })
        }
        _ => Ok(Answer::Done),
    }
}

fn value_text(pair: &Pair) -> Result<Utf16<'_>, FieldError> {
    let size = pair.value_size.get();
    usize::try_from(size)
        .ok()
        .and_then(|n| pair.value.get(..n))
        .and_then(|bytes| Utf16::new(bytes).ok())
        .ok_or(FieldError::ValueSize(size))
}
