// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Unmodified public tools: sg3_utils, lsscsi, smartctl, blkdiscard, and the programs of three file systems.

use anyhow::{ensure, Context, Result};

use super::{
    block, disk, nothing_in_flight, storage_guest, tool, tool_ok, tool_within, IO_LIMIT, SCSI0,
};
use crate::disks::{Disk, Scratch};
use crate::runner::{equal, Ctx, Scenario};
use crate::vm::describe;

pub fn scenarios() -> Vec<Scenario> {
    [
        Scenario::both("sg3-utils", "sg_inq, sg_vpd, sg_luns, sg_readcap, sg_unmap, sg_turs, sg_verify, lsscsi, smartctl, blkdiscard", sg3),
        Scenario::both("file-systems", "mkfs, use and fsck of ext4, xfs and btrfs", file_systems),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn sg3(ctx: &Ctx) -> Result<()> {
    let image = Scratch::blank(&ctx.env.scratch(), 64 << 20)?;
    let config = ctx
        .config()
        .smp(2)
        .disk(Disk::file(image.path(), 0))
        .disk(Disk::ram("32M", 3).option("sector=4096"))
        .disk(Disk::ram("8M", 5).option("ro"));
    storage_guest(ctx, config, |vm| {
        let name = block(vm, SCSI0, 0)?;
        let big = block(vm, SCSI0, 3)?;
        let read_only = block(vm, SCSI0, 5)?;
        let info = disk(vm, SCSI0, 0)?;
        let mut commands = 0;
        // A command that must succeed, and words of its output.
        let mut says = |command: &str, words: &[&str]| -> Result<String> {
            let text = tool_ok(vm, command)?;
            for word in words {
                ensure!(
                    text.contains(word),
                    "{command} does not say {word:?}: {text}"
                );
            }
            commands += 1;
            Ok(text)
        };
        says(
            &format!("sg_inq /dev/{name}"),
            &["Msft", "Virtual Disk", "Peripheral device type: disk"],
        )?;
        let pages = says(
            &format!("sg_vpd /dev/{name}"),
            &[
                "Unit serial number",
                "Device identification",
                "Block limits",
                "Logical block provisioning",
            ],
        )?;
        // Every page that the disk lists can be had.
        for page in pages
            .lines()
            .filter_map(|line| line.trim().split(' ').next())
            .filter(|word| word.starts_with("0x"))
        {
            says(
                &format!("sg_vpd --raw --page={page} /dev/{name} | od -A n -t x1 -N 2"),
                &[&page[2..]],
            )?;
        }
        says(&format!("sg_vpd --page=sn /dev/{name}"), &[&info.serial])?;
        says(&format!("sg_vpd --page=di /dev/{name}"), &["NAA"])?;
        says(&format!("sg_vpd --page=lbpv /dev/{name}"), &["LBPU=1"])?;
        says(&format!("sg_luns /dev/{name}"), &["Lun list length = 24"])?;
        says(
            &format!("sg_readcap /dev/{name}"),
            &[
                "Number of logical blocks=131072",
                "Logical block length=512 bytes",
            ],
        )?;
        says(
            &format!("sg_readcap --long /dev/{name}"),
            &["Number of logical blocks=131072", "lbpme=1"],
        )?;
        says(
            &format!("sg_readcap --long /dev/{big}"),
            &[
                "Number of logical blocks=8192",
                "Logical block length=4096 bytes",
            ],
        )?;
        says(&format!("sg_turs --number=100 /dev/{name}"), &[])?;
        says(&format!("sg_requests /dev/{name}"), &[])?;
        says(&format!("sg_modes --all /dev/{name}"), &[])?;
        says(&format!("sg_verify --lba=0 --count=1024 /dev/{name}"), &[])?;
        says(&format!("sg_sync /dev/{name}"), &[])?;
        says(
            &format!("sg_dd if=/dev/{name} of=/dev/null bs=512 count=256 blk_sgio=1 2>&1"),
            &["256+0 records in"],
        )?;
        says(
            &format!("dd if=/dev/urandom of=/dev/{name} bs=1M count=4 oflag=direct 2>&1"),
            &[],
        )?;
        says(
            &format!("sg_unmap --lba=2048 --num=2048 --force /dev/{name}"),
            &[],
        )?;
        says(&format!("dd if=/dev/{name} bs=512 skip=2048 count=2048 iflag=direct 2>/dev/null | cmp -n 1048576 - /dev/zero"), &[])?;
        says(
            &format!("sg_write_same --lba=0 --num=64 --xferlen=512 --in=/dev/zero /dev/{name}"),
            &[],
        )?;
        says(&format!("blkdiscard /dev/{name}"), &[])?;
        says(
            &format!("blkdiscard --zeroout --length 1048576 /dev/{name}"),
            &[],
        )?;
        says("lsscsi --size --lunhex", &["Msft", "/dev/"])?;
        says("lsscsi --hosts", &["storvsc"])?;
        ensure!(
            vm.read(&format!("/sys/block/{name}/device/wwid"))?
                .starts_with("naa.6"),
            "the kernel knows no identification of the disk"
        );
        says("lsblk --scsi --output NAME,HCTL,VENDOR,MODEL", &["Msft"])?;
        // Polite: it says what the disk is, and that it has no SMART.
        let smart = tool(vm, &format!("smartctl -i /dev/{name}"))?;
        let text = smart.stdout.text();
        ensure!(
            smart.signal.is_none()
                && text.contains("Virtual Disk")
                && text.contains("mandatory SMART command failed"),
            "smartctl: {}",
            describe(&smart)
        );
        // What must fail, and as what.
        let out = tool(
            vm,
            &format!("dd if=/dev/zero of=/dev/{read_only} bs=4096 count=1"),
        )?;
        ensure!(
            out.rc == Some(1) && out.stderr.text().contains("Read-only file system"),
            "writing to a read-only disk: {}",
            describe(&out)
        );
        equal(
            "ro",
            vm.read(&format!("/sys/block/{read_only}/ro"))?.as_str(),
            "1",
        )?;
        let out = tool(
            vm,
            &format!("sg_raw /dev/{name} c1 00 00 00 00 00 00 00 00 00 2>&1"),
        )?;
        ensure!(
            out.stdout.text().contains("Invalid command operation code"),
            "an unknown command: {}",
            describe(&out)
        );
        let out = tool(vm, &format!("sg_verify --lba=200000 /dev/{name} 2>&1"))?;
        ensure!(
            out.stdout.text().contains("Illegal request")
                || out.stdout.text().contains("out of range"),
            "beyond the end: {}",
            describe(&out)
        );
        nothing_in_flight(vm)?;
        ctx.figure(format!("{commands} commands"));
        Ok(())
    })
}

fn file_systems(ctx: &Ctx) -> Result<()> {
    // xfs takes no less.
    const MIB: u64 = 320;
    let images = (0..3)
        .map(|_| Scratch::blank(&ctx.env.scratch(), MIB << 20))
        .collect::<Result<Vec<_>>>()?;
    let mut config = ctx.config().smp(2).memory(1024);
    for (image, lun) in images.iter().zip(0..) {
        config = config.disk(Disk::file(image.path(), lun));
    }
    storage_guest(ctx, config, |vm| {
        let systems = [
            ("ext4", "mkfs.ext4 -q", "e2fsck -fn"),
            ("xfs", "mkfs.xfs -q", "xfs_repair -n"),
            ("btrfs", "mkfs.btrfs -q", "btrfs check"),
        ];
        for ((kind, make, check), lun) in systems.into_iter().zip(0..) {
            let name = block(vm, SCSI0, lun)?;
            let script = format!(
                "set -e; modprobe {kind}; {make} /dev/{name}; mkdir -p /run/{kind}; mount -t {kind} /dev/{name} /run/{kind}; \
                 cp -a /usr/lib/systemd /run/{kind}/copy; sync; echo 3 > /proc/sys/vm/drop_caches; \
                 diff -r --no-dereference /usr/lib/systemd /run/{kind}/copy; rm -r /run/{kind}/copy/system; fstrim /run/{kind}; \
                 umount /run/{kind}; {check} /dev/{name}"
            );
            let out = tool_within(vm, &script, IO_LIMIT)?;
            ensure!(out.rc == Some(0), "{kind}: {}", describe(&out));
            let counters = disk(vm, SCSI0, lun).context("counters")?.counters;
            ensure!(
                counters.flushes > 0 && counters.discards > 0,
                "{kind}: {counters:?}"
            );
        }
        nothing_in_flight(vm)
    })
}
