// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The guest tests. Each is written once: suite `guest` runs it with the Rust modules, suite `reference` with the
//! in-tree C drivers on the same host. Where C fails, the host is wrong; where only Rust fails, we are.

pub(crate) mod clock;
mod connect;
pub(crate) mod cost;
mod debug;
mod exchange;
mod ic;
mod kunit;
pub(crate) mod lifecycle;
mod mutants;
pub(crate) mod network;
mod package;
mod power;
pub(crate) mod programs;
mod refusal;
mod services;
mod smp;
pub(crate) mod storage;
mod sysfs;
mod system;

use crate::runner::{Scenario, Suite};
use crate::{unit, Drivers};

/// All suites, in the order in which they run.
pub fn suites() -> Vec<Suite> {
    let mut suites = vec![
        Suite {
            name: "unit",
            about: "native tests of the workspace",
            drivers: Drivers::None,
            scenarios: unit::scenarios(),
        },
        Suite {
            name: "guest",
            about: "Rust modules in a booted guest",
            drivers: Drivers::Rust,
            scenarios: [both(), rust_only()].concat(),
        },
        Suite {
            name: "reference",
            about: "the same tests with the in-tree C drivers",
            drivers: Drivers::C,
            scenarios: both(),
        },
        Suite {
            name: "storage",
            about: "SCSI disks, with the Rust modules and with the in-tree C drivers",
            drivers: Drivers::Rust,
            scenarios: storage::scenarios(),
        },
        Suite {
            name: "network",
            about: "network cards, with the Rust modules and with the in-tree C drivers",
            drivers: Drivers::Rust,
            scenarios: network::scenarios(),
        },
        Suite {
            name: "exchange",
            about: "key-value pairs, backup and file copy, with both stacks and both daemons",
            drivers: Drivers::Rust,
            scenarios: exchange::scenarios(),
        },
        Suite {
            name: "package",
            about: "the packages: what they build from, what boots, and what boots when they fail",
            drivers: Drivers::Rust,
            scenarios: package::scenarios(),
        },
    ];
    suites.push(Suite {
        name: "smp",
        about: "channels on several CPUs, with the Rust modules and with the in-tree C drivers",
        drivers: Drivers::Rust,
        scenarios: smp::scenarios(),
    });
    suites.push(debug::suite(&suites));
    suites.push(Suite {
        name: "kunit",
        about: "tests inside the modules, on a kernel with KUnit, KASAN and lockdep",
        drivers: Drivers::Rust,
        scenarios: kunit::scenarios(),
    });
    suites.push(mutants::suite(&suites));
    suites
}

/// What both stacks must do.
fn both() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(connect::scenarios());
    all.extend(services::scenarios());
    all.extend(ic::scenarios());
    all.extend(clock::scenarios());
    all.extend(lifecycle::scenarios());
    all.extend(power::scenarios());
    all.extend(sysfs::scenarios());
    all.extend(system::scenarios());
    all
}

/// What compares Rust with C, or makes no sense for a bus that is built in.
fn rust_only() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(sysfs::comparisons());
    all.extend(cost::comparisons());
    all.extend(ic::rust_only());
    all.extend(refusal::scenarios());
    all.extend(lifecycle::rust_only());
    all
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    /// `scripts/test` knows the suites by this list before anything is built.
    #[test]
    fn the_list_of_the_scripts_is_ours() {
        let list = include_str!("../../../scripts/suites");
        let listed: Vec<_> = list
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        let ours: Vec<_> = super::suites().iter().map(|suite| suite.name).collect();
        assert_eq!(listed, ours);
    }

    #[test]
    fn names_are_unique() {
        for suite in super::suites() {
            let mut seen = HashSet::new();
            for scenario in suite.scenarios {
                assert!(
                    seen.insert(scenario.name.clone()),
                    "{} twice in {}",
                    scenario.name,
                    suite.name
                );
            }
        }
    }
}
