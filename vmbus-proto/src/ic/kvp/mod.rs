// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Key-value pair exchange (KVP): the host reads and writes keys of the guest, and its network settings.
//!
//! Two formats of the same requests: [`wire`], between host and guest, with UTF-16 text; and [`device`], between the
//! driver and the daemon that reads and writes `/dev/vmbus/hv_kvp`, with UTF-8 text. [`Request`] is what both say.
//!
//! The host sends one request at a time. A status that is an error ends an enumeration.
//!
//! Sources: Linux `include/uapi/linux/hyperv.h` (`struct hv_kvp_msg` and what follows it), `drivers/hv/hv_kvp.c`; field sizes and the
//! number of a 64-bit value also in OpenVMM's `hyperv_ic_protocol`.

use super::field::FieldError;
use super::IcVersion;

pub mod device;
pub mod wire;

pub use device::DeviceMessage;

/// KVP 4.0 of Windows Server 2012, the first with network settings (Linux: `WIN8_SRV_VERSION`).
pub const VERSION_4_0: IcVersion = IcVersion::new(4, 0);
/// KVP 3.0 of Windows Server 2008 R2 (Linux: `WIN7_SRV_VERSION`).
pub const VERSION_3_0: IcVersion = IcVersion::new(3, 0);
/// KVP 1.0 of Windows Server 2008 (Linux: `WS2008_SRV_VERSION`).
pub const VERSION_1_0: IcVersion = IcVersion::new(1, 0);
/// What we speak, best first.
pub const VERSIONS: &[IcVersion] = &[VERSION_4_0, VERSION_3_0, VERSION_1_0];

/// Bytes of a key's field, the terminating NUL included, in both formats (Linux: `HV_KVP_EXCHANGE_MAX_KEY_SIZE`).
pub const KEY_SIZE: usize = 512;
/// Bytes of a value's field (Linux: `HV_KVP_EXCHANGE_MAX_VALUE_SIZE`).
pub const VALUE_SIZE: usize = 2048;
/// Bytes of an adapter's name: 128 units of 16 bits (Linux: `MAX_ADAPTER_ID_SIZE`).
pub const ADAPTER_SIZE: usize = 256;
/// Bytes of a list of addresses, masks or name servers: 1024 units (Linux: `MAX_IP_ADDR_SIZE`).
pub const ADDRESSES_SIZE: usize = 2048;
/// Bytes of a list of gateways: 512 units (Linux: `MAX_GATEWAY_SIZE`).
pub const GATEWAYS_SIZE: usize = 1024;

open_enum! {
    /// What is asked for (Linux: `enum hv_kvp_exchg_op`, and the registration numbers of the daemon).
    #[derive(zerocopy_derive::Unaligned)]
    pub struct Operation(u8) {
        /// The value of a key.
        GET = 0,
        /// Makes or changes a key.
        SET = 1,
        /// Removes a key.
        DELETE = 2,
        /// The key with an index, and its value.
        ENUMERATE = 3,
        /// Network settings of an adapter; from 4.0 on. On the device also the registration of a daemon that knows no network
        /// settings: [`Registration::Old`].
        GET_IP_INFO = 4,
        /// Changes network settings of an adapter; from 4.0 on.
        SET_IP_INFO = 5,
        /// Device only: registration of a daemon ([`Registration::Current`]; Linux: `KVP_OP_REGISTER1`).
        REGISTER1 = 100,
    }
}

open_enum! {
    /// A set of keys (Linux: `enum hv_kvp_exchg_pool`).
    #[derive(zerocopy_derive::Unaligned)]
    pub struct Pool(u8) {
        /// Written by the host's administrator.
        EXTERNAL = 0,
        /// Written in the guest, for the host to read.
        GUEST = 1,
        /// About the guest, made up by the daemon: names, versions, addresses.
        AUTO = 2,
        /// About the host.
        AUTO_EXTERNAL = 3,
        /// Never exchanged.
        AUTO_INTERNAL = 4,
    }
}

impl Pool {
    /// How many pools there are.
    pub const COUNT: u8 = 5;

    /// The pool with number `raw`.
    ///
    /// # Errors
    ///
    /// [`FieldError::Pool`].
    pub const fn checked(raw: u8) -> Result<Self, FieldError> {
        if raw < Self::COUNT {
            Ok(Self(raw))
        } else {
            Err(FieldError::Pool(raw))
        }
    }
}

