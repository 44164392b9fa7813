// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What shall go wrong, and with which commands.

use hv_vmbus_host::device::{RefTime, TICKS_PER_MS};
use hvctl::{DiskFault, MalformedCompletion};
use vmbus_proto::storvsc::srb::ScsiStatus;
use vmbus_proto::storvsc::SrbCode;

use crate::scsi::{Outcome, Sense};

/// A delay or stall longer than a day is cut.
const MAX_MS: u64 = 86_400_000;
/// How long completions are held for reordering.
pub(crate) const REORDER_TICKS: RefTime = 20 * TICKS_PER_MS;

/// What happens to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hit {
    /// Ends like this without being carried out.
    Outcome(Outcome),
    /// Completed so much later.
    Delay(RefTime),
    /// Never completed.
    Lose,
    /// Completed wrongly.
    Malformed(MalformedCompletion),
}

struct Rule {
    lun: Option<u8>,
    opcode: Option<u8>,
    skip: u32,
    /// `None`: all.
    left: Option<u32>,
    hit: Hit,
}

/// What is armed.
#[derive(Default)]
pub(crate) struct Faults {
    rules: Vec<Rule>,
    /// Nothing is done before.
    pub(crate) stalled_until: Option<RefTime>,
    /// Completions are held until there are so many.
    pub(crate) window: usize,
}

/// What a new fault asks of the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Armed {
    /// Nothing.
    Later,
    /// What was held up may go on.
    Release,
}

impl Faults {
    /// Arms a fault. `count` 0: for all commands until cleared.
    pub(crate) fn arm(
        &mut self,
        lun: Option<u8>,
        opcode: Option<u8>,
        count: u32,
        skip: u32,
        fault: &DiskFault,
        now: RefTime,
    ) -> Armed {
        let ticks = |ms: u64| ms.min(MAX_MS) * TICKS_PER_MS;
        let hit = match *fault {
            DiskFault::Stall { ms: 0 } => {
                self.stalled_until = None;
                return Armed::Release;
            }
            DiskFault::Stall { ms } => {
                self.stalled_until = Some(now.saturating_add(ticks(ms)));
                return Armed::Later;
            }
            DiskFault::Reorder { window } => {
                self.window = window.min(1024) as usize;
                return Armed::Release;
            }
            DiskFault::Clear => {
                *self = Self::default();
                return Armed::Release;
            }
            DiskFault::Status { srb, scsi, sense } => Hit::Outcome(Outcome {
                srb_code: SrbCode(srb & 0x3f),
                scsi_status: ScsiStatus(scsi),
                sense: sense.map(|[key, asc, ascq]| Sense::new(key, asc, ascq)),
                transferred: 0,
            }),
            DiskFault::Delay { ms } => Hit::Delay(ticks(ms)),
            DiskFault::Lose => Hit::Lose,
            DiskFault::Malformed { how } => Hit::Malformed(how),
        };
        self.rules.push(Rule {
            lun,
            opcode,
            skip,
            left: (count > 0).then_some(count),
            hit,
        });
        Armed::Later
    }

    /// What happens to a command.
    pub(crate) fn hit(&mut self, lun: u8, opcode: u8) -> Option<Hit> {
        let at = self.rules.iter_mut().position(|rule| {
            let wanted =
                rule.lun.is_none_or(|l| l == lun) && rule.opcode.is_none_or(|o| o == opcode);
            if wanted && rule.skip > 0 {
                rule.skip -= 1;
                return false;
            }
            wanted
        })?;
        let rule = &mut self.rules[at];
        let hit = rule.hit;
        if let Some(left) = &mut rule.left {
            *left -= 1;
            if *left == 0 {
                self.rules.remove(at);
            }
        }
        Some(hit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_hits_what_it_names_as_often_as_it_says() {
        let mut faults = Faults::default();
        let lose = DiskFault::Lose;
        faults.arm(Some(1), Some(0x28), 2, 1, &lose, 0);
        faults.arm(None, Some(0x2a), 0, 0, &DiskFault::Delay { ms: 5 }, 0);
        assert_eq!(faults.hit(0, 0x28), None, "another disk");
        assert_eq!(faults.hit(1, 0x08), None, "another command");
        assert_eq!(faults.hit(1, 0x28), None, "let pass");
        assert_eq!(faults.hit(1, 0x28), Some(Hit::Lose));
        assert_eq!(faults.hit(1, 0x28), Some(Hit::Lose));
        assert_eq!(faults.hit(1, 0x28), None, "used up");
        for _ in 0..3 {
            assert_eq!(faults.hit(7, 0x2a), Some(Hit::Delay(5 * TICKS_PER_MS)));
        }
        assert_eq!(
            faults.arm(None, None, 1, 0, &DiskFault::Clear, 0),
            Armed::Release
        );
        assert_eq!(faults.hit(7, 0x2a), None);
    }
}
