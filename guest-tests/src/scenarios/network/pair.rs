// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Two guests, the cards of which are linked.

use anyhow::{ensure, Context, Result};

use super::{address, carrier, interface, net, prepare, NET0};
use crate::env::TempDir;
use crate::net::{Backend, IperfReport, Nic};
use crate::runner::{Ctx, Scenario};
use crate::scenarios::programs::{collect, tool, tool_ok, tool_start, until_in_guest, IO_LIMIT};
use crate::vm::{describe, Vm, SOON};

pub fn scenarios() -> Vec<Scenario> {
    Scenario::both(
        "two-guests",
        "two guests linked: data with its checksum in each direction, with MTU 1500, 9000 and 65521; iperf3",
        two_guests,
    )
    .into()
}

const ADDRESSES: [&str; 2] = ["10.0.0.1", "10.0.0.2"];

fn two_guests(ctx: &Ctx) -> Result<()> {
    let dir = TempDir::new()?;
    let socket = dir.path().join("link.sock");
    let size: u64 = ctx.count(1 << 30, 8 << 20);
    let part = |name: &str, backend| {
        ctx.config_for(name, ctx.drivers)
            .smp(2)
            .memory(768)
            .nic(Nic::new(backend))
    };
    let first = {
        let mut config = part("a", Backend::Listen(socket.clone()));
        config.tools = true;
        config
    };
    let second = {
        let mut config = part("b", Backend::Connect(socket.clone()));
        config.tools = true;
        config
    };
    ctx.booted(first, |a| {
        prepare(a)?;
        ctx.booted(second, |b| {
            prepare(b)?;
            for (vm, address_of) in [a, b].into_iter().zip(ADDRESSES) {
                let name = interface(vm, NET0)?;
                address(vm, &name, &format!("{address_of}/24"))?;
            }
            for mtu in [1500, 9000, 65521] {
                for vm in [a, b] {
                    let name = interface(vm, NET0)?;
                    vm.sh(&format!("ip link set {name} mtu {mtu}"))?;
                    carrier(vm, &name, true)?;
                }
                for (from, to, address) in [(a, b, ADDRESSES[0]), (b, a, ADDRESSES[1])] {
                    copy(from, to, address, size)
                        .with_context(|| format!("MTU {mtu}, from {address}"))?;
                }
            }
            let speeds = [iperf(ctx, a, b, false)?, iperf(ctx, a, b, true)?];
            for vm in [a, b] {
                let info = net(vm, NET0)?;
                ensure!(info.counters.tx_malformed == 0, "{:?}", info.counters);
            }
            ctx.figure(format!(
                "{} MiB each; iperf3 {:.0} and back {:.0} Mbit/s",
                size >> 20,
                speeds[0] / 1e6,
                speeds[1] / 1e6
            ));
            Ok(())
        })
    })
}

/// One side serves random bytes, the other fetches them.
fn copy(from: &Vm, to: &Vm, address: &str, size: u64) -> Result<()> {
    // More than that would not fit into its memory.
    let chunk = size.min(64 << 20);
    let turns = size / chunk;
    tool_ok(
        from,
        &format!("[ -s /tmp/data ] || head -c {chunk} /dev/urandom > /tmp/data; rm -f /tmp/served"),
    )?;
    let server = tool_start(
        from,
        &format!(
            "(i=0; while [ $i -lt {turns} ]; do printf %08d $i; cat /tmp/data; i=$((i + 1)); done) | \
             socat -d -d -u - TCP-LISTEN:5000,reuseaddr 2> /tmp/served"
        ),
        IO_LIMIT,
    );
    let server = server?;
    until_in_guest(from, "grep -q listening /tmp/served 2>/dev/null", SOON)?;
    let out = tool(to, &format!("socat -u TCP:{address}:5000 - | sha256sum"))?;
    ensure!(out.rc == Some(0), "socat: {}", describe(&out));
    let served = collect(from, server, IO_LIMIT)?;
    ensure!(served.rc == Some(0), "socat: {}", describe(&served));
    let wanted = tool_ok(
        from,
        &format!(
            "(i=0; while [ $i -lt {turns} ]; do printf %08d $i; cat /tmp/data; i=$((i + 1)); done) | sha256sum"
        ),
    )?;
    ensure!(
        out.stdout.text() == wanted,
        "sent with the sum {}, received with {}",
        wanted.trim(),
        out.stdout.text().trim()
    );
    Ok(())
}

/// Bits per second from `b` to `a`, or back.
fn iperf(ctx: &Ctx, a: &Vm, b: &Vm, reverse: bool) -> Result<f64> {
    let seconds = ctx.count(10, 2);
    a.sh("rm -f /tmp/iperf")?;
    let server = tool_start(
        a,
        "exec iperf3 -s -1 --forceflush > /tmp/iperf 2>&1",
        IO_LIMIT,
    )?;
    until_in_guest(a, "grep -q listening /tmp/iperf", SOON)?;
    let out = tool_ok(
        b,
        &format!(
            "iperf3 -J -t {seconds} {} -c {}",
            if reverse { "-R" } else { "" },
            ADDRESSES[0]
        ),
    )?;
    let _ = collect(a, server, SOON)?;
    let report = IperfReport::parse(&out)?;
    Ok(report.end.sum_received.context("no sum")?.bits_per_second)
}
