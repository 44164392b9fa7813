// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! VLAN tags: in packet sockets, on VLAN interfaces, and on the wire, with the card's help and without.

use std::net::Ipv4Addr;

use anyhow::{ensure, Context, Result};

use super::{changeable, mac_of, mac_text, to_guest, wire_guest, Echo, NET0};
use crate::net::{hex, udp, Udp, Wire, WIRE_MAC};
use crate::runner::{equal, Ctx, Scenario};
use crate::scenarios::programs::{collect, tool_ok, tool_start, until_in_guest};
use crate::vm::{describe, Vm, SOON};

pub fn scenarios() -> Vec<Scenario> {
    Scenario::both(
        "vlan",
        "VLAN tags right in packet sockets, on VLAN interfaces and on the wire, with rxvlan and txvlan on and off",
        vlan,
    )
    .into()
}

/// Number of the VLAN, and the priority of its frames.
const TAG: (u8, u16) = (5, 100);

/// Frames in each of the tests.
const FRAMES: usize = 20;

fn vlan(ctx: &Ctx) -> Result<()> {
    wire_guest(ctx, ctx.config().smp(2), |vm, name, wire| {
        vm.sh("modprobe 8021q")?;
        tool_ok(
            vm,
            &format!(
                "ip link add link {name} name v100 type vlan id {} egress-qos-map 0:{} && \
                 sysctl -q net.ipv6.conf.v100.disable_ipv6=1; ip link set v100 up && ip addr add 10.1.0.2/24 dev v100 && \
                 ip neigh replace 10.1.0.1 lladdr {} dev v100 nud permanent",
                TAG.1,
                TAG.0,
                mac_text(&WIRE_MAC)
            ),
        )?;
        let _echo = Echo::start(vm)?;
        let frames = tagged(vm)?;
        let mut rounds = 0;
        for (rx, tx) in [("on", "on"), ("off", "on"), ("on", "off"), ("off", "off")] {
            let what = || format!("rxvlan {rx}, txvlan {tx}");
            let fixed = |state: &str, feature| -> Result<bool> {
                Ok(state == "off" && !changeable(vm, name, feature)?)
            };
            if fixed(rx, "rx-vlan-offload")? || fixed(tx, "tx-vlan-offload")? {
                continue;
            }
            rounds += 1;
            if rounds > 1 {
                tool_ok(vm, &format!("ethtool -K {name} rxvlan {rx} txvlan {tx}"))?;
            }
            capture(vm, name, wire, &frames).with_context(what)?;
            echoed(wire, &frames).with_context(what)?;
            strangers(wire, &frames).with_context(what)?;
            raw(vm, name, wire).with_context(what)?;
        }
        ctx.figure(format!("{} tagged frames each way", FRAMES * rounds * 3));
        Ok(())
    })
}

/// Datagrams to the guest's address on the VLAN.
fn tagged(vm: &Vm) -> Result<Vec<Udp>> {
    let mac = mac_of(vm, NET0)?;
    Ok((0..FRAMES)
        .map(|number| Udp {
            vlan: Some(TAG),
            source: (Ipv4Addr::new(10, 1, 0, 1), 30_000 + number as u16),
            destination: (Ipv4Addr::new(10, 1, 0, 2), Echo::PORT),
            ..to_guest(mac, Echo::PORT, vec![b'v'; 10 + number * 70])
        })
        .collect())
}

fn send(wire: &Wire, frames: &[Udp]) -> Result<()> {
    frames
        .iter()
        .try_for_each(|frame| wire.send(&frame.frame()?))
}

