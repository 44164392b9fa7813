// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A Debian machine on which our packages were installed, from the firmware on: GRUB starts it, its root is on the
//! synthetic controller, its network on the synthetic card. Nothing of the harness is in its initramfs.

use std::path::Path;

use anyhow::{bail, ensure, Context, Result};

use crate::disks::{Disk, Scratch};
use crate::env::TempDir;
use crate::net::{Backend, Nic, Passt};
use crate::runner::{equal, Ctx, Scenario};
use crate::vm::{describe, Vm, SOON, SYSTEM_LIMIT};
use crate::{Drivers, VmConfig};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "switch",
            "GRUB boots the newest kernel with the Rust drivers; disable, enable, the older kernel, purge: each with a boot",
            switch,
        )
        .only_full("ten minutes of boots, and an image with compilers"),
        Scenario::new(
            "fallback",
            "an initramfs whose driver of the root disk does not load: the machine starts anew by itself, with the C drivers, until enabled",
            fallback,
        )
        .only_full("ten minutes of boots, and an image with compilers"),
        Scenario::new(
            "interrupted",
            "after a boot with the Rust drivers that ended in the middle the C drivers serve; enable, disable: each with a boot",
            interrupted,
        )
        .only_full("ten minutes of boots, and an image with compilers"),
    ]
}

/// Commands of package tools, on an emulated processor.
pub const LONG: std::time::Duration = std::time::Duration::from_secs(1800);

/// A machine under test, and how often it has started.
pub struct Machine<'a> {
    pub vm: &'a Vm,
    starts: usize,
}

/// A copy of the machine's disk.
pub fn disk(ctx: &Ctx) -> Result<Scratch> {
    let dir = ctx.env.installed.as_ref();
    let dir =
        dir.context("HV_INSTALLED is not set: the set-up made no machine with the packages")?;
    Scratch::copy(&ctx.env.scratch(), &dir.join("root.img"))
}

/// A guest that starts from this disk as its firmware finds it.
pub fn config(ctx: &Ctx, part: &str, disk: &Path, passt: &Passt) -> Result<VmConfig> {
    let dir = ctx.env.installed.as_ref().context("HV_INSTALLED")?;
    let mut config = ctx.config_for(part, Drivers::Rust).smp(2).memory(1024);
    config = config.disk(Disk::file(disk, 0)).root("/dev/sda");
    config = config.nic(Nic::new(Backend::Connect(passt.socket().to_owned())));
    config.loader = Some(dir.join("grub.img"));
    config.qemu_args.extend(
        [
            "-smbios",
            "type=1,manufacturer=Microsoft Corporation,product=Virtual Machine",
        ]
        .map(String::from),
    );
    Ok(config)
}

impl<'a> Machine<'a> {
    /// The machine as it has just been started.
    pub fn new(vm: &'a Vm) -> Self {
        Self { vm, starts: 1 }
    }

    /// Restarts it the way an administrator does, and waits for the system.
    pub fn reboot(&mut self) -> Result<()> {
        self.vm.sh("systemctl --no-block reboot")?;
        self.started()
    }

    /// Waits for the next start of the system.
    pub fn started(&mut self) -> Result<()> {
        self.starts += 1;
        self.vm.agent.hello(self.starts, SYSTEM_LIMIT * 2)?;
        Ok(())
    }

