// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! GPADLs (guest physical address descriptor lists): memory of the guest that the host may use.
//!
//! The guest describes the memory as a list of ranges (see [`crate::range`]), cut into a GPADL_HEADER
//! and as many GPADL_BODY messages as it takes: [`GpadlMessages`]. The host puts the list together
//! again: [`GpadlAssembler`]. The life of a GPADL on the guest's side is a [`Gpadl`] of changing
//! type. Source: Linux `channel.c`, `create_gpadl_header`; OpenVMM `vmbus_server`.

use core::fmt;
use core::mem::size_of;

use crate::msg::{
    ChannelMessage, GpadlBody, GpadlCreated, GpadlHeader, GpadlId, GpadlTeardown, GpadlTorndown,
    MessageBuffer, Relid, Status, MAX_MESSAGE_SIZE,
};
use crate::range::{GpaRangeHeader, RangeError};

/// 64-bit words of range data in a GPADL_HEADER: for one range its start and 26 PFNs.
pub const HEADER_WORDS: usize = MAX_MESSAGE_SIZE.wrapping_sub(size_of::<GpadlHeader>()) / 8;

/// 64-bit words of range data in a GPADL_BODY.
pub const BODY_WORDS: usize = MAX_MESSAGE_SIZE.wrapping_sub(size_of::<GpadlBody>()) / 8;

static_assertions::const_assert_eq!(HEADER_WORDS, 27);
static_assertions::const_assert_eq!(BODY_WORDS, 28);

/// Most words of range data: their size in bytes is a 16-bit field.
pub const MAX_WORDS: usize = u16::MAX as usize / 8;

/// Most pages in a GPADL of one range: almost 32 MiB.
pub const MAX_PAGES: usize = MAX_WORDS.wrapping_sub(1);

/// The handle Linux starts with; any but 0 would do (`connection.c`, `next_gpadl_handle`).
pub const FIRST_GPADL_ID: u32 = 0xe1e10;

/// Why memory cannot be described. One variant per cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// A range that the format does not allow.
    Range(RangeError),
    /// More words than [`MAX_WORDS`].
    TooLarge {
        /// Words there are.
        words: usize,
    },
    /// As many page frame numbers as the range has pages must be given.
    WrongPageCount {
        /// Pages of the range.
        expected: usize,
        /// Page frame numbers given.
        given: usize,
    },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(e) => write!(f, "GPADL: {e}"),
            Self::TooLarge { words } => {
                write!(f, "GPADL of {words} words, {MAX_WORDS} are possible")
            }
            Self::WrongPageCount { expected, given } => {
                write!(
                    f,
                    "GPADL of {expected} pages with {given} page frame numbers"
                )
            }
        }
    }
}

impl core::error::Error for BuildError {}

/// The messages that create a GPADL, in the order in which to post them: one GPADL_HEADER and what
/// GPADL_BODYs it takes. The host answers the last.
#[derive(Clone, Debug)]
pub struct GpadlMessages<I> {
    relid: Relid,
    gpadl: GpadlId,
    range_count: u16,
    words: Words<I>,
    /// Words not yet sent.
    left: usize,
    /// Number of the next message.
    number: u32,
}

/// The range data: an optional first word, then the iterator's.
#[derive(Clone, Debug)]
struct Words<I> {
    first: Option<u64>,
    rest: I,
}

impl<I: Iterator<Item = u64>> Words<I> {
    fn next(&mut self) -> Option<u64> {
        self.first.take().or_else(|| self.rest.next())
    }
}

