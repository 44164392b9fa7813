// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Backup: freeze, copy of the image by the host, thaw; the copy is whole.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use hvctl::BackupOp;

use super::frozen::{all_write, freeze, place, until_served, PROMPT};
use super::{backup, config, debian, each_cell, guest, installed, status_is, Daemons, Running};
use crate::disks::{Disk, Scratch};
use crate::runner::{equal, Ctx, Scenario};
use crate::vm::{describe, Vm, SOON};
use crate::Drivers;

/// File systems with how to make and to check them.
const SYSTEMS: [(&str, &str, &str); 3] = [
    ("ext4", "mkfs.ext4 -q", "e2fsck -fn"),
    ("xfs", "mkfs.xfs -q", "xfs_repair -n"),
    ("btrfs", "mkfs.btrfs -q", "btrfs check"),
];

/// Between two looks at how far the writers have come.
const LOOK: Duration = Duration::from_millis(100);

/// xfs takes no less.
const MIB: u64 = 320;

pub fn scenarios() -> Vec<Scenario> {
    each_cell(
        "backup",
        "a database is written to while ext4, xfs and btrfs are frozen, copied and thawed; the copies are whole",
        consistent,
    )
}

/// Copies an image over another one, holes included.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    let out = std::process::Command::new("cp")
        .args(["--sparse=always", "--reflink=auto", "--"])
        .args([from, to])
        .output()
        .context("cp")?;
    ensure!(
        out.status.success(),
        "cp: {}",
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(())
}

/// A database on each file system, and how far its writer has come.
struct Databases<'a> {
    vm: &'a Vm,
    writers: Vec<Running<'a>>,
}

impl<'a> Databases<'a> {
    /// Makes file systems on these disks, in the order of [`SYSTEMS`], and starts the writers.
    fn start(vm: &'a Vm, disks: &[String]) -> Result<Self> {
        let mut writers = Vec::new();
        for (disk, (kind, make, _)) in disks.iter().zip(SYSTEMS) {
            let dir = place(kind);
            debian(vm, &format!("modprobe {kind}"))?;
            debian(
                vm,
                &format!(
                    "set -e; {make} /dev/{disk}; mkdir -p {dir}; mount -t {kind} /dev/{disk} {dir}; \
                     sqlite3 {dir}/db 'create table t(n integer primary key, x blob)'; : > /run/wrote-{kind}"
                ),
            )?;
            // Each row is a transaction. What was committed is written down, a byte a row, in memory: that is never frozen.
            writers.push(Running::start(
                vm,
                &format!(
                    "sh -c 'while sqlite3 {dir}/db \"insert into t(x) values(randomblob(2000))\"; do \
                     echo >> /run/wrote-{kind}; done; exit 1'"
                ),
            )?);
        }
        Ok(Self { vm, writers })
    }

    /// Rows that the writers know to be committed.
    fn committed(&self) -> Result<[u64; SYSTEMS.len()]> {
        let files = SYSTEMS.map(|(kind, ..)| format!("/run/wrote-{kind}"));
        let sizes = self.vm.sh(&format!("stat -c %s {}", files.join(" ")))?;
        let rows: Vec<u64> = sizes
            .lines()
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| sizes.clone())?;
        rows.try_into().ok().context(sizes)
    }

    /// Waits until each database has grown by so many rows.
    fn grow(&self, from: [u64; SYSTEMS.len()], by: u64) -> Result<()> {
        let begin = Instant::now();
        loop {
            let now = self.committed()?;
            if now.iter().zip(from).all(|(now, from)| *now >= from + by) {
                return Ok(());
            }
            for (writer, (kind, ..)) in self.writers.iter().zip(SYSTEMS) {
                ensure!(
                    matches!(writer.state()?.as_str(), "R" | "S" | "D"),
                    "the writer on {kind} has ended"
                );
            }
            ensure!(
                begin.elapsed() < SOON,
                "the databases do not grow: from {from:?} to {now:?}"
            );
            // Looking takes the guest's processors from the writers.
            std::thread::sleep(LOOK);
        }
    }

    /// Stops the writers, or has them go on: emulated processors are slow, and the copies are to be looked at.
    fn pause(&self, paused: bool) -> Result<()> {
        let signal = if paused { "STOP" } else { "CONT" };
        for writer in &self.writers {
            // With all that it has started.
            self.vm.sh(&format!("kill -{signal} -{}", writer.pid))?;
        }
        Ok(())
    }

    fn end(self) -> Result<()> {
        for writer in self.writers {
            let out = writer.kill()?;
            ensure!(out.killed, "a writer had ended: {}", describe(&out));
        }
        Ok(())
    }
}

