// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! XDP: each verdict with real frames, counted at the other end of the wire.

use std::process::Command as Process;

use anyhow::{ensure, Context, Result};

use super::{
    by_queue, interface, mac_of, network_guest, on_wire, statistics, to_guest, Echo, NET0,
};
use crate::env::TempDir;
use crate::net::{udp, Backend, Nic, Udp, Wire};
use crate::runner::{equal, Ctx, Scenario};
use crate::scenarios::programs::{collect, tool, tool_ok, tool_start, until};
use crate::vm::{Vm, SOON};
use crate::Env;

pub fn scenarios() -> Vec<Scenario> {
    [
        Scenario::both(
            "xdp",
            "XDP programs with all five verdicts, counted at the other end",
            verdicts,
        ),
        Scenario::both(
            "xdp-settings",
            "an XDP program stays over changes of MTU and channels, and refuses what it cannot do",
            settings,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Frames for each verdict: several times what the buffers between the two hold back.
const FRAMES: usize = 400;

/// Compiles the programs and puts them into the guest.
fn programs(env: &Env, vm: &Vm) -> Result<()> {
    let dir = TempDir::new()?;
    let object = dir.path().join("verdicts.o");
    let out = Process::new("clang-19")
        .args(["-O2", "-g", "-Wall", "-Werror", "-target", "bpf"])
        .arg("-I/usr/include/x86_64-linux-gnu")
        .arg("-c")
        .arg(env.source.join("guest-tests/bpf/verdicts.c"))
        .arg("-o")
        .arg(&object)
        .output()
        .context("clang-19")?;
    ensure!(
        out.status.success(),
        "clang-19: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    let bytes = std::fs::read(&object)?;
    vm.write("/tmp/verdicts.o", &bytes)
}

/// Puts the program of a section on an interface.
fn attach(vm: &Vm, name: &str, section: &str) -> Result<()> {
    tool_ok(
        vm,
        &format!("ip -force link set dev {name} xdpdrv obj /tmp/verdicts.o sec xdp/{section}"),
    )
    .map(drop)
}

fn detach(vm: &Vm, name: &str) -> Result<()> {
    tool_ok(vm, &format!("ip link set dev {name} xdpdrv off")).map(drop)
}

/// How many frames the program has judged. Its maps are those that were made last.
fn judged(vm: &Vm) -> Result<u64> {
    let id = map(vm, "seen")?;
    let text = tool_ok(vm, &format!("bpftool -j map dump id {id}"))?;
    let value: serde_json::Value = serde_json::from_str(&text)?;
    value
        .pointer("/0/formatted/value")
        .and_then(serde_json::Value::as_u64)
        .with_context(|| format!("map seen: {text}"))
}

fn map(vm: &Vm, name: &str) -> Result<u64> {
    let text = tool_ok(vm, "bpftool -j map show")?;
    let maps: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    maps.iter()
        .filter(|map| map["name"] == name)
        .filter_map(|map| map["id"].as_u64())
        .max()
        .with_context(|| format!("no map {name}: {text}"))
}

/// Frames that the program judges, each with its number.
fn judged_frames(vm: &Vm) -> Result<Vec<Udp>> {
    let mac = mac_of(vm, NET0)?;
    Ok((0..FRAMES)
        .map(|number| Udp {
            source: (super::wire_address(), 30_000 + (number % 64) as u16),
            // Short ones and long ones.
            ..to_guest(
                mac,
                Echo::PORT,
                format!("{number:0width$}", width = 8 + number * 3).into_bytes(),
            )
        })
        .collect())
}

fn send(wire: &Wire, frames: &[Udp]) -> Result<()> {
    for frame in frames {
        wire.send(&frame.frame()?)?;
    }
    Ok(())
}

/// A frame that every program lets pass, and its answer: what was sent before it has been judged by then, as all of it is one flow
/// to the hash of the addresses.
fn behind(vm: &Vm, wire: &Wire, want: u64) -> Result<()> {
    until("all frames are judged", SOON, || Ok(judged(vm)? >= want)).with_context(|| {
        format!(
            "{:?} of {want} judged; {} frames came back",
            judged(vm).ok(),
            wire.take(Some).len()
        )
    })?;
    equal("frames judged", judged(vm)?, want)
}

fn sum(statistics: &[(String, u64)], prefix: &str, suffix: &str) -> u64 {
    by_queue(statistics, prefix, suffix).iter().sum()
}

fn verdicts(ctx: &Ctx) -> Result<()> {
    let dir = TempDir::new()?;
    let wires = ["a.sock", "b.sock"].map(|name| Wire::new(&dir.path().join(name)));
    let [wire, second] = wires;
    let (wire, second) = (wire?, second?);
    let nic = |wire: &Wire| Nic::new(Backend::Connect(wire.path().to_owned()));
    let config = ctx.config().smp(2).nic(nic(&wire)).nic(nic(&second));
    network_guest(ctx, config, |vm| {
        let name = interface(vm, NET0)?;
        let other = interface(vm, "net1")?;
        on_wire(vm, &name)?;
        vm.sh(&format!(
            "sysctl -q net.ipv6.conf.{other}.disable_ipv6=1; ip link set {other} up"
        ))?;
        programs(ctx.env, vm)?;
        let _echo = Echo::start(vm)?;
        // XDP and packets put together from segments do not go together.
        ensure!(
            ctx.drivers != crate::Drivers::C
                || tool(
                    vm,
                    &format!("ip link set dev {name} xdpdrv obj /tmp/verdicts.o sec xdp/pass")
                )?
                .rc != Some(0),
            "XDP was accepted with LRO on"
        );
        for name in [&name, &other] {
            tool_ok(vm, &format!("ethtool -K {name} lro off"))?;
        }
        let frames = judged_frames(vm)?;
        let came_back = |wanted: &[Udp]| -> Result<()> {
            let mut found = wire.wait(FRAMES, SOON, |frame| {
                udp(frame)
                    .filter(|udp| udp.source.1 == Echo::PORT || udp.destination.1 == Echo::PORT)
            })?;
            found.sort_by_key(|udp| udp.payload.len());
            ensure!(found == wanted, "what came back is not what was sent");
            Ok(())
        };
        let answers: Vec<Udp> = frames.iter().map(Udp::turned).collect();

        wire.clear();
        attach(vm, &name, "pass")?;
        send(&wire, &frames)?;
        came_back(&answers).context("PASS")?;
        behind(vm, &wire, FRAMES as u64)?;

        attach(vm, &name, "drop")?;
        let before = statistics(vm, &name)?;
        send(&wire, &frames)?;
        behind(vm, &wire, FRAMES as u64).context("DROP")?;
        let after = statistics(vm, &name)?;
        let count =
            |suffix: &str| sum(&after, "rx_queue_", suffix) - sum(&before, "rx_queue_", suffix);
        equal("xdp_drop", count("_xdp_drop"), FRAMES as u64)?;

        attach(vm, &name, "tx")?;
        let before = statistics(vm, &name)?;
        let none = wire.take(|frame| udp(&frame));
        ensure!(none.is_empty(), "{} frames came back from DROP", none.len());
        send(&wire, &frames)?;
        // As they were, but for the addresses of the Ethernet header.
        let bounced: Vec<Udp> = frames
            .iter()
            .map(|udp| Udp {
                to: udp.from,
                from: udp.to,
                ..udp.clone()
            })
            .collect();
        came_back(&bounced).context("TX")?;
        let after = statistics(vm, &name)?;
        let count =
            |suffix: &str| sum(&after, "rx_queue_", suffix) - sum(&before, "rx_queue_", suffix);
        equal("xdp_tx", count("_xdp_tx"), FRAMES as u64)?;

        attach(vm, &name, "grow")?;
        send(&wire, &frames)?;
        let mut grown = wire.wait(FRAMES, SOON, |frame| {
            (frame.get(12..14)? == [0x88, 0xb5])
                .then(|| udp(frame.get(14..)?))
                .flatten()
        })?;
        grown.sort_by_key(|udp| udp.payload.len());
        ensure!(
            grown == frames,
            "frames with a second header are not what was sent"
        );

        // The target needs a program of its own on some drivers; this one lets pass.
        attach(vm, &other, "pass")?;
        attach(vm, &name, "redirect")?;
        let target = map(vm, "target")?;
        let index: u32 = vm
            .read(&format!("/sys/class/net/{other}/ifindex"))?
            .parse()?;
        let bytes: Vec<String> = index.to_le_bytes().iter().map(u8::to_string).collect();
        tool_ok(
            vm,
            &format!(
                "bpftool map update id {target} key 0 0 0 0 value {}",
                bytes.join(" ")
            ),
        )?;
        let before = [statistics(vm, &name)?, statistics(vm, &other)?];
        second.clear();
        send(&wire, &frames)?;
        let mut found = second.wait(FRAMES, SOON, udp).context("REDIRECT")?;
        found.sort_by_key(|udp| udp.payload.len());
        ensure!(found == frames, "what was redirected is not what was sent");
        let after = [statistics(vm, &name)?, statistics(vm, &other)?];
        equal(
            "xdp_redirect",
            sum(&after[0], "rx_queue_", "_xdp_redirect")
                - sum(&before[0], "rx_queue_", "_xdp_redirect"),
            FRAMES as u64,
        )?;
        equal(
            "xdp_xmit",
            sum(&after[1], "tx_queue_", "_xdp_xmit") - sum(&before[1], "tx_queue_", "_xdp_xmit"),
            FRAMES as u64,
        )?;
        detach(vm, &other)?;

        wire.clear();
        attach(vm, &name, "abort")?;
        vm.sh("mount -t tracefs trace /sys/kernel/tracing 2>/dev/null; echo 1 > /sys/kernel/tracing/events/xdp/xdp_exception/enable; echo > /sys/kernel/tracing/trace")?;
        send(&wire, &frames)?;
        behind(vm, &wire, FRAMES as u64).context("ABORTED")?;
        let traced = vm.sh("grep -c xdp_exception: /sys/kernel/tracing/trace; echo 0 > /sys/kernel/tracing/events/xdp/xdp_exception/enable")?;
        equal(
            "exceptions traced",
            traced.trim(),
            FRAMES.to_string().as_str(),
        )?;
        let none = wire.take(|frame| udp(&frame));
        ensure!(
            none.is_empty(),
            "{} frames came back from ABORTED",
            none.len()
        );

        detach(vm, &name)?;
        send(&wire, &frames)?;
        came_back(&answers).context("without a program")?;
        ctx.figure(format!("{FRAMES} frames for each verdict"));
        Ok(())
    })
}

fn settings(ctx: &Ctx) -> Result<()> {
    super::wire_guest(ctx, ctx.config().smp(4), |vm, name, wire| {
        programs(ctx.env, vm)?;
        let _echo = Echo::start(vm)?;
        tool_ok(vm, &format!("ethtool -K {name} lro off"))?;
        attach(vm, name, "tx")?;
        let frames = judged_frames(vm)?;
        let mut total = 0;
        let mut works = |what: &str| -> Result<()> {
            wire.clear();
            send(wire, &frames)?;
            total += FRAMES as u64;
            wire.wait(FRAMES, SOON, |frame| {
                udp(frame).filter(|udp| udp.destination.1 == Echo::PORT)
            })
            .with_context(|| what.to_owned())?;
            equal("frames judged", judged(vm)?, total)
        };
        works("at first")?;
        for channels in [1, 4, 2] {
            tool_ok(vm, &format!("ethtool -L {name} combined {channels}"))?;
            works(&format!("{channels} channels"))?;
        }
        vm.sh(&format!("ip link set {name} mtu 3000"))?;
        works("MTU 3000")?;
        // A frame must fit into a page.
        let out = tool(vm, &format!("ip link set {name} mtu 9000"))?;
        if out.rc == Some(0) {
            // The driver may take it and pass such packets by.
            works("MTU 9000")?;
            vm.sh(&format!("ip link set {name} mtu 1500"))?;
        }
        tool_ok(vm, &format!("ethtool -K {name} lro on || true"))?;
        let lro = tool_ok(
            vm,
            &format!("ethtool -k {name} | grep large-receive-offload"),
        )?;
        ctx.figure(format!(
            "LRO under XDP: {}",
            lro.trim().trim_start_matches("large-receive-offload: ")
        ));
        works("in the end")?;
        // What AF_XDP and others ask for by netlink.
        let trace = tool_start(vm, "bpftool -j net show", SOON)?;
        let shown = collect(vm, trace, SOON)?.stdout.text();
        ensure!(
            shown.contains("driver"),
            "the program is not in driver mode: {shown}"
        );
        detach(vm, name)
    })
}