impl<I: ExactSizeIterator<Item = u64>> GpadlMessages<I> {
    /// A GPADL of one range: `byte_count` bytes from offset `byte_offset` of the first page, with the
    /// page frame number (guest-physical address / 4096) of each page.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn new(
        relid: Relid,
        gpadl: GpadlId,
        byte_offset: u32,
        byte_count: u32,
        pfns: I,
    ) -> Result<Self, BuildError> {
        let range = GpaRangeHeader {
            byte_count,
            byte_offset,
        };
        range.check().map_err(BuildError::Range)?;
        let expected = range.page_count() as usize;
        let given = pfns.len();
        if expected != given {
            return Err(BuildError::WrongPageCount { expected, given });
        }
        let words = given.saturating_add(1);
        Self::build(relid, gpadl, 1, words, Some(range.to_u64()), pfns)
    }

    /// A GPADL of several ranges, already encoded: for each its [`GpaRangeHeader::to_u64`], then its
    /// page frame numbers.
    ///
    /// # Errors
    /// [`BuildError::TooLarge`], and [`BuildError::Range`] when there is no range. Whether the words are
    /// a list of `range_count` ranges is not checked here.
    pub fn from_words(
        relid: Relid,
        gpadl: GpadlId,
        range_count: u16,
        words: I,
    ) -> Result<Self, BuildError> {
        if range_count == 0 {
            return Err(BuildError::Range(RangeError::NoRanges));
        }
        let count = words.len();
        Self::build(relid, gpadl, range_count, count, None, words)
    }

    fn build(
        relid: Relid,
        gpadl: GpadlId,
        range_count: u16,
        words: usize,
        first: Option<u64>,
        rest: I,
    ) -> Result<Self, BuildError> {
        if words > MAX_WORDS {
            return Err(BuildError::TooLarge { words });
        }
        Ok(Self {
            relid,
            gpadl,
            range_count,
            words: Words { first, rest },
            left: words,
            number: 0,
        })
    }

    /// Messages still to come.
    #[must_use]
    pub fn remaining(&self) -> usize {
        if self.number == 0 {
            self.left
                .saturating_sub(HEADER_WORDS)
                .div_ceil(BODY_WORDS)
                .saturating_add(1)
        } else {
            self.left.div_ceil(BODY_WORDS)
        }
    }
}

impl<I: ExactSizeIterator<Item = u64>> Iterator for GpadlMessages<I> {
    type Item = MessageBuffer;

    fn next(&mut self) -> Option<MessageBuffer> {
        let (mut message, room) = if self.number == 0 {
            let header = GpadlHeader {
                relid: self.relid,
                gpadl: self.gpadl,
                // At most `MAX_WORDS` * 8.
                range_buflen: (self.left << 3) as u16,
                range_count: self.range_count,
                ..GpadlHeader::blank()
            };
            (MessageBuffer::from_message(&header), HEADER_WORDS)
        } else if self.left != 0 {
            // The number stays 0, as with Linux: no host looks at it.
            let body = GpadlBody {
                gpadl: self.gpadl,
                ..GpadlBody::blank()
            };
            (MessageBuffer::from_message(&body), BODY_WORDS)
        } else {
            return None;
        };
        self.number = self.number.saturating_add(1);
        for _ in 0..room.min(self.left) {
            // An iterator that ends early broke its contract: the host refuses the page.
            let word = self.words.next().unwrap_or(u64::MAX);
            if message.append(&word.to_le_bytes()).is_err() {
                break;
            }
            self.left = self.left.saturating_sub(1);
        }
        Some(message)
    }
}

/// What a host allows a guest to describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpadlLimits {
    /// Words of range data in a GPADL; more than [`MAX_WORDS`] cannot be.
    pub max_words: usize,
    /// Ranges in a GPADL.
    pub max_ranges: u16,
}

/// Why the host does not take a GPADL. One variant per cause; all break the protocol or the
/// host's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssembleError {
    /// The header says there are no ranges.
    NoRanges,
    /// The header says there are more ranges than allowed.
    TooManyRanges {
        /// Ranges claimed.
        count: u16,
    },
    /// The header's size of the range data is no multiple of 8, or too small for one page.
    BadLength {
        /// Bytes claimed.
        len: u16,
    },
    /// The header announces more range data than allowed.
    TooLarge {
        /// Words claimed.
        words: usize,
    },
    /// A message without range data, while some is missing.
    NoData,
    /// A body after all range data have come.
    Complete,
    /// The range data are no list of ranges.
    Range(RangeError),
}

impl fmt::Display for AssembleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRanges => f.write_str("GPADL without ranges"),
            Self::TooManyRanges { count } => write!(f, "GPADL of {count} ranges"),
            Self::BadLength { len } => write!(f, "GPADL with {len} bytes of range data"),
            Self::TooLarge { words } => write!(f, "GPADL of {words} words"),
            Self::NoData => f.write_str("GPADL message without range data"),
            Self::Complete => f.write_str("GPADL body after the last"),
            Self::Range(e) => write!(f, "GPADL: {e}"),
        }
    }
}

impl core::error::Error for AssembleError {}

/// Whether a GPADL is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A GPADL_BODY must follow.
    NeedMore,
    /// All range data are there: check them with [`crate::range::GpaRanges::parse`].
    Complete,
}

