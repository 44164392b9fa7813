// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Commands that fail, that wait, and that never end.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use hvctl::{DiskFault, Until};

use super::{
    block, collect, disk, disks, fault, fault_on, nothing_in_flight, storage_guest, tool, tool_ok,
    tool_start, until, until_in_guest, IO_LIMIT, SCSI0,
};
use crate::disks::Disk;
use crate::memory::{leaks, Memory, EXACT_SLABS};
use crate::runner::{equal, Ctx, Scenario};
use crate::vm::{describe, Vm, SOON};
use crate::Drivers;

pub fn scenarios() -> Vec<Scenario> {
    let mut all = vec![
        Scenario::new(
            "errors-as-c",
            "every injected status and sense reaches the caller as with the C driver",
            errors_as_c,
        ),
        Scenario::new(
            "rescind-in-flight",
            "controllers vanish with 1,000 commands in flight: all end, the modules unload, nothing is lost",
            rescind_in_flight,
        ),
    ];
    all.extend(Scenario::both(
        "stall",
        "the host does nothing for a long time: I/O waits and then completes",
        stall,
    ));
    all.extend(Scenario::both(
        "reset",
        "a completion is lost: a reset of the bus ends the command",
        reset,
    ));
    all
}

/// What the host answers instead of carrying the command out.
struct Case {
    name: &'static str,
    fault: DiskFault,
    /// To every command, or only to the next: what Linux tries again without end.
    always: bool,
}

fn cases() -> Vec<Case> {
    let sense = |name, key, code, qualifier, always| Case {
        name,
        // SRB_STATUS_ERROR and CHECK CONDITION.
        fault: DiskFault::Status {
            srb: 4,
            scsi: 2,
            sense: Some([key, code, qualifier]),
        },
        always,
    };
    let status = |name, srb, scsi, always| Case {
        name,
        fault: DiskFault::Status {
            srb,
            scsi,
            sense: None,
        },
        always,
    };
    // Sense codes: SPC-5, annex F. SRB status codes: SRB_STATUS_* of ntddk's srb.h.
    vec![
        sense("recovered error", 0x1, 0x17, 0x01, true),
        sense("becoming ready", 0x2, 0x04, 0x01, false),
        sense("not ready, manual intervention", 0x2, 0x04, 0x03, true),
        sense("medium not present", 0x2, 0x3a, 0x00, true),
        sense("unrecovered read error", 0x3, 0x11, 0x00, true),
        sense("write error", 0x3, 0x0c, 0x00, true),
        sense("internal target failure", 0x4, 0x44, 0x00, true),
        sense("invalid opcode", 0x5, 0x20, 0x00, true),
        sense("LBA out of range", 0x5, 0x21, 0x00, true),
        sense("invalid field in CDB", 0x5, 0x24, 0x00, true),
        sense("LUN not supported", 0x5, 0x25, 0x00, true),
        sense("power on or reset", 0x6, 0x29, 0x00, false),
        sense("mode parameters changed", 0x6, 0x2a, 0x01, false),
        sense("capacity changed", 0x6, 0x2a, 0x09, false),
        sense("reported LUNs changed", 0x6, 0x3f, 0x0e, false),
        sense("write protected", 0x7, 0x27, 0x00, true),
        sense("space allocation failed", 0x7, 0x27, 0x07, true),
        sense("aborted command", 0xb, 0x00, 0x00, false),
        sense("aborted command, always", 0xb, 0x00, 0x00, true),
        sense("volume overflow", 0xd, 0x00, 0x00, true),
        sense("miscompare", 0xe, 0x1d, 0x00, true),
        status("SCSI BUSY", 4, 0x08, false),
        status("SCSI RESERVATION CONFLICT", 4, 0x18, true),
        status("SCSI TASK SET FULL", 4, 0x28, false),
        status("SRB ABORTED", 0x02, 0, false),
        status("SRB ERROR without sense", 0x04, 0, true),
        status("SRB BUSY", 0x05, 0, false),
        status("SRB INVALID REQUEST", 0x06, 0, true),
        status("SRB TIMEOUT", 0x09, 0, true),
        status("SRB SELECTION TIMEOUT", 0x0a, 0, true),
        status("SRB BUS RESET", 0x0e, 0, false),
        status("SRB DATA OVERRUN", 0x12, 0, true),
        status("SRB INTERNAL ERROR", 0x30, 0, true),
        // The C driver removes the disk: last.
        status("SRB INVALID LUN", 0x20, 0, true),
    ]
}

