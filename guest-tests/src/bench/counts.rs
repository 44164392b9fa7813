// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Counting what a load costs a guest: instructions by part, hypercalls, interrupts.
//!
//! A load is run short and long, and the difference of the two is divided by the difference of their operations, so that the
//! start of the program, the agent and its serial port cancel out.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{bail, Context, Result};
use guest_agent::{Command as Ask, IoResult, Output};
use hvctl::profile::{Report as Profile, Symbols};

use super::report::{Sample, Values};
use super::Stack;
use crate::vm::{describe, SOON};
use crate::Vm;

/// A load may take this long; on a busy machine without instruction counts the slowest takes seconds.
const LOAD_LIMIT: Duration = Duration::from_secs(120);

/// Counts of one load.
struct Counts {
    operations: u64,
    profile: Profile,
    hypercalls: u64,
    interrupts: u64,
}

/// Where code belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The driver's module.
    Driver,
    /// The bus.
    Bus,
    /// What lies above the driver.
    Layers,
    /// The rest of the kernel.
    Rest,
    /// Programs.
    User,
}

/// Tells where the function of a module belongs.
pub type Parts = fn(Stack, &str, &str) -> Part;

/// Runs a load that the agent knows by `argv`.
///
/// # Errors
/// What it says.
pub fn load(vm: &Vm, argv: Vec<String>) -> Result<IoResult> {
    let what = argv.join(" ");
    let ask = Ask::Exec {
        argv,
        timeout_ms: LOAD_LIMIT.as_millis() as u64,
    };
    let out: Output = vm.agent.call(ask, LOAD_LIMIT + SOON)?;
    if out.rc != Some(0) {
        bail!("{what}: {}", describe(&out));
    }
    serde_json::from_str(&out.stdout.text()).with_context(|| what)
}

/// Runs a load and counts.
///
/// # Errors
/// The load's, and those of who counts.
fn count(
    vm: &Vm,
    symbols: &Symbols,
    stack: Stack,
    load: impl FnOnce() -> Result<IoResult>,
) -> Result<Counts> {
    let interrupts = || -> Result<u64> {
        let text = vm.sh("cat /proc/interrupts")?;
        Ok(count_interrupts(&text, stack))
    };
    vm.reset_counters()?;
    let before = interrupts()?;
    let (result, profile) = vm.profile(symbols, load)?;
    let after = interrupts()?;
    let counters = vm.host().counters()?;
    // These count hypercalls that are in one of the others already.
    let twice = ["hypercall_fast", "hypercall_failed"];
    let hypercalls = counters
        .partition
        .iter()
        .filter(|(name, _)| name.starts_with("hypercall_") && !twice.contains(&name.as_str()))
        .map(|(_, count)| count)
        .sum();
    Ok(Counts {
        operations: result.ios,
        profile,
        hypercalls,
        interrupts: after.saturating_sub(before),
    })
}

/// What one of `n` operations costs: a run of `5 * n` less one of `n`.
///
/// # Errors
/// As for [`count`].
pub fn measure(
    vm: &Vm,
    symbols: &Symbols,
    sample: Sampled,
    n: u64,
    load: impl Fn(u64) -> Result<IoResult>,
) -> Result<Sample> {
    // The first load meets cold caches, lazily allocated memory, and a link that is just coming up.
    load(n)?;
    let short = count(vm, symbols, sample.stack, || load(n))?;
    let long = count(vm, symbols, sample.stack, || load(5 * n))?;
    Ok(sample.of(&short, &long))
}

/// Runs a load of `n` operations to meet cold caches, and one of `10 * n` whose time counts. With it, the seconds that it took.
///
/// # Errors
/// The load's.
pub fn timed(n: u64, load: impl Fn(u64) -> Result<IoResult>) -> Result<(IoResult, f64)> {
    load(n)?;
    let result = load(10 * n)?;
    let seconds = result.elapsed_ns.max(1) as f64 / 1e9;
    Ok((result, seconds))
}

