// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Which CPU is interrupted for which channel.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{ensure, Result};

use super::{channels, load, loaded_guest, no_unneeded_signals, quiet, Channel};
use crate::runner::{equal, Ctx, Scenario};
use crate::scenarios::connect::hyperv_interrupts;
use crate::scenarios::programs::until;
use crate::vm::{Vm, SOON};
use crate::Drivers;

pub(super) fn scenarios() -> Vec<Scenario> {
    [1u32, 2, 4, 8, 16]
        .into_iter()
        .flat_map(|cpus| {
            Scenario::both(
                &format!("interrupts-{cpus}cpu"),
                &format!(
                    "{cpus} CPUs: each channel of disk and card interrupts the CPU that sysfs says, and no other, before and \
                     after all have moved; both sides count the same interrupts and signals"
                ),
                move |ctx| interrupts(ctx, cpus),
            )
            .map(|scenario| match (cpus, scenario.drivers) {
                (16, _) => scenario.only_full("16 CPUs take minutes to start: with --full"),
                // The reference is looked at closely in the full run only.
                (1 | 8, Some(Drivers::C)) => scenario.only_full("C on 1 and 8 CPUs: with --full"),
                _ => scenario,
            })
        })
        .collect()
}

fn interrupts(ctx: &Ctx, cpus: u32) -> Result<()> {
    loaded_guest(ctx, ctx.config().smp(cpus), |vm, disk| {
        let placed = channels(vm)?;
        spread_evenly(ctx, &placed, cpus)?;
        let mut figures = vec![measure(vm, disk, cpus)?];
        if cpus > 1 {
            for channel in channels(vm)? {
                let next = (channel.cpu + 1) % cpus;
                vm.write(&format!("{}/cpu", channel.dir), &next.to_string())?;
            }
            figures.push(measure(vm, disk, cpus)?);
        }
        no_unneeded_signals(vm)?;
        for figure in figures {
            ctx.figure(figure);
        }
        Ok(())
    })
}

/// A device's channels are on different CPUs while there are enough; ours load no CPU with two more channels than another, and use each
/// one.
fn spread_evenly(ctx: &Ctx, placed: &[Channel], cpus: u32) -> Result<()> {
    let devices: BTreeSet<&str> = placed.iter().map(|c| c.device.as_str()).collect();
    equal("devices with channels", devices.len(), 2)?;
    for device in devices {
        let mine: Vec<u32> = placed
            .iter()
            .filter(|c| c.device == device)
            .map(|c| c.cpu)
            .collect();
        let distinct = mine.iter().collect::<BTreeSet<_>>().len();
        equal(
            &format!("CPUs of {device}, which has channels on {mine:?}"),
            distinct,
            mine.len().min(cpus as usize),
        )?;
    }
    if ctx.drivers == Drivers::Rust {
        let on = |cpu: u32| placed.iter().filter(|c| c.cpu == cpu).count();
        let loads: Vec<usize> = (0..cpus).map(on).collect();
        let (least, most) = (loads.iter().min(), loads.iter().max());
        ensure!(
            most.unwrap_or(&0) - least.unwrap_or(&0) <= 1,
            "channels by CPU: {loads:?}"
        );
    }
    Ok(())
}

/// The channels, and the interrupts of each CPU, with nothing counted between the two.
fn at_rest(vm: &Vm) -> Result<(Vec<Channel>, Vec<u64>)> {
    let begin = Instant::now();
    loop {
        let before = quiet(vm)?;
        let cpus = hyperv_interrupts(vm)?;
        let after = quiet(vm)?;
        let counts = |all: &[Channel]| all.iter().map(|c| c.guest).collect::<Vec<_>>();
        if counts(&before) == counts(&after) {
            return Ok((after, cpus));
        }
        ensure!(begin.elapsed() < SOON, "interrupts that are of no load");
    }
}

/// Runs the load and compares: what each side counted for each channel, and what each CPU counted.
fn measure(vm: &Vm, disk: &str, cpus: u32) -> Result<String> {
    let (before, cpu_before) = at_rest(vm)?;
    load::once(vm, disk, cpus)?;
    let since = |now: &[Channel]| -> Result<Vec<(Channel, super::Counts, super::Counts)>> {
        equal("channels", now.len(), before.len())?;
        let pairs = now.iter().zip(&before);
        Ok(pairs
            .map(|(now, before)| {
                let guest = now.guest.since(before.guest);
                (now.clone(), guest, now.host.since(before.host))
            })
            .collect())
    };
    // Completions of what was sent may come after the load's end.
    let mut deltas = Vec::new();
    let agree = until("both sides count the same", SOON, || {
        deltas = since(&channels(vm)?)?;
        Ok(deltas.iter().all(|(_, guest, host)| guest == host))
    });
    agree.map_err(|err| {
        let all: Vec<_> = deltas
            .iter()
            .map(|(c, g, h)| (&c.device, c.relid, g, h))
            .collect();
        err.context(format!("guest and host: {all:?}"))
    })?;
    let (now, cpu_after) = at_rest(vm)?;
    deltas = since(&now)?;
    ensure!(
        deltas.iter().all(|(_, guest, host)| guest == host),
        "guest and host have counted differently: {deltas:?}"
    );
    for (channel, guest, _) in &deltas {
        // Each CPU has a part of the disk's load, and a channel of its own for it.
        ensure!(
            channel.device != super::SCSI0 || guest.interrupts > 0,
            "no interrupt for channel {} on CPU {}",
            channel.relid,
            channel.cpu
        );
    }
    let mut shown = Vec::new();
    for cpu in 0..cpus {
        let of_channels: u64 = deltas
            .iter()
            .filter(|(c, ..)| c.cpu == cpu)
            .map(|(_, guest, _)| guest.interrupts)
            .sum();
        let taken = cpu_after[cpu as usize] - cpu_before[cpu as usize];
        // One interrupt may be for several channels. Messages come to CPU 0.
        ensure!(
            cpu == 0 || taken <= of_channels,
            "CPU {cpu} took {taken} interrupts, its channels {of_channels}"
        );
        ensure!(
            (taken > 0) == (of_channels > 0) || cpu == 0,
            "CPU {cpu} took {taken} interrupts, its channels {of_channels}"
        );
        shown.push(format!("{taken}/{of_channels}"));
    }
    Ok(format!(
        "interrupts by CPU/channels there: {}",
        shown.join(" ")
    ))
}
