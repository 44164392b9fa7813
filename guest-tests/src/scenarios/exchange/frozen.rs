// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! File systems that are frozen, and how that is known: the host has the daemon's answer, and a program that wants to write sleeps in
//! the kernel's gate for writers of frozen file systems. No conclusion is drawn from silence.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use hvctl::BackupOp;

use super::{backup, debian, stack, state, status_is, Running, DEBIAN};
use crate::vm::{describe, Vm, SOON};

/// From the event that thaws until writers go on. Much less than the limits on freezes that the tests set, so that those are not what
/// has thawed; more than an emulated processor needs on a busy machine.
pub(super) const PROMPT: Duration = Duration::from_secs(16);

/// The mount point of a file system, in the Debian system.
pub(super) fn place(name: &str) -> String {
    format!("/run/fs/{name}")
}

/// Makes an ext4 on the disk, and mounts it at the [`place`] of this name.
pub(super) fn mount_ext4(vm: &Vm, disk: &str, name: &str) -> Result<()> {
    let dir = place(name);
    let make = format!(
        "set -e; mkfs.ext4 -q /dev/{disk}; mkdir -p {dir}; mount -t ext4 /dev/{disk} {dir}"
    );
    debian(vm, &make).map(drop)
}

/// Whether a process waits for the thaw: in state D, and in a semaphore of the file system's `s_writers` (fs/super.c), which nothing
/// but a freeze closes.
fn waits_for_thaw(vm: &Vm, pid: u32) -> Result<bool> {
    let stack = stack(vm, pid)?;
    Ok(state(vm, pid)? == "D"
        && stack.contains("percpu_rwsem_wait")
        && stack.contains("mnt_want_write"))
}

fn has_ended(vm: &Vm, pid: u32) -> Result<bool> {
    Ok(matches!(state(vm, pid)?.as_str(), "" | "Z"))
}

/// Waits until a process waits for the thaw; false when it ends instead.
pub(super) fn until_it_waits(vm: &Vm, pid: u32) -> Result<bool> {
    let begin = Instant::now();
    while !waits_for_thaw(vm, pid)? {
        if has_ended(vm, pid)? {
            return Ok(false);
        }
        ensure!(
            begin.elapsed() < SOON,
            "process {pid} neither ends nor waits for the thaw"
        );
    }
    Ok(true)
}

/// A program that changes a file system: `touch`, which needs nothing but the leave to write.
pub(super) struct Writer<'a> {
    vm: &'a Vm,
    name: String,
    touch: Running<'a>,
}

impl<'a> Writer<'a> {
    fn start(vm: &'a Vm, root: &str, name: &str) -> Result<Self> {
        Ok(Self {
            vm,
            name: name.into(),
            touch: Running::start_in(vm, root, &format!("touch {}/probe", place(name)))?,
        })
    }

    /// Starts one on a file system that must be frozen: returns when the kernel has put it to sleep there.
    fn blocked(vm: &'a Vm, root: &str, name: &str) -> Result<Self> {
        let writer = Self::start(vm, root, name)?;
        if !until_it_waits(vm, writer.touch.pid).context(writer.name.clone())? {
            let out = writer.touch.end(SOON)?;
            bail!("{name} is not frozen, touch has ended: {}", describe(&out));
        }
        Ok(writer)
    }

    /// Waits until it has written; how long that took.
    fn writes(self, what: &str, limit: Duration) -> Result<Duration> {
        let begin = Instant::now();
        while !has_ended(self.vm, self.touch.pid)? {
            ensure!(
                begin.elapsed() < limit,
                "{what}: {} is still frozen after {} s: {}",
                self.name,
                limit.as_secs(),
                self.vm.sh("dmesg | tail -n 5")?
            );
        }
        let took = begin.elapsed();
        let out = self.touch.end(SOON)?;
        ensure!(out.rc == Some(0), "touch: {}", describe(&out));
        Ok(took)
    }
}

/// A file system that must not be frozen, or not for longer than this.
pub(super) fn writable(vm: &Vm, what: &str, name: &str, limit: Duration) -> Result<Duration> {
    Writer::start(vm, DEBIAN, name)?.writes(what, limit)
}

/// Freezes, and sees that these file systems are frozen: a writer for each, which waits for the thaw.
pub(super) fn freeze<'a>(vm: &'a Vm, names: &[&str]) -> Result<Vec<Writer<'a>>> {
    freeze_in(vm, DEBIAN, names)
}

/// The same with file systems that are mounted in another system than Debian's.
pub(super) fn freeze_in<'a>(vm: &'a Vm, root: &str, names: &[&str]) -> Result<Vec<Writer<'a>>> {
    status_is("freeze", backup(vm, BackupOp::Freeze)?.status, 0)?;
    names
        .iter()
        .map(|name| Writer::blocked(vm, root, name))
        .collect()
}

/// The writers of [`freeze`] go on within this time; the longest that one took.
pub(super) fn all_write(writers: Vec<Writer<'_>>, what: &str, limit: Duration) -> Result<Duration> {
    let begin = Instant::now();
    for writer in writers {
        writer.writes(what, limit.saturating_sub(begin.elapsed()))?;
    }
    Ok(begin.elapsed())
}

/// Waits until a daemon answers; the flags of its answer.
pub(super) fn until_served(vm: &Vm) -> Result<u32> {
    let begin = Instant::now();
    loop {
        let reply = backup(vm, BackupOp::Check)?;
        if reply.status == 0 {
            return Ok(reply.flags);
        }
        ensure!(
            begin.elapsed() < SOON,
            "no daemon answers: status {:#x}",
            reply.status
        );
    }
}
