// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Programs of the Debian image in a guest that stays in its initramfs, and waits for what has no event.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use guest_agent::{Command as Ask, Output, Spawned};
use hvctl::ChannelState;

use crate::patience::stretched;
use crate::vm::{describe, Vm, SOON};

/// For I/O that an idle machine does in seconds.
pub(super) const IO_LIMIT: Duration = Duration::from_secs(300);

/// How often the state of the other side is looked at while there is no event to wait for.
const LOOK: Duration = Duration::from_millis(50);

/// Waits until `done` says so; for states of the host that have no event.
pub(crate) fn until(
    what: &str,
    limit: Duration,
    mut done: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let (begin, limit) = (Instant::now(), stretched(limit));
    while !done()? {
        ensure!(
            begin.elapsed() < limit,
            "not within {} s: {what}",
            limit.as_secs()
        );
        std::thread::sleep(LOOK);
    }
    Ok(begin.elapsed())
}

/// Waits in the guest until a shell condition holds. The time that took, by the guest's clock, to some 20 ms.
pub(crate) fn until_in_guest(vm: &Vm, condition: &str, limit: Duration) -> Result<Duration> {
    let script = format!("until {condition}; do sleep 0.02; done");
    let out = vm.run(&script, limit)?;
    ensure!(
        !out.killed,
        "not within {} s in the guest: {condition}",
        limit.as_secs()
    );
    ensure!(
        out.rc == Some(0),
        "in the guest: {condition}: {}",
        describe(&out)
    );
    Ok(Duration::from_micros(out.elapsed_us))
}

/// Runs a program of the Debian image in the guest.
pub(crate) fn tool(vm: &Vm, command: &str) -> Result<Output> {
    tool_within(vm, command, IO_LIMIT)
}

pub(super) fn tool_within(vm: &Vm, command: &str, limit: Duration) -> Result<Output> {
    let quoted = command.replace('\'', r"'\''");
    vm.run(
        &format!("LC_ALL=C chroot /debian /bin/sh -c '{quoted}'"),
        limit,
    )
}

/// Runs a program of the Debian image that must succeed; its standard output.
pub(crate) fn tool_ok(vm: &Vm, command: &str) -> Result<String> {
    let out = tool(vm, command)?;
    ensure!(out.rc == Some(0), "{command}: {}", describe(&out));
    Ok(out.stdout.text())
}

/// Starts a program of the Debian image.
pub(super) fn tool_start(vm: &Vm, command: &str, limit: Duration) -> Result<u64> {
    let argv = ["chroot", "/debian", "/bin/sh", "-c", command]
        .map(String::from)
        .to_vec();
    let spawned: Spawned = vm.agent.call(
        Ask::Spawn {
            argv,
            timeout_ms: limit.as_millis() as u64,
        },
        SOON,
    )?;
    Ok(spawned.handle)
}

/// Waits for a program that was started.
pub(super) fn collect(vm: &Vm, handle: u64, limit: Duration) -> Result<Output> {
    vm.agent.call(
        Ask::Collect {
            handle,
            kill: false,
        },
        limit + SOON,
    )
}

/// The directory of a device on the guest's bus.
pub(super) fn bus_dir(vm: &Vm, device: &str) -> Result<String> {
    let channel = vm.host().channel(device)?;
    Ok(format!("/sys/bus/vmbus/devices/{}", channel.instance))
}

/// Channels of a device that are open at the host, the primary one included.
pub(crate) fn open_channels(vm: &Vm, device: &str) -> Result<usize> {
    let channels = vm.host().channels()?;
    Ok(channels
        .iter()
        .filter(|channel| channel.device == device && channel.state == ChannelState::Open)
        .count())
}
