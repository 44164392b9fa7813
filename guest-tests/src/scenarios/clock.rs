// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The guest's clock: after a freeze, wrong by hours, steered or set.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use guest_agent::Command as Ask;
use hvctl::{Command, SampleKind, TimesyncStatus};

use crate::runner::{Ctx, Scenario};
use crate::vm::{unix_now, ClockOffset, Vm, SOON};

/// How close the guest must come to the host, in milliseconds.
pub const CLOSE_MS: f64 = 100.0;

/// Within which time.
const LIMIT: Duration = Duration::from_secs(5);

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "clock-freeze",
            "the VM is stopped and continued: the clock is right again",
            freeze,
        ),
        Scenario::new(
            "clock-sample",
            "a sample without the sync flag does not step the clock, one with it does",
            sample,
        ),
        Scenario::new(
            "clock-hours",
            "a clock that is hours wrong, either way, is right after the next marked sample",
            hours,
        ),
        Scenario::new(
            "clock-ptp",
            "the PTP clock named hyperv tells the host's time",
            ptp,
        ),
    ]
}

fn timesync(
    vm: &Vm,
    send: Option<SampleKind>,
    interval_ms: Option<u64>,
    after_stop: Option<bool>,
) -> Result<TimesyncStatus> {
    let command = Command::Timesync {
        send,
        offset_ms: 0,
        unix_ms: None,
        keep: false,
        interval_ms,
        sync_after_stop: after_stop,
    };
    serde_json::from_value(vm.host().call(command)?).context("timesync status")
}

/// No sample comes unless the test sends one.
pub fn quiet(vm: &Vm) -> Result<()> {
    timesync(vm, None, Some(0), Some(false)).map(drop)
}

/// Waits until the guest's clock is right; says how long it took.
pub fn becomes_right(vm: &Vm, begin: Instant) -> Result<(Duration, ClockOffset)> {
    loop {
        let offset = vm.clock_offset()?;
        let took = begin.elapsed();
        if offset.ms.abs() + offset.uncertainty_ms <= CLOSE_MS {
            return Ok((took, offset));
        }
        if took > LIMIT {
            bail!(
                "after {:.1} s the clock is still {:.0} ms off",
                took.as_secs_f64(),
                offset.ms
            );
        }
    }
}

/// How a freeze ended.
pub struct Frozen {
    /// From the VM's going on to the clock's being right.
    pub took: Duration,
    /// How right it is.
    pub offset: ClockOffset,
}

/// Stops the VM for a while; the host sends a marked sample by itself when it goes on.
pub fn freeze_and_correct(vm: &Vm, length: Duration) -> Result<Frozen> {
    // Right before the freeze, so that the freeze alone makes the difference.
    timesync(vm, Some(SampleKind::Sync), Some(0), Some(true))?;
    becomes_right(vm, Instant::now())?;
    let before = vm.host().timesync()?;
    vm.qmp.stop()?;
    vm.qmp.event("STOP", SOON)?;
    // The length of the freeze is what is tested; nothing happens in it that could be waited for.
    std::thread::sleep(length);
    vm.qmp.cont()?;
    let (took, offset) = becomes_right(vm, Instant::now())?;
    let after = vm.host().timesync()?;
    ensure!(
        after.stops_seen > before.stops_seen,
        "the host did not notice the stop"
    );
    ensure!(
        after.syncs > before.syncs,
        "the host sent no marked sample after the stop"
    );
    Ok(Frozen { took, offset })
}

fn freeze(ctx: &Ctx) -> Result<()> {
    let length = Duration::from_secs(ctx.count(60, 8));
    ctx.connected(ctx.config().smp(2), |vm| {
        let Frozen { took, offset } = freeze_and_correct(vm, length)?;
        vm.beats(10)?;
        ctx.figure(format!(
            "frozen {} s, right (off by {:.1} ms) after {:.0} ms",
            length.as_secs(),
            offset.ms,
            took.as_secs_f64() * 1e3
        ));

        // The same without a marked sample: the guest stays behind, so it was the sample that helped.
        quiet(vm)?;
        let short = Duration::from_secs(2);
        vm.qmp.stop()?;
        std::thread::sleep(short);
        vm.qmp.cont()?;
        let offset = vm.clock_offset()?;
        let expected = -(short.as_secs_f64() * 1e3);
        ensure!(
            (offset.ms - expected).abs() < 1000.0,
            "frozen for 2 s without a sample, the clock is {:.0} ms off",
            offset.ms
        );
        Ok(())
    })
}

fn sample(ctx: &Ctx) -> Result<()> {
    const SHIFT_MS: i64 = 3000;
    ctx.connected(ctx.config().smp(2), |vm| {
        quiet(vm)?;
        for shift in [SHIFT_MS, -SHIFT_MS] {
            vm.set_clock(shift)?;
            for kind in [SampleKind::Sample, SampleKind::Probe] {
                send_and_wait(vm, kind)?;
                let offset = vm.clock_offset()?;
                // Steering may move the clock by up to 500 ppm, which is less than a millisecond here.
                ensure!(
                    (offset.ms - shift as f64).abs() < CLOSE_MS,
                    "a {kind:?} sample moved the clock from {shift} ms off to {:.0} ms off",
                    offset.ms
                );
            }
            let begin = Instant::now();
            send_and_wait(vm, SampleKind::Sync)?;
            let (took, offset) = becomes_right(vm, begin)?;
            ctx.figure(format!(
                "{shift:+} ms: kept by samples, set by sync to {:+.1} ms in {:.0} ms",
                offset.ms,
                took.as_secs_f64() * 1e3
            ));
        }
        Ok(())
    })
}

