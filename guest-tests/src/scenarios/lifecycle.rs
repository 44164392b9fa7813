// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Things that come and go: devices, modules, CPUs, and the kernel itself.

use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use guest_agent::Command as Ask;
use hvctl::{Client, ConnectionState, Until};

use super::connect::{devices_are_there, hyperv_interrupts, PACE_MS};
use crate::memory::{no_leak, EXACT_SLABS};
use crate::runner::{equal, Ctx, Scenario};
use crate::vm::{BOOT_LIMIT, IC_DEVICES, SOON};
use crate::Drivers;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "rescind-reoffer",
            "every device rescinded and offered again, many times",
            rescind,
        ),
        Scenario::new(
            "rescind-storm",
            "all devices rescinded and offered again at once, without waiting in between",
            storm,
        ),
        Scenario::new(
            "reload",
            "modules loaded and unloaded many times; memory compared",
            reload,
        ),
        Scenario::new(
            "panic",
            "a panic reaches the host through the crash MSRs, and the bus is unloaded",
            panic,
        ),
        Scenario::new(
            "cpu-hotplug",
            "CPUs taken offline and online while heartbeats run",
            hotplug,
        ),
        Scenario::new(
            "move-channels",
            "all channels moved to CPU 0 by sysfs; then the other CPUs can go",
            move_channels,
        ),
    ]
}

/// What makes no sense for a bus that is built in.
pub fn rust_only() -> Vec<Scenario> {
    vec![Scenario::new(
        "reload-while-offering",
        "the bus is unloaded while devices come and go",
        unload_in_storm,
    )]
}

/// Waits until the guest has let go of a device that was rescinded, and offers it again.
pub(crate) fn offer_again(host: &mut Client, device: &str) -> Result<()> {
    host.wait(
        Until::Released {
            device: device.into(),
        },
        SOON,
    )
    .with_context(|| format!("{device} not released"))?;
    Ok(host.offer(device)?)
}

fn cycle(host: &mut Client, device: &str) -> Result<()> {
    host.rescind(device)?;
    offer_again(host, device)?;
    host.wait_negotiated(device, SOON)
        .with_context(|| format!("{device} did not come back"))
}

fn rescind(ctx: &Ctx) -> Result<()> {
    let times = ctx.count(100, 10);
    ctx.connected(ctx.config().smp(2), |vm| {
        let begin = vm.time()?.monotonic_ns;
        for _ in 0..times {
            for device in IC_DEVICES {
                cycle(&mut vm.host(), device)?;
            }
        }
        let ms = (vm.time()?.monotonic_ns - begin) as f64 / 1e6;
        vm.sh("ls /sys/bus/vmbus/devices/*/channels")?;
        devices_are_there(vm)?;
        // One channel directory each: none of those before it was left.
        let left = vm.sh("ls -d /sys/bus/vmbus/devices/*/channels/* | wc -l")?;
        equal(
            "channel directories",
            left.trim(),
            vm.host().channels()?.len().to_string().as_str(),
        )?;
        vm.beats(10)?;
        let cycles = times as usize * IC_DEVICES.len();
        ctx.figure(format!(
            "{cycles} cycles, {:.1} ms each",
            ms / cycles as f64
        ));
        Ok(())
    })
}

fn storm(ctx: &Ctx) -> Result<()> {
    let rounds = ctx.count(50, 10);
    ctx.connected(ctx.config().smp(4), |vm| {
        for _ in 0..rounds {
            let mut host = vm.host();
            for device in IC_DEVICES {
                host.rescind(device)?;
            }
            // Offered as soon as its relid is back, whatever the others do.
            for device in IC_DEVICES {
                offer_again(&mut host, device)?;
            }
        }
        for device in IC_DEVICES {
            vm.host()
                .wait_negotiated(device, SOON)
                .with_context(|| format!("{device} did not come back"))?;
        }
        devices_are_there(vm)?;
        vm.beats(10)?;
        ctx.figure(format!("{rounds} rounds"));
        Ok(())
    })
}

/// Cycles in a window that is long enough for what the CPUs' own lists do not to count.
const LONG_WINDOW: u32 = 25;