/// Cases that are told of writes; the others are of reads when there is no time for both.
const OF_WRITES: [&str; 6] = [
    "write error",
    "write protected",
    "space allocation failed",
    "volume overflow",
    "miscompare",
    "SRB DATA OVERRUN",
];

/// How long a command that is tried again without end is watched.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a caller sees, by case and way of access.
fn outcomes(vm: &Vm, full: bool) -> Result<BTreeMap<String, String>> {
    let mut seen = BTreeMap::new();
    let name = block(vm, SCSI0, 0)?;
    for case in cases() {
        let counts: &[bool] = if full { &[true, false] } else { &[case.always] };
        for &always in counts {
            for (way, command, opcodes) in [
                (
                    "read",
                    format!("dd if=/dev/{name} of=/dev/null bs=4096 count=1 iflag=direct"),
                    [0x28, 0x88],
                ),
                (
                    "write",
                    format!("dd if=/dev/zero of=/dev/{name} bs=4096 count=1 oflag=direct"),
                    [0x2a, 0x8a],
                ),
            ] {
                if !full && (way == "write") != OF_WRITES.contains(&case.name) {
                    continue;
                }
                let count = if always { 1_000_000 } else { 1 };
                for opcode in opcodes {
                    fault(vm, Some(opcode), count, case.fault.clone())?;
                }
                vm.sh("rm -f /run/rc /run/err")?;
                let handle = tool_start(
                    vm,
                    &format!("LC_ALL=C {command} 2>/run/err; echo $? >/run/rc"),
                    IO_LIMIT,
                )?;
                let ended = until_in_guest(vm, "test -s /run/rc", PATIENCE).is_ok();
                fault(vm, None, 1, DiskFault::Clear)?;
                collect(vm, handle, IO_LIMIT)
                    .with_context(|| format!("{}: the {way} never ended", case.name))?;
                let error = vm.read("/run/err")?;
                let error = error
                    .lines()
                    .find_map(|line| line.rsplit_once(": "))
                    .map(|(_, text)| text.to_owned());
                let result = match (vm.read("/run/rc")?.as_str(), error) {
                    ("0", _) => "done".to_owned(),
                    (_, error) => error.unwrap_or_else(|| "failed".into()),
                };
                let state = vm.sh(&format!(
                    "cat /sys/block/{name}/device/state 2>/dev/null || echo removed"
                ))?;
                let key = format!(
                    "{}, {}, {way}",
                    case.name,
                    if always { "always" } else { "once" }
                );
                let waits = if ended { "" } else { " (as long as it lasts)" };
                seen.insert(key, format!("{result}{waits}, {}", state.trim()));
                if state.trim() == "removed" {
                    return Ok(seen);
                }
                if state.trim() != "running" {
                    vm.sh(&format!("echo running > /sys/block/{name}/device/state"))?;
                }
            }
        }
        // Commands of user space get status and sense as they are.
        if matches!(&case.fault, DiskFault::Status { sense: Some(_), .. }) {
            fault(vm, Some(0x28), 1, case.fault.clone())?;
            let out = tool(
                vm,
                &format!(
                    "sg_raw -r 512 /dev/{name} 28 00 00 00 00 00 00 00 01 00 2>&1 | grep -v '^ *$'"
                ),
            )?;
            fault(vm, None, 1, DiskFault::Clear)?;
            seen.insert(
                format!("{}, sg_raw", case.name),
                format!("{} {}", out.rc.unwrap_or(-1), out.stdout.text().trim()),
            );
        }
    }
    Ok(seen)
}

