// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Channels that move, and CPUs that come and go, under load.

use std::time::Duration;

use anyhow::{ensure, Context, Result};

use super::load::{Done, Load};
use super::{channels, loaded_guest, no_unneeded_signals};
use crate::disks::Disk;
use crate::runner::{equal, Ctx, Scenario};
use crate::scenarios::storage::nothing_in_flight;
use crate::vm::{Vm, SOON};
use crate::{Drivers, VmConfig};

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    for (version, about) in [
        ("6.0", "the host acknowledges each move"),
        ("5.2", "the host does not tell when a move is over"),
    ] {
        let both = Scenario::both(
            &format!("move-{version}"),
            &format!(
                "channels of disk and card moved from CPU to CPU under load: nothing is lost, no signal too many; {about}"
            ),
            move |ctx| moves(ctx, version),
        );
        all.extend(both.map(|scenario| match (version, scenario.drivers) {
            ("5.2", Some(Drivers::C)) => {
                scenario.only_full("C without acknowledgement: with --full")
            }
            _ => scenario,
        }));
    }
    all.extend(Scenario::both(
        "cpus-under-load",
        "CPUs go offline and come back under load on disk and card: their channels go elsewhere, nothing is lost or stalls",
        |ctx| cpus(ctx, ctx.drivers).map(drop),
    ));
    all.push(
        Scenario::new(
            "stalls",
            "the longest that a request takes while CPUs come and go: at most a second longer than with C",
            stalls,
        )
        .only_full("means something after many rounds only"),
    );
    all.extend(Scenario::both(
        "move-by-version",
        "what may move, and which CPUs may go offline, with VMBus 4.0, 5.2 and 6.0",
        by_version,
    ));
    all
}

const CPUS: u32 = 4;

fn moves(ctx: &Ctx, version: &str) -> Result<()> {
    let times: usize = ctx.count(1000, 20);
    let config = ctx.config().smp(CPUS).vmbus(version);
    loaded_guest(ctx, config, |vm, disk| {
        let load = Load::start(vm, disk)?;
        let start = channels(vm)?;
        let mut cpu: Vec<u32> = start.iter().map(|c| c.cpu).collect();
        for number in 0..times {
            let index = number % start.len();
            let since = load.progress()?;
            // Each channel meets each CPU, and sometimes skips one.
            cpu[index] = (cpu[index] + 1 + (number / 7) as u32 % 2) % CPUS;
            vm.write(
                &format!("{}/cpu", start[index].dir),
                &cpu[index].to_string(),
            )
            .with_context(|| format!("move {number}"))?;
            if number % 5 == 4 {
                // Both sides know where each is.
                let now: Vec<u32> = channels(vm)?.iter().map(|c| c.cpu).collect();
                equal(&format!("CPUs after move {number}"), &now, &cpu)?;
                load.gets_on(since, &format!("move {number}"))?;
                vm.beats(2)?;
            }
        }
        let done = load.stop()?;
        whole(vm)?;
        ctx.figure(format!("{times} moves; {}", figure(done)));
        Ok(())
    })
}

/// Nothing is left undone, and no signal was too many.
fn whole(vm: &Vm) -> Result<()> {
    nothing_in_flight(vm)?;
    no_unneeded_signals(vm)
}

fn figure(done: Done) -> String {
    format!(
        "{} requests, the longest took {} ms",
        done.requests,
        done.longest.as_millis()
    )
}

fn cpus(ctx: &Ctx, drivers: Drivers) -> Result<Done> {
    let rounds: u32 = ctx.count(100, 2);
    let config = ctx.config_for(drivers.name(), drivers).smp(CPUS);
    loaded_guest(ctx, config, |vm, disk| {
        let load = Load::start(vm, disk)?;
        let mut refused = 0;
        for round in 0..rounds {
            for cpu in 1..CPUS {
                let since = load.progress()?;
                refused += offline(vm, cpu).with_context(|| format!("round {round}"))?;
                let left = channels(vm)?;
                ensure!(
                    left.iter().all(|c| c.cpu != cpu),
                    "a channel stayed on CPU {cpu}, which is offline: {left:?}"
                );
                load.gets_on(since, &format!("CPU {cpu} went, round {round}"))?;
                let since = load.progress()?;
                vm.write(&online_file(cpu), "1")?;
                // It serves channels again: all that can be asked of it is one that moves there.
                let channel = &left[(round as usize + cpu as usize) % left.len()];
                vm.write(&format!("{}/cpu", channel.dir), &cpu.to_string())?;
                load.gets_on(since, &format!("CPU {cpu} came back, round {round}"))?;
            }
        }
        let done = load.stop()?;
        whole(vm)?;
        ctx.figure(format!(
            "{} times; {}; refused because of interrupts under way: {refused}",
            rounds * (CPUS - 1),
            figure(done)
        ));
        Ok(done)
    })
}