fn reload(ctx: &Ctx) -> Result<()> {
    // The C bus is built in: there only hv_utils can go.
    let with_bus = ctx.drivers == Drivers::Rust;
    let per_window = ctx.count(LONG_WINDOW, 2);
    ctx.booted(ctx.config().smp(2).cmdline(EXACT_SLABS), |vm| {
        let one = || -> Result<()> {
            vm.load_drivers()?;
            vm.unload_drivers()?;
            if with_bus {
                vm.host().wait(Until::Disconnected, SOON)?;
                let status = vm.host().status()?;
                equal("GPADLs left at the host", status.gpadls, 0)?;
            } else {
                for device in IC_DEVICES {
                    vm.host().wait(
                        Until::ChannelClosed {
                            device: device.into(),
                        },
                        SOON,
                    )?;
                }
            }
            Ok(())
        };
        // Caches and lists that are filled once and kept. The first cycles show them.
        for _ in 0..3 {
            one()?;
        }
        let mark = vm.log_mark()?;
        let connects = vm.host().status()?.connects;
        let steady = no_leak(vm, per_window, LONG_WINDOW, one)?;
        let times = steady.cycles;
        let lines = vm.log_since(mark)?;
        let count =
            |text: &str| lines.iter().filter(|line| line.text.contains(text)).count() as u32;
        equal(
            "lines \"Heartbeat IC version\" in the log",
            count("Heartbeat IC version"),
            times,
        )?;
        if with_bus {
            equal(
                "lines \"Vmbus version:\" in the log",
                count("Vmbus version:"),
                times,
            )?;
            equal(
                "connections",
                vm.host().status()?.connects - connects,
                u64::from(times),
            )?;
        }
        ctx.figure(format!(
            "{times} times; pages in use {:+}, vmalloc areas {:+}",
            steady.pages, steady.vmalloc_areas
        ));
        Ok(())
    })
}

fn panic(ctx: &Ctx) -> Result<()> {
    ctx.connected(ctx.config().smp(2), |vm| {
        vm.beats(5)?;
        let unloads = vm.host().status()?.unloads;
        let argv = ["sh", "-c", "echo c > /proc/sysrq-trigger"]
            .map(String::from)
            .to_vec();
        vm.agent.post(Ask::Exec {
            argv,
            timeout_ms: 60_000,
        })?;
        vm.host()
            .wait(Until::GuestCrash, BOOT_LIMIT)
            .context("the host heard of no crash")?;
        let console = vm.console.as_ref().context("console")?;
        console.wait("end Kernel panic", 0, BOOT_LIMIT)?;
        let status = vm.host().status()?;
        let told = status.partition.to_string();
        ensure!(
            told.contains("sysrq triggered crash"),
            "the crash text at the host is not the kernel's: {told}"
        );
        // So that a kdump kernel finds no connection and no shared page of the one before.
        equal(
            "connection after the panic",
            status.state,
            ConnectionState::Disconnected,
        )?;
        equal("unloads by the panic", status.unloads - unloads, 1)?;
        let trouble = console.take_trouble();
        ensure!(
            trouble
                .iter()
                .any(|line| line.contains("sysrq triggered crash")),
            "the panic is not on the console"
        );
        ensure!(
            !trouble
                .iter()
                .any(|line| line.contains("WARNING:")
                    || line.contains("BUG:") && !line.contains("NULL")),
            "more than the panic: {}",
            trouble.join(" | ")
        );
        Ok(())
    })
}

