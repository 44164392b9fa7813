// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The kernel goes away and comes back, or another one takes its place: hibernation, kexec, kdump.

use std::path::Path;
use std::time::Instant;

use anyhow::{bail, ensure, Context, Result};
use guest_agent::{Command as Ask, Spawned};
use hvctl::{ConnectionState, SampleKind, ShutdownKind, Until};

use super::clock::{becomes_right, ptp_node, ptp_offset, quiet, send_and_wait, CLOSE_MS};
use super::connect::devices_are_there;
use crate::disks::Scratch;
use crate::runner::{equal, Ctx, Scenario, Skip};
use crate::vm::{unix_now, BOOT_LIMIT, COMMAND_LIMIT, IC_DEVICES, SOON};
use crate::{Vm, VmConfig};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "hibernate-uevent",
            "with ACPI S4 the request is accepted and becomes a uevent; the guest hibernates (test_resume) and goes on",
            uevent,
        ),
        Scenario::new(
            "hibernate-off",
            "hibernation with power off; a new machine restores the image, with the drivers loaded before (--full)",
            power_off,
        ),
        Scenario::new(
            "kexec",
            "another kernel is started by kexec: it connects again, with all devices",
            kexec,
        ),
        Scenario::new(
            "kdump",
            "a panic on each of two CPUs in turn: the crash kernel connects again, with all devices (--full)",
            kdump,
        ),
    ]
}

/// Room for the image on the swap disk. It is sparse, and the image is some tens of MiB.
pub(super) const SWAP_BYTES: u64 = 1 << 30;

/// A guest that can hibernate to an NVMe disk, whose driver Debian's kernels have built in.
fn sleeper(ctx: &Ctx, part: &str, swap: &Path) -> VmConfig {
    can_sleep(ctx.config_for(part, ctx.drivers).smp(2), swap)
}

/// A configuration with the disk to hibernate to.
pub(super) fn can_sleep(mut config: VmConfig, swap: &Path) -> VmConfig {
    config.s4 = true;
    let drive = format!("file={},if=none,id=swap,format=raw", swap.display());
    let args = ["-drive", &drive, "-device", "nvme,drive=swap,serial=swap"];
    config.qemu_args.extend(args.map(str::to_owned));
    config
}

const SWAP: &str = "/dev/nvme0n1";

/// Makes the guest ready to hibernate in this way, or skips the test where its kernel cannot.
pub(super) fn prepare(vm: &Vm, how: &str) -> Result<()> {
    if vm.run("test -e /sys/power/disk", SOON)?.rc != Some(0) {
        bail!(Skip(
            "the guest's kernel has no hibernation (CONFIG_HIBERNATION)".into()
        ));
    }
    if vm.run(&format!("test -b {SWAP}"), SOON)?.rc != Some(0) {
        bail!(Skip(
            "the guest's kernel has no NVMe driver built in (CONFIG_BLK_DEV_NVME=y)".into()
        ));
    }
    // What drivers of the bus and of its devices say: hibernation is possible.
    equal(
        "/sys/bus/vmbus/hibernation",
        vm.read("/sys/bus/vmbus/hibernation")?.as_str(),
        "1",
    )?;
    vm.sh(&format!(
        "mkswap {SWAP} && swapon {SWAP} && cat /sys/class/block/nvme0n1/dev > /sys/power/resume && echo {how} > /sys/power/disk"
    ))
    .map(drop)
}