/// Puts a GPADL together from its messages, on the host. The caller keeps the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpadlAssembler {
    /// The channel it belongs to.
    pub relid: Relid,
    /// Its handle.
    pub gpadl: GpadlId,
    /// Ranges it has.
    pub range_count: u16,
    expected: usize,
    received: usize,
}

impl GpadlAssembler {
    /// Starts with the GPADL_HEADER. Its range data go to [`push`](Self::push).
    ///
    /// # Errors
    /// See [`AssembleError`].
    pub fn begin(header: &GpadlHeader, limits: GpadlLimits) -> Result<Self, AssembleError> {
        let len = header.range_buflen;
        let count = header.range_count;
        if count == 0 {
            return Err(AssembleError::NoRanges);
        }
        if count > limits.max_ranges {
            return Err(AssembleError::TooManyRanges { count });
        }
        // Each range takes a start and at least one page.
        if len & 7 != 0 || u32::from(len) < u32::from(count) << 4 {
            return Err(AssembleError::BadLength { len });
        }
        let words = usize::from(len >> 3);
        if words > limits.max_words {
            return Err(AssembleError::TooLarge { words });
        }
        Ok(Self {
            relid: header.relid,
            gpadl: header.gpadl,
            range_count: count,
            expected: words,
            received: 0,
        })
    }

    /// Words of range data in all: what the caller's storage must hold.
    #[must_use]
    pub const fn expected_words(&self) -> usize {
        self.expected
    }

    /// Takes the range data of a message and gives its words to `sink` in order. Data beyond what the
    /// header announced are ignored, as some guests always send messages of full length
    /// (OpenVMM, `Gpadl::append`).
    ///
    /// # Errors
    /// [`AssembleError::NoData`], [`AssembleError::Complete`].
    pub fn push(
        &mut self,
        data: &[u8],
        mut sink: impl FnMut(u64),
    ) -> Result<Progress, AssembleError> {
        let missing = self.expected.saturating_sub(self.received);
        if missing == 0 {
            return Err(AssembleError::Complete);
        }
        let mut taken = 0usize;
        for chunk in data.chunks_exact(8).take(missing) {
            if let Some(word) = chunk.first_chunk::<8>() {
                sink(u64::from_le_bytes(*word));
                taken = taken.saturating_add(1);
            }
        }
        if taken == 0 {
            return Err(AssembleError::NoData);
        }
        self.received = self.received.saturating_add(taken);
        Ok(if taken == missing {
            Progress::Complete
        } else {
            Progress::NeedMore
        })
    }
}

/// The messages have been posted, or are being; the host has not answered. It may use the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Building;

/// The host may use the memory, and we may name the GPADL to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live;

/// The host was asked to let go; until it answers it may use the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TearingDown;

/// A GPADL on the guest's side; its type says what may be done with it. While one exists the host
/// may use the memory, so who drops it must leak the memory: only the methods that consume
/// it without returning another say that the memory is ours alone.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the host may use the memory"]
pub struct Gpadl<S> {
    relid: Relid,
    id: GpadlId,
    state: S,
}

impl<S> Gpadl<S> {
    /// Its handle.
    #[must_use]
    pub const fn id(&self) -> GpadlId {
        self.id
    }

    /// The channel it belongs to.
    #[must_use]
    pub const fn relid(&self) -> Relid {
        self.relid
    }

    /// The channel was rescinded, or UNLOAD answered: the host has let go of all its memory.
    pub fn abandon(self) {}
}

/// The host refused a GPADL, or the answer is not for it.
#[derive(Debug, PartialEq, Eq)]
pub enum CreateError {
    /// Refused: the host does not use the memory.
    Refused(Status),
    /// The answer is to another GPADL: nothing changed.
    NotMine(Gpadl<Building>),
}

impl Gpadl<Building> {
    /// A GPADL whose messages are about to be posted.
    pub const fn new(relid: Relid, id: GpadlId) -> Self {
        Self {
            relid,
            id,
            state: Building,
        }
    }

    /// The host's answer.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn created(self, answer: &GpadlCreated) -> Result<Gpadl<Live>, CreateError> {
        if answer.gpadl != self.id || answer.relid != self.relid {
            return Err(CreateError::NotMine(self));
        }
        if !answer.status.is_success() {
            return Err(CreateError::Refused(answer.status));
        }
        Ok(Gpadl {
            relid: self.relid,
            id: self.id,
            state: Live,
        })
    }
}

