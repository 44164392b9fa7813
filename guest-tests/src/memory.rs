// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What a guest's kernel has in use, and whether it grows when something comes and goes.

use std::collections::BTreeMap;

use anyhow::{ensure, Context, Result};

use crate::vm::Vm;

/// Kernel command line: every slab cache for itself. Caches of one size share their slabs otherwise, under the name of
/// whichever came first, and a reader looks for a leak where there is none.
pub const EXACT_SLABS: &str = "slab_nomerge";

/// Stretches of cycles between two looks at the memory. What is on the CPUs' own lists of free objects counts as used and
/// moves by dozens either way; a leak grows in every stretch.
const WINDOWS: u32 = 4;

/// How the guest's memory is used: counts by name.
#[derive(Default)]
pub struct Memory(BTreeMap<String, i64>);

impl Memory {
    /// Reads it after everything that can be given back was given back.
    pub fn read(vm: &Vm) -> Result<Self> {
        vm.sh("sync; echo 3 > /proc/sys/vm/drop_caches; for f in /sys/kernel/slab/*/shrink; do echo 1 > $f; done")?;
        let mut counts = BTreeMap::new();
        for line in vm.read("/proc/slabinfo")?.lines().skip(2) {
            let mut words = line.split_whitespace();
            if let (Some(name), Some(Ok(active))) = (words.next(), words.next().map(str::parse)) {
                counts.insert(format!("objects of {name}"), active);
            }
        }
        let pages = -field(&vm.read("/proc/vmstat")?, "nr_free_pages ")?;
        counts.insert("pages".into(), pages);
        counts.insert(
            "vmalloc areas".into(),
            vm.read("/proc/vmallocinfo")?.lines().count() as i64,
        );
        counts.insert(
            "KiB of per-CPU memory".into(),
            field(&vm.read("/proc/meminfo")?, "Percpu:")?,
        );
        Ok(Self(counts))
    }
}

/// What grew by at least one a cycle in each window.
pub fn leaks(readings: &[Memory], cycles: i64) -> Vec<String> {
    let (Some(first), Some(last)) = (readings.first(), readings.last()) else {
        return Vec::new();
    };
    let mut leaks = Vec::new();
    for (name, end) in &last.0 {
        let always =
            readings
                .windows(2)
                .all(|pair| match (pair[0].0.get(name), pair[1].0.get(name)) {
                    (Some(before), Some(after)) => after - before >= cycles,
                    _ => false,
                });
        if always {
            leaks.push(format!("{} {name}", end - first.0.get(name).unwrap_or(&0)));
        }
    }
    leaks
}

/// What [`no_leak`] saw.
pub struct Steady {
    /// Cycles run.
    pub cycles: u32,
    /// Pages in use more than before them.
    pub pages: i64,
    /// Areas of `vmalloc` more than before them.
    pub vmalloc_areas: i64,
}

/// Runs `cycle` over and over, and fails when anything in the guest's memory grows by one or more a cycle all the time.
///
/// Four windows of `short` cycles first. In short windows a few objects more on the CPUs' own lists look like a leak, so
/// what grew is looked at again in windows of `long` cycles: a leak is there, too.
pub fn no_leak(vm: &Vm, short: u32, long: u32, cycle: impl Fn() -> Result<()>) -> Result<Steady> {
    let series = |per_window: u32| -> Result<(Vec<Memory>, Vec<String>)> {
        let mut readings = vec![Memory::read(vm)?];
        for _ in 0..WINDOWS {
            for _ in 0..per_window {
                cycle()?;
            }
            readings.push(Memory::read(vm)?);
        }
        let leaks = leaks(&readings, i64::from(per_window));
        Ok((readings, leaks))
    };
    let (mut readings, mut leaking) = series(short)?;
    let mut cycles = WINDOWS * short;
    if !leaking.is_empty() && short < long {
        (readings, leaking) = series(long)?;
        cycles += WINDOWS * long;
    }
    ensure!(
        leaking.is_empty(),
        "lost in the last {WINDOWS} windows of {cycles} cycles in all: {}",
        leaking.join(", ")
    );
    let (first, last) = (&readings[0], &readings[readings.len() - 1]);
    let grown = |name: &str| last.0.get(name).unwrap_or(&0) - first.0.get(name).unwrap_or(&0);
    Ok(Steady {
        cycles,
        pages: grown("pages"),
        vmalloc_areas: grown("vmalloc areas"),
    })
}

fn field(text: &str, name: &str) -> Result<i64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|word| word.parse().ok())
        .with_context(|| format!("no {name} there"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(series: &[&[i64]]) -> Vec<Memory> {
        let names = ["pages", "objects of filp"];
        let of = |at: usize| {
            names
                .iter()
                .zip(series)
                .map(|(name, values)| ((*name).to_owned(), values[at]))
                .collect()
        };
        (0..series[0].len()).map(|at| Memory(of(at))).collect()
    }

    #[test]
    fn a_leak_grows_in_every_window() {
        let pages: &[i64] = &[100, 90, 130, 125, 140];
        let leaking: &[i64] = &[7, 9, 12, 14, 16];
        assert_eq!(
            leaks(&readings(&[pages, leaking]), 2),
            ["9 objects of filp"]
        );
        let noisy: &[i64] = &[7, 67, 68, 100, 90];
        assert!(leaks(&readings(&[pages, noisy]), 2).is_empty());
    }
}
