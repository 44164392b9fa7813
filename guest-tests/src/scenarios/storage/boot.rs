// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A Debian system whose root disk hangs on the synthetic controller.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use guest_agent::Command as Ask;
use hvctl::ShutdownKind;

use super::{module, IO_LIMIT, SCSI0};
use crate::disks::Disk;
use crate::runner::{equal, Ctx, Scenario};
use crate::vm::{Vm, SOON, SYSTEM_LIMIT};
use crate::VmConfig;

pub fn scenarios() -> Vec<Scenario> {
    Scenario::both(
        "debian",
        "Debian boots from /dev/sda; power cuts with journal replay and clean shutdowns; fsck finds nothing",
        cycles,
    )
    .into()
}

/// What each boot writes, by a script that is on the disk: files with their checksums, each synced before its name is
/// told. The last line of `done` is what a power cut must not take away.
const WRITER: &str = "\
set -e
cd /var/lib; mkdir -p hv; cd hv
i=$(ls | sed -n s/^data//p | sort -n | tail -n 1)
while :; do
    i=$((${i:-0} + 1))
    head -c $((4096 + i * 7919 % 300000)) /dev/urandom > data$i
    sync data$i
    sha256sum data$i >> sums; sync sums; sync .
    echo $i > /run/written
    [ $((i % 20)) -ne 0 ] || rm -f data$((i / 2))
done";

/// Writes that nobody flushes, so that the disk's cache always holds something to lose.
const LOOSE: &str = "while :; do dd if=/dev/urandom of=/var/tmp/loose bs=64k count=32 oflag=direct conv=notrunc 2>/dev/null; done";

/// Every file that is named is whole; how many.
const CHECKER: &str = "\
set -e
cd /var/lib/hv
n=0
while read -r sum name; do
    [ -e \"$name\" ] || continue
    echo \"$sum  $name\" | sha256sum -c --status || { echo \"$name is damaged\"; exit 1; }
    n=$((n + 1))
done < sums
echo $n";

fn cycles(ctx: &Ctx) -> Result<()> {
    let image = ctx.env.debian_copy()?;
    // Each pair is a power cut and a clean shutdown.
    let pairs: u32 = ctx.count(20, 1);
    let mut boots = Vec::new();
    let mut files = 0;
    let (mut kept, mut lost) = (0, 0);
    for pair in 0..pairs {
        let mut told = 0;
        let config = system(ctx, &format!("{pair}-cut"), image.path());
        ctx.booted(config, |vm| {
            boots.push(boot(vm, pair > 0)?);
            spawn(vm, "/run/loose", LOOSE)?;
            files += write(vm, 12)?;
            told = vm.sh("cat /run/written")?.trim().parse::<u64>()?;
            // The power cut: writes are under way, and the kernel hears nothing. What the disk was not told to flush is lost, or every
            // other sector of it.
            vm.host().call(hvctl::Command::Pause)?;
            let answer = vm.host().call(hvctl::Command::DiskCut {
                device: SCSI0.into(),
                lun: 0,
                target: 0,
                seed: (pair % 2 == 0).then_some(pair.into()),
            })?;
            let answer: hvctl::DiskCutAnswer = serde_json::from_value(answer)?;
            ensure!(
                answer.kept + answer.lost > 0,
                "the disk's cache was empty: nothing was at stake"
            );
            kept += answer.kept;
            lost += answer.lost;
            Ok(())
        })?;
        let config = system(ctx, &format!("{pair}-shutdown"), image.path());
        ctx.booted(config, |vm| {
            boots.push(boot(vm, true)?);
            let console = vm.console.as_ref().context("console")?;
            console
                .wait("recovery complete", 0, SOON)
                .context("the journal was not replayed")?;
            let whole: u64 = vm.sh(CHECKER)?.trim().parse().context("files")?;
            ensure!(
                whole >= 8,
                "only {whole} files are left of those that were synced before the power cut"
            );
            vm.sh(&format!(
                "cd /var/lib/hv && grep -q ' data{told}$' sums && test -e data{told}"
            ))
            .with_context(|| format!("file {told} was synced before the power cut"))?;
            write(vm, 4)?;
            shut_down(vm)
        })?;
        fsck(image.path())?;
    }
    boots.sort();
    ctx.figure(format!(
        "{} boots, multi-user.target after {:.1} s (median), {files} files through {pairs} power cuts that took {} KiB and left {} KiB of what was not flushed",
        boots.len(),
        boots[boots.len() / 2].as_secs_f64(),
        lost >> 10,
        kept >> 10
    ));
    Ok(())
}

/// A guest that boots from this image, as a disk that loses what was not flushed.
fn system(ctx: &Ctx, part: &str, image: &Path) -> VmConfig {
    let disk = Disk::file(image, 0).option("cache=volatile");
    let config = ctx.config_for(part, ctx.drivers).smp(2);
    config.memory(768).disk(disk).root("/dev/sda")
}

/// A guest that boots from this image, on a disk that keeps all.
pub fn on_disk(config: VmConfig, image: &Path) -> VmConfig {
    let config = config.memory(768);
    config.disk(Disk::file(image, 0)).root("/dev/sda")
}

/// Waits for the system and looks whether it is what it should be. The time since QEMU's start.
pub fn boot(vm: &Vm, again: bool) -> Result<Duration> {
    let begin = std::time::Instant::now();
    vm.load_drivers()?;
    let state = vm.wait_system()?;
    let took = vm.boot_time + begin.elapsed();
    ensure!(
        state == "running",
        "the system is {state:?}: {}",
        vm.sh("systemctl list-units --failed --plain --no-legend; true")?
    );
    vm.sh("systemctl is-active multi-user.target")?;
    equal(
        "root file system",
        vm.sh("findmnt -no SOURCE,FSTYPE /")?
            .split_whitespace()
            .collect::<Vec<_>>(),
        vec!["/dev/sda", "ext4"],
    )?;
    vm.sh("findmnt -no OPTIONS / | grep -qw rw")?;
    let loaded = vm.sh("cut -d' ' -f1 /proc/modules")?;
    let wanted = module(vm.config.drivers)?;
    ensure!(
        loaded.lines().any(|name| name == wanted),
        "{wanted} is not loaded"
    );
    equal(
        "driver of the root disk",
        vm.sh("cat /sys/block/sda/device/../../scsi_host/host*/proc_name")?
            .trim(),
        "storvsc_host",
    )?;
    if again {
        vm.sh("test -s /var/lib/hv/sums")?;
    }
    Ok(took)
}

/// Runs a script in the background, to the end of the guest.
fn spawn(vm: &Vm, path: &str, script: &str) -> Result<()> {
    vm.write(path, script)?;
    vm.agent.post(Ask::Spawn {
        argv: ["sh", path].map(String::from).to_vec(),
        timeout_ms: SYSTEM_LIMIT.as_millis() as u64,
    })?;
    Ok(())
}

/// Starts the writer and waits until it has written that many files.
fn write(vm: &Vm, files: u32) -> Result<u64> {
    spawn(vm, "/run/writer", WRITER)?;
    let first: u64 = vm
        .sh("{ echo 0; ls /var/lib/hv 2>/dev/null | sed -n s/^data//p; } | sort -n | tail -n 1")?
        .trim()
        .parse()?;
    let wanted = first + u64::from(files);
    super::until_in_guest(
        vm,
        &format!("[ -s /run/written ] && [ $(cat /run/written) -ge {wanted} ]"),
        IO_LIMIT,
    )
    .context("the writer")?;
    Ok(u64::from(files))
}

/// The host asks for a power off; the system stops its services, unmounts, and is off.
pub fn shut_down(vm: &Vm) -> Result<()> {
    let reply = vm.host().shutdown(ShutdownKind::PowerOff, false, SOON)?;
    equal(
        "the guest's answer to the shutdown request",
        reply.status,
        Some(0),
    )?;
    let event = vm.qmp.event("SHUTDOWN", SYSTEM_LIMIT)?;
    equal(
        "end of the VM",
        event["data"]["reason"].as_str(),
        Some("guest-shutdown"),
    )
}

/// Checks a file system that is not in use.
pub fn fsck(image: &Path) -> Result<()> {
    let out = Command::new("e2fsck")
        .args(["-f", "-n"])
        .arg(image)
        .output()
        .context("e2fsck")?;
    let text = [out.stdout, out.stderr].concat();
    ensure!(
        out.status.code() == Some(0),
        "e2fsck: {}: {}",
        out.status,
        String::from_utf8_lossy(&text).trim()
    );
    Ok(())
}
