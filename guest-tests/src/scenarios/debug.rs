// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The other suites' tests of the Rust modules on a kernel with the kernel's own checkers (KASAN, lockdep, UBSAN, debug
//! objects, checks for sleeping in atomic context). What a checker reports is trouble on the
//! console and fails the test that was running, as in any suite.

use crate::runner::{Ctx, Scenario, Skip, Suite};
use crate::Drivers;

/// What is not run on the debug kernel, and why not.
const LEFT_OUT: [(&str, &str); 10] = [
    ("-as-c", "compares with what the C drivers show"),
    ("cost", "counts instructions of the stock kernel"),
    ("stalls", "compares times with those of the C drivers"),
    (
        "debian",
        "boots Debian or runs its daemons, which takes minutes under the checkers",
    ),
    (
        "units",
        "boots Debian, which takes minutes under the checkers",
    ),
    ("backup", "the debug kernel has neither xfs nor btrfs"),
    ("file-systems", "the debug kernel has neither xfs nor btrfs"),
    (
        "kdump",
        "the crash kernel's memory is sized for the stock kernel",
    ),
    ("kernel-selftests", "needs modules of Debian's kernel"),
    ("traffic", "needs modules of Debian's kernel"),
];

/// The suite: the tests of `suites` that run the Rust modules.
pub fn suite(suites: &[Suite]) -> Suite {
    let mut scenarios = Vec::new();
    for suite in suites {
        for scenario in &suite.scenarios {
            if scenario.drivers.unwrap_or(suite.drivers) == Drivers::Rust {
                scenarios.push(of_suite(suite.name, scenario));
            }
        }
    }
    Suite {
        name: "debug",
        about: "the Rust modules on a kernel with KASAN, lockdep and the like",
        drivers: Drivers::Rust,
        scenarios,
    }
}

/// Another suite's test, under a name of its own.
fn of_suite(suite: &str, scenario: &Scenario) -> Scenario {
    let inner = scenario.clone();
    let left_out = LEFT_OUT
        .iter()
        .find(|(part, _)| scenario.name.contains(part));
    Scenario::new(
        &format!("{suite}-{}", scenario.name),
        &scenario.about,
        move |ctx: &Ctx| match left_out {
            Some((_, reason)) => Err(Skip((*reason).into()).into()),
            None => inner.run(ctx),
        },
    )
}