/// All is as before the bus went away: connection, devices, services, no violation.
fn works_again(vm: &Vm) -> Result<()> {
    vm.host()
        .wait_connected(BOOT_LIMIT)
        .context("the guest did not connect again")?;
    for device in IC_DEVICES {
        vm.host()
            .wait_negotiated(device, SOON)
            .with_context(|| format!("{device} did not negotiate again"))?;
    }
    devices_are_there(vm)?;
    vm.beats(10)?;
    let channel = vm.host().channel("heartbeat")?;
    let relid = channel.relid.context("heartbeat has no relid")?;
    // The figures of users' tools follow the relid, which may be another one. The CPU is not compared: in a crash kernel
    // CPU 0 is whatever virtual processor crashed.
    let mapping = vm.read(&format!(
        "/sys/bus/vmbus/devices/{}/channel_vp_mapping",
        channel.instance
    ))?;
    ensure!(
        mapping.starts_with(&format!("{relid}:")),
        "channel_vp_mapping: {mapping:?}, the relid is {relid}"
    );
    vm.check()
}

/// After the resume the PTP clock tells the host's time of now, from a sample of now. Before there was one, the
/// clock may say that it knows nothing.
fn ptp_is_fresh(ctx: &Ctx, vm: &Vm) -> Result<()> {
    let node = ptp_node(vm)?;
    let early = ptp_offset(vm, &node);
    if let Ok(offset) = &early {
        // C keeps the sample from before, though the reference time that it was taken at is another machine's.
        ensure!(
            ctx.drivers == crate::Drivers::C || offset.ms.abs() <= CLOSE_MS + offset.uncertainty_ms,
            "after the resume and before a new sample, {node} is {:.1} ms off",
            offset.ms
        );
    }
    quiet(vm)?;
    send_and_wait(vm, SampleKind::Sample)?;
    let offset = ptp_offset(vm, &node)?;
    ensure!(
        offset.ms.abs() <= CLOSE_MS + offset.uncertainty_ms,
        "after the resume {node} is {:.1} ms off",
        offset.ms
    );
    // And the clock itself is set by a marked one.
    let begin = Instant::now();
    send_and_wait(vm, SampleKind::Sync)?;
    let (_, clock) = becomes_right(vm, begin)?;
    ctx.figure(format!(
        "{node} off by {:+.1} ms, the clock by {:+.1} ms",
        offset.ms, clock.ms
    ));
    Ok(())
}

fn uevent(ctx: &Ctx) -> Result<()> {
    let swap = Scratch::blank(&ctx.env.state.join("disks"), SWAP_BYTES)?;
    ctx.connected(sleeper(ctx, "", swap.path()), |vm| {
        prepare(vm, "test_resume")?;
        send_and_wait(vm, SampleKind::Sample)?;
        let handle: u64 = vm.agent.call(Ask::UeventListen, SOON)?;
        let reply = vm.host().shutdown(ShutdownKind::Hibernate, false, SOON)?;
        equal("status in the guest's answer", reply.status, Some(0))?;
        vm.log("Hibernation request received", 0, SOON)?;
        vm.log("Sent hibernation uevent", 0, SOON)?;
        // What udev rules of distributions wait for.
        let ask = Ask::Uevent {
            handle,
            line: "EVENT=hibernate".into(),
            timeout_ms: 20_000,
        };
        let uevent: Vec<String> = vm.agent.call(ask, COMMAND_LIMIT)?;
        for line in ["ACTION=change", "SUBSYSTEM=vmbus"] {
            ensure!(
                uevent.iter().any(|l| l == line),
                "no {line} in the uevent: {uevent:?}"
            );
        }
        // And what they then do, but for the power: the image is written and at once restored.
        let before = vm.host().status()?;
        let begin = Instant::now();
        let out = vm.run("echo disk > /sys/power/state", BOOT_LIMIT)?;
        equal("status of the hibernation", out.rc, Some(0))?;
        let took = begin.elapsed().as_secs_f64();
        let after = vm.host().status()?;
        // Left for the image, left again for the restored one; each time the bus comes back.
        equal("unloads", after.unloads - before.unloads, 2)?;
        equal("connects", after.connects - before.connects, 2)?;
        works_again(vm)?;
        ctx.figure(format!("image written and restored in {took:.1} s"));
        ptp_is_fresh(ctx, vm)
    })
}

