// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A whole Debian system, with udev and systemd, on top of the bus and the utilities.

use anyhow::{bail, ensure, Result};
use hvctl::ShutdownKind;

use super::clock::ptp_node;
use crate::disks::Scratch;
use crate::runner::{equal, Ctx, Scenario, Skip};
use crate::vm::{SOON, SYSTEM_LIMIT};

pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new(
        "debian",
        "Debian boots; udev makes /dev/ptp_hyperv; systemd ends the system in order when the host asks",
        debian,
    )]
}

fn debian(ctx: &Ctx) -> Result<()> {
    let Some(image) = &ctx.env.debian else {
        bail!(Skip("the Debian image was not made (HV_DEBIAN)".into()));
    };
    let copy = Scratch::copy(&ctx.env.state.join("disks"), image)?;
    let mut config = ctx.config().smp(2).memory(1024);
    // QEMU's own disk: storage is another suite's matter.
    config.virtio_disks.push(copy.path().to_owned());
    config.root = Some("/dev/vda".into());
    ctx.connected(config, |vm| {
        equal("state of the system", vm.wait_system()?.as_str(), "running")?;
        // Tools name the clock by udev's link (chrony's documentation does).
        let node = ptp_node(vm)?;
        vm.sh("udevadm settle --timeout=60")?;
        let link = vm.sh("readlink -f /dev/ptp_hyperv")?;
        ensure!(
            link.trim() == node,
            "/dev/ptp_hyperv is {:?}, expected {node}; {}",
            link.trim(),
            vm.sh(&format!("udevadm info --name={node}"))?
        );
        vm.beats(10)?;
        let reply = vm.host().shutdown(ShutdownKind::PowerOff, false, SOON)?;
        equal("status in the guest's answer", reply.status, Some(0))?;
        vm.qmp.event("SHUTDOWN", SYSTEM_LIMIT)?;
        if let Some(console) = &vm.console {
            // Of systemd's last step, after it has stopped the units and unmounted the disks.
            let lines = console.since(0);
            ensure!(
                lines
                    .iter()
                    .any(|line| line.contains("systemd-shutdown[1]")),
                "systemd did not end the system"
            );
        }
        Ok(())
    })
}