fn online_file(cpu: u32) -> String {
    format!("/sys/devices/system/cpu/cpu{cpu}/online")
}

/// Takes a CPU offline. Drivers of both kinds refuse while an interrupt of a channel is under way for longer than they wait; then it is tried
/// again. How often.
fn offline(vm: &Vm, cpu: u32) -> Result<u32> {
    const TRIES: u32 = 10;
    let mut tries = 0;
    loop {
        match vm.write(&online_file(cpu), "0") {
            Ok(()) => return Ok(tries),
            Err(err) if tries < TRIES && format!("{err:#}").contains("busy") => tries += 1,
            Err(err) => return Err(err.context(format!("CPU {cpu} offline"))),
        }
    }
}

fn stalls(ctx: &Ctx) -> Result<()> {
    let c = cpus(ctx, Drivers::C)?;
    let rust = cpus(ctx, Drivers::Rust)?;
    ensure!(
        rust.longest <= c.longest + Duration::from_secs(1),
        "the longest took {:?} with Rust, {:?} with C",
        rust.longest,
        c.longest
    );
    Ok(())
}

/// Channels of two controllers, so that one is on CPU 1.
fn by_version(ctx: &Ctx) -> Result<()> {
    for version in ["4.0", "5.2", "6.0"] {
        let mut config: VmConfig = ctx
            .config_for(version, ctx.drivers)
            .smp(2)
            .vmbus(version)
            .disk(Disk::ram("8M", 0))
            .controller("scsi0", "subchannels=0")
            .controller("scsi1", "subchannels=0");
        config.storage = true;
        ctx.connected(config, |vm| {
            one_version(vm, version).with_context(|| format!("VMBus {version}"))
        })?;
    }
    Ok(())
}

fn one_version(vm: &Vm, version: &str) -> Result<()> {
    let placed = |device: &str| -> Result<(String, u32)> {
        let channel = vm.host().channel(device)?;
        let relid = channel.relid.context("no relid")?;
        let file = format!(
            "/sys/bus/vmbus/devices/{}/channels/{relid}/cpu",
            channel.instance
        );
        let cpu = vm.read(&file)?.parse()?;
        Ok((file, cpu))
    };
    // The host knows of it once it is open.
    crate::scenarios::programs::until("controllers open", SOON, || {
        Ok(["scsi0", "scsi1"].iter().all(|device| {
            crate::scenarios::programs::open_channels(vm, device).is_ok_and(|n| n > 0)
        }))
    })?;
    let all = ["scsi0", "scsi1"].map(placed);
    let mut on_one = None;
    let mut seen = Vec::new();
    for entry in all {
        let (file, cpu) = entry?;
        seen.push(cpu);
        if cpu == 1 {
            on_one = Some(file);
        }
    }
    seen.sort_unstable();
    equal("CPUs of two controllers", seen, vec![0, 1])?;
    let file = on_one.context("no channel on CPU 1")?;
    let fails = |path: &str, text: &str, error: &str| -> Result<()> {
        let result = vm.write(path, text).map_err(|err| format!("{err:#}"));
        ensure!(
            result.as_ref().is_err_and(|err| err.contains(error)),
            "writing {text} to {path}: {result:?}, expected {error:?}"
        );
        Ok(())
    };
    const BUSY: &str = "busy";
    match version {
        // Nothing can move: the CPU stays.
        "4.0" => {
            fails(&file, "0", "Input/output error")?;
            fails(&online_file(1), "0", BUSY)?;
        }
        // It can move, but nobody says when it has; so not by itself.
        "5.2" => {
            fails(&online_file(1), "0", BUSY)?;
            vm.write(&file, "0")?;
            offline(vm, 1)?;
            // Nor to a CPU that is not there.
            fails(&file, "1", "Invalid argument")?;
            vm.write(&online_file(1), "1")?;
            vm.write(&file, "1")?;
        }
        _ => {
            offline(vm, 1)?;
            equal("CPU of the channel", vm.read(&file)?.as_str(), "0")?;
            vm.write(&online_file(1), "1")?;
            vm.write(&file, "1")?;
        }
    }
    // The first CPU is the one that messages go to.
    let first = online_file(0);
    let there = vm.run(&format!("test -e {first}"), SOON)?;
    if there.rc == Some(0) {
        fails(&first, "0", BUSY)?;
    }
    vm.beats(5).map(drop)
}
