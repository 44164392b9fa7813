// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The suite `smp`: channels on several CPUs. Where their interrupts go, what becomes of them when channels move and CPUs go, and that
//! neither side signals without need meanwhile. Tests that end in `-rust` and `-c` are the same test with either stack.

mod load;
mod moves;
mod spread;

use std::time::Duration;

use anyhow::{ensure, Context, Result};
use hvctl::{ChannelInfo, ChannelState};

use super::programs::{open_channels, until};
use super::storage::block;
use crate::bench::peer::{self, Peer};
use crate::disks::Disk;
use crate::env::TempDir;
use crate::net::{Backend, Nic};
use crate::runner::{equal, Ctx, Scenario};
use crate::vm::{Vm, SOON};
use crate::VmConfig;

pub fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(spread::scenarios());
    all.extend(moves::scenarios());
    all
}

/// The devices that carry load here.
const SCSI0: &str = "scsi0";
const NET0: &str = "net0";

/// A guest with a disk in the host's memory, a card with [`Peer`] at its other end, and as many channels for both as it has CPUs, where
/// the drivers ask for so many. Services are silent, so that all interrupts are of the load. `test` gets the disk's name, too.
fn loaded_guest<T>(
    ctx: &Ctx,
    config: VmConfig,
    test: impl FnOnce(&Vm, &str) -> Result<T>,
) -> Result<T> {
    let dir = TempDir::new()?;
    let socket = dir.path().join("peer.sock");
    let _peer = Peer::listen(&socket, 1500)?;
    let mut config = config
        .memory(768)
        .disk(Disk::ram("32M", 0))
        .nic(Nic::new(Backend::Connect(socket)));
    config.storage = true;
    ctx.booted(config, |vm| {
        vm.sh("modprobe sd_mod")?;
        vm.load_drivers()?;
        let disk = block(vm, SCSI0, 0)?;
        let card = super::network::interface(vm, NET0)?;
        vm.sh(&format!(
            "sysctl -q net.ipv6.conf.{card}.disable_ipv6=1; ip addr add {} dev {card} && ip link set {card} up",
            peer::GUEST
        ))?;
        super::network::carrier(vm, &card, true)?;
        silence(vm)?;
        settled(vm)?;
        test(vm, &disk)
    })
}

/// Waits until all channels that the drivers asked for are open, and returns them when none has counted anything between two looks.
/// Sub-channels come by themselves, after the driver is bound.
fn settled(vm: &Vm) -> Result<Vec<Channel>> {
    let cpus: usize = vm.sh("nproc")?.trim().parse()?;
    // What both drivers ask for by default, and the host gives: one for each CPU, up to eight.
    for device in [SCSI0, NET0] {
        until(&format!("channels of {device}"), SOON, || {
            Ok(open_channels(vm, device)? >= cpus.min(8))
        })?;
    }
    quiet(vm)
}

/// The channels, when two looks show the same: no interrupt is under way.
fn quiet(vm: &Vm) -> Result<Vec<Channel>> {
    let mut last = channels(vm)?;
    until("the channels come to rest", SOON, || {
        let now = channels(vm)?;
        let same = now.len() == last.len()
            && now.iter().zip(&last).all(|(now, last)| {
                (now.relid, now.guest, now.host) == (last.relid, last.guest, last.host)
            });
        last = now;
        Ok(same)
    })?;
    Ok(last)
}

/// Ends what the services send by themselves.
fn silence(vm: &Vm) -> Result<()> {
    vm.host().heartbeat_interval(Duration::ZERO)?;
    vm.host().timesync_interval(Duration::ZERO)?;
    Ok(())
}

/// An open channel of a device that carries load, as both sides see it.
#[derive(Debug, Clone)]
struct Channel {
    device: String,
    relid: u32,
    /// Its directory in the guest.
    dir: String,
    cpu: u32,
    guest: Counts,
    host: Counts,
}

/// What a side has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    /// Interrupts of the guest.
    interrupts: u64,
    /// Signals to the host.
    signals: u64,
}

impl Counts {
    fn since(self, before: Self) -> Self {
        Self {
            interrupts: self.interrupts - before.interrupts,
            signals: self.signals - before.signals,
        }
    }
}

/// The open channels of [`SCSI0`] and [`NET0`], in the order of their offers. Both sides must agree where each is.
fn channels(vm: &Vm) -> Result<Vec<Channel>> {
    let text = vm.sh("cd /sys/bus/vmbus/devices; for d in */channels/*; do \
           echo $d $(cat $d/cpu $d/interrupts $d/events); done")?;
    let mut offered: Vec<ChannelInfo> = vm.host().channels()?;
    offered.retain(|c| c.state == ChannelState::Open && (c.device == SCSI0 || c.device == NET0));
    offered.sort_by_key(|c| c.relid);
    let find = |info: ChannelInfo| -> Result<Channel> {
        let relid = info.relid.context("an open channel without relid")?;
        let dir = format!("{}/channels/{relid}", info.instance);
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{dir} ")))
            .with_context(|| format!("{}: no {dir} in the guest: {text}", info.device))?;
        let numbers: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [cpu, interrupts, signals] = numbers[..] else {
            anyhow::bail!("{dir}: {line}");
        };
        equal(
            &format!("CPU of {dir}, at the host"),
            info.target_vp.map(u64::from),
            Some(cpu),
        )?;
        Ok(Channel {
            device: info.device,
            relid,
            dir: format!("/sys/bus/vmbus/devices/{dir}"),
            cpu: cpu as u32,
            guest: Counts {
                interrupts,
                signals,
            },
            host: Counts {
                interrupts: info.counters.interrupts,
                signals: info.counters.signals,
            },
        })
    };
    offered.into_iter().map(find).collect()
}

/// Neither side has sent the other a signal that it had no use for.
fn no_unneeded_signals(vm: &Vm) -> Result<()> {
    let counters = vm.host().counters()?;
    for (what, to) in [
        ("unneeded_signals", "the host"),
        ("unneeded_interrupts", "the guest"),
    ] {
        let count = *counters
            .host
            .get(what)
            .with_context(|| format!("the host does not count {what}"))?;
        let of: Vec<_> = counters
            .channels
            .iter()
            .filter(|(_, c)| c.unneeded_signals + c.unneeded_interrupts > 0)
            .collect();
        ensure!(count == 0, "{count} signals that {to} did not need: {of:?}");
    }
    Ok(())
}