fn errors_as_c(ctx: &Ctx) -> Result<()> {
    let run = |drivers| {
        let config = ctx
            .config_for(drivers_name(drivers), drivers)
            .smp(2)
            .disk(Disk::ram("16M", 0));
        storage_guest(ctx, config, |vm| outcomes(vm, ctx.full))
    };
    let c = run(Drivers::C)?;
    let rust = run(Drivers::Rust)?;
    let mut different = Vec::new();
    for (case, expected) in &c {
        let found = rust.get(case).map_or("not reached", String::as_str);
        if found != expected {
            different.push(format!("{case}: C {expected:?}, Rust {found:?}"));
        }
    }
    ensure!(
        different.is_empty(),
        "{} of {} differ: {}",
        different.len(),
        c.len(),
        different.join("; ")
    );
    let distinct: std::collections::BTreeSet<_> = c.values().collect();
    ctx.figure(format!(
        "{} cases alike, {} different outcomes",
        c.len(),
        distinct.len()
    ));
    Ok(())
}

fn drivers_name(drivers: Drivers) -> &'static str {
    drivers.name()
}

fn stall(ctx: &Ctx) -> Result<()> {
    let seconds: u64 = ctx.count(300, 20);
    let config = ctx.config().smp(2).disk(Disk::ram("32M", 0));
    storage_guest(ctx, config, |vm| {
        let name = block(vm, SCSI0, 0)?;
        let mark = vm.log_mark()?;
        fault(vm, None, 1, DiskFault::Stall { ms: seconds * 1000 })?;
        let limit = Duration::from_secs(seconds) + IO_LIMIT;
        let handle = tool_start(
            vm,
            &format!("fio --name=stall --filename=/dev/{name} --rw=randwrite --bs=4k --iodepth=64 --ioengine=libaio --direct=1 \
                      --verify=crc32c --verify_fatal=1 --verify_state_save=0 --size=4m"),
            limit,
        )?;
        // A disk that does nothing holds up nothing else: neither the host's other devices nor the guest.
        let waiting = || Ok(disk(vm, SCSI0, 0)?.counters.in_flight > 0);
        until("commands that wait", SOON, waiting)?;
        let beats = vm.paced_beats(20, 50)?;
        ensure!(waiting()?, "the stall was over before the heartbeats were");
        let out = collect(vm, handle, limit)?;
        ensure!(out.rc == Some(0), "fio: {}", describe(&out));
        let took = Duration::from_micros(out.elapsed_us);
        ensure!(
            took >= Duration::from_secs(seconds.saturating_sub(2)),
            "fio was done after {:.1} s: nothing stalled",
            took.as_secs_f64()
        );
        nothing_in_flight(vm)?;
        let lines = vm.log_since(mark)?;
        let bad: Vec<_> = lines
            .iter()
            .filter(|line| line.text.contains("I/O error"))
            .map(|line| line.text.clone())
            .collect();
        ensure!(bad.is_empty(), "in the log: {}", bad.join(" | "));
        ctx.figure(format!(
            "{seconds} s stalled, done after {:.1} s; 20 heartbeats meanwhile, the slowest answered after {:.1} ms",
            took.as_secs_f64(),
            beats.max_rtt_us.unwrap_or_default() as f64 / 1e3
        ));
        Ok(())
    })
}

fn reset(ctx: &Ctx) -> Result<()> {
    let config = ctx.config().smp(2).disk(Disk::ram("16M", 0));
    storage_guest(ctx, config, |vm| {
        let name = block(vm, SCSI0, 0)?;
        let before = disk(vm, SCSI0, 0)?.counters.reads;
        fault(vm, Some(0x28), 1, DiskFault::Lose)?;
        let handle = tool_start(
            vm,
            &format!("dd if=/dev/{name} of=/dev/null bs=4096 count=1 iflag=direct"),
            IO_LIMIT,
        )?;
        until("the command whose completion is lost", SOON, || {
            Ok(disk(vm, SCSI0, 0)?.counters.reads > before)
        })?;
        // The host's reset is what the error handler ends with; here user space asks for it.
        let out = tool(vm, &format!("sg_reset --no-esc --host /dev/{name}"))?;
        ensure!(out.rc == Some(0), "sg_reset: {}", describe(&out));
        let out = collect(vm, handle, IO_LIMIT)?;
        ctx.figure(format!(
            "the command ended with {}",
            describe(&out).lines().next().unwrap_or_default()
        ));
        nothing_in_flight(vm)?;
        tool_ok(
            vm,
            &format!("dd if=/dev/{name} of=/dev/null bs=1M iflag=direct"),
        )
        .map(drop)
    })
}

