// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! `scripts/test`: runs the test suites.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{bail, Result};
use clap::Parser;
use guest_tests::runner::{self, Options, Suite};
use guest_tests::{disks, env, scenarios, Env};

/// Run the tests: all suites, or the named ones.
#[derive(Parser)]
#[command(name = "scripts/test", bin_name = "scripts/test")]
struct Args {
    /// Suites; all by default.
    #[arg(value_name = "SUITE")]
    suites: Vec<String>,
    /// The full counts instead of those fit for CI.
    #[arg(long)]
    full: bool,
    /// Only tests whose suite::name contains this. Repeatable.
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// List the tests instead of running them.
    #[arg(long)]
    list: bool,
    /// One of several parts of a run: keep the totals for the next, and add those of the part before.
    #[arg(long, hide = true)]
    part: Option<u8>,
    /// Virtual machines at a time.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    jobs: u8,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("test: {err:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all passed.
fn run(args: &Args) -> Result<bool> {
    let suites = choose(&args.suites, env::checked_kernel())?;
    let tests = runner::chosen(&suites, &args.filter);
    if tests.is_empty() {
        bail!("no test matches --filter {}", args.filter.join(" "));
    }
    if args.list {
        for (suite, scenario) in &tests {
            println!(
                "{:28} {}",
                format!("{}::{}", suite.name, scenario.name),
                scenario.about
            );
        }
        return Ok(true);
    }
    let env = Env::from_env()?;
    runner::clean_logs(&env, &tests)?;
    disks::sweep(&env.scratch());
    let begin = Instant::now();
    let options = Options {
        full: args.full,
        filter: args.filter.clone(),
        jobs: args.jobs.into(),
    };
    let mut totals = runner::run(&env, &suites, &options);
    println!(
        "\n{:.0} s; logs in {}",
        begin.elapsed().as_secs_f64(),
        env.logs.display()
    );
    if let Some(part) = args.part {
        totals.carry(&env.logs.join("totals.json"), part == 1)?;
    }
    for name in &totals.failures {
        println!("failed: {name}");
    }
    println!("{totals}");
    Ok(totals.failed == 0)
}

/// Without names: all suites that this kernel is for.
fn choose(names: &[String], checked_kernel: bool) -> Result<Vec<Suite>> {
    let all = scenarios::suites();
    for name in names {
        if !all.iter().any(|suite| suite.name == name) {
            let known: Vec<_> = all.iter().map(|suite| suite.name).collect();
            bail!(
                "unknown suite {name:?}; the suites are: {}",
                known.join(", ")
            );
        }
    }
    Ok(all
        .into_iter()
        .filter(|suite| {
            if names.is_empty() {
                suite.for_checked_kernel() == checked_kernel
            } else {
                names.iter().any(|name| name == suite.name)
            }
        })
        .collect())
}
