// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! `scripts/vm`: boots a guest by hand, with its console on this terminal.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use guest_tests::{Drivers, Env, VmConfig};

const AFTER_HELP: &str = "\
The guest is an initramfs in memory: nothing survives it. Leave it with `exit` or `poweroff`.
In the guest: /lib/modules-rs holds the Rust modules (insmod hv_vmbus_rs.ko, then hv_utils_rs.ko), modprobe
loads the kernel's own, lsvmbus lists the devices.

The host listens on a control socket, whose path is printed at the start; from another terminal:
    scripts/hvctl --socket PATH status
    scripts/hvctl --socket PATH channels
    scripts/hvctl --socket PATH rescind heartbeat
    scripts/hvctl --help
Under --profile, `hvctl profile mark` and `hvctl profile read --kallsyms FILE` bracket what is to be measured; the
guest's symbols are written to the FILE that is printed at the start.";

/// Boot a guest under the emulated Hyper-V host, with its console on this terminal.
#[derive(Parser)]
#[command(name = "scripts/vm", bin_name = "scripts/vm", after_help = AFTER_HELP)]
struct Args {
    /// Driver stack: rust (loaded after boot), c (the kernel's own, hv_utils loaded after boot), or none (the C bus is
    /// kept down and nothing is loaded).
    #[arg(long, value_enum, default_value_t = Drivers::Rust)]
    drivers: Drivers,
    /// Leave the modules of the driver stack to be loaded by hand.
    #[arg(long)]
    no_load: bool,
    /// Virtual CPUs.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    smp: u32,
    /// Memory in MiB.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(192..))]
    memory: u32,
    /// Newest VMBus version that the host accepts: 4.0, 4.1, 5.0, 5.1, 5.2, 5.3 or 6.0.
    #[arg(long, value_name = "X.Y", default_value = "6.0",
          value_parser = ["4.0", "4.1", "5.0", "5.1", "5.2", "5.3", "6.0"])]
    vmbus_version: String,
    /// A device for the host to offer, with arguments, such as timesync:max=3.0 (docs/vmbus-host.md); only those named
    /// are offered. Repeatable.
    #[arg(long, value_name = "NAME[:KEY=VALUE]")]
    device: Vec<String>,
    /// Kernel image of your own. Its modules are not in the guest. (--kernel VERSION, before the other options, chooses
    /// one of Debian's.)
    #[arg(long, value_name = "FILE")]
    kernel_image: Option<PathBuf>,
    /// More words for the kernel command line. Repeatable.
    #[arg(long, value_name = "WORDS")]
    append: Vec<String>,
    /// A raw disk image, attached as a virtio disk. Repeatable.
    #[arg(long, value_name = "FILE")]
    disk: Vec<PathBuf>,
    /// A network card (virtio) with user-mode networking.
    #[arg(long)]
    network: bool,
    /// Count guest instructions per module and function.
    #[arg(long)]
    profile: bool,
    /// Plain QEMU, without the emulated host.
    #[arg(long)]
    plain: bool,
    /// More arguments for QEMU.
    #[arg(last = true, value_name = "QEMU-ARGS")]
    qemu_args: Vec<String>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("vm: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let env = Env::from_env()?;
    for file in args.disk.iter().chain(&args.kernel_image) {
        std::fs::metadata(file).with_context(|| file.display().to_string())?;
    }
    let config = VmConfig {
        smp: args.smp,
        memory: args.memory,
        vmbus: Some(args.vmbus_version),
        devices: args.device,
        cmdline: args.append,
        disks: args.disk,
        network: args.network,
        profile: args.profile,
        kernel: args.kernel_image,
        plain: args.plain,
        interactive: true,
        qemu_args: args.qemu_args,
        ..VmConfig::new("vm", args.drivers)
    };
    guest_tests::interactive::run(&env, config, !args.no_load)
}
