// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Cards that come and go; what users have been hurt by.

use std::time::Duration;

use anyhow::{ensure, Context, Result};
use hvctl::{NetFault, NetMessage, Until};

use super::{
    fault, interface, module, net, network_guest, on_wire, running, take_away, to_guest,
    where_it_waits, wire_guest, Echo, NET0,
};
use crate::memory::{no_leak, EXACT_SLABS};
use crate::net::{udp, Backend, Nic, Udp, Wire};
use crate::runner::{equal, Ctx, Scenario};
use crate::scenarios::programs::{open_channels, tool_ok, until, until_in_guest};
use crate::vm::{Vm, SOON};
use crate::Drivers;

pub fn scenarios() -> Vec<Scenario> {
    [
        Scenario::both(
            "order",
            "eight cards get their names in the order of the host's offers, each time",
            order,
        ),
        Scenario::both(
            "early",
            "messages as soon as a channel is open, before anything was asked",
            early,
        ),
        Scenario::both(
            "reload",
            "the driver is loaded and unloaded many times; memory compared",
            reload,
        ),
        Scenario::both(
            "sizes",
            "frames of every size and place in memory, each way, byte by byte",
            sizes,
        ),
        Scenario::both(
            "receive-mode",
            "packet filter, multicast, MAC address as set by ip",
            receive_mode,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Sends datagrams to the guest's echo and waits for all answers.
pub fn exchange(vm: &Vm, wire: &Wire, count: usize) -> Result<()> {
    let mac = super::mac_of(vm, NET0)?;
    let datagrams: Vec<Udp> = (0..count)
        .map(|number| Udp {
            source: (super::behind_wire(number), 40_000 + (number % 1000) as u16),
            ..to_guest(mac, Echo::PORT, format!("exchange {number}").into_bytes())
        })
        .collect();
    wire.clear();
    for datagram in &datagrams {
        wire.send(&datagram.frame()?)?;
    }
    wire.wait(count, SOON, |frame| {
        let answer = udp(frame)?.turned();
        datagrams.contains(&answer).then_some(())
    })
    .map(drop)
}

fn order(ctx: &Ctx) -> Result<()> {
    const CARDS: usize = 8;
    let times: u32 = ctx.count(50, 3);
    let mut config = ctx.config().smp(4).memory(1536);
    for _ in 0..CARDS {
        // Few channels: it is the order that counts here.
        config = config.nic(Nic::new(Backend::Echo).option("subchannels=1"));
    }
    let module = module(ctx.drivers)?;
    network_guest(ctx, config, |vm| {
        for round in 0..times {
            for number in 0..CARDS {
                let device = format!("net{number}");
                let name = interface(vm, &device)?;
                equal(
                    &format!("name of {device}, round {round}"),
                    name.as_str(),
                    &format!("eth{number}"),
                )?;
                let mac = vm.read(&format!("/sys/class/net/{name}/address"))?;
                equal("its MAC", mac.replace(':', "-"), net(vm, &device)?.mac)?;
            }
            vm.unload(module)?;
            vm.load_with(module, &vm.config.network_parameters)?;
        }
        // All of them work at once.
        for number in 0..CARDS {
            let name = interface(vm, &format!("net{number}"))?;
            let net = 100 + number;
            vm.sh(&format!(
                "ip link set {name} up; ip addr add 10.0.0.{net}/32 dev {name}; ip route add table {net} 10.0.0.1/32 dev {name}; \
                 ip rule add from 10.0.0.{net} table {net}"
            ))?;
            until_in_guest(
                vm,
                &format!("chroot /debian ping -q -c 1 -W 5 -I 10.0.0.{net} 10.0.0.1 >/dev/null"),
                SOON,
            )
            .with_context(|| format!("{name} does not answer"))?;
        }
        ctx.figure(format!("{CARDS} cards, {times} times"));
        Ok(())
    })
}

fn early(ctx: &Ctx) -> Result<()> {
    let rounds: u32 = ctx.count(20, 1);
    let all = [
        NetMessage::SendTable,
        NetMessage::Vf,
        NetMessage::Indication,
        NetMessage::Data,
    ];
    // With the last two, C follows a null pointer in netvsc_poll.
    let messages = match ctx.drivers {
        Drivers::C => &all[..2],
        _ => &all[..],
    };
    wire_guest(ctx, ctx.config().smp(2), |vm, _, wire| {
        let _echo = Echo::start(vm)?;
        for _ in 0..rounds {
            for &message in messages {
                if ctx.drivers == Drivers::C {
                    // Down, it has no packet under way: for one it would wait for ever; see `LATER`.
                    let name = interface(vm, NET0)?;
                    vm.sh(&format!("ip link set {name} down"))?;
                }
                take_away(vm)?;
                let before = net(vm, NET0)?.counters.injected;
                fault(vm, 0, NetFault::Early { message })?;
                vm.host().offer(NET0)?;
                let used = || -> Result<()> {
                    let name = interface(vm, NET0)?;
                    on_wire(vm, &name)?;
                    running(vm, NET0)?;
                    exchange(vm, wire, 20)
                };
                used().with_context(|| format!("early {message:?}; {}", where_it_waits(vm)))?;
                let sent = net(vm, NET0)?.counters.injected - before;
                // On each channel.
                ensure!(sent >= 2, "{sent} early {message:?} were sent");
                fault(vm, 0, NetFault::Clear)?;
            }
        }
        Ok(())
    })
}

/// Cycles between two looks at the memory that are enough for what the CPUs' own lists hold not to count.
const LONG_WINDOW: u32 = 25;

fn reload(ctx: &Ctx) -> Result<()> {
    let per_window = ctx.count(LONG_WINDOW, 2);
    let module = module(ctx.drivers)?;
    let with_bus = ctx.drivers == Drivers::Rust;
    let config = ctx.config().smp(2).cmdline(EXACT_SLABS);
    wire_guest(ctx, config, |vm, _, wire| {
        let _echo = Echo::start(vm)?;
        let cycle = || -> Result<()> {
            if with_bus {
                vm.unload_drivers()?;
                vm.host().wait(Until::Disconnected, SOON)?;
                equal("GPADLs left at the host", vm.host().status()?.gpadls, 0)?;
                vm.load_drivers()?;
            } else {
                vm.unload(module)?;
                equal("open channels of the card", open_channels(vm, NET0)?, 0)?;
                vm.load(module)?;
            }
            let name = interface(vm, NET0)?;
            on_wire(vm, &name)?;
            exchange(vm, wire, 50)
        };
        // Caches and lists that are filled once and kept. The first cycles show them.
        for _ in 0..3 {
            cycle()?;
        }
        let steady = no_leak(vm, per_window, LONG_WINDOW, cycle)?;
        ctx.figure(format!(
            "{} times; pages in use {:+}, vmalloc areas {:+}",
            steady.cycles, steady.pages, steady.vmalloc_areas
        ));
        Ok(())
    })
}

fn sizes(ctx: &Ctx) -> Result<()> {
    // Around what matters: minimum, copy-break, section, page, several pages, the largest.
    let step: usize = ctx.count(1, 7);
    let sizes: Vec<usize> = (0..200)
        .chain((1400..1500).step_by(step))
        .chain((3900..4400).step_by(step))
        .chain((5900..6400).step_by(step))
        .chain((7900..8500).step_by(step))
        .chain((12_000..12_500).step_by(step))
        .chain((65_000..65_464).step_by(step))
        .collect();
    wire_guest(ctx, ctx.config().smp(2), |vm, name, wire| {
        vm.sh(&format!("ip link set {name} mtu 65521"))?;
        on_wire(vm, name)?;
        let _echo = Echo::start(vm)?;
        let mac = super::mac_of(vm, NET0)?;
        for size in &sizes {
            // Sixteen in flight would overrun nothing; one tells which it was.
            let payload: Vec<u8> = (0..*size).map(|at| (at * 7 + size) as u8).collect();
            let datagram = to_guest(mac, Echo::PORT, payload);
            wire.send(&datagram.frame()?)?;
            let answer = wire
                .wait(1, SOON, |frame| {
                    udp(frame).filter(|udp| udp.source.1 == Echo::PORT)
                })
                .with_context(|| format!("{size} bytes"))?;
            ensure!(
                answer.first() == Some(&datagram.turned()),
                "{size} bytes came back changed"
            );
        }
        let info = net(vm, NET0)?;
        equal(
            "RNDIS packets that the host found malformed",
            info.counters.tx_malformed,
            0,
        )?;
        ensure!(
            info.counters.tx_sections > 0 && info.counters.tx_gpa_direct > 0,
            "not both ways of sending were used: {:?}",
            info.counters
        );
        ctx.figure(format!(
            "{} sizes, {} by send section, {} by GPA-direct",
            sizes.len(),
            info.counters.tx_sections,
            info.counters.tx_gpa_direct
        ));
        Ok(())
    })
}

/// `NDIS_PACKET_TYPE_*` (Linux, `include/linux/rndis.h`).
mod filter {
    pub const DIRECTED: u32 = 0x01;
    pub const MULTICAST: u32 = 0x02;
    pub const ALL_MULTICAST: u32 = 0x04;
    pub const BROADCAST: u32 = 0x08;
    pub const PROMISCUOUS: u32 = 0x20;
}

fn receive_mode(ctx: &Ctx) -> Result<()> {
    wire_guest(ctx, ctx.config().smp(2), |vm, name, wire| {
        let _echo = Echo::start(vm)?;
        let wait = |what: &str, has: u32, hasnt: u32| {
            let mut last = 0;
            until(what, SOON, || {
                last = net(vm, NET0)?.filter;
                Ok(last & has == has && last & hasnt == 0)
            })
            .with_context(|| format!("the filter is {last:#x}"))
        };
        wait(
            "filter of an interface that is up",
            filter::DIRECTED,
            filter::PROMISCUOUS,
        )?;
        tool_ok(vm, &format!("ip link set {name} promisc on"))?;
        wait("promiscuous", filter::PROMISCUOUS, 0)?;
        tool_ok(vm, &format!("ip link set {name} promisc off"))?;
        wait(
            "no longer promiscuous",
            filter::DIRECTED | filter::BROADCAST,
            filter::PROMISCUOUS,
        )?;
        tool_ok(vm, &format!("ip link set {name} allmulticast on"))?;
        wait("all multicast", filter::ALL_MULTICAST, filter::PROMISCUOUS)?;
        tool_ok(vm, &format!("ip link set {name} allmulticast off"))?;
        tool_ok(vm, &format!("ip maddr add 33:33:00:00:12:34 dev {name}"))?;
        until("a multicast address lets such frames pass", SOON, || {
            Ok(net(vm, NET0)?.filter & (filter::MULTICAST | filter::ALL_MULTICAST) != 0)
        })?;
        exchange(vm, wire, 10)?;
        // Another address: frames come out with it, and those to it come in.
        let mac = [0x02u8, 0x15, 0x5d, 0xaa, 0xbb, 0xcc];
        vm.sh(&format!(
            "ip link set {name} down; ip link set {name} address {}; ip link set {name} up",
            super::mac_text(&mac)
        ))?;
        on_wire(vm, name).or_else(|_| super::carrier(vm, name, true))?;
        let datagram = to_guest(mac, Echo::PORT, b"to the new one".to_vec());
        until("the new address is in use", SOON, || {
            wire.send(&datagram.frame()?)?;
            Ok(wire
                .wait(1, Duration::from_secs(2), |frame| {
                    udp(frame).filter(|udp| *udp == datagram.turned())
                })
                .is_ok())
        })?;
        equal(
            "its address",
            vm.read(&format!("/sys/class/net/{name}/address"))?,
            super::mac_text(&mac),
        )?;
        vm.sh(&format!("ip link set {name} down"))?;
        until("down: nothing passes", SOON, || {
            Ok(net(vm, NET0)?.filter == 0)
        })
        .map(drop)
    })
}
