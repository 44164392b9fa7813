// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Integration services: heartbeat and shutdown.

use anyhow::Result;
use hvctl::{ShutdownKind, Until};

use super::connect::interrupts;
use crate::runner::{ensure, equal, Ctx, Scenario};
use crate::vm::{BOOT_LIMIT, COMMAND_LIMIT, SOON};

/// Status with which a guest refuses (`HV_E_FAIL`).
const HV_E_FAIL: u32 = 0x8000_4005;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("heartbeat-100", "100 heartbeats, none missed", heartbeat),
        Scenario::new(
            "heartbeat-flood",
            "heartbeats as fast as they are answered, for interrupts and order",
            flood,
        ),
        Scenario::new("shutdown", "the host asks for power off", shutdown),
        Scenario::new(
            "reboot",
            "the host asks for a reboot; the guest comes back and connects again",
            reboot,
        ),
        Scenario::new(
            "hibernate-refused",
            "without ACPI S4 the request is refused and the guest goes on",
            refused,
        ),
    ]
}

fn heartbeat(ctx: &Ctx) -> Result<()> {
    ctx.connected(ctx.config().smp(2), |vm| {
        vm.reset_counters()?;
        // At their usual pace they would take 200 s: in --full 100 ms apart, else each after the other.
        let every_ms = ctx.count(100, 10);
        vm.host().heartbeat_burst(100, every_ms)?;
        vm.host().wait(Until::Beats { count: 100 }, COMMAND_LIMIT)?;
        let status = vm.host().heartbeat()?;
        equal("beats missed", status.missed, 0)?;
        equal(
            "versions (framework/message)",
            status.agreed.as_deref(),
            Some("3.0/3.0"),
        )?;
        ctx.figure(format!(
            "{} sent, {} answered, {} missed, longest {} us",
            status.sent,
            status.answered,
            status.missed,
            status.max_rtt_us.unwrap_or(0)
        ));
        Ok(())
    })
}

fn flood(ctx: &Ctx) -> Result<()> {
    let count = ctx.count(10_000, 500);
    ctx.connected(ctx.config().smp(2), |vm| {
        let before = vm.time()?.monotonic_ns;
        vm.beats(count)?;
        let ms = (vm.time()?.monotonic_ns - before) as f64 / 1e6;
        // Reenlightenment interrupts would mean that the host believes the machine to have moved.
        let unwanted: u64 = interrupts(vm, "HRE:")?.unwrap_or_default().iter().sum();
        equal("reenlightenment interrupts", unwanted, 0)?;
        ctx.figure(format!("{count} beats in {ms:.0} ms"));
        Ok(())
    })
}

fn shutdown(ctx: &Ctx) -> Result<()> {
    ctx.connected(ctx.config(), |vm| {
        let reply = vm.host().shutdown(ShutdownKind::PowerOff, false, SOON)?;
        equal("status in the guest's answer", reply.status, Some(0))?;
        let event = vm.qmp.event("SHUTDOWN", BOOT_LIMIT)?;
        equal(
            "reason",
            event["data"]["reason"].as_str(),
            Some("guest-shutdown"),
        )?;
        // In an orderly way: by the user's poweroff program.
        if let Some(console) = &vm.console {
            console.wait("init: poweroff", 0, SOON)?;
        }
        Ok(())
    })
}

fn reboot(ctx: &Ctx) -> Result<()> {
    ctx.connected(ctx.config(), |vm| {
        for turn in 1..=ctx.count(5, 1) {
            let reply = vm.host().shutdown(ShutdownKind::Reboot, false, SOON)?;
            equal("status in the guest's answer", reply.status, Some(0))?;
            let event = vm.qmp.event("RESET", BOOT_LIMIT)?;
            equal(
                "reset by the guest",
                event["data"]["guest"].as_bool(),
                Some(true),
            )?;
            if let Some(console) = &vm.console {
                console.wait("init: reboot", 0, SOON)?;
            }
            vm.wait_boot(turn)?;
            vm.load_drivers()?;
            vm.beats(10)?;
        }
        Ok(())
    })
}

fn refused(ctx: &Ctx) -> Result<()> {
    ctx.connected(ctx.config(), |vm| {
        // The kernel can write an image without S4, but then it is no platform's sleep.
        ensure(
            !vm.read("/sys/power/disk")?.contains("platform"),
            "the guest was given S4",
        )?;
        let reply = vm.host().shutdown(ShutdownKind::Hibernate, false, SOON)?;
        equal(
            "status in the guest's answer",
            reply.status,
            Some(HV_E_FAIL),
        )?;
        vm.log("Hibernation request received", 0, SOON)?;
        vm.beats(10)?;
        Ok(())
    })
}
