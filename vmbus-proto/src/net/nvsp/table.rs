// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The send-indirection table.

use core::fmt;
use zerocopy::{FromBytes, IntoBytes};

use super::{
    MessageType, NvspMessage, NvspVersion, SendTableHeader, TooShort, MESSAGE_SIZE, SEND_TABLE_SIZE,
};

/// How the host lays out a send-indirection table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableForm {
    /// Right behind the header, at offset 12 (OpenVMM `netvsp`, `guest_send_indirection_table`).
    Compact,
    /// Behind the space that the largest message takes, at offset 40.
    Wide,
    /// At 40, but said to be at 12: a bug of hosts up to version 6 (`netvsc.c`, `netvsc_send_table`).
    WideWrongOffset,
}

/// Which channel to send on: entry by hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendTable {
    entries: [u32; SEND_TABLE_SIZE],
}

/// Why a send-indirection table is of no use. The old one stays. One variant per cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// Not the number of entries that there always are.
    Count(u32),
    /// The entries do not lie in the message.
    Offset {
        /// Where they start.
        offset: u32,
        /// Bytes that came.
        len: usize,
    },
    /// Even the header is cut.
    TooShort(TooShort),
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "send-indirection table of {count} entries"),
            Self::Offset { offset, len } => {
                write!(
                    f,
                    "send-indirection table at {offset} of a message of {len} bytes"
                )
            }
            Self::TooShort(e) => e.fmt(f),
        }
    }
}

impl core::error::Error for TableError {}

const TABLE_BYTES: usize = SEND_TABLE_SIZE << 2;
const COMPACT_OFFSET: u32 = 12;
const WIDE_OFFSET: u32 = MESSAGE_SIZE as u32;
/// Size in bytes of the largest table message.
pub const MAX_TABLE_MESSAGE: usize = MESSAGE_SIZE + TABLE_BYTES;

impl SendTable {
    /// A table; entries are channel numbers.
    #[must_use]
    pub const fn new(entries: [u32; SEND_TABLE_SIZE]) -> Self {
        Self { entries }
    }

    /// All channels in turn.
    #[must_use]
    pub fn round_robin(channels: u32) -> Self {
        let mut entries = [0; SEND_TABLE_SIZE];
        for (entry, index) in entries.iter_mut().zip(0u32..) {
            *entry = index.checked_rem(channels).unwrap_or(0);
        }
        Self { entries }
    }

    /// The entries as they came: a channel may not exist.
    #[must_use]
    pub const fn entries(&self) -> &[u32; SEND_TABLE_SIZE] {
        &self.entries
    }

    /// The channel for a hash, of `channels` that there are.
    #[inline]
    #[must_use]
    pub fn channel(&self, hash: u32, channels: u32) -> u32 {
        let index = hash as usize & SEND_TABLE_SIZE.wrapping_sub(1);
        let channel = self.entries.get(index).copied().unwrap_or(0);
        if channel < channels {
            channel
        } else {
            channel.checked_rem(channels).unwrap_or(0)
        }
    }

    /// Takes a table out of a SEND_INDIRECTION_TABLE message, `payload`, a private copy.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn parse(version: NvspVersion, payload: &[u8]) -> Result<Self, TableError> {
        let message = NvspMessage::parse(payload).map_err(TableError::TooShort)?;
        let header: SendTableHeader = message.body_as();
        if header.count as usize != SEND_TABLE_SIZE {
            return Err(TableError::Count(header.count));
        }
        // Hosts up to 6 may state a wrong offset; when there is room, the table is where the C driver looks.
        let offset = if version <= NvspVersion::V6 && payload.len() >= MAX_TABLE_MESSAGE {
            WIDE_OFFSET
        } else {
            header.offset
        };
        let (entries, _) = payload
            .get(offset as usize..)
            .and_then(|table| <[u32; SEND_TABLE_SIZE]>::read_from_prefix(table).ok())
            .ok_or(TableError::Offset {
                offset,
                len: payload.len(),
            })?;
        Ok(Self { entries })
    }

    /// Writes the message that says so and returns its bytes.
    #[must_use]
    pub fn message<'a>(&self, form: TableForm, out: &'a mut [u8; MAX_TABLE_MESSAGE]) -> &'a [u8] {
        let (said, at) = match form {
            TableForm::Compact => (COMPACT_OFFSET, COMPACT_OFFSET),
            TableForm::Wide => (WIDE_OFFSET, WIDE_OFFSET),
            TableForm::WideWrongOffset => (COMPACT_OFFSET, WIDE_OFFSET),
        };
        let start = NvspMessage::new(
            MessageType::SEND_INDIRECTION_TABLE,
            &SendTableHeader {
                count: SEND_TABLE_SIZE as u32,
                offset: said,
            },
        );
        out.fill(0);
        // Both fit: the array is made for it.
        let _ = start.write_to_prefix(out.as_mut_slice());
        let at = at as usize;
        let end = at.wrapping_add(TABLE_BYTES);
        if let Some(table) = out.get_mut(at..end) {
            let _ = self.entries.write_to(table);
        }
        out.get(..end).unwrap_or(&[])
    }
}
