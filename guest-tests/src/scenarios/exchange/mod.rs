// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The suite `exchange`: key-value pairs, backup and file copy, with either driver stack and either set of daemons: ours, and those of
//! Debian's package hyperv-daemons.

mod abort;
mod address;
mod backup;
mod copy;
mod frozen;
mod hostile;
mod kvp;
mod lifecycle;
mod postgres;
mod units;

use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use guest_agent::{Command as Ask, Output, Spawned};
use hvctl::{BackupOp, BackupReply, Client, Command, KvpOp, KvpReply, Sending};

use crate::runner::{Ctx, Scenario, Skip};
use crate::vm::{describe, Vm, IC_DEVICES, SOON};
use crate::VmConfig;

pub fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(kvp::scenarios());
    all.extend(address::scenarios());
    all.extend(backup::scenarios());
    all.extend(abort::scenarios());
    all.extend(postgres::scenarios());
    all.extend(copy::scenarios());
    all.extend(hostile::scenarios());
    all.extend(lifecycle::scenarios());
    all.extend(units::scenarios());
    all
}

/// What a program of the Debian image may take.
const PROGRAM_LIMIT: Duration = Duration::from_secs(600);

/// How long daemons and writers may run: longer than a hundred backups.
const DAEMON_LIMIT: Duration = Duration::from_secs(3 * 3600);

/// Longer than the guest's driver gives its daemon.
const ANSWER_LIMIT_MS: u64 = 60_000;

/// Where the Debian system is in the guest.
const DEBIAN: &str = "/debian";

/// Whose daemons run in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Daemons {
    Ours,
    Debian,
}

impl Daemons {
    const ALL: [Self; 2] = [Self::Ours, Self::Debian];

    fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Debian => "debian",
        }
    }

    /// Command line of a daemon, in the Debian system. `service` is kvp, vss or fcopy.
    fn command(self, service: &str) -> String {
        match self {
            Self::Ours => format!("/run/hv/hv-{service}-daemon --foreground"),
            Self::Debian => format!("/usr/sbin/hv_{service}_daemon -n"),
        }
    }
}

/// A test for each set of daemons with each stack, as `NAME-DAEMONS-STACK`.
fn each_cell(
    name: &str,
    about: &str,
    run: impl Fn(&Ctx, Daemons) -> Result<()> + Copy + Send + Sync + 'static,
) -> Vec<Scenario> {
    let both = |daemons: Daemons| {
        let name = format!("{name}-{}", daemons.name());
        Scenario::both(&name, about, move |ctx| run(ctx, daemons))
    };
    Daemons::ALL.into_iter().flat_map(both).collect()
}

/// Skips a test of Debian's daemons when the image is without them.
fn installed(vm: &Vm, daemons: Daemons) -> Result<()> {
    let out = vm.run("test -x /debian/usr/sbin/hv_kvp_daemon", SOON)?;
    if daemons == Daemons::Debian && out.rc != Some(0) {
        bail!(Skip("the Debian image is without hyperv-daemons".into()));
    }
    Ok(())
}

/// State of a process, a letter of proc_pid_stat(5); empty when it is gone.
fn state(vm: &Vm, pid: u32) -> Result<String> {
    let out = vm.run(&format!("cut -d' ' -f3 /proc/{pid}/stat"), SOON)?;
    Ok(out.stdout.text().trim().to_owned())
}

/// Where in the kernel a process is, one function a line.
fn stack(vm: &Vm, pid: u32) -> Result<String> {
    let out = vm.run(&format!("cat /proc/{pid}/stack"), SOON)?;
    Ok(out.stdout.text())
}

/// A daemon that runs in the guest.
struct Running<'a> {
    vm: &'a Vm,
    handle: u64,
    pid: u32,
}

impl<'a> Running<'a> {
    fn start(vm: &'a Vm, command: &str) -> Result<Self> {
        Self::start_in(vm, DEBIAN, command)
    }

    /// Starts it in another system than Debian's.
    fn start_in(vm: &'a Vm, root: &str, command: &str) -> Result<Self> {
        let script = format!("exec {command}");
        let argv = ["chroot", root, "/bin/sh", "-c", &script]
            .map(String::from)
            .to_vec();
        let Spawned { handle, pid } = vm.agent.call(
            Ask::Spawn {
                argv,
                timeout_ms: DAEMON_LIMIT.as_millis() as u64,
            },
            SOON,
        )?;
        Ok(Self { vm, handle, pid })
    }

    /// Starts a daemon of ours, and waits until it is asked what the host asks.
    fn serving(vm: &'a Vm, service: &str) -> Result<Self> {
        Self::serving_with(vm, service, "")
    }

