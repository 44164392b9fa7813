// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Power cuts: what the guest was told is on the disk must be there afterwards. So that it is known that the check notices
//! anything, it is made to fail, too: with a disk that says it has flushed and has not, and with a guest that does not flush.

use anyhow::{bail, ensure, Context, Result};
use guest_agent::Command as Ask;
use hvctl::{Command, DiskCutAnswer, DiskFault, DiskSpec};

use super::{
    block, collect, disk, fault, gone, remove, storage_guest, tool_ok, until, until_in_guest,
    IO_LIMIT, SCSI0,
};
use crate::disks::{Disk, Scratch};
use crate::runner::{Ctx, Scenario};
use crate::vm::{Vm, SOON, SYSTEM_LIMIT};

pub fn scenarios() -> Vec<Scenario> {
    Scenario::both(
        "power-cut",
        "what was synced survives a power cut; a disk that does not flush, or a guest that does not, is noticed",
        cuts,
    )
    .into()
}

/// Files with their checksums, each synced before its number is told.
const WRITER: &str = "\
set -e
cd $1; mkdir -p hv; cd hv
i=$(ls | sed -n s/^data//p | sort -n | tail -n 1)
while :; do
    i=$((${i:-0} + 1))
    head -c $((4096 + i * 7919 % 300000)) /dev/urandom > data$i
    sync data$i
    sha256sum data$i >> sums; sync sums; sync .
    echo $i > /run/written
    [ $((i % 20)) -ne 0 ] || rm -f data$((i / 2))
done";

/// Writes that nobody flushes, so that the disk's cache nearly always holds something to lose.
const LOOSE: &str =
    "while dd if=/dev/urandom of=$1/loose bs=64k count=32 oflag=direct conv=notrunc 2>/dev/null; do :; done";

/// Every file that is named is whole; how many. `$2` must be among them.
const CHECKER: &str = "\
set -e
cd $1/hv
n=0
while read -r sum name; do
    [ -e \"$name\" ] || continue
    echo \"$sum  $name\" | sha256sum -c --status || { echo \"$name is damaged\" >&2; exit 1; }
    n=$((n + 1))
done < sums
grep -q \" data$2$\" sums && test -e \"data$2\" || { echo \"data$2 was synced and is lost\" >&2; exit 1; }
echo $n";

/// A file system that is written to.
pub(super) struct Writer<'a> {
    pub(super) vm: &'a Vm,
    /// Where the programs are: `/`, or the Debian image.
    pub(super) root: &'a str,
    /// Where it is mounted.
    pub(super) dir: &'a str,
}

impl Writer<'_> {
    fn run(&self, path: &str, script: &str, args: &[&str]) -> Result<u64> {
        self.vm.write(path, script)?;
        let mut argv = vec!["chroot", self.root, "/bin/sh", path, self.dir];
        argv.extend(args);
        let command = Ask::Spawn {
            argv: argv.into_iter().map(String::from).collect(),
            timeout_ms: SYSTEM_LIMIT.as_millis() as u64,
        };
        let spawned: guest_agent::Spawned = self.vm.agent.call(command, SOON)?;
        Ok(spawned.handle)
    }

    /// Keeps the disk's cache filled, to the end of the guest or of the disk.
    pub(super) fn loose(&self) -> Result<()> {
        self.run("/run/loose", LOOSE, &[]).map(drop)
    }

    /// Starts the writer, and waits until it has written that many files. It goes on. The number of the last file that is known to be
    /// synced.
    pub(super) fn write(&self, files: u32) -> Result<u64> {
        self.vm.sh("rm -f /run/written")?;
        self.run("/run/writer", WRITER, &[])?;
        until_in_guest(self.vm, "[ -s /run/written ]", IO_LIMIT).context("the writer")?;
        let first: u64 = self.vm.read("/run/written")?.trim().parse()?;
        let wanted = first + u64::from(files) - 1;
        let condition = format!("[ -s /run/written ] && [ $(cat /run/written) -ge {wanted} ]");
        until_in_guest(self.vm, &condition, IO_LIMIT).context("the writer")?;
        Ok(wanted)
    }

    /// How many files are whole; `told` must be one of them.
    pub(super) fn check(&self, told: u64) -> Result<u64> {
        let handle = self.run("/run/checker", CHECKER, &[&told.to_string()])?;
        let out = collect(self.vm, handle, IO_LIMIT)?;
        ensure!(out.rc == Some(0), "{}", out.stderr.text().trim());
        out.stdout.text().trim().parse().context("files")
    }
}

