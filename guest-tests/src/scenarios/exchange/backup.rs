// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Backup: freeze, copy of the image by the host, thaw; the copy is whole.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use hvctl::BackupOp;

use super::{
    backup, backup_how, config, debian, guest, installed, sending, status_is, Daemons, Running,
    FAIL,
};
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

/// xfs takes no less.
const MIB: u64 = 320;

pub fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    for daemons in Daemons::ALL {
        let whose = match daemons {
            Daemons::Ours => "ours",
            Daemons::Debian => "debian",
        };
        all.extend(Scenario::both(
            &format!("backup-{whose}"),
            "a database is written to while ext4, xfs and btrfs are frozen, copied and thawed; the copies are whole",
            move |ctx| consistent(ctx, daemons),
        ));
    }
    all.extend(Scenario::both(
        "backup-broken",
        "daemon killed while frozen, host that gives up, hook that hangs: thawed within the limit",
        broken,
    ));
    all
}

/// The mount point of a file system, in the Debian system.
pub(super) fn place(kind: &str) -> String {
    format!("/run/fs/{kind}")
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

/// Whether something can be written now; it blocks while frozen.
pub(super) fn writable(vm: &Vm, kind: &str, limit: Duration) -> Result<bool> {
    let probe = Running::start(vm, &format!("touch {}/probe", place(kind)))?;
    let pid = probe.pid;
    let begin = Instant::now();
    loop {
        // Zombies and ends are both no sleepers.
        let state = vm.run(&format!("cut -d' ' -f3 /proc/{pid}/stat"), SOON)?;
        let state = state.stdout.text();
        if !matches!(state.trim(), "D" | "S" | "R") {
            let out = probe.end(SOON)?;
            ensure!(out.rc == Some(0), "touch: {}", describe(&out));
            return Ok(true);
        }
        if begin.elapsed() > limit {
            return Ok(false);
        }
    }
}

fn consistent(ctx: &Ctx, daemons: Daemons) -> Result<()> {
    let rounds = ctx.count(100, 2);
    let images = SYSTEMS
        .iter()
        .map(|_| Scratch::blank(&ctx.env.scratch(), MIB << 20))
        .collect::<Result<Vec<_>>>()?;
    // Where the copies are looked at.
    let second = SYSTEMS
        .iter()
        .map(|_| Scratch::blank(&ctx.env.scratch(), MIB << 20))
        .collect::<Result<Vec<_>>>()?;
    let mut config = config(ctx).memory(1024);
    for (image, lun) in images.iter().chain(&second).zip(0..) {
        config = config.disk(Disk::file(image.path(), lun));
    }
    guest(ctx, config, |vm| {
        let name = |lun: usize| super::super::storage::block(vm, "scsi0", lun as u8);
        let mut writers = Vec::new();
        for (lun, (kind, make, _)) in SYSTEMS.iter().enumerate() {
            let disk = name(lun)?;
            let dir = place(kind);
            debian(vm, &format!("modprobe {kind}"))?;
            debian(
                vm,
                &format!(
                    "set -e; {make} /dev/{disk}; mkdir -p {dir}; mount -t {kind} /dev/{disk} {dir}; \
                     sqlite3 {dir}/db 'create table t(n integer primary key, x blob)'"
                ),
            )?;
            // Each line is a transaction; the sum of the blobs' sizes is kept in step.
            writers.push(Running::start(
                vm,
                &format!(
                    "sh -c 'while :; do sqlite3 {dir}/db \"insert into t(x) values(randomblob(2000))\" || exit 1; done'"
                ),
            )?);
        }
        installed(vm, daemons)?;
        let daemon = Running::start(vm, &daemons.command("vss"))?;
        vm.host().wait_negotiated("vss", SOON)?;
        equal("flags of the check", until_served(vm)?, check_flags(ctx))?;

        let mut frozen_for = Duration::ZERO;
        for _ in 0..rounds {
            status_is("freeze", backup(vm, BackupOp::Freeze)?.status, 0)?;
            let begin = Instant::now();
            for (kind, ..) in SYSTEMS {
                ensure!(
                    !writable(vm, kind, Duration::from_millis(300))?,
                    "{kind} can be written while it is frozen"
                );
            }
            for (from, to) in images.iter().zip(&second) {
                copy(from.path(), to.path())?;
            }
            status_is("thaw", backup(vm, BackupOp::Thaw)?.status, 0)?;
            frozen_for += begin.elapsed();
            for (kind, ..) in SYSTEMS {
                ensure!(writable(vm, kind, SOON)?, "{kind} is still frozen");
            }
            for (lun, (kind, _, check)) in SYSTEMS.iter().enumerate() {
                let disk = name(lun + SYSTEMS.len())?;
                let dir = format!("/run/copy-{kind}");
                let look = |options: &str| {
                    format!(
                        "mkdir -p {dir}; mount -t {kind} -o {options} /dev/{disk} {dir}; \
                         cp {dir}/db* /run/; umount {dir}; \
                         test \"$(sqlite3 /run/db 'pragma integrity_check')\" = ok; \
                         test \"$(sqlite3 /run/db 'select count(*) from t')\" -gt 0; rm -f /run/db*;"
                    )
                };
                let check = format!(
                    "{check} /dev/{disk} >/run/check 2>&1 || {{ cat /run/check >&2; exit 1; }};"
                );
                let steps = match *kind {
                    // The freeze has emptied the journal: nothing is replayed, nothing is missed.
                    "ext4" => check + &look("ro,noload"),
                    // XFS leaves the superblock in its log on purpose, with the counters that xfs_repair(8) looks at.
                    "xfs" => look("nouuid") + &check,
                    // Two of one UUID cannot be mounted at a time: the check has to do.
                    _ => check,
                };
                debian(
                    vm,
                    &format!("set -e; blockdev --flushbufs /dev/{disk}; {steps}"),
                )?;
            }
        }
        for writer in writers {
            writer.kill()?;
        }
        daemon.kill()?;
        vm.sh("sync; for d in ext4 xfs btrfs; do umount /debian/run/fs/$d || exit 1; done")?;
        ctx.figure(format!(
            "{rounds} rounds, frozen for {:.1} s each",
            frozen_for.as_secs_f64() / f64::from(rounds)
        ));
        Ok(())
    })
}

/// What the guest says when it is asked for a backup: no recovery of snapshots is needed (`VSS_HBU_NO_AUTO_RECOVERY`). C loses that:
/// its driver looks for the operation where the daemon has put its status (`vss_on_msg()`).
fn check_flags(ctx: &Ctx) -> u32 {
    match ctx.drivers {
        Drivers::C => 0,
        _ => 5,
    }
}

/// Makes an ext4 on the disk, and mounts it at its [`place`].
pub(super) fn mount_ext4(vm: &Vm, disk: &str) -> Result<()> {
    let dir = place("ext4");
    let make = format!(
        "set -e; mkfs.ext4 -q /dev/{disk}; mkdir -p {dir}; mount -t ext4 /dev/{disk} {dir}"
    );
    debian(vm, &make).map(drop)
}

/// Freezes, as soon as a daemon answers, and sees that the ext4 is frozen.
pub(super) fn freeze_ext4(vm: &Vm) -> Result<()> {
    until_served(vm)?;
    status_is("freeze", backup(vm, BackupOp::Freeze)?.status, 0)?;
    ensure!(
        !writable(vm, "ext4", Duration::from_millis(300))?,
        "not frozen"
    );
    Ok(())
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

fn broken(ctx: &Ctx) -> Result<()> {
    let image = Scratch::blank(&ctx.env.scratch(), 64 << 20)?;
    let config = config(ctx).disk(Disk::file(image.path(), 0));
    guest(ctx, config, |vm| {
        let disk = super::super::storage::block(vm, "scsi0", 0)?;
        mount_ext4(vm, &disk)?;
        let thawed = |what: &str, limit: Duration| -> Result<()> {
            ensure!(
                writable(vm, "ext4", limit)?,
                "{what}: still frozen after {} s",
                limit.as_secs()
            );
            Ok(())
        };
        let command = format!(
            "{} --freeze-limit 10 --hook-limit 3 --hooks /run/hooks",
            Daemons::Ours.command("vss")
        );

        // The daemon dies: its watchdog thaws at once.
        let daemon = Running::start(vm, &command)?;
        freeze_ext4(vm)?;
        daemon.kill()?;
        thawed("daemon killed", SOON)?;

        // The host is heard of no more: thawed at the limit, and a late THAW is told that the copy is worth nothing.
        let daemon = Running::start(vm, &command)?;
        freeze_ext4(vm)?;
        thawed("host gone", SOON)?;
        status_is(
            "thaw that is late",
            backup(vm, BackupOp::Thaw)?.status,
            FAIL,
        )?;

        // A hook hangs: it is killed at its limit, the backup fails, and nothing is frozen.
        debian(
            vm,
            "mkdir -p /run/hooks && printf '#!/bin/sh\\nexec sleep 600\\n' > /run/hooks/10-hang && chmod 755 /run/hooks/10-hang",
        )?;
        let mut how = sending();
        how.wait_ms = 120_000;
        let begin = Instant::now();
        let reply = backup_how(vm, BackupOp::Freeze, how)?;
        ctx.figure(format!(
            "freeze with a hanging hook refused after {:.1} s",
            begin.elapsed().as_secs_f64()
        ));
        status_is("freeze with a hanging hook", reply.status, FAIL)?;
        thawed("hanging hook", SOON)?;
        daemon.kill()?;
        vm.sh("umount /debian/run/fs/ext4")?;
        Ok(())
    })
}
