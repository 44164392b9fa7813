// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! `hv-vss-daemon`: freezes this guest's file systems while the Hyper-V host copies its disks.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use hv_daemons::device::{self, Node};
use hv_daemons::logging::{self, Target};
use hv_daemons::program::{self, Common};
use hv_daemons::vss::{recover, select, watchdog, Daemon, Hooks, Kernel, Settings};
use log::error;

/// Freezes file systems while the Hyper-V host makes a backup, and thaws them whatever happens
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
struct Options {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    backup: Backup,
    /// Device of the driver
    #[arg(long, value_name = "FILE", default_value = "/dev/vmbus/hv_vss")]
    device: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args, Clone)]
struct Backup {
    /// Programs to run before a freeze (argument "freeze") and after the thaw ("thaw")
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/etc/hyperv/backup.d",
        global = true
    )]
    hooks: PathBuf,
    /// How long each of them may take
    #[arg(long, value_name = "SECONDS", default_value_t = 30, global = true)]
    hook_limit: u64,
    /// How long file systems may stay frozen
    #[arg(long, value_name = "SECONDS", default_value_t = 120, global = true,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    freeze_limit: u64,
    /// Tells of a backup that is under way
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/run/hv-vss-daemon.backup",
        global = true
    )]
    state: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Print which file systems a backup freezes, in this order, and which it does not
    List,
    /// Thaw what a daemon that died had frozen, and run the hooks
    Recover,
    /// The process that does so by itself; started by the daemon
    #[command(hide = true)]
    Watchdog,
}

const AFTER_HELP: &str = "\
Without a command it serves the host: in the background, or with --foreground under systemd (hv-vss-daemon.service).
File systems are thawed when the host says so, when it gives up, when --freeze-limit passes, when the daemon ends or dies.
A hook that fails or takes too long before a freeze makes the host's backup fail rather than be inconsistent.";

fn main() -> ExitCode {
    let options = Options::parse();
    let settings = Settings {
        hooks: Hooks {
            directory: options.backup.hooks.clone(),
            limit: Duration::from_secs(options.backup.hook_limit),
        },
        limit: Duration::from_secs(options.backup.freeze_limit),
        state: options.backup.state.clone(),
        root: "/".into(),
        mountinfo: "/proc/self/mountinfo".into(),
    };
    match options.command {
        Some(Command::List) => list(&settings),
        Some(Command::Recover) => {
            logging::init("hv-vss-daemon", Target::Stderr, options.common.debug);
            recover(&settings, &Kernel);
            ExitCode::SUCCESS
        }
        Some(Command::Watchdog) => {
            let target = match options.common.foreground {
                true => Target::Stderr,
                false => {
                    program::detach_output();
                    Target::Syslog
                }
            };
            logging::init("hv-vss-daemon", target, options.common.debug);
            watchdog::main(&Kernel, || recover(&settings, &Kernel));
            ExitCode::SUCCESS
        }
        None => serve(&options, settings),
    }
}

fn serve(options: &Options, settings: Settings) -> ExitCode {
    let mut running = match program::start("hv-vss-daemon", &options.common) {
        Ok(running) => running,
        Err(code) => return code,
    };
    let failed = |error: &dyn std::fmt::Display| {
        error!("{error}");
        ExitCode::FAILURE
    };
    recover(&settings, &Kernel);
    let mut arguments = vec![
        "watchdog".to_owned(),
        format!("--hooks={}", settings.hooks.directory.display()),
        format!("--hook-limit={}", settings.hooks.limit.as_secs()),
        format!("--state={}", settings.state.display()),
    ];
    if options.common.foreground {
        arguments.push("--foreground".to_owned());
    }
    let start = move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        watchdog::Watchdog::start(&arguments)
    };
    let mut daemon = match Daemon::new(settings, Kernel, Box::new(start)) {
        Ok(daemon) => daemon,
        Err(error) => return failed(&format_args!("cannot start the watchdog: {error}")),
    };
    watchdog::lock_memory();
    let node = Node::new(&options.device, "Backup (volume shadow copy)", "hv_utils");
    match device::run(&node, &mut running, &mut daemon) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn list(settings: &Settings) -> ExitCode {
    let mountinfo = match std::fs::read(&settings.mountinfo) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) => {
            eprintln!("{}: {error}", settings.mountinfo.display());
            return ExitCode::FAILURE;
        }
    };
    let selection = select(&mountinfo, &settings.root);
    for mounts in &selection.freeze {
        if let Some(mount) = mounts.first() {
            println!(
                "{} ({}, {})",
                mount.point.display(),
                mount.fstype,
                mount.source.display()
            );
        }
    }
    for (point, reason) in &selection.skipped {
        println!("not frozen: {}: {reason}", point.display());
    }
    ExitCode::SUCCESS
}