    /// Waits until the system is up, and looks which stack serves root, network and services, and what our command says.
    pub fn serves(&self, wanted: Drivers, release: &str) -> Result<()> {
        let vm = self.vm;
        let state = vm.wait_system()?;
        ensure!(
            state == "running",
            "the system is {state:?}: {}",
            vm.sh("systemctl list-units --failed --plain --no-legend; hyperv-rs status; true")?
        );
        equal("kernel", vm.sh("uname -r")?.trim(), release)?;
        let suffix = if wanted == Drivers::Rust { "_rs" } else { "" };
        equal("root", vm.sh("findmnt -no SOURCE /")?.trim(), "/dev/sda")?;
        let module = |path: &str| vm.sh(&format!("basename $(readlink -f {path}/driver/module)"));
        let controller = "/sys/block/sda/device/../../..";
        equal(
            "driver of the root disk",
            module(controller)?.trim(),
            &format!("hv_storvsc{suffix}"),
        )?;
        equal(
            "driver of the network card",
            module("/sys/class/net/eth0/device")?.trim(),
            &format!("hv_netvsc{suffix}"),
        )?;
        let utils = vm.sh("lsmod | cut -d' ' -f1 | grep -E '^hv_utils' | sort | tr '\\n' ' '")?;
        ensure!(
            utils.contains(&format!("hv_utils{suffix} ")),
            "integration services: {utils}"
        );
        // An address by DHCP, over that card.
        let out = vm.run("for i in $(seq 60); do ip -4 -o address show dev eth0 scope global | grep -q inet && exit 0; sleep 1; done; exit 1", SYSTEM_LIMIT)?;
        ensure!(
            out.rc == Some(0),
            "no address: {}",
            vm.sh("networkctl status --no-pager; true")?
        );
        vm.host().wait_connected(SOON)?;
        Ok(())
    }

    /// What `hyperv-rs status` says; it must name the stack.
    pub fn status(&self, wanted: Drivers) -> Result<String> {
        let text = self.vm.sh("hyperv-rs status")?;
        let word = if wanted == Drivers::Rust {
            "active: Rust drivers"
        } else {
            "active: stock C drivers"
        };
        ensure!(
            text.starts_with(word),
            "hyperv-rs status, expected {word:?}: {text}"
        );
        Ok(text)
    }

    /// A command that may take long; its output.
    pub fn command(&self, script: &str) -> Result<String> {
        let out = self.vm.run(&format!("({script}) 2>&1"), LONG)?;
        if out.rc != Some(0) {
            bail!("in the guest: {script}: {}", describe(&out));
        }
        Ok(out.stdout.text())
    }

    /// The kernels that are installed, oldest first.
    pub fn kernels(&self) -> Result<[String; 2]> {
        let text = self
            .vm
            .sh("ls /boot/vmlinuz-* | sed 's,.*/vmlinuz-,,' | sort -V")?;
        let all: Vec<String> = text.lines().map(str::to_owned).collect();
        all.try_into()
            .map_err(|all| anyhow::anyhow!("kernels: {all:?}"))
    }
}

fn switch(ctx: &Ctx) -> Result<()> {
    let disk = disk(ctx)?;
    let wire = TempDir::new()?;
    let passt = Passt::start(wire.path())?;
    ctx.booted(config(ctx, "", disk.path(), &passt)?, |vm| {
        let mut machine = Machine::new(vm);
        let [old, new] = machine.kernels()?;
        machine.serves(Drivers::Rust, &new)?;
        machine.status(Drivers::Rust)?;
        let test = machine.command("hyperv-rs test")?;
        ensure!(test.contains("ok    reading 16 MiB of sda"), "hyperv-rs test: {test}");
        equal("note of a boot under way", vm.sh("grub-editenv list | grep trying; true")?.trim(), "")?;
        // GRUB's own tools on the real disk.
        machine.command("update-grub")?;
        let doctor = vm.run("hyperv-rs doctor", LONG)?;
        ensure!(doctor.rc == Some(0), "hyperv-rs doctor: {}", describe(&doctor));

        machine.command("hyperv-rs disable")?;
        machine.reboot()?;
        machine.serves(Drivers::C, &new)?;
        let text = machine.status(Drivers::C)?;
        ensure!(text.contains("switched off"), "status: {text}");

        machine.command("hyperv-rs enable")?;
        machine.reboot()?;
        machine.serves(Drivers::Rust, &new)?;

        machine.command(&format!("grub-reboot hyperv-rs-{old}"))?;
        machine.reboot()?;
        machine.serves(Drivers::Rust, &old)?;

        // From the running Rust drivers.
        machine.command("dpkg --purge hyperv-rs-dkms")?;
        let left = vm.sh("ls -d /usr/lib/hyperv-rs /var/lib/hyperv-rs /var/cache/hyperv-rs /etc/grub.d/*hyperv* /lib/modules/*/updates/dkms/hv_* 2>/dev/null; true")?;
        equal("left behind", left.trim(), "")?;
        machine.reboot()?;
        machine.serves(Drivers::C, &new)?;
        let cmdline = vm.read("/proc/cmdline")?;
        ensure!(!cmdline.contains("hv_acpi_init"), "command line: {cmdline}");
        Ok(())
    })
}

