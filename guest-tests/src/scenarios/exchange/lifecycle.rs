// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Drivers and daemons that come and go: hibernation, drivers unbound and bound, daemons killed and started anew.

use anyhow::{Context, Result};
use hvctl::{BackupOp, KvpKind, KvpOp, KvpPool};

use super::frozen::{all_write, freeze, mount_ext4, until_served, PROMPT};
use super::{backup, config, guest, kvp, status_is, Running};
use crate::disks::{Disk, Scratch};
use crate::runner::{equal, Ctx, Scenario};
use crate::scenarios::power::{can_sleep, prepare, SWAP_BYTES};
use crate::vm::{Vm, BOOT_LIMIT, SOON};

pub fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::from(Scenario::both(
        "hibernate",
        "hibernation with file systems frozen for a backup: thawed after it, and the same daemons go on",
        hibernate,
    ));
    all.extend(Scenario::both(
        "rebind",
        "the driver leaves its devices, with file systems frozen, and takes them again: thawed, and the same daemons go on; daemons are killed and others go on",
        rebind,
    ));
    all
}

/// The two daemons that are always there, and a file system to freeze.
struct Served<'a> {
    vm: &'a Vm,
    kvp: Running<'a>,
    vss: Running<'a>,
}

impl<'a> Served<'a> {
    fn start(vm: &'a Vm, disk: &str) -> Result<Self> {
        mount_ext4(vm, disk, "ext4")?;
        let served = Self {
            vm,
            kvp: Running::serving(vm, "kvp")?,
            vss: Running::serving(vm, "vss")?,
        };
        set(vm, "before", "1")?;
        Ok(served)
    }

    /// Both services work, with the daemons that were there from the beginning.
    fn work(&self, what: &str) -> Result<()> {
        for service in ["kvp", "vss"] {
            self.vm
                .host()
                .wait_negotiated(service, SOON)
                .with_context(|| format!("{service} {what}"))?;
        }
        for daemon in [&self.kvp, &self.vss] {
            self.vm
                .sh(&format!("test -d /proc/{}", daemon.pid))
                .with_context(|| format!("a daemon has ended {what}"))?;
        }
        equal(what, get(self.vm, "before")?.as_deref(), Some("1"))?;
        set(self.vm, "after", what)?;
        until_served(self.vm).with_context(|| what.to_owned())?;
        let writers = freeze(self.vm, &["ext4"]).with_context(|| what.to_owned())?;
        status_is("thaw", backup(self.vm, BackupOp::Thaw)?.status, 0)?;
        all_write(writers, what, PROMPT).map(drop)
    }

    fn end(self) -> Result<()> {
        self.kvp.kill()?;
        self.vss.kill()?;
        self.vm.sh("umount /debian/run/fs/ext4").map(drop)
    }
}

fn set(vm: &Vm, key: &str, value: &str) -> Result<()> {
    let op = KvpOp::Set {
        pool: KvpPool::External,
        key: key.into(),
        value: value.into(),
        kind: KvpKind::Text,
    };
    status_is("set", kvp(vm, op)?.status, 0)
}

fn get(vm: &Vm, key: &str) -> Result<Option<String>> {
    let op = KvpOp::Enumerate {
        pool: KvpPool::External,
        index: None,
    };
    let reply = kvp(vm, op)?;
    status_is("enumerate", reply.status, 0)?;
    Ok(reply
        .pairs
        .into_iter()
        .find(|pair| pair.key == key)
        .map(|pair| pair.value))
}

fn hibernate(ctx: &Ctx) -> Result<()> {
    let swap = Scratch::blank(&ctx.env.scratch(), SWAP_BYTES)?;
    let image = Scratch::blank(&ctx.env.scratch(), 64 << 20)?;
    let config = can_sleep(config(ctx).disk(Disk::file(image.path(), 0)), swap.path());
    guest(ctx, config, |vm| {
        let disk = super::super::storage::block(vm, "scsi0", 0)?;
        let served = Served::start(vm, &disk)?;
        prepare(vm, "test_resume")?;
        served.work("before hibernation")?;
        for frozen in ctx.count(vec![false, true], vec![true]) {
            let mut writers = Vec::new();
            if frozen {
                // A defect of Linux, of no driver: at the end of hibernation `filesystems_thaw()` thaws everything, whether the kernel
                // had frozen it or not, and `may_unfreeze()` (fs/super.c of Linux 7.3) warns of what is frozen by user space
                // alone. With this set the kernel takes its own part in each freeze before. Older kernels have neither.
                vm.sh("f=/sys/power/freeze_filesystems; test ! -e $f || echo 1 > $f")?;
                writers = freeze(vm, &["ext4"])?;
            }
            let out = vm.run("echo disk > /sys/power/state", BOOT_LIMIT)?;
            equal("status of the hibernation", out.rc, Some(0))?;
            vm.host()
                .wait_connected(BOOT_LIMIT)
                .context("the guest did not connect again")?;
            all_write(writers, "after hibernation", PROMPT)?;
            served.work("after hibernation")?;
        }
        served.end()
    })
}

fn rebind(ctx: &Ctx) -> Result<()> {
    let image = Scratch::blank(&ctx.env.scratch(), 64 << 20)?;
    let config = config(ctx).disk(Disk::file(image.path(), 0));
    guest(ctx, config, |vm| {
        let disk = super::super::storage::block(vm, "scsi0", 0)?;
        let served = Served::start(vm, &disk)?;
        // The module itself stays while a daemon has its device open.
        let mut devices = Vec::new();
        for service in ["vss", "kvp"] {
            devices.push(vm.host().channel(service)?.instance);
        }
        for _ in 0..ctx.count(20, 2) {
            let writers = freeze(vm, &["ext4"])?;
            for device in &devices {
                vm.sh(&format!(
                    "echo {device} > /sys/bus/vmbus/drivers/hv_utils/unbind"
                ))?;
            }
            all_write(writers, "without the driver", PROMPT)?;
            for device in &devices {
                vm.sh(&format!(
                    "echo {device} > /sys/bus/vmbus/drivers/hv_utils/bind"
                ))?;
            }
            served.work("after the driver's return")?;
        }
        // The one dies and the next one is started, by systemd for example.
        let mut served = served;
        for _ in 0..ctx.count(20, 3) {
            let Served { kvp, vss, .. } = served;
            kvp.kill()?;
            vss.kill()?;
            served = Served {
                vm,
                kvp: Running::serving(vm, "kvp")?,
                vss: Running::serving(vm, "vss")?,
            };
            served.work("after a restart")?;
        }
        served.end()
    })
}
