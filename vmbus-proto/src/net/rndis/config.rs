// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Settings of the device that are named by a text: its address.

use zerocopy::{FromBytes, IntoBytes};
use zerocopy_derive::*;

/// Start of the value of GEN_RNDIS_CONFIG_PARAMETER (`struct rndis_config_parameter_info`): a name in UTF-16, and a value.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct ConfigParameter {
    /// Where the name starts, from the start of this structure.
    pub name_offset: u32,
    /// Bytes of the name.
    pub name_len: u32,
    /// See [`ConfigType`].
    pub value_type: ConfigType,
    /// Where the value starts.
    pub value_offset: u32,
    /// Bytes of the value.
    pub value_len: u32,
}
assert_layout!(
    ConfigParameter,
    size = 20,
    name_offset = 0,
    name_len = 4,
    value_type = 8,
    value_offset = 12,
    value_len = 16
);

open_enum! {
    /// What a configuration parameter is.
    pub struct ConfigType(u32) {
        /// 32 bits.
        INTEGER = 0,
        /// UTF-16.
        STRING = 2,
    }
}

/// Name of the parameter that sets the MAC address.
pub const NETWORK_ADDRESS: &str = "NetworkAddress";

/// Bytes of [`network_address_parameter`].
pub const NETWORK_ADDRESS_SIZE: usize = 20 + 2 * 14 + 2 * 12;

/// The value of GEN_RNDIS_CONFIG_PARAMETER that sets the MAC address: twelve hexadecimal digits (`rndis_filter.c`,
/// `rndis_filter_set_device_mac`).
#[must_use]
pub fn network_address_parameter(mac: crate::net::MacAddress) -> [u8; NETWORK_ADDRESS_SIZE] {
    const NAME_AT: usize = core::mem::size_of::<ConfigParameter>();
    const NAME_LEN: usize = 2 * NETWORK_ADDRESS.len();
    const VALUE_AT: usize = NAME_AT + NAME_LEN;
    let mut out = [0; NETWORK_ADDRESS_SIZE];
    let parameter = ConfigParameter {
        name_offset: NAME_AT as u32,
        name_len: NAME_LEN as u32,
        value_type: ConfigType::STRING,
        value_offset: VALUE_AT as u32,
        value_len: (NETWORK_ADDRESS_SIZE - VALUE_AT) as u32,
    };
    // It is made to fit.
    let _ = parameter.write_to_prefix(&mut out);
    let digit = |nibble: u8| b"0123456789abcdef".get(nibble as usize & 15).copied();
    let digits = mac
        .into_iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte)])
        .flatten();
    let units = NETWORK_ADDRESS.bytes().chain(digits);
    for (unit, ascii) in out.iter_mut().skip(NAME_AT).step_by(2).zip(units) {
        *unit = ascii;
    }
    out
}

/// A configuration parameter, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsedParameter<'a> {
    /// What the value is.
    pub value_type: ConfigType,
    /// The name in UTF-16, little-endian.
    pub name: &'a [u8],
    /// The value.
    pub value: &'a [u8],
}

impl<'a> ParsedParameter<'a> {
    /// Takes apart the value of GEN_RNDIS_CONFIG_PARAMETER. `None` when name or value do not lie in it.
    #[must_use]
    pub fn parse(info: &'a [u8]) -> Option<Self> {
        let (parameter, _) = ConfigParameter::read_from_prefix(info).ok()?;
        let part = |offset: u32, len: u32| info.get(offset as usize..)?.get(..len as usize);
        Some(Self {
            value_type: parameter.value_type,
            name: part(parameter.name_offset, parameter.name_len)?,
            value: part(parameter.value_offset, parameter.value_len)?,
        })
    }

    /// Whether the name is this, which is ASCII.
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        self.name.len() >> 1 == name.len()
            && self
                .name
                .chunks_exact(2)
                .zip(name.bytes())
                .all(|(unit, ascii)| unit == [ascii, 0])
    }

    /// The MAC address that the parameter sets, if it sets one.
    #[must_use]
    pub fn network_address(&self) -> Option<crate::net::MacAddress> {
        if !self.is_named(NETWORK_ADDRESS)
            || self.value_type != ConfigType::STRING
            || self.value.len() != 24
        {
            return None;
        }
        let mut mac = [0; 6];
        for (byte, digits) in mac.iter_mut().zip(self.value.chunks_exact(4)) {
            let [high, 0, low, 0] = *digits else {
                return None;
            };
            let high = char::from(high).to_digit(16)?;
            let low = char::from(low).to_digit(16)?;
            *byte = ((high << 4) | low) as u8;
        }
        Some(mac)
    }
}
