// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Loading the modules where they cannot work: one line that says why, and nothing else changes.

use anyhow::{ensure, Result};

use crate::runner::{Ctx, Scenario};
use crate::vm::{Vm, COMMAND_LIMIT, RUST_MODULES};
use crate::Drivers;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "refuse-c-bus",
            "the C driver owns the bus: the module refuses to load and says what to do",
            c_bus,
        ),
        Scenario::new(
            "refuse-not-hyperv",
            "not a Hyper-V machine: the module refuses to load and says so",
            not_hyperv,
        ),
    ]
}

/// Tries to load the bus module; gives the one line that it logged.
fn refused(vm: &Vm) -> Result<String> {
    let mark = vm.log_mark()?;
    let out = vm.run(
        &format!("insmod {RUST_MODULES}/hv_vmbus_rs.ko"),
        COMMAND_LIMIT,
    )?;
    ensure!(out.rc != Some(0), "the module was loaded");
    ensure!(
        !vm.read("/proc/modules")?.contains("hv_vmbus_rs"),
        "the module is still there"
    );
    let said: Vec<String> = vm
        .log_since(mark)?
        .into_iter()
        .map(|line| line.text)
        .filter(|text| text.contains("hv_vmbus"))
        // The kernel's own remarks about any module from outside its tree.
        .filter(|text| !text.contains("taint"))
        .collect();
    ensure!(
        said.len() == 1,
        "{} lines in the kernel log instead of one: {said:?}",
        said.len()
    );
    Ok(said.into_iter().next().unwrap_or_default())
}

fn c_bus(ctx: &Ctx) -> Result<()> {
    let mut config = ctx.config_for("", Drivers::C);
    // The overlay holds the Rust modules only when asked for.
    config.both_stacks = true;
    ctx.connected(config, |vm| {
        vm.beats(5)?;
        for turn in 0..3 {
            let line = refused(vm)?;
            ensure!(
                line.contains("initcall_blacklist=hv_acpi_init"),
                "the line does not say what to do: {line}"
            );
            if turn == 0 {
                ctx.figure(format!("{line:?}"));
            }
        }
        // Nothing else changed: the C stack goes on, and can come and go.
        vm.beats(20)?;
        vm.unload_drivers()?;
        vm.load_drivers()?;
        vm.beats(20)?;
        Ok(())
    })
}

fn not_hyperv(ctx: &Ctx) -> Result<()> {
    ctx.booted(ctx.config().plain(), |vm| {
        let line = refused(vm)?;
        ensure!(
            line.contains("Hyper-V"),
            "the line does not name the reason: {line}"
        );
        ctx.figure(format!("{line:?}"));
        vm.sh("test ! -e /sys/bus/vmbus")?;
        Ok(())
    })
}
