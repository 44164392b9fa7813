// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Backups that end otherwise than by a THAW: whatever happens, file systems are thawed within a limit that is known.

use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use hvctl::{BackupOp, BackupReply, Client, DiskFault, Sending};

use super::frozen::{all_write, freeze, mount_ext4, place, until_served, writable, PROMPT};
use super::{
    backup, backup_by, backup_how, config, debian, each_cell, guest, installed, sending, status_is,
    Daemons, Running, FAIL,
};
use crate::disks::{Disk, Scratch};
use crate::runner::{equal, Ctx, Scenario};
use crate::scenarios::lifecycle::offer_again;
use crate::scenarios::storage::fault_on;
use crate::vm::{Vm, SOON};

pub fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::from(Scenario::both(
        "backup-broken",
        "daemon killed while frozen, host that is silent, hook that hangs: thawed within the limit",
        broken,
    ));
    all.extend(each_cell(
        "backup-aborted",
        "the host takes the device away, or sends THAW, before the daemon has answered FREEZE and after: thawed at once",
        aborted,
    ));
    all
}

/// How long file systems may stay frozen without the host, in the case that waits for it.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);

/// How long a hook may take.
const HOOK_LIMIT: Duration = Duration::from_secs(3);

/// Keeps a list of its calls, and never ends.
const HOOK: &str = "#!/bin/sh\necho $1 >> /run/hooked\nexec sleep 600\n";

fn broken(ctx: &Ctx) -> Result<()> {
    let image = Scratch::blank(&ctx.env.scratch(), 64 << 20)?;
    let config = config(ctx).disk(Disk::file(image.path(), 0));
    guest(ctx, config, |vm| {
        let disk = super::super::storage::block(vm, "scsi0", 0)?;
        mount_ext4(vm, &disk, "ext4")?;
        let start = |freeze_limit: Duration| -> Result<Running<'_>> {
            let command = format!(
                "{} --freeze-limit {} --hook-limit {} --hooks /run/hooks",
                Daemons::Ours.command("vss"),
                freeze_limit.as_secs(),
                HOOK_LIMIT.as_secs()
            );
            let daemon = Running::start(vm, &command)?;
            until_served(vm)?;
            Ok(daemon)
        };

        // The daemon dies: its watchdog thaws at once, and not when the limit passes.
        let daemon = start(6 * PROMPT)?;
        let writers = freeze(vm, &["ext4"])?;
        daemon.kill()?;
        let killed = all_write(writers, "daemon killed", PROMPT)?;

        // The host is heard of no more: thawed at the limit, not before, and a late THAW is told that the copy is worth nothing.
        let daemon = start(FREEZE_LIMIT)?;
        let begin = Instant::now();
        let writers = freeze(vm, &["ext4"])?;
        let answered = Instant::now();
        all_write(writers, "host silent", FREEZE_LIMIT + PROMPT / 2)?;
        let silent = answered.elapsed();
        ensure!(
            begin.elapsed() >= FREEZE_LIMIT,
            "thawed after {:.1} s, before the limit",
            begin.elapsed().as_secs_f64()
        );
        status_is(
            "thaw that is late",
            backup(vm, BackupOp::Thaw)?.status,
            FAIL,
        )?;

        // A hook hangs: it is killed at its limit, the backup fails, and nothing is frozen.
        vm.write("/run/hook", HOOK)?;
        vm.sh("mkdir -p /run/hooks && mv /run/hook /run/hooks/10-hang && chmod 755 /run/hooks/10-hang")?;
        let mut how = sending();
        how.wait_ms = 120_000;
        let begin = Instant::now();
        let reply = backup_how(vm, BackupOp::Freeze, how)?;
        let refused = begin.elapsed();
        status_is("freeze with a hanging hook", reply.status, FAIL)?;
        // It hangs twice: it is told of the thaw, once.
        ensure!(
            refused < 2 * HOOK_LIMIT + PROMPT / 2,
            "a hanging hook held up the host for {:.1} s",
            refused.as_secs_f64()
        );
        writable(vm, "hanging hook", "ext4", PROMPT)?;
        equal(
            "calls of the hook",
            vm.sh("cat /run/hooked")?.as_str(),
            "freeze\nthaw\n",
        )?;
        daemon.kill()?;
        vm.sh("umount /debian/run/fs/ext4")?;
        ctx.figure(format!(
            "thawed after {:.1} s: daemon killed; {:.1} s: host silent, limit {} s; refused after {:.1} s: hook hanging, limit {} s",
            killed.as_secs_f64(),
            silent.as_secs_f64(),
            FREEZE_LIMIT.as_secs(),
            refused.as_secs_f64(),
            HOOK_LIMIT.as_secs()
        ));
        Ok(())
    })
}