fn consistent(ctx: &Ctx, daemons: Daemons) -> Result<()> {
    let rounds = ctx.count(100, 2);
    let blank = || Scratch::blank(&ctx.env.scratch(), MIB << 20);
    let images = SYSTEMS
        .iter()
        .map(|_| blank())
        .collect::<Result<Vec<_>>>()?;
    // Where the copies are looked at.
    let second = SYSTEMS
        .iter()
        .map(|_| blank())
        .collect::<Result<Vec<_>>>()?;
    let mut config = config(ctx).memory(1024);
    for (image, lun) in images.iter().chain(&second).zip(0..) {
        config = config.disk(Disk::file(image.path(), lun));
    }
    guest(ctx, config, |vm| {
        let mut disks = Vec::new();
        for lun in 0..2 * SYSTEMS.len() {
            disks.push(super::super::storage::block(vm, "scsi0", lun as u8)?);
        }
        let (disks, copies) = disks.split_at(SYSTEMS.len());
        installed(vm, daemons)?;
        let databases = Databases::start(vm, disks)?;
        let daemon = Running::start(vm, &daemons.command("vss"))?;
        vm.host().wait_negotiated("vss", SOON)?;
        equal("flags of the check", until_served(vm)?, check_flags(ctx))?;

        let names = SYSTEMS.map(|(kind, ..)| kind);
        let (mut frozen_for, mut waited) = (Duration::ZERO, Duration::ZERO);
        let mut last = databases.committed()?;
        let mut least = u64::MAX;
        for round in 0..rounds {
            databases.grow(last, 5)?;
            let writers = freeze(vm, &names)?;
            let begin = Instant::now();
            // A transaction that was committed right before may not have been written down yet.
            let rows = databases.committed()?;
            for (from, to) in images.iter().zip(&second) {
                copy(from.path(), to.path())?;
            }
            for ((now, then), kind) in databases.committed()?.iter().zip(rows).zip(names) {
                ensure!(*now <= then + 1, "{kind}: transactions while frozen");
            }
            status_is("thaw", backup(vm, BackupOp::Thaw)?.status, 0)?;
            frozen_for += begin.elapsed();
            waited = waited.max(all_write(writers, "thaw", PROMPT)?);
            databases.pause(true)?;
            for (((kind, _, check), disk), rows) in SYSTEMS.iter().zip(copies).zip(rows) {
                let found = look(vm, kind, check, disk)
                    .with_context(|| format!("round {round}: the copy of {kind}"))?;
                ensure!(
                    found == rows || found == rows + 1,
                    "round {round}, {kind}: {found} rows in the copy, {rows} had been committed"
                );
            }
            databases.pause(false)?;
            for (now, before) in rows.iter().zip(last) {
                least = least.min(now - before);
            }
            last = rows;
        }
        databases.grow(last, 1)?;
        databases.end()?;
        daemon.kill()?;
        vm.sh("sync; for d in ext4 xfs btrfs; do umount /debian/run/fs/$d || exit 1; done")?;
        ctx.figure(format!(
            "{rounds} rounds, frozen for {:.1} s each; {} rows in {} databases, at least {least} in each between two backups; \
             writers went on within {:.1} s",
            frozen_for.as_secs_f64() / f64::from(rounds),
            last.iter().sum::<u64>(),
            last.len(),
            waited.as_secs_f64(),
        ));
        Ok(())
    })
}

/// Checks a copy: its file system, and the database in it. The rows of that.
fn look(vm: &Vm, kind: &str, check: &str, disk: &str) -> Result<u64> {
    let dir = format!("/run/copy-{kind}");
    let take = |options: &str| {
        format!(
            "mkdir -p {dir}; mount -t {kind} -o {options} /dev/{disk} {dir}; cp {dir}/db* /run/; umount {dir};"
        )
    };
    let check =
        format!("{check} /dev/{disk} >/run/check 2>&1 || {{ cat /run/check >&2; exit 1; }};");
    let steps = match kind {
        // The freeze has emptied the journal: nothing is replayed, nothing is missed.
        "ext4" => check + &take("ro,noload"),
        // XFS leaves the superblock in its log on purpose, with the counters that xfs_repair(8) looks at.
        "xfs" => take("nouuid") + &check,
        // Nor is there anything in the log tree of btrfs. Its UUID is in use, so that Linux takes another one for the copy while it
        // is mounted (temp_fsid), and has to forget the disk before that is written anew.
        _ => {
            check
                + &take("ro,rescue=nologreplay")
                + &format!("btrfs device scan --forget /dev/{disk} >/dev/null;")
        }
    };
    let rows = debian(
        vm,
        &format!(
            "set -e; rm -f /run/db*; blockdev --flushbufs /dev/{disk}; {steps} \
             test \"$(sqlite3 /run/db 'pragma integrity_check')\" = ok; \
             sqlite3 /run/db 'select count(*) from t where n <= (select count(*) from t)'; rm -f /run/db*"
        ),
    )?;
    rows.trim().parse().context(rows)
}

/// What the guest says when it is asked for a backup: no recovery of snapshots is needed (`VSS_HBU_NO_AUTO_RECOVERY`). C loses that:
/// its driver looks for the operation where the daemon has put its status (`vss_on_msg()`).
fn check_flags(ctx: &Ctx) -> u32 {
    match ctx.drivers {
        Drivers::C => 0,
        _ => 5,
    }
}