fn power_off(ctx: &Ctx) -> Result<()> {
    only_in_full(ctx)?;
    let swap = Scratch::blank(&ctx.env.state.join("disks"), SWAP_BYTES)?;
    let token = format!("{}", unix_now().as_nanos());
    ctx.connected(sleeper(ctx, "first", swap.path()), |vm| {
        prepare(vm, "platform")?;
        vm.write("/tmp/token", &token)?;
        let begin = Instant::now();
        hibernate(vm, "echo disk > /sys/power/state")?;
        vm.qmp.event("SUSPEND_DISK", BOOT_LIMIT)?;
        ctx.figure(format!("off after {:.1} s", begin.elapsed().as_secs_f64()));
        equal(
            "connection of the guest that is off",
            vm.host().status()?.state,
            ConnectionState::Disconnected,
        )
    })?;
    // Another machine as far as the host can tell: other relids, reference time from zero. Its boot kernel has the bus
    // and the devices at work, as one with its root on them has, and must let go of them.
    ctx.connected(sleeper(ctx, "second", swap.path()), |vm| {
        ensure!(
            vm.run("test -e /tmp/token", SOON)?.rc != Some(0),
            "the boot kernel has the file already"
        );
        let before = vm.host().status()?;
        let begin = Instant::now();
        hibernate(vm, "cat /sys/class/block/nvme0n1/dev > /sys/power/resume")?;
        let console = vm.console.as_ref().context("console")?;
        console
            .wait("PM: hibernation: hibernation exit", 0, BOOT_LIMIT)
            .context("the image was not restored")?;
        equal("the file of before", vm.read("/tmp/token")?, token.clone())?;
        ctx.figure(format!(
            "restored in {:.1} s",
            begin.elapsed().as_secs_f64()
        ));
        let after = vm.host().status()?;
        equal(
            "unloads by the boot kernel",
            after.unloads - before.unloads,
            1,
        )?;
        works_again(vm)?;
        ptp_is_fresh(ctx, vm)
    })
}

/// Starts what ends with this kernel or another; the agent's answer may be lost with it.
fn hibernate(vm: &Vm, script: &str) -> Result<()> {
    let argv = ["sh", "-c", script].map(String::from).to_vec();
    let spawned: Result<Spawned> = vm.agent.call(
        Ask::Spawn {
            argv,
            timeout_ms: BOOT_LIMIT.as_millis() as u64,
        },
        SOON,
    );
    spawned.map(drop)
}

fn only_in_full(ctx: &Ctx) -> Result<()> {
    if !ctx.full {
        bail!(Skip("only with --full".into()));
    }
    Ok(())
}

/// `kexec_file_load(2)` and `reboot(2)`: perl of the base system, since Debian's kexec-tools come with the libraries of Xen.
/// Arguments: flags of `kexec_file_load` (2: for a crash), command line.
const KEXEC_LOAD: &str = r#"
my ($flags, $cmdline) = @ARGV;
open(my $kernel, "<", "/boot/vmlinuz") or die "vmlinuz: $!\n";
open(my $initrd, "<", "/boot/initrd") or die "initrd: $!\n";
my $text = "$cmdline\0";
syscall(320, fileno($kernel), fileno($initrd), length($text), $text, $flags + 0) == 0 or die "kexec_file_load: $!\n";
"#;

/// `reboot(LINUX_REBOOT_CMD_KEXEC)`, by its numbers in `linux/reboot.h`.
const KEXEC_BOOT: &str = "perl -e 'syscall(169, 0xfee1dead, 672274793, 0x45584543, 0)'";

/// A guest with a kernel and an initramfs in `/boot` for the next one; both are in memory several times.
fn successor(ctx: &Ctx) -> VmConfig {
    let mut config = ctx.config().smp(2).memory(1024);
    config.next_kernel = true;
    config
}

