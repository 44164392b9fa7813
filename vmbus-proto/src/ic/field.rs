// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What can be wrong with a request of the data exchange services: one variant for each field.

use super::text::TextError;
use core::fmt;

/// A field with a value that means nothing, or that the guest must not act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldError {
    /// The message is shorter than its operation needs.
    TooShort {
        /// Bytes that the body must have.
        need: usize,
        /// Bytes that it has.
        have: usize,
    },
    /// No such operation in the version that was agreed.
    Operation(u32),
    /// No such pool of keys.
    Pool(u8),
    /// A value that is neither text nor a number of 32 or 64 bits.
    ValueType(u32),
    /// Bytes of the key: more than its field, or odd.
    KeySize(u32),
    /// Bytes of the value: more than its field, odd for a text, or too few for a number.
    ValueSize(u32),
    /// No such address family.
    AddressFamily(u8),
    /// A text, by the name of its field.
    Text(&'static str, TextError),
    /// Flags of a file copy that are not defined.
    CopyFlags(u32),
    /// Bytes in a piece of a file: more than its field.
    DataSize(u32),
    /// A piece of a file that would end beyond the largest file.
    Offset(u64),
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { need, have } => {
                write!(f, "body too short: {have} bytes, {need} needed")
            }
            Self::Operation(v) => write!(f, "unknown operation {v}"),
            Self::Pool(v) => write!(f, "unknown pool {v}"),
            Self::ValueType(v) => write!(f, "unknown value type {v}"),
            Self::KeySize(v) => write!(f, "key of {v} bytes"),
            Self::ValueSize(v) => write!(f, "value of {v} bytes"),
            Self::AddressFamily(v) => write!(f, "unknown address family {v}"),
            Self::Text(field, e) => write!(f, "{field}: {e}"),
            Self::CopyFlags(v) => write!(f, "unknown copy flags {v:#x}"),
            Self::DataSize(v) => write!(f, "piece of {v} bytes"),
            Self::Offset(v) => write!(f, "piece at offset {v}"),
        }
    }
}