/// Cuts the power of a disk at a moment when it holds something that was not flushed: that is lost, or with `seed` about every other
/// sector of it. Writes are under way, and the kernel hears nothing: the VM is stopped after this.
pub(super) fn power_cut(vm: &Vm, lun: u8, seed: Option<u64>) -> Result<DiskCutAnswer> {
    for _ in 0..100 {
        until("something in the disk's cache", SOON, || {
            Ok(disk(vm, SCSI0, lun)?.unflushed > 0)
        })?;
        vm.qmp.stop()?;
        // What the host has begun it still does, a flush perhaps.
        until("no command at the disk", SOON, || {
            Ok(disk(vm, SCSI0, lun)?.counters.in_flight == 0)
        })?;
        if disk(vm, SCSI0, lun)?.unflushed == 0 {
            vm.qmp.cont()?;
            continue;
        }
        let answer = vm.host().call(Command::DiskCut {
            device: SCSI0.into(),
            lun,
            target: 0,
            seed,
        })?;
        let answer: DiskCutAnswer = serde_json::from_value(answer)?;
        ensure!(answer.kept + answer.lost > 0, "the disk's cache was empty");
        return Ok(answer);
    }
    bail!("the disk's cache was always empty: nothing was at stake")
}

/// What is wrong with flushes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wrong {
    Nothing,
    /// The disk says that it has flushed, and has not.
    Disk,
    /// The guest takes the disk for one without a cache.
    Guest,
}

/// The disk that loses its power.
const LUN: u8 = 1;

fn cuts(ctx: &Ctx) -> Result<()> {
    let config = ctx.config().smp(2).disk(Disk::ram("16M", 0));
    storage_guest(ctx, config, |vm| {
        let mut figures = Vec::new();
        for (seed, wrong) in [
            (None, Wrong::Nothing),
            (Some(1), Wrong::Nothing),
            (None, Wrong::Disk),
            (None, Wrong::Guest),
        ] {
            let image = Scratch::blank(&ctx.env.scratch(), 96 << 20)?;
            let (lost, found) = one_cut(vm, &image, seed, wrong)?;
            match (wrong, found) {
                (Wrong::Nothing, found) => {
                    let whole = found.context("after a power cut")?;
                    figures.push(format!("{} KiB lost, {whole} files whole", lost >> 10));
                }
                (_, Ok(whole)) => {
                    bail!("{wrong:?} does not flush, {lost} bytes were lost, and all {whole} files are whole")
                }
                (_, Err(e)) => figures.push(format!("{wrong:?} does not flush: {e:#}")),
            }
        }
        ctx.figure(figures.join("; "));
        Ok(())
    })
}

/// Writes, cuts the power, gives it back, and looks. How many bytes were lost, and how many files are whole.
fn one_cut(
    vm: &Vm,
    image: &Scratch,
    seed: Option<u64>,
    wrong: Wrong,
) -> Result<(u64, Result<u64>)> {
    let name = attach(vm, image)?;
    tool_ok(vm, &format!("mkfs.ext4 -q /dev/{name} && mkdir -p /run/fs && mount -t ext4 /dev/{name} /run/fs && sync -f /run/fs"))?;
    match wrong {
        Wrong::Nothing => {}
        Wrong::Disk => {
            let done = DiskFault::Status {
                srb: 1,
                scsi: 0,
                sense: None,
            };
            fault(vm, Some(0x35), u32::MAX, done)?;
        }
        Wrong::Guest => vm.write(
            &format!("/sys/block/{name}/queue/write_cache"),
            "write through",
        )?,
    }
    let writer = Writer {
        vm,
        root: "/debian",
        dir: "/run/fs",
    };
    writer.loose()?;
    let told = writer.write(12)?;
    let answer = power_cut(vm, LUN, seed)?;
    vm.qmp.cont()?;
    fault(vm, None, 1, DiskFault::Clear)?;
    // The writers end by themselves: the disk is dead.
    until_in_guest(
        vm,
        "! ps | grep -v grep | grep -q -e /run/loose -e /run/writer",
        IO_LIMIT,
    )?;
    tool_ok(vm, "umount /run/fs")?;
    remove(vm, SCSI0, LUN)?;
    gone(vm, SCSI0, LUN)?;
    let name = attach(vm, image)?;
    let found = look(&writer, &name, told);
    // Mounted or not.
    vm.run("chroot /debian umount /run/fs 2>/dev/null", IO_LIMIT)?;
    remove(vm, SCSI0, LUN)?;
    gone(vm, SCSI0, LUN)?;
    Ok((answer.lost, found))
}

fn attach(vm: &Vm, image: &Scratch) -> Result<String> {
    vm.host().call(Command::DiskAdd {
        device: SCSI0.into(),
        lun: LUN,
        target: 0,
        disk: DiskSpec {
            file: Some(image.path().display().to_string()),
            sector: 512,
            discard: true,
            volatile: true,
            ..DiskSpec::default()
        },
        notify: true,
    })?;
    block(vm, SCSI0, LUN)
}

/// Replays the journal, and looks at files and file system.
fn look(writer: &Writer<'_>, name: &str, told: u64) -> Result<u64> {
    tool_ok(writer.vm, &format!("mount -t ext4 /dev/{name} /run/fs"))?;
    let whole = writer.check(told)?;
    tool_ok(
        writer.vm,
        &format!("umount /run/fs && e2fsck -fn /dev/{name}"),
    )?;
    Ok(whole)
}