/// Controllers of the test below; each takes some 300 commands at a time on one channel.
const CONTROLLERS: u8 = 4;

fn rescind_in_flight(ctx: &Ctx) -> Result<()> {
    let cycles = ctx.count(8, 3);
    let mut config = ctx.config().smp(4).memory(768).cmdline(EXACT_SLABS);
    for controller in 0..CONTROLLERS {
        config = config.disk(Disk::ram("64M", 0).on(&format!("scsi{controller}")));
    }
    storage_guest(ctx, config, |vm| {
        let names: Vec<String> = (0..CONTROLLERS).map(|n| format!("scsi{n}")).collect();
        let mut most = 0;
        let mut readings = Vec::new();
        for cycle in 0..=cycles {
            if cycle > 0 {
                vm.load_drivers()?;
            }
            most = most.max(vanish(vm, &names)?);
            vm.unload_drivers()
                .context("after the controllers vanished")?;
            vm.host().wait(Until::Disconnected, SOON)?;
            equal("GPADLs left at the host", vm.host().status()?.gpadls, 0)?;
            for device in &names {
                fault_on(vm, device, None, 1, DiskFault::Clear)?;
                vm.host().offer(device)?;
            }
            // The first cycle fills caches.
            readings.push(Memory::read(vm)?);
        }
        // A command that is lost takes an object or more with it, and there are 1,000 of them in a cycle.
        let leaking = leaks(&readings, 100);
        ensure!(
            leaking.is_empty(),
            "lost in {cycles} cycles: {}",
            leaking.join(", ")
        );
        // And all is well afterwards.
        vm.load_drivers()?;
        for device in &names {
            let name = block(vm, device, 0)?;
            tool_ok(
                vm,
                &format!("dd if=/dev/{name} of=/dev/null bs=1M count=4 iflag=direct"),
            )?;
        }
        ctx.figure(format!(
            "{} times, {most} commands in flight at most",
            cycles + 1
        ));
        Ok(())
    })
}

/// Takes the controllers away when they have 1,000 commands in all. How many they had.
fn vanish(vm: &Vm, controllers: &[String]) -> Result<u64> {
    let mut loads = Vec::new();
    for device in controllers {
        let name = block(vm, device, 0)?;
        fault_on(vm, device, None, 0, DiskFault::Delay { ms: 3_600_000 })?;
        loads.push(tool_start(
            vm,
            &format!("fio --name=load --filename=/dev/{name} --rw=randread --bs=4k --iodepth=160 --numjobs=2 --ioengine=libaio \
                      --direct=1 --size=32m --time_based --runtime=3600 --output=/dev/null"),
            IO_LIMIT,
        )?);
    }
    let mut most = 0;
    until("1,000 commands in flight", IO_LIMIT, || {
        most = disks(vm)?.iter().map(|disk| disk.counters.in_flight).sum();
        Ok(most >= 1000)
    })
    .with_context(|| format!("{most} in flight"))?;
    for device in controllers {
        vm.host().rescind(device)?;
    }
    for device in controllers {
        vm.host()
            .wait(
                Until::Released {
                    device: device.clone(),
                },
                IO_LIMIT,
            )
            .with_context(|| format!("{device} was not released"))?;
    }
    for handle in loads {
        let out = collect(vm, handle, IO_LIMIT)?;
        ensure!(
            !out.killed && out.rc != Some(0),
            "fio noticed nothing: {}",
            describe(&out)
        );
    }
    until_in_guest(vm, "! ls -d /sys/block/sd* >/dev/null 2>&1", SOON).context("disks are left")?;
    Ok(most)
}