/// tcpdump shows tag and priority of what comes in.
fn capture(vm: &Vm, name: &str, wire: &Wire, frames: &[Udp]) -> Result<()> {
    let pattern = format!("vlan {}, p {}, ethertype IPv4", TAG.1, TAG.0);
    vm.sh("rm -f /tmp/dump /tmp/dump.err")?;
    let dump = tool_start(
        vm,
        &format!(
            "exec tcpdump -l -e -nn -Q in -i {name} -c {FRAMES} 'vlan {} and udp' > /tmp/dump 2> /tmp/dump.err",
            TAG.1
        ),
        SOON * 2,
    )?;
    until_in_guest(vm, "grep -q 'listening on' /tmp/dump.err", SOON)
        .with_context(|| vm.read("/tmp/dump.err").unwrap_or_default())?;
    wire.clear();
    send(wire, frames)?;
    let out = collect(vm, dump, SOON * 2)?;
    let text = vm.read("/tmp/dump")?;
    ensure!(
        out.rc == Some(0),
        "tcpdump: {} {text} {}",
        describe(&out),
        vm.read("/tmp/dump.err")?
    );
    let right = text.lines().filter(|line| line.contains(&pattern)).count();
    ensure!(
        right == FRAMES,
        "tcpdump saw {right} of {FRAMES} frames with {pattern:?}: {text}"
    );
    // Their answers are there as well, with the VLAN's own priority.
    answers(wire, frames)
}

/// What comes with a tag is answered with one.
fn echoed(wire: &Wire, frames: &[Udp]) -> Result<()> {
    wire.clear();
    send(wire, frames)?;
    answers(wire, frames)
}

fn answers(wire: &Wire, frames: &[Udp]) -> Result<()> {
    let mut found = wire.wait(frames.len(), SOON, |frame| {
        udp(frame).filter(|udp| udp.source.1 == Echo::PORT)
    })?;
    found.sort_by_key(|udp| udp.payload.len());
    let wanted: Vec<_> = frames.iter().map(Udp::turned).collect();
    ensure!(
        found == wanted,
        "answers on the wire: {:?}, expected {:?}",
        found.first(),
        wanted.first()
    );
    Ok(())
}

/// Frames of another VLAN to the address on the VLAN do not come to it: only the last frame, which has the right tag, is
/// answered.
fn strangers(wire: &Wire, frames: &[Udp]) -> Result<()> {
    wire.clear();
    let (last, others) = frames.split_last().context("frames")?;
    for frame in others {
        let vlan = Some((TAG.0, TAG.1 + 1));
        wire.send(
            &Udp {
                vlan,
                ..frame.clone()
            }
            .frame()?,
        )?;
    }
    wire.send(&last.frame()?)?;
    let mut seen = Vec::new();
    wire.wait(1, SOON, |frame| {
        let answer = udp(frame)?;
        let is_last = answer.source.1 == Echo::PORT && answer == last.turned();
        if !is_last && answer.vlan.is_some() {
            seen.push(answer);
            return None;
        }
        is_last.then_some(())
    })?;
    ensure!(
        seen.is_empty(),
        "frames of other VLANs were answered: {:?}",
        seen.first()
    );
    Ok(())
}

/// A packet socket's frames with a tag in their bytes come out with that tag, once.
fn raw(vm: &Vm, name: &str, wire: &Wire) -> Result<()> {
    let mac = mac_of(vm, NET0)?;
    let frames: Vec<Udp> = (0..FRAMES)
        .map(|number| Udp {
            to: WIRE_MAC,
            from: mac,
            vlan: Some((3, 200 + number as u16)),
            source: (Ipv4Addr::new(10, 2, 0, 2), 9),
            destination: (Ipv4Addr::new(10, 2, 0, 1), 9),
            payload: vec![b'r'; 10 + number * 70],
            checked: true,
        })
        .collect();
    let lines: Vec<String> = frames
        .iter()
        .map(|frame| Ok(hex(&frame.frame()?)))
        .collect::<Result<_>>()?;
    vm.write("/tmp/frames", &lines.join("\n"))?;
    wire.clear();
    vm.sh(&format!(
        "python3 -c '\nimport socket\ns = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\ns.bind((\"{name}\", 0))\n\
         for line in open(\"/tmp/frames\"):\n s.send(bytes.fromhex(line))\n'"
    ))?;
    let mut found = wire.wait(FRAMES, SOON, |frame| {
        udp(frame).filter(|udp| udp.destination.0 == Ipv4Addr::new(10, 2, 0, 1))
    })?;
    found.sort_by_key(|udp| udp.payload.len());
    equal("frames of a packet socket on the wire", found, frames)
}
