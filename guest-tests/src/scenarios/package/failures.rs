// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Builds that fail in the guest: the reason is told, and the guest boots.

use anyhow::{ensure, Context, Result};

use super::boots::{config, disk, Machine, LONG};
use crate::env::TempDir;
use crate::net::Passt;
use crate::runner::{Ctx, Scenario};
use crate::vm::describe;
use crate::Drivers;

pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new(
        "build-failures",
        "compiler missing, source missing, disk full, power cut in the middle of a build: told in one line, and the guest boots",
        failures,
    )
    .only_full("ten minutes of boots, and an image with compilers")]
}

fn failures(ctx: &Ctx) -> Result<()> {
    let disk = disk(ctx)?;
    let wire = TempDir::new()?;
    let passt = Passt::start(wire.path())?;
    ctx.booted(config(ctx, "builds", disk.path(), &passt)?, |vm| {
        let mut machine = Machine::new(vm);
        let [old, new] = machine.kernels()?;
        machine.serves(Drivers::Rust, &new)?;
        machine.command(&format!("dkms remove hyperv-rs/$(hyperv-rs --version | cut -d' ' -f2) -k {old}"))?;
        // Status 0: whoever calls it, such as the installation of a kernel, goes on.
        let fails = |what: &str, before: &str, after: &str, words: &str| -> Result<()> {
            let text = machine.command(&format!("{before}; hyperv-rs build {old}; {after}"))?;
            ensure!(text.contains(words), "{what}: expected {words:?}: {text}");
            let status = machine.status(Drivers::Rust)?;
            let line = status.lines().find(|line| line.trim_start().starts_with(&old)).context("no line of the kernel")?;
            ensure!(line.contains("not built: "), "{what}: status: {line}");
            Ok(())
        };
        let cc = "/usr/bin/x86_64-linux-gnu-gcc-14";
        fails("no compiler", &format!("mv {cc} /root/cc"), &format!("mv /root/cc {cc}"), "gcc-14 is missing: apt install gcc-14")?;
        fails("no rustc", "mv /usr/bin/rustc /root/", "mv /root/rustc /usr/bin/", "is missing: apt install rustc")?;
        fails("no source", "mv /usr/src/linux-source-7.2.tar.xz /root/", "mv /root/linux-source-7.2.tar.xz /usr/src/", "apt install linux-source-7.2=")?;
        fails(
            "disk full before",
            "mkdir -p /var/cache/hyperv-rs && mount -t tmpfs -o size=64M tmpfs /var/cache/hyperv-rs",
            "umount /var/cache/hyperv-rs",
            "MiB are needed",
        )?;
        machine.reboot()?;
        machine.serves(Drivers::Rust, &new)?;
        machine.status(Drivers::Rust)?;
        // Power cut: the host goes away while the source is unpacked.
        let out = vm.run(
            &format!("hyperv-rs build {old} >/root/build.log 2>&1 & until grep -q unpacking /root/build.log; do sleep 0.2; done; sleep 5; ls /var/cache/hyperv-rs"),
            LONG,
        )?;
        ensure!(out.stdout.text().contains(&old), "the build has not begun: {}", describe(&out));
        Ok(())
    })?;
    ctx.booted(config(ctx, "after", disk.path(), &passt)?, |vm| {
        let machine = Machine::new(vm);
        let [old, new] = machine.kernels()?;
        machine.serves(Drivers::Rust, &new)?;
        let status = machine.status(Drivers::Rust)?;
        let line = status
            .lines()
            .find(|line| line.trim_start().starts_with(&old))
            .context("no line of the kernel")?;
        ensure!(line.contains("not built"), "status: {line}");
        let entries = vm.sh("grep -c hyperv_rs_begin.*7.2 /boot/grub/grub.cfg; true")?;
        ensure!(
            entries.trim() == "0",
            "GRUB has an entry for a kernel without modules"
        );
        Ok(())
    })
}
