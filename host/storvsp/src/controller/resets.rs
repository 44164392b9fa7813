// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Resets: what the guest does when commands do not come back.
//!
//! OpenVMM's `storvsp` does nothing, and answers at once. Linux then waits, without limit, until no command of the controller is in
//! flight any more (`storvsc_wait_to_drain`), and does nothing with any of its disks meanwhile. So here a reset ends the commands that it
//! is for: one disk that does nothing more takes no other with it.

use std::sync::Arc;

use hv_vmbus_host::device::{DeviceIo, RefTime, TICKS_PER_MS};
use vmbus_proto::storvsc::server::Pending;
use vmbus_proto::storvsc::srb::ScsiAddress;
use vmbus_proto::storvsc::{NtStatus, Operation, SrbCode};

use super::Controller;
use crate::buffer::Gate;
use crate::request::{ReplyTo, Request};
use crate::scsi::Outcome;

/// A reset waits so long for commands that the disks are at work on; then they end for the guest. Linux waits 180 s, then
/// takes all disks of the controller off line.
const RESET_TICKS: RefTime = 5_000 * TICKS_PER_MS;

/// What a reset is for.
#[derive(Clone, Copy)]
enum Target {
    /// All disks.
    All,
    /// That with this target and this LUN.
    One(u8, u8),
}

impl Target {
    fn has(self, address: ScsiAddress) -> bool {
        match self {
            Self::All => true,
            Self::One(target, lun) => (address.target, address.lun) == (target, lun),
        }
    }
}

/// A reset by the guest, answered when the commands that the pool had before it for its target are done.
pub(super) struct Resetting {
    pub(super) reply: ReplyTo,
    target: Target,
    before: u64,
    /// They are waited for no longer.
    pub(super) until: RefTime,
    pending: Pending,
}

/// What there is to know of a command that the pool has.
pub(super) struct Given {
    pub(super) reply: ReplyTo,
    pub(super) address: ScsiAddress,
    /// Shut, the command does not touch the guest's memory any more.
    pub(super) own: Arc<Gate>,
    pub(super) line: usize,
}

impl Controller {
    /// Does a reset, or begins to.
    pub(super) fn reset(
        &mut self,
        io: &mut DeviceIo<'_>,
        reply: ReplyTo,
        operation: Operation,
        address: ScsiAddress,
        pending: Pending,
    ) {
        let target = match operation {
            Operation::RESET_LUN => Target::One(address.target, address.lun),
            _ => Target::All,
        };
        let meant = |r: &Request| target.has(r.address);
        // What the guest resets for is what does not come: lost completions end as reset, those held back come
        // now. Commands that the disks are at work on end as they do, and the answer waits for them, for a while.
        let (lost, rest) = std::mem::take(&mut self.lost).into_iter().partition(meant);
        self.lost = rest;
        let (behind, rest) = std::mem::take(&mut self.behind)
            .into_iter()
            .partition(meant);
        self.behind = rest;
        for request in [lost, Vec::from(behind)].into_iter().flatten() {
            self.end_by_reset(io, &request.reply);
        }
        let (now, later) = std::mem::take(&mut self.delayed)
            .into_iter()
            .partition(|(_, held)| meant(&held.request));
        self.delayed = later;
        for held in now.into_values() {
            self.deliver(io, held);
        }
        self.release_reordered(io);
        self.resetting.push(Resetting {
            reply,
            target,
            before: self.next_job,
            until: io.now().saturating_add(RESET_TICKS),
            pending,
        });
        self.answer_resets(io);
    }

    /// Answers resets whose commands are done, or do not end.
    pub(super) fn answer_resets(&mut self, io: &mut DeviceIo<'_>) {
        let now = io.now();
        for reset in std::mem::take(&mut self.resetting) {
            let waits_for: Vec<u64> = self
                .jobs
                .range(..reset.before)
                .filter(|(_, given)| reset.target.has(given.address))
                .map(|(number, _)| *number)
                .collect();
            if !waits_for.is_empty() && now < reset.until {
                self.resetting.push(reset);
                continue;
            }
            for number in waits_for {
                self.recall(io, number);
            }
            if self.channel(&reset.reply).is_some() {
                let answer = reset.pending.answer(NtStatus::SUCCESS);
                self.answer(io, reset.reply.index, reset.reply.id, &answer);
            }
        }
    }

    /// Ends a command that the pool has. From here on it does not touch the guest's memory.
    fn recall(&mut self, io: &mut DeviceIo<'_>, number: u64) {
        let Some(given) = self.jobs.remove(&number) else {
            return;
        };
        given.own.close();
        self.recalled.insert(number, given.line);
        *self.recalled_by_line.entry(given.line).or_default() += 1;
        self.end_by_reset(io, &given.reply);
    }

    fn end_by_reset(&mut self, io: &mut DeviceIo<'_>, reply: &ReplyTo) {
        let outcome = Outcome {
            srb_code: SrbCode::BUS_RESET,
            ..Outcome::good(0)
        };
        self.send_completion(io, reply, None, outcome);
    }

    /// Whether a command is under way in a line that was ended by a reset.
    pub(super) fn is_recalled(&self, line: usize) -> bool {
        self.recalled_by_line.contains_key(&line)
    }

    /// A recalled command is done. Whether it was the last one of its line.
    pub(super) fn recalled_is_done(&mut self, line: usize) -> bool {
        let Some(count) = self.recalled_by_line.get_mut(&line) else {
            return false;
        };
        *count -= 1;
        if *count == 0 {
            self.recalled_by_line.remove(&line);
            return true;
        }
        false
    }

    /// Goes on with commands that no recalled one is before any more.
    pub(super) fn start_behind(&mut self, io: &mut DeviceIo<'_>) {
        for request in std::mem::take(&mut self.behind) {
            // Ends behind the recalled ones again if there are some still.
            self.start(io, request);
        }
    }
}