/// What a sample is of, and how its instructions are told apart.
pub struct Sampled {
    /// Name of the load in the report.
    pub workload: &'static str,
    /// Who served it.
    pub stack: Stack,
    /// Which of the alternating runs.
    pub run: u32,
    /// Where functions belong.
    pub parts: Parts,
    /// What [`Part::Layers`] is, if that is of interest.
    pub layers: Option<&'static str>,
}

impl Sampled {
    fn of(self, short: &Counts, long: &Counts) -> Sample {
        let Self {
            workload,
            stack,
            run,
            parts,
            layers,
        } = self;
        let operations = (long.operations - short.operations) as f64;
        let per = |long: u64, short: u64| (long as f64 - short as f64) / operations;
        let difference = long.profile.minus(&short.profile);
        let mut cost = cost(stack, &difference, operations, parts, layers);
        cost.values
            .insert("hypercalls", per(long.hypercalls, short.hypercalls));
        cost.values
            .insert("interrupts", per(long.interrupts, short.interrupts));
        Sample {
            workload,
            stack,
            run,
            values: cost.values,
            functions: cost.functions,
        }
    }
}

/// Instructions per operation.
pub struct Cost {
    /// Sums by part.
    pub values: Values,
    /// Those of driver and bus by function.
    pub functions: Vec<(String, f64)>,
}

/// Sums a difference of two profiles up by part, per operation. `layers` names what [`Part::Layers`] is, if that is of
/// interest.
pub fn cost(
    stack: Stack,
    difference: &BTreeMap<(String, String), i64>,
    operations: f64,
    parts: Parts,
    layers: Option<&'static str>,
) -> Cost {
    let mut sums = [0i64; 5];
    let mut functions = Vec::new();
    for ((module, function), count) in difference {
        let part = parts(stack, module, function);
        sums[part as usize] += count;
        if matches!(part, Part::Driver | Part::Bus) {
            let name = format!("{function} [{module}]");
            functions.push((name, *count as f64 / operations));
        }
    }
    functions.sort_by(|a, b| b.1.total_cmp(&a.1));
    functions.retain(|(_, count)| count.abs() >= 0.5);
    let of = |part: Part| sums[part as usize] as f64 / operations;
    let (driver, bus) = (of(Part::Driver), of(Part::Bus));
    let kernel = driver + bus + of(Part::Layers) + of(Part::Rest);
    let mut values: Values = [
        ("driver", driver),
        ("bus", bus),
        ("driver + bus", driver + bus),
        ("whole kernel", kernel),
        ("whole guest", kernel + of(Part::User)),
    ]
    .into();
    if let Some(name) = layers {
        values.insert(name, of(Part::Layers));
    }
    Cost { values, functions }
}

/// Sums up the lines of `/proc/interrupts` that are the stack's.
fn count_interrupts(text: &str, stack: Stack) -> u64 {
    text.lines()
        .filter(|line| match stack {
            Stack::Rust | Stack::C => line.trim_start().starts_with("HYP:"),
            Stack::Virtio => line.contains("virtio"),
        })
        .flat_map(|line| {
            // NAME: one number for each CPU, then words.
            line.split_whitespace()
                .skip(1)
                .map_while(|word| word.parse::<u64>().ok())
                .collect::<Vec<_>>()
        })
        .sum()
}

/// A path within the host's list of devices, where some characters have a meaning.
///
/// # Errors
/// It has such characters.
pub fn path_word(path: &Path) -> Result<String> {
    let word = path.display().to_string();
    if word.contains([',', ':', '+', ';']) {
        bail!("{word}: a path with one of , : + ; cannot be given to the host; use another XDG_CACHE_HOME");
    }
    Ok(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_are_summed_over_cpus() {
        let text = "           CPU0       CPU1\n \
            10:        5         6   IO-APIC  10-fasteoi   virtio0\n \
            24:       7          0  PCI-MSI 1-edge      virtio1-request\n\
            HYP:        100        23   Hypervisor callback interrupts\n\
            HVS:        9        9   Hyper-V stimer0 interrupts\n";
        assert_eq!(count_interrupts(text, Stack::C), 123);
        assert_eq!(count_interrupts(text, Stack::Rust), 123);
        assert_eq!(count_interrupts(text, Stack::Virtio), 18);
    }
}
