// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Pid 1 of the test guest.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::mount::{mount, MountFlags};
use rustix::process::{wait, WaitOptions};
use rustix::system::RebootCommand;

use crate::boot::{self, Root};
use crate::log;

/// What is mounted where: type, mount point.
const MOUNTS: [(&str, &str); 7] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("debugfs", "/sys/kernel/debug"),
];

/// Never returns while the guest runs: when pid 1 ends, the kernel panics.
pub fn run() -> Result<()> {
    for (kind, target) in MOUNTS {
        // Parents come first in the table; debugfs is not in every kernel.
        let _ = fs::create_dir(target);
        if let Err(err) = mount(kind, target, kind, MountFlags::empty(), None) {
            log::kernel(&format!("init: mount {target}: {err}"));
        }
    }
    std::env::set_var("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    std::env::set_var("HOME", "/root");
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if let Some(root) = Root::from_cmdline(&cmdline) {
        let Err(err) = boot::switch(&root);
        // The agent comes up in the initramfs: it can tell why, and so does the log.
        log::kernel(&format!("init: {err:#}"));
    }
    let with_shell = cmdline
        .split_ascii_whitespace()
        .any(|word| word == "hv.shell");

    let mut agent = start("agent", Command::new("/init").arg0("guest-agent"));
    let mut shell = with_shell
        .then(|| start("shell", &mut shell_command()))
        .flatten();
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, _status))) => {
                let pid = Some(pid.as_raw_nonzero().get() as u32);
                if pid == agent {
                    log::kernel("init: the agent ended, starting it again");
                    agent = start("agent", Command::new("/init").arg0("guest-agent"));
                } else if with_shell && pid == shell {
                    end("poweroff")?;
                    shell = None;
                }
            }
            Ok(None) => {}
            // Both children failed to start: nothing can be served, but the console still shows why.
            Err(rustix::io::Errno::CHILD) => std::thread::park(),
            Err(err) => log::kernel(&format!("init: wait: {err}")),
        }
    }
}

/// A login shell with the console as its controlling terminal.
fn shell_command() -> Command {
    let mut command = Command::new("/bin/busybox");
    command.args([
        "setsid",
        "/bin/busybox",
        "cttyhack",
        "/bin/busybox",
        "sh",
        "-l",
    ]);
    command
}

fn start(what: &str, command: &mut Command) -> Option<u32> {
    match command.spawn() {
        // The handle is dropped on purpose: the loop above reaps every child.
        Ok(child) => Some(child.id()),
        Err(err) => {
            log::kernel(&format!("init: cannot start the {what}: {err}"));
            None
        }
    }
}

/// `poweroff`, `reboot`, `halt`: at once; the guest has no services to stop.
pub fn end(how: &str) -> Result<()> {
    log::kernel(&format!("init: {how}"));
    rustix::fs::sync();
    let command = match how {
        "reboot" => RebootCommand::Restart,
        "halt" => RebootCommand::Halt,
        _ => RebootCommand::PowerOff,
    };
    rustix::system::reboot(command).context(how.to_owned())
}
