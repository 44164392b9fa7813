// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! `scripts/bench`: measures driver stacks against each other.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use guest_tests::bench::{network, storage, Options, Stack};
use guest_tests::Env;

/// Measure the Rust drivers beside the kernel's C drivers beside virtio.
#[derive(Parser)]
#[command(name = "scripts/bench", bin_name = "scripts/bench")]
struct Args {
    /// What to measure.
    #[arg(value_enum)]
    suite: Suite,
    /// How often each stack is measured; the stacks take turns.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Only workloads whose name contains this, such as "depth 1" or "sent".
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Only these stacks. Repeatable.
    #[arg(long, value_enum)]
    stack: Vec<Stack>,
    /// Instruction counts alone: leave out the guests that are timed.
    #[arg(long)]
    no_timing: bool,
    /// Rows of the table of functions; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 0)]
    functions: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Suite {
    /// Disk requests.
    Storage,
    /// Frames.
    Network,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("bench: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let env = Env::from_env()?;
    let stacks = if args.stack.is_empty() {
        Stack::ALL.to_vec()
    } else {
        args.stack.clone()
    };
    let options = Options {
        runs: args.runs,
        filter: args.filter.clone(),
        stacks,
        no_timing: args.no_timing,
    };
    let report = match args.suite {
        Suite::Storage => storage::run(&env, &options, &mut |line| println!("{line}"))?,
        Suite::Network => network::run(&env, &options, &mut |line| println!("{line}"))?,
    };
    println!("\n{}", report.table());
    if args.functions > 0 {
        println!("{}", report.function_table(args.functions));
    }
    let path = report.save(&env.source.join("bench-results"))?;
    println!("written: {0}.json, {0}.md", path.display());
    Ok(())
}
