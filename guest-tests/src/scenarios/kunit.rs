// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The KUnit tests that the modules carry on a kernel with KUnit: they run as each module is loaded, and write KTAP to
//! the kernel's log.

use std::time::Duration;

use anyhow::{bail, Result};

use crate::ktap::{self, Outcome};
use crate::net::{Backend, Nic};
use crate::runner::{ensure, Ctx, Scenario};

/// Where the tests are written: every suite in them must have run.
const SOURCES: [&str; 4] = [
    include_str!("../../../kunit/vmbus.rs"),
    include_str!("../../../kunit/netvsc.rs"),
    include_str!("../../../kunit/storvsc.rs"),
    include_str!("../../../kunit/utils.rs"),
];

pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new(
        "modules",
        "the tests inside the modules, in a kernel with KASAN and lockdep",
        modules,
    )]
}

/// Names of the suites in a source file.
fn suites(source: &str) -> impl Iterator<Item = &str> {
    source
        .lines()
        .filter_map(|line| line.strip_prefix("#[kunit_tests(")?.strip_suffix(")]"))
}

fn modules(ctx: &Ctx) -> Result<()> {
    let config = ctx.config().smp(2).storage().nic(Nic::new(Backend::Echo));
    let config = config.cmdline("kunit.enable=1 kunit.autorun=1");
    ctx.booted(config, |vm| {
        let Some(console) = &vm.console else {
            bail!("no console");
        };
        let mark = console.mark();
        vm.load_drivers()?;
        vm.run("echo kunit-is-over >/dev/kmsg", Duration::from_secs(60))?;
        console.wait("kunit-is-over", mark, Duration::from_secs(60))?;
        let lines = console.since(mark);
        let report = ktap::parse(lines.iter().map(String::as_str));
        let mut failed = Vec::new();
        let (mut passed, mut skipped) = (0, 0);
        for case in &report.cases {
            match &case.outcome {
                Outcome::Passed => passed += 1,
                Outcome::Skipped(_) => skipped += 1,
                Outcome::Failed(words) => {
                    failed.push(format!(
                        "{}.{}: {}",
                        case.suite,
                        case.name,
                        words.join(" | ")
                    ));
                }
            }
        }
        ctx.counts(passed, failed.len(), skipped);
        ctx.figure(format!("{passed} cases passed"));
        for suite in SOURCES.iter().flat_map(|source| suites(source)) {
            ensure(
                report.cases.iter().any(|case| case.suite == suite),
                format!("suite {suite} did not run"),
            )?;
        }
        ensure(
            report.broken.is_empty(),
            format!("suites that did not end: {}", report.broken.join(", ")),
        )?;
        ensure(failed.is_empty(), failed.join("\n"))
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_source_has_suites() {
        for source in super::SOURCES {
            assert!(super::suites(source).count() > 0);
        }
    }
}