/// Sends one sample and waits until the guest has answered it.
pub fn send_and_wait(vm: &Vm, kind: SampleKind) -> Result<()> {
    let before = vm.host().timesync()?.answered;
    vm.host().time_sample(kind, 0, false)?;
    let begin = Instant::now();
    while vm.host().timesync()?.answered <= before {
        ensure!(begin.elapsed() < SOON, "a {kind:?} sample was not answered");
    }
    Ok(())
}

fn hours(ctx: &Ctx) -> Result<()> {
    ctx.connected(ctx.config().smp(2), |vm| {
        quiet(vm)?;
        for hours in [-5i64, 7, -24 * 400] {
            vm.set_clock(hours * 3_600_000)?;
            let wrong = vm.clock_offset()?;
            ensure!(
                wrong.ms.abs() > 3.6e6,
                "the clock was not set: {:.0} ms off",
                wrong.ms
            );
            let begin = Instant::now();
            vm.host().time_sample(SampleKind::Sync, 0, false)?;
            let (took, offset) = becomes_right(vm, begin)?;
            ctx.figure(format!(
                "{hours:+} h: off by {:+.1} ms after {:.0} ms",
                offset.ms,
                took.as_secs_f64() * 1e3
            ));
        }
        Ok(())
    })
}

/// The device node of the PTP clock named `hyperv`.
pub fn ptp_node(vm: &Vm) -> Result<String> {
    let named = vm.sh("grep -lx hyperv /sys/class/ptp/ptp*/clock_name")?;
    let names: Vec<&str> = named.lines().collect();
    ensure!(names.len() == 1, "PTP clocks named hyperv: {names:?}");
    let node = names[0]
        .split('/')
        .rev()
        .nth(1)
        .context("path of the PTP clock")?;
    Ok(format!("/dev/{node}"))
}

/// How far a PTP clock is off.
pub fn ptp_offset(vm: &Vm, node: &str) -> Result<ClockOffset> {
    let before = unix_now();
    let ns: u64 = vm.agent.call(Ask::PtpTime { path: node.into() }, SOON)?;
    let after = unix_now();
    Ok(ClockOffset {
        ms: (ns as i128 - ((before + after) / 2).as_nanos() as i128) as f64 / 1e6,
        uncertainty_ms: (after - before).as_secs_f64() * 1e3 / 2.0,
    })
}

fn ptp(ctx: &Ctx) -> Result<()> {
    ctx.connected(ctx.config(), |vm| {
        let node = ptp_node(vm)?;
        send_and_wait(vm, SampleKind::Sample)?;
        // The PTP clock follows the host even when the guest's own clock is wrong.
        quiet(vm)?;
        vm.set_clock(-3_600_000)?;
        let offset = ptp_offset(vm, &node)?;
        ensure!(
            offset.ms.abs() <= CLOSE_MS + offset.uncertainty_ms,
            "{node} is {:.1} ms off",
            offset.ms
        );
        // As chrony reads it: PTP_SYS_OFFSET and PTP_SYS_OFFSET_EXTENDED (`linux/ptp_clock.h`), three readings with the
        // system's clock before and after each. C has the first alone.
        for (ioctl, size, phc) in [(0x4340_3d05u32, 832, [1, 3, 5]), (0xc4c0_3d09, 1216, [1, 4, 7])] {
            if size == 1216 && ctx.drivers == crate::Drivers::C {
                continue;
            }
            let text = vm.sh(&format!(
                r#"perl -e 'open(my $f, "+<", "{node}") or die; my $data = pack("Lx{pad}", 3);
                   ioctl($f, {ioctl}, $data) // die "$!\n"; my @t = unpack("x16(ql2)9", $data);
                   printf("%d.%09d ", $t[3 * $_], $t[3 * $_ + 1]) for (0 .. 8)'"#,
                pad = size - 4
            ))?;
            let times: Vec<f64> = text.split_whitespace().filter_map(|t| t.parse().ok()).collect();
            for at in phc {
                let (before, phc, after) = (times[at - 1], times[at], times[at + 1]);
                // The system's clock was set an hour back above.
                let off = (phc - (before + after) / 2.0 - 3600.0) * 1e3;
                ensure!(
                    before <= after && off.abs() <= CLOSE_MS + (after - before) * 1e3,
                    "ioctl {ioctl:#x}: reading {before} {phc} {after}, {off:.1} ms off"
                );
            }
        }
        // It cannot be set or shifted: clock_settime and, with ADJ_SETOFFSET, clock_adjtime, by their numbers.
        for (what, number, data) in [
            ("setting", 227, r#"pack("qq", 1, 0)"#),
            ("shifting", 305, r#"pack("L", 0x100) . "\0" x 256"#),
        ] {
            let out = vm.sh(&format!(
                r#"perl -e 'open(my $f, "+<", "{node}") or die; my $id = (~fileno($f) << 3) | 3; my $data = {data};
                   syscall({number}, $id, $data) == -1 or die; print $!'"#
            ))?;
            ensure!(
                out == "Operation not supported",
                "{what} {node} fails with {out:?}"
            );
        }
        ctx.figure(format!(
            "{node} off by {:+.2} ms (±{:.2})",
            offset.ms, offset.uncertainty_ms
        ));
        Ok(())
    })
}