open_enum! {
    /// Type of a value: those of the Windows registry.
    pub struct ValueType(u32) {
        /// Text (`REG_SZ`).
        TEXT = 1,
        /// Text with names of environment variables in it (`REG_EXPAND_SZ`); taken as it is.
        EXPAND_TEXT = 2,
        /// Number of 32 bits (`REG_DWORD`).
        U32 = 4,
        /// Number of 64 bits as Linux numbers it (`REG_U64`).
        U64 = 8,
        /// Number of 64 bits as Windows numbers it (`REG_QWORD`).
        QWORD = 11,
    }
}

open_enum! {
    /// Address families that a request is about (Linux: `ADDR_FAMILY_*`).
    #[derive(zerocopy_derive::Unaligned)]
    pub struct AddressFamily(u8) {
        /// None in particular.
        NONE = 0,
        /// IPv4.
        IPV4 = 1,
        /// IPv6.
        IPV6 = 2,
        /// Both (OpenVMM: `IPV4V6`).
        BOTH = 3,
    }
}

impl AddressFamily {
    /// The family with number `raw`.
    ///
    /// # Errors
    ///
    /// [`FieldError::AddressFamily`].
    pub const fn checked(raw: u8) -> Result<Self, FieldError> {
        if raw <= Self::BOTH.0 {
            Ok(Self(raw))
        } else {
            Err(FieldError::AddressFamily(raw))
        }
    }
}

/// How a daemon registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registration {
    /// Knows network settings, and puts a status in place of the header when it answers (Linux: `KVP_OP_REGISTER1`).
    Current,
    /// Knows neither: an empty key means that there is no such key (Linux: `KVP_OP_REGISTER`).
    Old,
}

/// A value to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Text. The daemon gets all values as such.
    Text(&'a str),
    /// A number of 32 bits.
    U32(u32),
    /// A number of 64 bits.
    U64(u64),
}

/// Network settings of an adapter. Lists are separated by semicolons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IpConfig<'a> {
    /// Adapter: the GUID of its device in braces, or in requests to get also its MAC address.
    pub adapter: &'a str,
    /// Families that this is about.
    pub family: AddressFamily,
    /// Whether addresses come from DHCP.
    pub dhcp: bool,
    /// Addresses.
    pub addresses: &'a str,
    /// Masks or prefix lengths, one for each address.
    pub subnets: &'a str,
    /// Gateways.
    pub gateways: &'a str,
    /// Name servers.
    pub dns: &'a str,
}

/// A request, in text. The host writes it to the wire with [`wire::write`], the daemon reads it with [`DeviceMessage::parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// The value of a key.
    Get {
        /// Where the key is.
        pool: Pool,
        /// The key, not empty.
        key: &'a str,
    },
    /// Makes or changes a key.
    Set {
        /// Where the key is.
        pool: Pool,
        /// The key, not empty.
        key: &'a str,
        /// Its new value.
        value: Value<'a>,
    },
    /// Removes a key.
    Delete {
        /// Where the key is.
        pool: Pool,
        /// The key, not empty.
        key: &'a str,
    },
    /// The key with an index, and its value.
    Enumerate {
        /// Where the key is.
        pool: Pool,
        /// 0 for the first one.
        index: u32,
    },
    /// Network settings of an adapter.
    GetIp {
        /// Its name: a GUID in braces, or a MAC address.
        adapter: &'a str,
        /// Families to tell of.
        family: AddressFamily,
    },
    /// Changes network settings.
    SetIp(IpConfig<'a>),
}

impl Request<'_> {
    /// The operation's number.
    pub const fn operation(&self) -> Operation {
        match self {
            Self::Get { .. } => Operation::GET,
            Self::Set { .. } => Operation::SET,
            Self::Delete { .. } => Operation::DELETE,
            Self::Enumerate { .. } => Operation::ENUMERATE,
            Self::GetIp { .. } => Operation::GET_IP_INFO,
            Self::SetIp(_) => Operation::SET_IP_INFO,
        }
    }

    /// The pool that it is about; network settings are in none.
    pub const fn pool(&self) -> Pool {
        match self {
            Self::Get { pool, .. }
            | Self::Set { pool, .. }
            | Self::Delete { pool, .. }
            | Self::Enumerate { pool, .. } => *pool,
            Self::GetIp { .. } | Self::SetIp(_) => Pool::EXTERNAL,
        }
    }
}
