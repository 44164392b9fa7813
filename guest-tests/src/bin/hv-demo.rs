// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! `scripts/demo`: shows the drivers at work.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use guest_tests::{demo, interactive, Drivers, Env, VmConfig};

/// Boot a stock Debian kernel under the emulated Hyper-V host and show the VMBus drivers at work.
#[derive(Parser)]
#[command(name = "scripts/demo", bin_name = "scripts/demo")]
struct Args {
    /// Driver stack: rust, or c for the kernel's own.
    #[arg(long, default_value = "rust", value_parser = ["rust", "c"])]
    drivers: String,
    /// Virtual CPUs.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    smp: u32,
    /// How long the VM is frozen, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    freeze: u64,
    /// Also show the network: addresses, data with its checksum, speed by iperf3.
    #[arg(long)]
    network: bool,
    /// Then boot Debian from a synthetic SCSI disk, write and check data on it, and power off.
    #[arg(long)]
    disk: bool,
    /// Afterwards, boot the same guest again with a prompt on this terminal.
    #[arg(long)]
    shell: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("demo: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    let env = Env::from_env()?;
    let drivers = if args.drivers == "c" {
        Drivers::C
    } else {
        Drivers::Rust
    };
    let options = demo::Options {
        drivers,
        smp: args.smp,
        freeze: Duration::from_secs(args.freeze),
        network: args.network,
        disk: args.disk,
    };
    let passed = demo::run(&env, &options);
    if args.shell && passed {
        println!("\nA guest for you:");
        interactive::run(
            &env,
            VmConfig::new("demo-shell", drivers).smp(args.smp),
            true,
            &[],
        )?;
    }
    Ok(passed)
}
