// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Init and agent of the test guest, one static program under several names:
//!
//! * as `init` (pid 1): mounts the usual file systems, keeps an agent on ttyS1, and with
//!   `hv.shell` on the kernel command line a shell on the console; reaps orphans. With `hv.root=DEVICE` it becomes the
//!   init of the system on that disk instead, and the agent a service there;
//! * as `poweroff`, `reboot`, `halt`: what the kernel's orderly_poweroff() and orderly_reboot() call;
//! * as `hv-io` and `hv-net`: a load on a block device or on the network, for measurements;
//! * as `guest-agent [TTY]`: serves the protocol of the library on TTY (default /dev/ttyS1).
#![forbid(unsafe_code)]

mod boot;
mod exec;
mod files;
mod init;
mod io;
mod log;
mod net;
mod serve;
mod uevent;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args();
    let name = args.next().unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default();
    let result = match name {
        "init" => init::run(),
        "hv-io" => io::run(&args.collect::<Vec<_>>()),
        "hv-net" => net::run(&args.collect::<Vec<_>>()),
        "poweroff" | "reboot" | "halt" => init::end(name),
        _ => serve::run(&args.next().unwrap_or_else(|| "/dev/ttyS1".into())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            log::kernel(&format!("{name}: {err:#}"));
            eprintln!("{name}: {err:#}");
            ExitCode::FAILURE
        }
    }
}