    /// The same, with more options.
    fn serving_with(vm: &'a Vm, service: &str, options: &str) -> Result<Self> {
        let mark = vm.log_mark()?;
        let command = format!("{} {options}", Daemons::Ours.command(service));
        let daemon = Self::start(vm, &command)?;
        vm.host().wait_negotiated(service, SOON)?;
        // What is asked of KVP waits for a daemon, the others' requests fail at once.
        let name = match service {
            "kvp" => return Ok(daemon),
            "vss" => "VSS",
            _ => "FCopy",
        };
        vm.log(&format!("{name}: userspace daemon"), mark, SOON)?;
        Ok(daemon)
    }

    fn state(&self) -> Result<String> {
        state(self.vm, self.pid)
    }

    fn stack(&self) -> Result<String> {
        stack(self.vm, self.pid)
    }

    /// Kills it, as `kill -9` does.
    fn kill(self) -> Result<Output> {
        self.vm.agent.call(
            Ask::Collect {
                handle: self.handle,
                kill: true,
            },
            SOON,
        )
    }

    /// Waits for its own end.
    fn end(self, limit: Duration) -> Result<Output> {
        self.vm.agent.call(
            Ask::Collect {
                handle: self.handle,
                kill: false,
            },
            limit,
        )
    }
}

/// A guest's configuration with the three devices.
fn config(ctx: &Ctx) -> VmConfig {
    with_devices(ctx.config(), "kvp")
}

/// The same, with arguments for the first of them.
fn with_devices(config: VmConfig, kvp: &str) -> VmConfig {
    let devices = IC_DEVICES.into_iter().chain([kvp, "vss", "fcopy"]);
    devices.fold(config.smp(2).storage().daemons(), VmConfig::device)
}

/// A guest in its initramfs with the Debian image's programs, and places where daemons may write.
fn guest<T>(ctx: &Ctx, config: VmConfig, test: impl FnOnce(&Vm) -> Result<T>) -> Result<T> {
    ctx.booted(config, |vm| {
        vm.tools()?;
        vm.sh(
            "cp -r /hv /run/hv && mount -t tmpfs none /debian/var/lib && mkdir -p /debian/var/lib/hyperv",
        )?;
        // C's disks need what Debian loads by itself, too.
        vm.sh("modprobe sd_mod")?;
        vm.load_drivers()?;
        test(vm)
    })
}

/// Runs a program of the Debian image that must succeed; its standard output.
fn debian(vm: &Vm, command: &str) -> Result<String> {
    run_in(vm, DEBIAN, command)
}

/// The same in another system.
fn run_in(vm: &Vm, root: &str, command: &str) -> Result<String> {
    let quoted = command.replace('\'', r"'\''");
    let out = vm.run(
        &format!("LC_ALL=C chroot {root} /bin/sh -c '{quoted}'"),
        PROGRAM_LIMIT,
    )?;
    ensure!(out.rc == Some(0), "{command}: {}", describe(&out));
    Ok(out.stdout.text())
}

fn sending() -> Sending {
    Sending {
        wait_ms: ANSWER_LIMIT_MS,
        ..Sending::default()
    }
}

/// Asks the key-value pair service.
fn kvp(vm: &Vm, op: KvpOp) -> Result<KvpReply> {
    kvp_how(vm, op, sending())
}

fn kvp_how(vm: &Vm, op: KvpOp, how: Sending) -> Result<KvpReply> {
    let value = vm.host().call(Command::Kvp { op, how })?;
    serde_json::from_value(value).context("answer to kvp")
}

/// Asks the backup service.
fn backup(vm: &Vm, op: BackupOp) -> Result<BackupReply> {
    backup_how(vm, op, sending())
}

fn backup_how(vm: &Vm, op: BackupOp, how: Sending) -> Result<BackupReply> {
    backup_by(&mut vm.host(), op, how)
}

/// The same by another connection to the host.
fn backup_by(host: &mut Client, op: BackupOp, how: Sending) -> Result<BackupReply> {
    let value = host.call(Command::Backup { op, how })?;
    serde_json::from_value(value).context("answer to backup")
}

/// A request that must end with `status`.
fn status_is(what: &str, found: u32, expected: u32) -> Result<()> {
    ensure!(
        found == expected,
        "{what}: status {found:#010x} ({}), expected {expected:#010x}",
        hvctl::status_text(found)
    );
    Ok(())
}

const FAIL: u32 = 0x8000_4005;
const NO_MORE: u32 = 0x8007_0103;
const NO_ADAPTER: u32 = 0x8004_1002;