fn hotplug(ctx: &Ctx) -> Result<()> {
    const CPUS: u32 = 4;
    let rounds = ctx.count(10, 2);
    ctx.connected(ctx.config().smp(CPUS), |vm| {
        vm.reset_counters()?;
        // Beats at their own pace all the time, and some in a row after each step.
        vm.host().heartbeat_interval(Duration::from_millis(500))?;
        let channel = vm.host().channel("heartbeat")?;
        let relid = channel.relid.context("heartbeat has no relid")?;
        let cpu_file = format!(
            "/sys/bus/vmbus/devices/{}/channels/{relid}/cpu",
            channel.instance
        );
        for round in 0..rounds {
            for cpu in 1..CPUS {
                // Every other round it is the CPU that the heartbeats arrive on.
                if round % 2 == 0 {
                    vm.write(&cpu_file, &cpu.to_string())?;
                    vm.beats(3)?;
                }
                let online = format!("/sys/devices/system/cpu/cpu{cpu}/online");
                vm.write(&online, "0")
                    .with_context(|| format!("CPU {cpu} offline, round {round}"))?;
                vm.beats(5)
                    .with_context(|| format!("CPU {cpu} is offline"))?;
                let target: u32 = vm.read(&cpu_file)?.parse()?;
                ensure!(
                    target != cpu,
                    "the channel is still bound to CPU {cpu}, which is offline"
                );
                vm.write(&online, "1")
                    .with_context(|| format!("CPU {cpu} online, round {round}"))?;
                vm.beats(5)
                    .with_context(|| format!("CPU {cpu} is online again"))?;
            }
        }
        // The CPUs that came back take interrupts again.
        let before = hyperv_interrupts(vm)?;
        for cpu in 1..CPUS {
            vm.write(&cpu_file, &cpu.to_string())?;
            vm.paced_beats(20, PACE_MS)?;
        }
        let after = hyperv_interrupts(vm)?;
        for cpu in 1..CPUS as usize {
            ensure!(
                after[cpu] - before[cpu] >= 10,
                "CPU {cpu} takes no interrupts after it came back"
            );
        }
        let status = vm.host().heartbeat()?;
        equal("beats missed", status.missed, 0)?;
        ctx.figure(format!(
            "{} times offline and online, {} beats, 0 missed",
            rounds * (CPUS - 1),
            status.answered
        ));
        Ok(())
    })
}

fn move_channels(ctx: &Ctx) -> Result<()> {
    const CPUS: u32 = 4;
    ctx.connected(ctx.config().smp(CPUS), |vm| {
        vm.sh("for f in /sys/bus/vmbus/devices/*/channels/*/cpu; do echo 0 > $f; done")?;
        for channel in vm.host().channels()? {
            if channel.target_vp.is_some() {
                equal(&format!("target VP of {} at the host", channel.device), channel.target_vp, Some(0))?;
            }
        }
        let before = hyperv_interrupts(vm)?;
        vm.paced_beats(50, PACE_MS)?;
        let after = hyperv_interrupts(vm)?;
        ensure!(after[0] - before[0] >= 25, "the interrupts of 50 heartbeats did not come to CPU 0");
        for cpu in 1..CPUS {
            vm.write(&format!("/sys/devices/system/cpu/cpu{cpu}/online"), "0")?;
        }
        vm.beats(10)?;
        // A channel that comes now must not land on a CPU that is offline.
        for device in IC_DEVICES {
            cycle(&mut vm.host(), device)?;
        }
        let targets = vm.sh("cat /sys/bus/vmbus/devices/*/channels/*/cpu")?;
        ensure!(targets.split_whitespace().all(|cpu| cpu == "0"), "channels on CPUs {targets:?}, only 0 is online");
        // A CPU that is not there or not online is refused.
        for wrong in ["1", "4096", "-1", "x"] {
            let out = vm.run(
                &format!(
                    "for f in /sys/bus/vmbus/devices/*/channels/*/cpu; do echo {wrong} > $f && exit 0; done; exit 1"
                ),
                SOON,
            )?;
            if out.rc == Some(0) {
                bail!("writing {wrong:?} to channels/*/cpu was accepted");
            }
        }
        for cpu in 1..CPUS {
            vm.write(&format!("/sys/devices/system/cpu/cpu{cpu}/online"), "1")?;
        }
        vm.beats(10)?;
        Ok(())
    })
}

fn unload_in_storm(ctx: &Ctx) -> Result<()> {
    let rounds = ctx.count(50, 8);
    ctx.booted(ctx.config().smp(4), |vm| {
        for _ in 0..rounds {
            vm.load_drivers()?;
            let mut host = vm.host();
            for device in IC_DEVICES {
                host.rescind(device)?;
            }
            drop(host);
            // Rescinds are still being worked on.
            vm.unload_drivers()?;
            vm.host().wait(Until::Disconnected, SOON)?;
            let mut host = vm.host();
            for device in IC_DEVICES {
                host.offer(device)?;
            }
        }
        vm.load_drivers()?;
        vm.beats(10)?;
        ctx.figure(format!("{rounds} rounds"));
        Ok(())
    })
}
