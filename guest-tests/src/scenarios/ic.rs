// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Integration services with old hosts, with hosts that forget the sync mark, and with hostile ones.

use std::time::Instant;

use anyhow::{Context, Result};
use hvctl::{Command, Fault, SampleKind, ShutdownKind};

use crate::net::hex;
use crate::runner::{ensure, equal, Ctx, Scenario};
use crate::vm::{Vm, SOON};

/// Device, its newest version at the host, the host's newest framework version, and what must be agreed.
type Agreement = (&'static str, &'static str, &'static str, &'static str);

/// Hosts from Windows Server 2008 on, by the versions that they speak (`hv_util.c`).
const OLD_HOSTS: [(&str, [Agreement; 3]); 3] = [
    (
        "2008",
        [
            ("heartbeat", "1.0", "1.0", "1.0/1.0"),
            ("shutdown", "1.0", "1.0", "1.0/1.0"),
            ("timesync", "1.0", "1.0", "1.0/1.0"),
        ],
    ),
    (
        "2012",
        [
            ("heartbeat", "3.0", "3.0", "3.0/3.0"),
            ("shutdown", "3.0", "3.0", "3.0/3.0"),
            ("timesync", "3.0", "3.0", "3.0/3.0"),
        ],
    ),
    (
        "2016",
        [
            ("heartbeat", "3.0", "3.0", "3.0/3.0"),
            ("shutdown", "3.1", "3.0", "3.0/3.1"),
            ("timesync", "4.0", "3.0", "3.0/4.0"),
        ],
    ),
];

pub fn scenarios() -> Vec<Scenario> {
    let mut all: Vec<_> = OLD_HOSTS
        .into_iter()
        .map(|(name, agreements)| {
            Scenario::new(
                &format!("ic-{name}"),
                &format!("services with the versions of a host of {name}: agreed, and at work"),
                move |ctx| old_host(ctx, agreements),
            )
        })
        .collect();
    all.push(Scenario::new(
        "timesync-implicit",
        "with timesync_implicit a sample sets a clock that is 5 s behind, and no other",
        implicit,
    ));
    all.push(Scenario::new(
        "rebind",
        "each device unbound from its driver and bound again by sysfs, many times",
        rebind,
    ));
    all
}

pub fn rust_only() -> Vec<Scenario> {
    vec![Scenario::new(
        "ic-hostile",
        "malformed and misplaced messages on every service: refused or ignored, and all services go on",
        hostile,
    )]
}

/// Sends one sample and waits until the guest has answered it: its clock may be set a moment later.
fn sample(vm: &Vm, kind: SampleKind) -> Result<()> {
    let before = vm.host().timesync()?.answered;
    vm.host().time_sample(kind, 0, false)?;
    let begin = Instant::now();
    while vm.host().timesync()?.answered <= before {
        ensure(
            begin.elapsed() < SOON,
            format!("a {kind:?} sample was not answered"),
        )?;
    }
    Ok(())
}

fn no_periodic_samples(vm: &Vm) -> Result<()> {
    vm.host()
        .call(Command::Timesync {
            send: None,
            offset_ms: 0,
            unix_ms: None,
            keep: false,
            interval_ms: Some(0),
            sync_after_stop: Some(false),
        })
        .map(drop)
        .context("timesync interval")
}

/// The clock comes within `ms` of the host's soon.
fn clock_is_right(vm: &Vm, ms: f64) -> Result<f64> {
    let begin = Instant::now();
    loop {
        let offset = vm.clock_offset()?.ms;
        if offset.abs() < ms {
            return Ok(offset);
        }
        ensure(
            begin.elapsed() < SOON,
            format!("the clock is still {offset:.0} ms off"),
        )?;
    }
}

