// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What things cost, Rust beside C.

use std::fmt;

use anyhow::{Context, Result};

use super::connect::PACE_MS;
use crate::bench::is_c_bus;
use crate::runner::{ensure, Ctx, Scenario};
use crate::vm::Vm;
use crate::Drivers;

pub fn comparisons() -> Vec<Scenario> {
    vec![Scenario::new(
        "cost",
        "time from load to connected, hypercalls and interrupts per heartbeat, Rust beside C",
        cost,
    )]
}

/// Figures of one stack.
#[derive(Debug, Clone)]
pub struct Cost {
    /// From the start of the bus driver's initialisation to the line "Vmbus version:", in microseconds.
    pub to_version_us: u64,
    /// From there to its end, when all offers are there.
    pub to_offers_us: u64,
    /// Hypercalls per heartbeat.
    pub hypercalls: f64,
    /// Interrupts per heartbeat.
    pub interrupts: f64,
    /// Round trip, the longest, in microseconds of the host's clock.
    pub longest_us: u64,
    /// Guest instructions per heartbeat in the bus driver.
    pub bus_instructions: f64,
    /// Guest instructions per heartbeat in the driver of the utilities.
    pub utils_instructions: f64,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "version agreed after {:.1} ms, offers after {:.1} ms; per heartbeat {:.2} hypercalls, {:.2} interrupts, \
             {:.0} instructions in the bus driver, {:.0} in the utilities, longest {} us",
            self.to_version_us as f64 / 1e3,
            self.to_offers_us as f64 / 1e3,
            self.hypercalls,
            self.interrupts,
            self.bus_instructions,
            self.utils_instructions,
            self.longest_us
        )
    }
}

/// Kernel command line words that make the start and the end of a driver's initialisation visible in the log.
pub const TRACE_INIT: &str = "initcall_debug";

fn cost(ctx: &Ctx) -> Result<()> {
    let beats = ctx.count(2000, 200);
    let measure = |drivers: Drivers| {
        let mut config = ctx
            .config_for(drivers.name(), drivers)
            .smp(2)
            .cmdline(TRACE_INIT);
        config.profile = true;
        ctx.connected(config, |vm| measure(vm, beats))
    };
    let (rust, c) = (measure(Drivers::Rust)?, measure(Drivers::C)?);
    ctx.figure(format!("rust: {rust}"));
    ctx.figure(format!("c: {c}"));
    // One beat is one packet each way, into a ring that is empty: one interrupt, one signal. On a busy machine some beats
    // meet a guest that is awake and take none, so C's figures are no bound.
    ensure(
        rust.hypercalls <= 1.1 && rust.interrupts <= 1.1,
        format!("more than one hypercall or interrupt per heartbeat: {rust}"),
    )
}

/// Measures a guest that was booted with [`TRACE_INIT`] and profiling, and has its drivers loaded.
fn measure(vm: &Vm, beats: u32) -> Result<Cost> {
    let (to_version_us, to_offers_us) = init_times(vm)?;
    let symbols = vm.symbols()?;
    let ((hypercalls, interrupts, longest_us), report) =
        vm.profile(&symbols, || heartbeat_cost(vm, beats))?;
    let bus: u64 = match vm.config.drivers {
        // Built in: its functions among those of the kernel image.
        Drivers::C => report
            .functions
            .iter()
            .filter(|((module, name), _)| module == hvctl::profile::KERNEL && is_c_bus(name))
            .map(|(_, count)| count)
            .sum(),
        _ => report.module("hv_vmbus_rs"),
    };
    let utils = report.module("hv_utils") + report.module("hv_utils_rs");
    Ok(Cost {
        to_version_us,
        to_offers_us,
        hypercalls,
        interrupts,
        longest_us,
        bus_instructions: bus as f64 / f64::from(beats),
        utils_instructions: utils as f64 / f64::from(beats),
    })
}

/// From the start of the bus driver's initialisation to the line "Vmbus version:", and to its end, in microseconds of
/// the guest's clock. The guest was booted with [`TRACE_INIT`].
pub fn init_times(vm: &Vm) -> Result<(u64, u64)> {
    let init = match vm.config.drivers {
        Drivers::C => "hv_acpi_init",
        _ => "[hv_vmbus_rs]",
    };
    let lines = vm.log_since(0)?;
    let at = |what: &str, find: &dyn Fn(&str) -> bool| {
        lines
            .iter()
            .find(|line| find(&line.text))
            .map(|line| line.us)
            .with_context(|| format!("{what} is not in the log"))
    };
    let start = at("the start of the initialisation", &|text| {
        text.starts_with("calling ") && text.contains(init)
    })?;
    let version = at("Vmbus version", &|text| text.contains("Vmbus version:"))?;
    let end = at("the end of the initialisation", &|text| {
        text.starts_with("initcall ") && text.contains(init)
    })?;
    Ok((version.saturating_sub(start), end.saturating_sub(start)))
}

/// Hypercalls and interrupts per heartbeat, and the longest round trip in microseconds. The beats come at a pace that lets
/// the guest go to sleep in between.
pub fn heartbeat_cost(vm: &Vm, beats: u32) -> Result<(f64, f64, u64)> {
    vm.reset_counters()?;
    let status = vm.paced_beats(beats, PACE_MS)?;
    let counters = vm.host().counters()?;
    // These count hypercalls that are in one of the others already.
    let twice = ["hypercall_fast", "hypercall_failed"];
    let hypercalls: u64 = counters
        .partition
        .iter()
        .filter(|(name, _)| name.starts_with("hypercall_") && !twice.contains(&name.as_str()))
        .map(|(_, count)| count)
        .sum();
    let answered = status.answered.max(1) as f64;
    let interrupts = *counters
        .partition
        .get("synic_interrupts")
        .context("the host does not count synic_interrupts")?;
    Ok((
        hypercalls as f64 / answered,
        interrupts as f64 / answered,
        status.max_rtt_us.unwrap_or(0),
    ))
}