/// The file systems of [`aborted`]: the second one's disk is made to stall.
const NAMES: [&str; 2] = ["first", "second"];

/// A request of the host that the guest has not answered.
type Pending<'scope> = std::thread::ScopedJoinHandle<'scope, Result<BackupReply>>;

fn ask<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    mut host: Client,
    op: BackupOp,
) -> Pending<'scope> {
    scope.spawn(move || {
        let how = Sending {
            force: true,
            wait_ms: 120_000,
            ..Sending::default()
        };
        backup_by(&mut host, op, how)
    })
}

fn stall(vm: &Vm, ms: u64) -> Result<()> {
    fault_on(vm, "scsi1", None, 1, DiskFault::Stall { ms })
}

/// Packets that the host has sent to the backup service.
fn sent(vm: &Vm) -> Result<u64> {
    let counters = vm.host().counters()?;
    Ok(counters.channels.get("vss").map_or(0, |c| c.packets_out))
}

fn is_at_it(stack: &str) -> bool {
    stack.contains("sync_filesystem") || stack.contains("freeze_super")
}

/// Has the daemon stuck in the middle of a freeze: the second disk does nothing, and has something to be written.
fn stuck<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    vm: &Vm,
    daemon: &Running<'_>,
) -> Result<Pending<'scope>> {
    let dirty = format!(
        "dd if=/dev/urandom of={}/dirty bs=64k count=16 conv=notrunc",
        place("second")
    );
    debian(vm, &format!("{dirty} conv=fsync"))?;
    stall(vm, 600_000)?;
    // The same blocks again: nothing has to be read or found for that.
    debian(vm, &dirty)?;
    let freeze = ask(scope, vm.second_host()?, BackupOp::Freeze);
    let begin = Instant::now();
    // Ours writes everything out before it freezes, C's daemon leaves that to the freeze; where Linux is at writing by itself already, it
    // waits for that.
    while !(daemon.state()? == "D" && is_at_it(&daemon.stack()?)) {
        ensure!(!freeze.is_finished(), "FREEZE was answered");
        ensure!(
            begin.elapsed() < SOON,
            "the daemon does not freeze: {}",
            daemon.stack()?
        );
    }
    Ok(freeze)
}

