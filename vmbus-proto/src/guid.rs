// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! GUIDs in the layout of Windows: the first three groups little-endian, the last two as written.

use core::fmt;
use core::str::FromStr;
use zerocopy_derive::*;

/// A GUID as it lies in VMBus messages (C: `guid_t`). Ordered and compared by its bytes.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(transparent)]
pub struct Guid(pub [u8; 16]);

assert_layout!(Guid, size = 16);

/// Text that is not a GUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuidParseError;

impl fmt::Display for GuidParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a GUID: expected xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx, braces optional")
    }
}

impl core::error::Error for GuidParseError {}

/// Index in memory of each of the 16 bytes, in the order in which text shows them.
const TEXT_ORDER: [u8; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

impl Guid {
    /// All zero: the default of optional GUID fields.
    pub const ZERO: Self = Self([0; 16]);

    /// A GUID from its groups, as C's `GUID_INIT` takes them; `d4` holds the last two groups.
    #[must_use]
    pub const fn new(d1: u32, d2: u16, d3: u16, d4: [u8; 8]) -> Self {
        let [a0, a1, a2, a3] = d1.to_le_bytes();
        let [b0, b1] = d2.to_le_bytes();
        let [c0, c1] = d3.to_le_bytes();
        let [e0, e1, e2, e3, e4, e5, e6, e7] = d4;
        Self([
            a0, a1, a2, a3, b0, b1, c0, c1, e0, e1, e2, e3, e4, e5, e6, e7,
        ])
    }

    /// Parses the usual text, upper or lower case, with or without braces.
    ///
    /// # Errors
    /// [`GuidParseError`] for anything else; leading or trailing space is not allowed.
    pub fn parse(text: &str) -> Result<Self, GuidParseError> {
        let bare = match text.strip_prefix('{') {
            Some(rest) => rest.strip_suffix('}').ok_or(GuidParseError)?,
            None => text,
        };
        if bare.len() != 36 {
            return Err(GuidParseError);
        }
        let mut out = [0u8; 16];
        let mut chars = bare.bytes();
        for (shown, &at) in TEXT_ORDER.iter().enumerate() {
            // Dashes stand before the 5th, 7th, 9th and 11th byte.
            if matches!(shown, 4 | 6 | 8 | 10) && chars.next() != Some(b'-') {
                return Err(GuidParseError);
            }
            let high = hex_digit(chars.next()).ok_or(GuidParseError)?;
            let low = hex_digit(chars.next()).ok_or(GuidParseError)?;
            if let Some(byte) = out.get_mut(usize::from(at)) {
                *byte = (high << 4) | low;
            }
        }
        Ok(Self(out))
    }

    /// Whether all bytes are zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }

    /// Shows the bytes in memory order without dashes: the form of `modalias`
    /// (Linux `scripts/mod/file2alias.c`).
    #[must_use]
    pub const fn memory_hex(&self) -> MemoryHex<'_> {
        MemoryHex(self)
    }
}

const fn hex_digit(c: Option<u8>) -> Option<u8> {
    match c {
        Some(c @ b'0'..=b'9') => Some(c.wrapping_sub(b'0')),
        Some(c @ b'a'..=b'f') => Some(c.wrapping_sub(b'a').wrapping_add(10)),
        Some(c @ b'A'..=b'F') => Some(c.wrapping_sub(b'A').wrapping_add(10)),
        _ => None,
    }
}

/// See [`Guid::memory_hex`].
#[derive(Clone, Copy, Debug)]
pub struct MemoryHex<'a>(&'a Guid);

impl fmt::Display for MemoryHex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0 .0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Lower case with dashes and without braces, as `%pUl` prints it.
impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shown, &at) in TEXT_ORDER.iter().enumerate() {
            if matches!(shown, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            let byte = self.0.get(usize::from(at)).copied().unwrap_or(0);
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Guid {
    type Err = GuidParseError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::parse(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    const NIC: Guid = Guid::new(
        0xf861_5163,
        0xdf3e,
        0x46c5,
        [0x91, 0x3f, 0xf2, 0xd2, 0xf9, 0x65, 0xed, 0x0e],
    );

    #[test]
    fn text_and_memory_orders_differ_as_on_windows() {
        assert_eq!(NIC.to_string(), "f8615163-df3e-46c5-913f-f2d2f965ed0e");
        // The alias that Debian's hv_netvsc.ko carries.
        assert_eq!(
            NIC.memory_hex().to_string(),
            "635161f83edfc546913ff2d2f965ed0e"
        );
    }

    #[test]
    fn parse_accepts_braces_and_case() {
        for text in [
            "f8615163-df3e-46c5-913f-f2d2f965ed0e",
            "F8615163-DF3E-46C5-913F-F2D2F965ED0E",
            "{f8615163-df3e-46c5-913f-f2d2f965ed0e}",
        ] {
            assert_eq!(Guid::parse(text), Ok(NIC), "{text}");
        }
    }

    #[test]
    fn parse_refuses_everything_else() {
        for text in [
            "",
            "{}",
            "{f8615163-df3e-46c5-913f-f2d2f965ed0e",
            "f8615163-df3e-46c5-913f-f2d2f965ed0e}",
            "f8615163-df3e-46c5-913f-f2d2f965ed0",
            "f8615163-df3e-46c5-913f-f2d2f965ed0e0",
            "f8615163xdf3e-46c5-913f-f2d2f965ed0e",
            "g8615163-df3e-46c5-913f-f2d2f965ed0e",
            " f8615163-df3e-46c5-913f-f2d2f965ed0",
            "f8615163-df3e-46c5-913f-f2d2f965ed0é",
        ] {
            assert_eq!(Guid::parse(text), Err(GuidParseError), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn text_round_trip(bytes: [u8; 16]) {
            let guid = Guid(bytes);
            proptest::prop_assert_eq!(Guid::parse(&guid.to_string()), Ok(guid));
        }
    }
}