fn fallback(ctx: &Ctx) -> Result<()> {
    let disk = disk(ctx)?;
    let wire = TempDir::new()?;
    let passt = Passt::start(wire.path())?;
    ctx.booted(config(ctx, "", disk.path(), &passt)?, |vm| {
        let mut machine = Machine::new(vm);
        let [_, new] = machine.kernels()?;
        machine.serves(Drivers::Rust, &new)?;
        // The initramfs gets a driver of disks that does not load: a file of the right name with nothing in it that the kernel takes.
        machine.command(&format!(
            "cd /lib/modules/{new}/updates/dkms && mv hv_storvsc_rs.ko.xz /root/ && head -c 4096 /dev/urandom | xz >hv_storvsc_rs.ko.xz \
             && update-initramfs -u -k {new} && mv /root/hv_storvsc_rs.ko.xz . && grep -q hyperv-rs-{new} /boot/grub/grub.cfg"
        ))?;
        // The agent is up only when a root is: the next greeting is that of the boot after the one that fails.
        machine.reboot()?;
        let console = vm.console.as_ref().context("console")?;
        console.wait("hyperv-rs: hv_storvsc_rs was not loaded", 0, SOON)?;
        machine.serves(Drivers::C, &new)?;
        let text = machine.status(Drivers::C)?;
        ensure!(text.contains("did not come up"), "status: {text}");
        // It stays so.
        machine.reboot()?;
        machine.serves(Drivers::C, &new)?;
        machine.command(&format!("update-initramfs -u -k {new} && hyperv-rs enable"))?;
        machine.reboot()?;
        machine.serves(Drivers::Rust, &new)?;
        Ok(())
    })
}

/// GRUB's environment block: 1024 bytes, filled up with `#` (docs of GRUB, "The GRUB environment block").
fn environment_block(variables: &str) -> Vec<u8> {
    let mut block = format!("# GRUB Environment Block\n{variables}").into_bytes();
    block.resize(1024, b'#');
    block
}

/// Replaces GRUB's environment block in an image that is not in use.
fn set_environment(dir: &TempDir, disk: &Path, variables: &str) -> Result<()> {
    let file = dir.path().join("grubenv");
    std::fs::write(&file, environment_block(variables))?;
    // Written over in place: GRUB writes to the blocks that the file has.
    let script = format!(
        "rm /boot/grub/grubenv\nwrite {} /boot/grub/grubenv\n",
        file.display()
    );
    let commands = dir.path().join("commands");
    std::fs::write(&commands, script)?;
    let out = std::process::Command::new("debugfs")
        .arg("-w")
        .arg("-f")
        .arg(&commands)
        .arg(disk)
        .output()
        .context("debugfs")?;
    ensure!(
        out.status.success(),
        "debugfs: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(())
}

fn interrupted(ctx: &Ctx) -> Result<()> {
    let disk = disk(ctx)?;
    let wire = TempDir::new()?;
    let passt = Passt::start(wire.path())?;
    let dir = ctx.env.installed.as_ref().context("HV_INSTALLED")?;
    let new = std::fs::read_to_string(dir.join("release")).context("release")?;
    let new = new.trim();
    // As GRUB leaves it when the machine is reset after its menu.
    set_environment(&wire, disk.path(), &format!("hyperv_rs_trying={new}\n"))?;
    ctx.booted(config(ctx, "", disk.path(), &passt)?, |vm| {
        let mut machine = Machine::new(vm);
        machine.serves(Drivers::C, new)?;
        let text = machine.status(Drivers::C)?;
        ensure!(text.contains("did not come up"), "status: {text}");
        machine.command("hyperv-rs enable")?;
        machine.reboot()?;
        machine.serves(Drivers::Rust, new)?;
        machine.status(Drivers::Rust)?;
        machine.command("hyperv-rs disable")?;
        machine.reboot()?;
        machine.serves(Drivers::C, new)?;
        let text = machine.status(Drivers::C)?;
        ensure!(text.contains("switched off"), "status: {text}");
        Ok(())
    })
}