fn aborted(ctx: &Ctx, daemons: Daemons) -> Result<()> {
    let blank = || Scratch::blank(&ctx.env.scratch(), 64 << 20);
    let images = [blank()?, blank()?];
    let config = config(ctx)
        .disk(Disk::file(images[0].path(), 0))
        .disk(Disk::file(images[1].path(), 0).on("scsi1"));
    guest(ctx, config, |vm| {
        installed(vm, daemons)?;
        for (name, device) in NAMES.into_iter().zip(["scsi0", "scsi1"]) {
            let disk = super::super::storage::block(vm, device, 0)?;
            mount_ext4(vm, &disk, name)?;
        }
        // Ours would thaw at a limit, too; it does not get so far.
        let command = match daemons {
            Daemons::Ours => daemons.command("vss") + " --freeze-limit 300",
            Daemons::Debian => daemons.command("vss"),
        };
        let mut daemon = Running::start(vm, &command)?;
        let mut longest = Duration::ZERO;

        for round in 0..ctx.count(10, 2) {
            let at = |what: &str| format!("round {round}: {what}");
            until_served(vm)?;

            // THAW before FREEZE is answered: one after the other.
            let took = std::thread::scope(|scope| -> Result<_> {
                let freeze = stuck(scope, vm, &daemon)?;
                let before = sent(vm)?;
                let thaw = ask(scope, vm.second_host()?, BackupOp::Thaw);
                while sent(vm)? == before {
                    ensure!(!thaw.is_finished(), "THAW was not sent");
                }
                stall(vm, 0)?;
                for (what, pending) in [("FREEZE", freeze), ("THAW", thaw)] {
                    let reply = pending.join().expect("no panic").context(what)?;
                    status_is(what, reply.status, 0)?;
                }
                both_write(vm, "THAW before the answer to FREEZE")
            });
            longest = longest.max(took.with_context(|| at("THAW before the answer"))?);

            // The device goes before FREEZE is answered: the freeze is still carried out, and nobody will say THAW.
            let took = std::thread::scope(|scope| -> Result<_> {
                let freeze = stuck(scope, vm, &daemon)?;
                vm.host().rescind("vss")?;
                stall(vm, 0)?;
                let reply = freeze.join().expect("no panic");
                ensure!(reply.is_err(), "FREEZE was answered: {reply:?}");
                both_write(vm, "device gone before the answer")
            });
            longest = longest.max(took.with_context(|| at("device gone before the answer"))?);
            daemon = back(vm, daemons, &command, daemon)?;

            // The device goes while all is frozen.
            until_served(vm)?;
            let writers = freeze(vm, &NAMES)?;
            vm.host().rescind("vss")?;
            let took = all_write(writers, "device gone while frozen", PROMPT);
            longest = longest.max(took.with_context(|| at("device gone while frozen"))?);
            daemon = back(vm, daemons, &command, daemon)?;
        }

        // And a backup as it should be.
        until_served(vm)?;
        let writers = freeze(vm, &NAMES)?;
        status_is("thaw", backup(vm, BackupOp::Thaw)?.status, 0)?;
        all_write(writers, "thaw", PROMPT)?;
        let out = daemon.kill()?;
        if daemons == Daemons::Ours {
            let text = out.stderr.text();
            let thawed = text
                .lines()
                .filter(|line| line.contains("thawed 2 file systems"));
            let expected = 3 * ctx.count(10, 2) + 1;
            equal("thaws of frozen file systems", thawed.count(), expected)?;
        }
        vm.sh("umount /debian/run/fs/first && umount /debian/run/fs/second")?;
        ctx.figure(format!(
            "writers went on within {:.1} s",
            longest.as_secs_f64()
        ));
        Ok(())
    })
}

/// Both file systems can be written.
fn both_write(vm: &Vm, what: &str) -> Result<Duration> {
    let begin = Instant::now();
    for name in NAMES {
        writable(vm, what, name, PROMPT.saturating_sub(begin.elapsed()))?;
    }
    Ok(begin.elapsed())
}

/// The device comes back. Our daemon waits for it; Debian's ends, and its unit would start it again.
fn back<'a>(
    vm: &'a Vm,
    daemons: Daemons,
    command: &str,
    daemon: Running<'a>,
) -> Result<Running<'a>> {
    let daemon = match daemons {
        Daemons::Ours => {
            ensure!(!daemon.state()?.is_empty(), "the daemon has ended");
            Some(daemon)
        }
        Daemons::Debian => {
            daemon.end(SOON).context("Debian's daemon")?;
            None
        }
    };
    offer_again(&mut vm.host(), "vss")?;
    vm.host().wait_negotiated("vss", SOON)?;
    daemon.map_or_else(|| Running::start(vm, command), Ok)
}
