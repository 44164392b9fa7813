// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! GPA ranges: byte ranges of guest-physical memory, scattered over pages. GPADLs and GPA-direct
//! packets carry lists of them in the same form (`hyperv.h`, `struct gpa_range`).

use core::fmt;
use zerocopy::FromBytes;
use zerocopy_derive::*;

use crate::PAGE_SIZE;

/// Start of a range; one page frame number (64 bits) per page touched follows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct GpaRangeHeader {
    /// Bytes in the range, not zero.
    pub byte_count: u32,
    /// Offset of the first byte in the first page, below 4096.
    pub byte_offset: u32,
}

assert_layout!(GpaRangeHeader, size = 8, byte_count = 0, byte_offset = 4);

/// A range whose pages follow each other.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct GpaRun {
    /// Size and offset.
    pub range: GpaRangeHeader,
    /// Page frame number of the first page.
    pub first: u64,
}

assert_layout!(GpaRun, size = 16, range = 0, first = 8);

/// Why bytes are not a list of ranges. One variant per cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeError {
    /// The list has no range.
    NoRanges,
    /// A range has no byte.
    EmptyRange,
    /// A range does not start in its first page.
    OffsetBeyondPage {
        /// The offset claimed.
        offset: u32,
    },
    /// The data end before the list does.
    Truncated {
        /// Number of the range, from 0.
        range: u32,
    },
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRanges => f.write_str("list without a range"),
            Self::EmptyRange => f.write_str("range of no bytes"),
            Self::OffsetBeyondPage { offset } => {
                write!(f, "range starts at offset {offset} of its first page")
            }
            Self::Truncated { range } => write!(f, "data end within range {range}"),
        }
    }
}

impl core::error::Error for RangeError {}

const LAST_BYTE_OF_PAGE: u64 = 4095;
static_assertions::const_assert_eq!(LAST_BYTE_OF_PAGE as usize, PAGE_SIZE.wrapping_sub(1));

impl GpaRangeHeader {
    /// Pages that the range touches, so page frame numbers that follow the header.
    #[inline]
    #[must_use]
    pub const fn page_count(&self) -> u32 {
        // At most 2 * (2^32 - 1) + 4095, which a u64 holds.
        let end = (self.byte_count as u64)
            .wrapping_add(self.byte_offset as u64)
            .wrapping_add(LAST_BYTE_OF_PAGE);
        (end >> 12) as u32
    }

    /// Size in bytes of the range's description: header and page frame numbers.
    #[inline]
    #[must_use]
    pub const fn encoded_len(&self) -> usize {
        (self.page_count() as usize).wrapping_add(1) << 3
    }

    /// As the 64-bit word that starts the range.
    #[inline]
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        self.byte_count as u64 | ((self.byte_offset as u64) << 32)
    }

    /// Whether the header can start a range.
    pub(crate) fn check(&self) -> Result<(), RangeError> {
        if self.byte_count == 0 {
            return Err(RangeError::EmptyRange);
        }
        if self.byte_offset as usize >= PAGE_SIZE {
            return Err(RangeError::OffsetBeyondPage {
                offset: self.byte_offset,
            });
        }
        Ok(())
    }
}

/// A checked list of ranges.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct GpaRanges<'a> {
    data: &'a [u8],
    count: u32,
}

impl<'a> GpaRanges<'a> {
    /// Checks that `data`, a private copy, starts with `count` ranges. Data beyond them are ignored.
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn parse(data: &'a [u8], count: u32) -> Result<Self, RangeError> {
        if count == 0 {
            return Err(RangeError::NoRanges);
        }
        let mut rest = data;
        for range in 0..count {
            let truncated = RangeError::Truncated { range };
            let (header, _) = GpaRangeHeader::read_from_prefix(rest).map_err(|_| truncated)?;
            header.check()?;
            rest = rest.get(header.encoded_len()..).ok_or(truncated)?;
        }
        let used = data.len().wrapping_sub(rest.len());
        Ok(Self {
            data: data.get(..used).unwrap_or(data),
            count,
        })
    }

    /// Number of ranges.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.count
    }

    /// Never: a checked list has a range.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of data that describe the ranges.
    #[inline]
    #[must_use]
    pub const fn encoded_len(&self) -> usize {
        self.data.len()
    }

    /// The ranges in order.
    #[must_use]
    pub const fn iter(&self) -> GpaRangeIter<'a> {
        GpaRangeIter { rest: self.data }
    }

    /// Bytes in all ranges together.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.iter()
            .fold(0u64, |sum, range| sum.wrapping_add(range.byte_count.into()))
    }
}

impl<'a> IntoIterator for GpaRanges<'a> {
    type Item = GpaRange<'a>;
    type IntoIter = GpaRangeIter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for GpaRanges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// See [`GpaRanges::iter`].
#[derive(Clone, Debug)]
pub struct GpaRangeIter<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for GpaRangeIter<'a> {
    type Item = GpaRange<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let (header, after) = GpaRangeHeader::read_from_prefix(self.rest).ok()?;
        let (range, rest) = self.rest.split_at_checked(header.encoded_len())?;
        self.rest = rest;
        Some(GpaRange {
            byte_count: header.byte_count,
            byte_offset: header.byte_offset,
            pfns: after.get(..range.len().wrapping_sub(8)).unwrap_or(&[]),
        })
    }
}

/// One checked range.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct GpaRange<'a> {
    /// Bytes in the range.
    pub byte_count: u32,
    /// Offset of the first byte in the first page.
    pub byte_offset: u32,
    pfns: &'a [u8],
}