/// Loads the next kernel.
fn load_next(vm: &Vm, flags: u32, more: &str) -> Result<()> {
    if vm.run("test -e /sys/kernel/kexec_loaded", SOON)?.rc != Some(0) {
        bail!(Skip(
            "the guest's kernel has no kexec (CONFIG_KEXEC_FILE)".into()
        ));
    }
    vm.write("/tmp/kexec.pl", KEXEC_LOAD)?;
    let cmdline = vm.read("/proc/cmdline")?;
    let cmdline: Vec<&str> = cmdline
        .split_whitespace()
        .filter(|word| !word.starts_with("crashkernel="))
        .collect();
    vm.sh(&format!(
        "perl /tmp/kexec.pl {flags} '{} {more}'",
        cmdline.join(" ")
    ))?;
    let loaded = if flags == 0 {
        "kexec_loaded"
    } else {
        "kexec_crash_loaded"
    };
    equal(
        loaded,
        vm.read(&format!("/sys/kernel/{loaded}"))?.as_str(),
        "1",
    )
}

/// The kernel that came loads the drivers and is served like the one before.
fn next_kernel(vm: &Vm, turn: usize) -> Result<()> {
    let connects = vm.host().status()?.connects;
    vm.agent
        .hello(turn + 1, BOOT_LIMIT)
        .context("the next kernel did not come up")?;
    equal(
        "the mark on the command line of the next kernel",
        vm.read("/proc/cmdline")?
            .contains(&format!("hv.turn={turn}")),
        true,
    )?;
    vm.load_drivers()?;
    works_again(vm)?;
    if vm.config.drivers == crate::Drivers::Rust {
        equal(
            "connects of the next kernel",
            vm.host().status()?.connects - connects,
            1,
        )?;
    }
    Ok(())
}

fn kexec(ctx: &Ctx) -> Result<()> {
    ctx.connected(successor(ctx), |vm| {
        vm.beats(5)?;
        load_next(vm, 0, "hv.turn=1")?;
        let unloads = vm.host().status()?.unloads;
        let begin = Instant::now();
        hibernate(vm, KEXEC_BOOT)?;
        next_kernel(vm, 1)?;
        equal(
            "unloads by the kernel before",
            vm.host().status()?.unloads - unloads,
            1,
        )?;
        ctx.figure(format!(
            "served again after {:.1} s",
            begin.elapsed().as_secs_f64()
        ));
        Ok(())
    })
}

fn kdump(ctx: &Ctx) -> Result<()> {
    only_in_full(ctx)?;
    for cpu in 0..2 {
        let mut config = successor(ctx).cmdline("crashkernel=384M");
        config.name = format!("{}-cpu{cpu}", config.name);
        ctx.connected(config, |vm| {
            vm.beats(5)?;
            // One CPU, as crash kernels have: it is the one that crashed.
            load_next(vm, 2, "hv.turn=1 nr_cpus=1 reset_devices")?;
            let unloads = vm.host().status()?.unloads;
            let begin = Instant::now();
            hibernate(
                vm,
                &format!(
                    "busybox taskset {} sh -c 'echo c > /proc/sysrq-trigger'",
                    1 << cpu
                ),
            )?;
            let console = vm.console.as_ref().context("console")?;
            console.wait("Kernel panic", 0, BOOT_LIMIT)?;
            vm.host().wait(Until::Disconnected, BOOT_LIMIT)?;
            vm.agent
                .hello(2, BOOT_LIMIT)
                .context("the crash kernel did not come up")?;
            // The panic is meant; what comes after is not.
            console.take_trouble();
            next_kernel(vm, 1)?;
            vm.sh("test -s /proc/vmcore")?;
            equal(
                "unloads by the kernel that crashed",
                vm.host().status()?.unloads - unloads,
                1,
            )?;
            ctx.figure(format!(
                "crash on CPU {cpu}: served again after {:.1} s",
                begin.elapsed().as_secs_f64()
            ));
            Ok(())
        })?;
    }
    Ok(())
}