fn old_host(ctx: &Ctx, agreements: [Agreement; 3]) -> Result<()> {
    let config = agreements
        .iter()
        .fold(ctx.config(), |config, (device, max, framework, _)| {
            config.device(&format!("{device}:max={max}:framework={framework}"))
        });
    ctx.connected(config, |vm| {
        for (device, _, _, agreed) in agreements {
            vm.host().wait_negotiated(device, SOON)?;
            let channel = vm.host().channel(device)?;
            equal(device, channel.agreed.as_deref(), Some(agreed))?;
        }
        vm.beats(10)?;
        no_periodic_samples(vm)?;
        vm.set_clock(-3_600_000)?;
        sample(vm, SampleKind::Sync)?;
        let offset = clock_is_right(vm, 100.0)?;
        let reply = vm.host().shutdown(ShutdownKind::PowerOff, false, SOON)?;
        equal("status of the power off", reply.status, Some(0))?;
        vm.qmp.event("SHUTDOWN", crate::vm::BOOT_LIMIT)?;
        ctx.figure(format!("clock set to {offset:+.1} ms"));
        Ok(())
    })
}

fn implicit(ctx: &Ctx) -> Result<()> {
    ctx.connected(ctx.config().smp(2), |vm| {
        no_periodic_samples(vm)?;
        let module = if vm.config.drivers == crate::Drivers::Rust {
            "hv_utils_rs"
        } else {
            "hv_utils"
        };
        let parameter = format!("/sys/module/{module}/parameters/timesync_implicit");
        equal("timesync_implicit", vm.read(&parameter)?.as_str(), "N")?;
        vm.write(&parameter, "Y")?;
        equal("timesync_implicit", vm.read(&parameter)?.as_str(), "Y")?;
        for shift in [-4000i64, 8000] {
            vm.set_clock(shift)?;
            sample(vm, SampleKind::Sample)?;
            vm.beats(5)?;
            let offset = vm.clock_offset()?.ms;
            ensure(
                (offset - shift as f64).abs() < 500.0,
                format!("a clock {shift} ms off was set to {offset:.0} ms"),
            )?;
        }
        vm.set_clock(-8000)?;
        sample(vm, SampleKind::Sample)?;
        let set = clock_is_right(vm, 100.0)?;
        vm.write(&parameter, "N")?;
        vm.set_clock(-8000)?;
        sample(vm, SampleKind::Sample)?;
        vm.beats(5)?;
        let offset = vm.clock_offset()?.ms;
        ensure(
            (offset + 8000.0).abs() < 500.0,
            format!("without the parameter a sample set the clock to {offset:.0} ms"),
        )?;
        ctx.figure(format!("8 s behind: set to {set:+.1} ms"));
        Ok(())
    })
}

fn rebind(ctx: &Ctx) -> Result<()> {
    let rounds = ctx.count(100, 10);
    ctx.connected(ctx.config().smp(2), |vm| {
        let driver = "/sys/bus/vmbus/drivers/hv_utils";
        let channels = vm.host().channels()?;
        for _ in 0..rounds {
            for channel in &channels {
                let device = channel.device.clone();
                vm.write(&format!("{driver}/unbind"), &channel.instance)?;
                vm.host().wait(
                    hvctl::Until::ChannelClosed {
                        device: device.clone(),
                    },
                    SOON,
                )?;
                vm.write(&format!("{driver}/bind"), &channel.instance)?;
                vm.host().wait_negotiated(&device, SOON)?;
            }
            vm.beats(5)?;
        }
        equal(
            "PTP clocks named hyperv",
            vm.sh("grep -lx hyperv /sys/class/ptp/*/clock_name | wc -l")?
                .trim(),
            "1",
        )?;
        ctx.figure(format!("{rounds} rounds"));
        Ok(())
    })
}