impl<'a> GpaRange<'a> {
    /// Number of pages.
    #[inline]
    #[must_use]
    pub const fn page_count(&self) -> usize {
        self.pfns.len() >> 3
    }

    /// The page frame number (guest-physical address / 4096) of page `index`.
    #[must_use]
    pub fn pfn(&self, index: usize) -> Option<u64> {
        let at = index.checked_mul(8)?;
        let (word, _) = self.pfns.get(at..)?.split_first_chunk::<8>()?;
        Some(u64::from_le_bytes(*word))
    }

    /// The page frame numbers in order.
    pub fn pfns(&self) -> impl ExactSizeIterator<Item = u64> + 'a {
        self.pfns.chunks_exact(8).map(|chunk| {
            chunk
                .first_chunk::<8>()
                .map_or(0, |word| u64::from_le_bytes(*word))
        })
    }

    /// The pieces of the range in order: guest-physical address and bytes, each within a page.
    /// A page frame number too large for an address gives `u64::MAX`, which no memory has.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, u32)> + 'a {
        let mut offset = self.byte_offset;
        let mut left = self.byte_count;
        self.pfns().map(move |pfn| {
            let len = (PAGE_SIZE as u32).saturating_sub(offset).min(left);
            let base = if pfn >> 52 == 0 { pfn << 12 } else { u64::MAX };
            let gpa = base.saturating_add(offset.into());
            left = left.saturating_sub(len);
            offset = 0;
            (gpa, len)
        })
    }
}

impl fmt::Debug for GpaRange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}:", self.byte_offset, self.byte_count)?;
        f.debug_list().entries(self.pfns()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    fn head(byte_offset: u32, byte_count: u32) -> u64 {
        GpaRangeHeader {
            byte_count,
            byte_offset,
        }
        .to_u64()
    }

    #[test]
    fn page_counts_at_the_boundaries() {
        let pages = |byte_offset, byte_count| {
            GpaRangeHeader {
                byte_count,
                byte_offset,
            }
            .page_count()
        };
        assert_eq!(pages(0, 1), 1);
        assert_eq!(pages(0, 4096), 1);
        assert_eq!(pages(0, 4097), 2);
        assert_eq!(pages(4095, 1), 1);
        assert_eq!(pages(4095, 2), 2);
        assert_eq!(pages(0, u32::MAX), 1 << 20);
        assert_eq!(pages(u32::MAX, u32::MAX), 1 << 21);
    }

    #[test]
    fn two_ranges_and_what_follows() {
        let data = words(&[head(100, 5000), 7, 9, head(0, 4096), 3, 0xdead]);
        let ranges = GpaRanges::parse(&data, 2).unwrap();
        assert_eq!(ranges.encoded_len(), 40);
        assert_eq!(ranges.total_bytes(), 9096);
        let list: Vec<_> = ranges.iter().collect();
        assert_eq!(list.len(), 2);
        assert_eq!(list[0].pfns().collect::<Vec<_>>(), [7, 9]);
        assert_eq!(list[0].pfn(1), Some(9));
        assert_eq!(list[0].pfn(2), None);
        assert_eq!(
            list[0].pieces().collect::<Vec<_>>(),
            [(7 * 4096 + 100, 3996), (9 * 4096, 1004)]
        );
        assert_eq!(list[1].pieces().collect::<Vec<_>>(), [(3 * 4096, 4096)]);
    }

    #[test]
    fn malformed_lists() {
        use RangeError::*;
        let cases: &[(&str, Vec<u8>, u32, RangeError)] = &[
            ("no ranges", words(&[head(0, 1), 1]), 0, NoRanges),
            ("no data", words(&[]), 1, Truncated { range: 0 }),
            (
                "half a header",
                words(&[head(0, 1)])[..7].into(),
                1,
                Truncated { range: 0 },
            ),
            (
                "pfn missing",
                words(&[head(0, 1)]),
                1,
                Truncated { range: 0 },
            ),
            (
                "half a pfn",
                words(&[head(0, 1), 1])[..15].into(),
                1,
                Truncated { range: 0 },
            ),
            (
                "one pfn short",
                words(&[head(1, 4096), 1]),
                1,
                Truncated { range: 0 },
            ),
            (
                "huge count",
                words(&[head(0, u32::MAX), 1]),
                1,
                Truncated { range: 0 },
            ),
            (
                "second missing",
                words(&[head(0, 1), 1]),
                2,
                Truncated { range: 1 },
            ),
            (
                "huge list",
                words(&[head(0, 1), 1]),
                u32::MAX,
                Truncated { range: 1 },
            ),
            ("empty", words(&[head(0, 0), 1]), 1, EmptyRange),
            (
                "offset",
                words(&[head(4096, 1), 1]),
                1,
                OffsetBeyondPage { offset: 4096 },
            ),
            (
                "offset and count wrap",
                words(&[head(u32::MAX, u32::MAX), 1]),
                1,
                OffsetBeyondPage { offset: u32::MAX },
            ),
        ];
        for (name, data, count, error) in cases {
            assert_eq!(GpaRanges::parse(data, *count), Err(*error), "{name}");
        }
    }

    #[test]
    fn pfn_too_large_for_an_address_points_nowhere() {
        let data = words(&[head(1, 2), 1 << 52]);
        let ranges = GpaRanges::parse(&data, 1).unwrap();
        let range = ranges.iter().next().unwrap();
        assert_eq!(range.pieces().collect::<Vec<_>>(), [(u64::MAX, 2)]);
    }
}
