// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! `hv-fcopy-daemon`: writes the files that the Hyper-V host copies into this guest.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use hv_daemons::device::Node;
use hv_daemons::fcopy::{self, Receiver, Rules};
use hv_daemons::program::{self, Common};
use log::error;

/// Receives files from the Hyper-V host (Copy-VMFile; the host's "Guest services")
#[derive(Parser)]
#[command(version, after_help = AFTER_HELP)]
struct Options {
    #[command(flatten)]
    common: Common,
    /// Let the host write below this directory only; its paths are taken as below it
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Largest file, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1 << 20)]
    max_size: u64,
    /// Permissions of files, octal
    #[arg(long, value_name = "MODE", default_value = "0644", value_parser = mode)]
    mode: u32,
    /// Device of the driver; where it is absent, the channel is used through UIO
    #[arg(long, value_name = "FILE", default_value = "/dev/vmbus/hv_fcopy")]
    device: PathBuf,
}

const AFTER_HELP: &str = "\
Whoever administers the host can write any file below --root while this runs: it is off unless it is switched on
(`systemctl enable --now hv-fcopy-daemon`). A file appears under its name when it is whole and on the disk.";

fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("not an octal mode of 0777 or less".into()),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut running = match program::start("hv-fcopy-daemon", &options.common) {
        Ok(running) => running,
        Err(code) => return code,
    };
    let rules = Rules {
        root: options.root.clone(),
        max_size: options.max_size.saturating_mul(1 << 20),
        mode: options.mode,
    };
    let receiver = match Receiver::new(rules) {
        Ok(receiver) => receiver,
        Err(error) => {
            error!("cannot use {}: {error}", options.root.display());
            return ExitCode::FAILURE;
        }
    };
    let node = Node::new(&options.device, "Guest services", "uio_hv_generic");
    match fcopy::run(&node, Path::new("/"), &mut running, receiver) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error}");
            ExitCode::FAILURE
        }
    }
}