/// A message: pipe header, IC header, body (`hyperv.h`, `struct vmbuspipe_hdr`, `struct icmsg_hdr`).
fn message(claimed: usize, message_type: u16, flags: u8, body: &[u8]) -> String {
    let mut bytes = Vec::new();
    bytes.extend(1u32.to_le_bytes());
    bytes.extend((claimed as u32).to_le_bytes());
    bytes.extend([3, 0, 0, 0]);
    bytes.extend(message_type.to_le_bytes());
    bytes.extend([3, 0, 0, 0]);
    bytes.extend((body.len() as u16).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend([0x77, flags, 0, 0]);
    bytes.extend(body);
    hex(&bytes)
}

fn hostile(ctx: &Ctx) -> Result<()> {
    const REQUEST: u8 = 3;
    ctx.connected(ctx.config().smp(2), |vm| {
        no_periodic_samples(vm)?;
        let mut packets = Vec::new();
        // Truncated at every length up to the headers' end.
        for len in 0..28 {
            packets.push((6, hex(&vec![0xff; len])));
        }
        for message_type in [0u16, 1, 2, 3, 4, 5, 7, 0xffff] {
            // A pipe header that promises more than there is; headers without a body; a response.
            packets.push((6, message(0xffff_ffff, message_type, REQUEST, &[0; 40])));
            packets.push((6, message(20, message_type, REQUEST, &[])));
            packets.push((6, message(60, message_type, 5, &[0; 40])));
        }
        // Negotiations whose counts lie, or with nothing to agree on.
        for (framework, service) in [(100u16, 100u16), (101, 1), (0xffff, 0xffff), (0, 0), (1, 0)] {
            let mut body = framework.to_le_bytes().to_vec();
            body.extend(service.to_le_bytes());
            body.extend([0; 4]);
            body.extend([9, 0, 9, 0]);
            packets.push((6, message(20 + body.len(), 0, REQUEST, &body)));
        }
        // Shutdown flags without a meaning; samples with impossible times.
        packets.push((6, message(32, 3, REQUEST, &[0xff; 12])));
        packets.push((6, message(42, 4, REQUEST, &[0xff; 22])));
        packets.push((6, message(42, 4, REQUEST, &[0; 22])));
        // A completion of nothing. (Kinds with ranges are malformed by the ring's own rules: another test's matter.)
        packets.push((11, message(60, 1, REQUEST, &[0; 40])));
        // The longest that the guest takes.
        packets.push((6, message(4052, 1, REQUEST, &vec![0x5a; 4032])));
        let count = packets.len();
        let offset = vm.clock_offset()?.ms;
        for device in ["heartbeat", "shutdown", "timesync"] {
            for (packet_type, hex) in &packets {
                vm.host()
                    .fault(Fault::SendPacket {
                        device: device.into(),
                        packet_type: *packet_type,
                        flags: 0,
                        transaction_id: 0,
                        hex: hex.clone(),
                    })
                    .with_context(|| format!("packet {hex} to {device}"))?;
            }
        }
        // All services go on. What the guest answered to these packets are violations at the host, which asked nothing.
        vm.host().heartbeat_burst(20, 10)?;
        let begin = Instant::now();
        while vm.host().heartbeat()?.burst_left > 0 {
            ensure(begin.elapsed() < SOON, "heartbeats stopped")?;
        }
        sample(vm, SampleKind::Sample)?;
        let now = vm.clock_offset()?.ms;
        ensure(
            (now - offset).abs() < 500.0,
            format!("the clock went from {offset:.0} to {now:.0} ms off"),
        )?;
        vm.check_console()?;
        vm.host().reset_counters()?;
        vm.beats(20)?;
        sample(vm, SampleKind::Sync)?;
        let lines = vm
            .log_since(0)?
            .iter()
            .filter(|line| line.text.contains("hv_utils_rs"))
            .count();
        ensure(
            lines < 120,
            format!("{lines} lines in the log: the limit does not work"),
        )?;
        let reply = vm.host().shutdown(ShutdownKind::PowerOff, true, SOON)?;
        equal("status of the power off", reply.status, Some(0))?;
        vm.qmp.event("SHUTDOWN", crate::vm::BOOT_LIMIT)?;
        ctx.figure(format!(
            "{count} packets to each service, {lines} lines in the log"
        ));
        Ok(())
    })
}
