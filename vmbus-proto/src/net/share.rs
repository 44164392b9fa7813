// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Messages about received packets that are taken in several polls.

use core::ops::Range;

use super::NvspStatus;

/// How far a message about received packets was taken that has more of them than a poll may take. It stays in the ring meanwhile, so the
/// next poll meets it first.
#[derive(Debug, Default)]
pub struct Share {
    rest: Option<Rest>,
}

#[derive(Debug)]
struct Rest {
    /// The message's transaction id: the host may put another one in its place.
    id: u64,
    /// Ranges that were taken.
    taken: usize,
    /// How these went.
    status: NvspStatus,
}

impl Share {
    /// No message is under way.
    #[must_use]
    pub const fn new() -> Self {
        Self { rest: None }
    }

    /// Whether a message with `count` ranges is taken whole by a poll that may take `room` more packets. If not:
    /// [`begin`](Self::begin).
    #[inline(always)]
    #[must_use]
    pub const fn is_whole(&self, count: usize, room: u32) -> bool {
        count <= room as usize && self.rest.is_none()
    }

    /// The part of the message with transaction id `id` and `count` ranges that a poll takes that may take `room` more packets: what
    /// follows that which was taken before, `room` ranges at most. Empty when the host has made the message shorter since. After it,
    /// [`Part::end`].
    #[must_use]
    pub fn begin(&mut self, id: u64, count: usize, room: u32) -> Part {
        let before = self.rest.take().filter(|rest| rest.id == id);
        let (taken, status) = before.map_or((0, NvspStatus::SUCCESS), |r| (r.taken, r.status));
        let start = taken.min(count);
        let end = start.saturating_add(room as usize).min(count);
        Part {
            id,
            count,
            ranges: start..end,
            status,
        }
    }
}

/// A part of a message.
#[derive(Debug)]
pub struct Part {
    id: u64,
    count: usize,
    ranges: Range<usize>,
    status: NvspStatus,
}

impl Part {
    /// The ranges that it has.
    #[must_use]
    pub fn ranges(&self) -> Range<usize> {
        self.ranges.clone()
    }

    /// They were taken, and went as `status` says. `None`: there are more, for later polls. Else how all went: the first that did not
    /// succeed decides.
    pub fn end(self, share: &mut Share, status: NvspStatus) -> Option<NvspStatus> {
        let status = match self.status {
            NvspStatus::SUCCESS => status,
            before => before,
        };
        if self.ranges.end >= self.count {
            return Some(status);
        }
        share.rest = Some(Rest {
            id: self.id,
            taken: self.ranges.end,
            status,
        });
        None
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    const OK: NvspStatus = NvspStatus::SUCCESS;

    /// Takes messages of `counts` ranges as a poll does, until `budget` packets were taken or the ring is empty. How many were
    /// taken, and the ranges of the first message.
    fn poll(share: &mut Share, ring: &mut Vec<(u64, usize)>, budget: u32) -> u32 {
        let mut done = 0;
        while done < budget {
            let Some((id, count)) = ring.first().copied() else {
                break;
            };
            let room = budget - done;
            if share.is_whole(count, room) {
                done += count as u32;
            } else {
                let part = share.begin(id, count, room);
                done += part.ranges().len() as u32;
                if part.end(share, OK).is_none() {
                    break;
                }
            }
            ring.remove(0);
        }
        done
    }

    #[test]
    fn no_poll_takes_more_than_its_budget() {
        let mut share = Share::new();
        let mut ring: Vec<_> = [60, 64, 3, 300, 1, 64, 64]
            .iter()
            .enumerate()
            .map(|(id, count)| (id as u64, *count))
            .collect();
        let mut left: usize = ring.iter().map(|(_, count)| count).sum();
        while left != 0 {
            let done = poll(&mut share, &mut ring, 64);
            assert_eq!(done as usize, left.min(64), "with {left} left");
            left -= done as usize;
        }
        assert!(ring.is_empty());
    }

    #[test]
    fn each_range_is_taken_once() {
        let mut share = Share::new();
        // A rest that a poll could take whole is taken from where it was left.
        for ranges in [0..4, 4..7, 7..10] {
            let room = ranges.len() as u32;
            assert!(!share.is_whole(10, room));
            let part = share.begin(5, 10, room);
            assert_eq!(part.ranges(), ranges);
            let last = ranges.end == 10;
            assert_eq!(part.end(&mut share, OK), last.then_some(OK));
            assert_eq!(share.is_whole(10, 64), last);
        }
    }

    #[test]
    fn the_first_failure_decides() {
        let mut share = Share::new();
        for (status, all) in [
            (OK, None),
            (NvspStatus::FAIL, None),
            (OK, Some(NvspStatus::FAIL)),
        ] {
            let part = share.begin(5, 3, 1);
            assert_eq!(part.end(&mut share, status), all);
        }
        let part = share.begin(5, 1, 1);
        assert_eq!(part.end(&mut share, OK), Some(OK), "a new one");
    }

    #[test]
    fn attack_the_message_changes_in_the_ring() {
        let mut share = Share::new();
        let part = share.begin(5, 10, 4);
        assert_eq!(part.end(&mut share, OK), None);
        // Shorter than what was taken: nothing is left of it.
        let part = share.begin(5, 2, 64);
        assert_eq!(part.ranges(), 2..2);
        assert_eq!(part.end(&mut share, OK), Some(OK));
        let part = share.begin(5, 10, 4);
        assert_eq!(part.end(&mut share, OK), None);
        // Another one in its place begins at its beginning.
        let part = share.begin(6, 10, 64);
        assert_eq!(part.ranges(), 0..10);
        assert_eq!(part.end(&mut share, OK), Some(OK));
        assert!(share.is_whole(10, 64));
    }
}