impl Gpadl<Live> {
    /// Gives the GPADL back with the message returned.
    pub fn tear_down(self) -> (Gpadl<TearingDown>, GpadlTeardown) {
        let message = GpadlTeardown {
            relid: self.relid,
            gpadl: self.id,
            ..GpadlTeardown::blank()
        };
        let next = Gpadl {
            relid: self.relid,
            id: self.id,
            state: TearingDown,
        };
        (next, message)
    }
}

impl Gpadl<TearingDown> {
    /// The host's answer: with `Ok` the memory is ours alone.
    ///
    /// # Errors
    /// The GPADL itself when the answer is to another.
    pub fn torn_down(self, answer: &GpadlTorndown) -> Result<(), Self> {
        if answer.gpadl == self.id {
            Ok(())
        } else {
            Err(self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msg::GuestMessage;
    use crate::range::GpaRanges;
    use std::vec::Vec;

    const LIMITS: GpadlLimits = GpadlLimits {
        max_words: MAX_WORDS,
        max_ranges: 64,
    };

    fn assemble(messages: impl Iterator<Item = MessageBuffer>) -> (GpadlAssembler, Vec<u64>) {
        let mut assembler: Option<GpadlAssembler> = None;
        let mut words = Vec::new();
        let mut complete = false;
        for message in messages {
            assert!(!complete);
            let data = match GuestMessage::parse(message.as_bytes()).unwrap() {
                GuestMessage::GpadlHeader { base, data } => {
                    assert!(assembler.is_none());
                    assembler = Some(GpadlAssembler::begin(&base, LIMITS).unwrap());
                    data
                }
                GuestMessage::GpadlBody { base, data } => {
                    assert_eq!(base.gpadl, assembler.unwrap().gpadl);
                    data
                }
                other => panic!("{other:?}"),
            };
            let progress = assembler
                .as_mut()
                .unwrap()
                .push(data, |w| words.push(w))
                .unwrap();
            complete = progress == Progress::Complete;
        }
        assert!(complete);
        (assembler.unwrap(), words)
    }

    fn bytes(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    /// Pages, messages, at each place where another message begins.
    #[test]
    fn message_counts_at_the_boundaries() {
        for (pages, messages) in [(1, 1), (26, 1), (27, 2), (54, 2), (55, 3), (MAX_PAGES, 293)] {
            let build = || {
                GpadlMessages::new(
                    Relid(3),
                    GpadlId(9),
                    0,
                    pages as u32 * 4096,
                    (0..pages).map(|i| 1000 + i as u64),
                )
                .unwrap()
            };
            assert_eq!(build().remaining(), messages, "{pages} pages");
            assert_eq!(build().count(), messages, "{pages} pages");
            let (assembler, words) = assemble(build());
            assert_eq!(assembler.expected_words(), pages + 1);
            let data = bytes(&words);
            let ranges = GpaRanges::parse(&data, assembler.range_count.into()).unwrap();
            let range = ranges.iter().next().unwrap();
            assert_eq!(range.page_count(), pages);
            assert!(range.pfns().eq((0..pages).map(|i| 1000 + i as u64)));
        }
    }

    #[test]
    fn what_cannot_be_described() {
        let try_new = |offset: u32, count: u32, pfns: usize| {
            GpadlMessages::new(
                Relid(1),
                GpadlId(1),
                offset,
                count,
                (0..pfns).map(|i| i as u64),
            )
            .err()
        };
        assert_eq!(
            try_new(0, 0, 0),
            Some(BuildError::Range(RangeError::EmptyRange))
        );
        assert_eq!(
            try_new(4096, 1, 2),
            Some(BuildError::Range(RangeError::OffsetBeyondPage {
                offset: 4096
            }))
        );
        assert_eq!(
            try_new(1, 4096, 1),
            Some(BuildError::WrongPageCount {
                expected: 2,
                given: 1
            })
        );
        assert_eq!(
            try_new(0, 4096 * (MAX_PAGES as u32 + 1), MAX_PAGES + 1),
            Some(BuildError::TooLarge {
                words: MAX_WORDS + 1
            })
        );
        assert_eq!(
            GpadlMessages::from_words(Relid(1), GpadlId(1), 0, [].into_iter()).err(),
            Some(BuildError::Range(RangeError::NoRanges))
        );
    }

    #[test]
    fn attack_headers() {
        let header = |len, count| GpadlHeader {
            range_buflen: len,
            range_count: count,
            ..GpadlHeader::blank()
        };
        let limits = GpadlLimits {
            max_words: 100,
            max_ranges: 2,
        };
        for (len, count, error) in [
            (16, 0, AssembleError::NoRanges),
            (800, 3, AssembleError::TooManyRanges { count: 3 }),
            (
                u16::MAX,
                u16::MAX,
                AssembleError::TooManyRanges { count: u16::MAX },
            ),
            (0, 1, AssembleError::BadLength { len: 0 }),
            (8, 1, AssembleError::BadLength { len: 8 }),
            (17, 1, AssembleError::BadLength { len: 17 }),
            (24, 2, AssembleError::BadLength { len: 24 }),
            (808, 1, AssembleError::TooLarge { words: 101 }),
            (65528, 1, AssembleError::TooLarge { words: 8191 }),
        ] {
            assert_eq!(
                GpadlAssembler::begin(&header(len, count), limits),
                Err(error)
            );
        }
        assert!(GpadlAssembler::begin(&header(800, 2), limits).is_ok());
    }

    #[test]
    fn attack_bodies() {
        let header = GpadlHeader {
            range_buflen: 32,
            range_count: 1,
            ..GpadlHeader::blank()
        };
        let mut assembler = GpadlAssembler::begin(&header, LIMITS).unwrap();
        let mut words = Vec::new();
        let mut push = |data: &[u8]| assembler.push(data, |w| words.push(w));
        assert_eq!(push(&[]), Err(AssembleError::NoData));
        assert_eq!(push(&[1; 7]), Err(AssembleError::NoData));
        assert_eq!(push(&[1; 15]), Ok(Progress::NeedMore));
        assert_eq!(
            push(&[2; 224]),
            Ok(Progress::Complete),
            "full length from guests that pad"
        );
        assert_eq!(push(&[3; 8]), Err(AssembleError::Complete));
        assert_eq!(words.len(), 4, "no word more than announced");
    }

    #[test]
    fn life_of_a_gpadl() {
        let answer = |relid, gpadl, status| GpadlCreated {
            relid: Relid(relid),
            gpadl: GpadlId(gpadl),
            status: Status(status),
            ..GpadlCreated::blank()
        };
        let gpadl = Gpadl::new(Relid(1), GpadlId(7));
        let Err(CreateError::NotMine(gpadl)) = gpadl.created(&answer(1, 8, 0)) else {
            panic!()
        };
        let Err(CreateError::NotMine(gpadl)) = gpadl.created(&answer(2, 7, 0)) else {
            panic!()
        };
        let gpadl = gpadl.created(&answer(1, 7, 0)).unwrap();
        let (gpadl, message) = gpadl.tear_down();
        assert_eq!((message.relid, message.gpadl), (Relid(1), GpadlId(7)));
        let torndown = |id| GpadlTorndown {
            gpadl: GpadlId(id),
            ..GpadlTorndown::blank()
        };
        let gpadl = gpadl.torn_down(&torndown(8)).unwrap_err();
        gpadl.torn_down(&torndown(7)).unwrap();

        let refused = Gpadl::new(Relid(1), GpadlId(7)).created(&answer(1, 7, 0x8000_ffff));
        assert_eq!(refused, Err(CreateError::Refused(Status::UNSUCCESSFUL)));
    }

    proptest::proptest! {
        #[test]
        fn round_trip(
            offset in 0u32..4096,
            count in 1u32..4_000_000,
            base in 0u64..1 << 40,
        ) {
            let pages = GpaRangeHeader { byte_count: count, byte_offset: offset }.page_count();
            let messages = GpadlMessages::new(
                Relid(5), GpadlId(6), offset, count, (0..pages).map(|i| base ^ u64::from(i)),
            ).unwrap();
            let (assembler, words) = assemble(messages);
            proptest::prop_assert_eq!((assembler.relid, assembler.gpadl), (Relid(5), GpadlId(6)));
            let data = bytes(&words);
            let ranges = GpaRanges::parse(&data, 1).unwrap();
            proptest::prop_assert_eq!(ranges.encoded_len(), data.len());
            let range = ranges.iter().next().unwrap();
            proptest::prop_assert_eq!((range.byte_offset, range.byte_count), (offset, count));
            proptest::prop_assert!(range.pfns().eq((0..pages).map(|i| base ^ u64::from(i))));
        }
    }
}
