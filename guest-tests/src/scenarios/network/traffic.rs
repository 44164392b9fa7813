// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What people change while connections are open: size of packets, number of channels, link, the device itself, CPUs. Sixteen
//! TCP connections and sixteen flows of UDP run all the time; after each change every one of them must get on.
//!
//! The other end is a second guest with the C driver. passt would not do: an acknowledgement that is lost, as those are that come
//! while a card is being changed, it does not send again, however often the guest sends the data; such a connection is stuck.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use hvctl::NetLink;

use super::{
    address, by_queue, carrier, interface, link, net, network_guest, prepare, running, statistics,
    take_away, NET0, RELEASE,
};
use crate::env::TempDir;
use crate::net::{Backend, Nic};
use crate::runner::{equal, Ctx, Scenario};
use crate::scenarios::programs::{
    collect, open_channels, tool, tool_ok, tool_start, until, until_in_guest,
};
use crate::vm::{describe, Vm, SOON};
use crate::{Drivers, VmConfig};

pub fn scenarios() -> Vec<Scenario> {
    [
        Scenario::both("traffic-mtu", "the MTU changes under iperf3 traffic", mtu),
        Scenario::both(
            "traffic-channels",
            "ethtool -L from 1 to 8 and back under iperf3 traffic",
            channels,
        ),
        Scenario::both(
            "traffic-link",
            "the host takes the link away and gives it back under iperf3 traffic",
            links,
        ),
        Scenario::both(
            "traffic-rescind",
            "the card is taken away and offered again under iperf3 traffic",
            rescind,
        ),
        Scenario::both(
            "traffic-cpus",
            "CPUs go offline and online under iperf3 traffic",
            cpus,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The addresses of the guest under test and of the other one, and the ports of that one's servers.
const OURS: &str = "10.0.2.15";
const PEER: &str = "10.0.2.2";
const TCP: u16 = 5201;
const UDP: u16 = 5202;

/// The largest MTU of a card.
const MAX_MTU: u32 = 65521;

/// Flows of each kind.
const FLOWS: usize = 16;

/// In which the other end counts datagrams, in seconds: at least one such interval, and what is left of another, pass after each
/// change. Six datagrams of each flow are sent in one.
const INTERVAL: f32 = 0.25;

/// From a change until every flow has got on, at most. TCP waits for its retransmission timer, which doubles each time
/// nothing comes back.
const RECOVERY: Duration = Duration::from_secs(180);

/// iperf3's clients in the guest, one for TCP and one for UDP, until they are stopped.
struct Traffic<'a> {
    vm: &'a Vm,
    peer: &'a Vm,
    clients: Vec<u64>,
}

/// What the other end's iperf3 has counted of the flows of UDP, in intervals of [`INTERVAL`]; times since its start.
#[derive(Default)]
struct Datagrams {
    /// End of the last interval.
    end: f64,
    /// Begin of the last one in which something came, of each flow.
    newest: BTreeMap<String, f64>,
}

impl<'a> Traffic<'a> {
    fn start(vm: &'a Vm, peer: &'a Vm) -> Result<Self> {
        let common = format!(
            "exec iperf3 --client {PEER} --parallel {FLOWS} --time 86400 --interval 0 --forceflush"
        );
        let mut clients = Vec::new();
        for (port, more) in [
            (TCP, "--length 16K --bitrate 2M"),
            (UDP, "--udp --length 512 --bitrate 100K"),
        ] {
            // It ends with its guest. By itself it would give up after two minutes in which nothing came.
            let patience = (RECOVERY + RELEASE).as_millis();
            tool_start(
                peer,
                &format!(
                    "exec iperf3 --server --port {port} --interval {INTERVAL} --rcv-timeout {patience} --forceflush > /tmp/iperf-{port} 2>&1"
                ),
                Duration::from_secs(86_400),
            )?;
            until("iperf3's server", SOON, || {
                Ok(!tool_ok(peer, &format!("ss -H -l -t -n sport = :{port}"))?.is_empty())
            })?;
            let command = format!("{common} --port {port} {more} > /tmp/iperf-{port} 2>&1");
            clients.push(tool_start(vm, &command, Duration::from_secs(86_400))?);
        }
        let traffic = Self { vm, peer, clients };
        until("iperf3's connections", SOON * 2, || {
            Ok(traffic.acknowledged()?.len() == FLOWS)
        })
        .with_context(|| traffic.words())?;
        until("iperf3's datagrams", SOON * 2, || {
            Ok(traffic.datagrams()?.newest.len() == FLOWS)
        })
        .with_context(|| traffic.words())?;
        traffic.gets_on("the start")?;
        Ok(traffic)
    }

    /// What the clients printed, and the other end's last words.
    fn words(&self) -> String {
        let ours = self.vm.sh("cat /tmp/iperf-* | tail -n 20");
        let theirs = self.peer.sh("tail -n 20 /tmp/iperf-*");
        format!(
            "{}; the other end: {}",
            ours.unwrap_or_default(),
            theirs.unwrap_or_default()
        )
    }

    /// Bytes that the other end has acknowledged, for each connection by its port. iperf3's own, over which the two talk, has
    /// the first of them and is none of them.
    fn acknowledged(&self) -> Result<BTreeMap<String, u64>> {
        let text = tool_ok(
            self.vm,
            &format!("ss -H -O -t -n -i state established dst {PEER}:{TCP}"),
        )?;
        let mut flows: BTreeMap<String, u64> = text
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let local = words.nth(2)?.to_owned();
                let acknowledged = line
                    .split_whitespace()
                    .find_map(|word| word.strip_prefix("bytes_acked:"))?;
                Some((local, acknowledged.parse().ok()?))
            })
            .collect();
        if flows.len() > FLOWS {
            // The one over which little was said.
            if let Some(control) = flows
                .iter()
                .min_by_key(|(_, bytes)| **bytes)
                .map(|(name, _)| name.clone())
            {
                flows.remove(&control);
            }
        }
        Ok(flows)
    }

    /// What the other end has counted of each flow of UDP.
    fn datagrams(&self) -> Result<Datagrams> {
        // "[  5]   3.00-4.00   sec  12.5 KBytes   102 Kbits/sec  0.106 ms  0/25 (0%)"
        let text = tool_ok(
            self.peer,
            &format!(
                "tail -n 1200 /tmp/iperf-{UDP} | awk -F '[][]' '/ sec / && !/SUM|receiver|sender/ {{ \
                 split($3, time, \"[- ]+\"); end = time[3]; if (!/ 0.00 Bytes/) newest[$2] = time[2] }} \
                 END {{ print \"end\", end; for (id in newest) print id, newest[id] }}'"
            ),
        )?;
        let mut found = Datagrams::default();
        for line in text.lines() {
            let Some((flow, time)) = line.trim().split_once(' ') else {
                continue;
            };
            let time = time.parse().unwrap_or(0.0);
            if flow == "end" {
                found.end = time;
            } else {
                found.newest.insert(format!("UDP {flow}"), time);
            }
        }
        Ok(found)
    }

    /// Waits until every TCP connection has had data acknowledged since now, and datagrams of every flow of UDP have come to the
    /// other end.
    fn gets_on(&self, after: &str) -> Result<Duration> {
        let before = self.acknowledged()?;
        equal(
            &format!("TCP connections after {after}"),
            before.len(),
            FLOWS,
        )
        .with_context(|| self.words())?;
        let datagrams = self.datagrams()?;
        let mut stuck = Vec::new();
        let took = until("every connection gets on", RECOVERY, || {
            let now = self.acknowledged()?;
            stuck = before
                .iter()
                .filter(|(flow, bytes)| now.get(*flow).is_none_or(|now| now <= bytes))
                .map(|(flow, _)| flow.clone())
                .collect();
            let newest = self.datagrams()?.newest;
            // In the interval that was not over yet, datagrams may have come from before the change.
            let begun_since = |begin: f64| begin > datagrams.end;
            let flows = newest.values().filter(|begin| begun_since(**begin));
            if flows.count() < FLOWS {
                stuck.push(format!("UDP: {newest:?}, at first until {}", datagrams.end));
            }
            Ok(stuck.is_empty())
        })
        .with_context(|| {
            format!(
                "after {after}, stuck: {}; {}; the guest: {}; the host: {:?}",
                stuck.join(" "),
                self.words(),
                self.stuck_in_guest(&stuck),
                net(self.vm, NET0).map(|info| (info.counters, info.queues))
            )
        })?;
        self.alive(after)?;
        Ok(took)
    }

    /// What the guest knows of connections that are stuck: their timers, where packets wait, counters.
    fn stuck_in_guest(&self, flows: &[String]) -> String {
        let ports: Vec<_> = flows
            .iter()
            .filter_map(|flow| flow.rsplit(':').next()?.parse::<u16>().ok())
            .chain([UDP])
            .map(|port| format!("sport = :{port} or dport = :{port}"))
            .collect();
        let command = format!(
            "ss -H -O -t -u -n -i -m -o '( {} )'; tc -s qdisc show; ip -s link; ethtool -S eth0 | grep -v ' 0$'",
            ports.join(" or ")
        );
        tool(self.vm, &command).map_or_else(|err| format!("{err:#}"), |out| out.stdout.text())
    }

    /// Neither client has ended.
    fn alive(&self, after: &str) -> Result<()> {
        let running = self.vm.sh("pidof iperf3 | wc -w")?;
        equal(
            &format!("iperf3 clients that run after {after}"),
            running.trim(),
            "2",
        )
        .with_context(|| self.words())
    }

    /// Ends the clients.
    fn stop(self) -> Result<()> {
        self.alive("all")?;
        self.vm.sh("kill -KILL $(pidof iperf3)")?;
        for client in self.clients {
            let out = collect(self.vm, client, SOON)?;
            ensure!(
                out.signal == Some(9) || out.rc == Some(137),
                "{}",
                describe(&out)
            );
        }
        Ok(())
    }
}

/// A guest whose card is linked to that of another one, which answers at [`PEER`]. Guest, interface and the other guest go to `test`.
fn linked(
    ctx: &Ctx,
    config: VmConfig,
    test: impl FnOnce(&Vm, &str, &Vm) -> Result<()>,
) -> Result<()> {
    let dir = TempDir::new()?;
    let socket = dir.path().join("link.sock");
    let peer = VmConfig {
        tools: true,
        ..ctx.config_for("peer", Drivers::C).smp(2)
    };
    ctx.booted(
        peer.nic(Nic::new(Backend::Listen(socket.clone()))),
        |peer| {
            prepare(peer)?;
            let config = config.nic(Nic::new(Backend::Connect(socket)));
            network_guest(ctx, config, |vm| {
                let other = interface(peer, NET0)?;
                // Whatever the other one sends.
                peer.sh(&format!("ip link set {other} mtu {MAX_MTU}"))?;
                address(peer, &other, &format!("{PEER}/24"))?;
                let name = interface(vm, NET0)?;
                address(vm, &name, &format!("{OURS}/24"))?;
                // While the card is away its address stays, and a route to nowhere: iperf3 ends a flow of UDP for good at the
                // first datagram that cannot be sent.
                vm.sh(&format!(
                    "modprobe -d /debian dummy && ip link add nowhere type dummy && ip link set nowhere up && \
                     ip addr add {OURS}/32 dev nowhere && ip route add default dev nowhere"
                ))?;
                test(vm, &name, peer)
            })
        },
    )
}

fn mtu(ctx: &Ctx) -> Result<()> {
    let times: u32 = ctx.count(100, 6);
    linked(ctx, ctx.config().smp(4), |vm, name, peer| {
        let traffic = Traffic::start(vm, peer)?;
        let mut longest = Duration::ZERO;
        for round in 0..times {
            let mtu = [9000, 1280, MAX_MTU, 576, 1500, 4000][round as usize % 6];
            vm.sh(&format!("ip link set {name} mtu {mtu}"))?;
            equal(
                "MTU",
                vm.read(&format!("/sys/class/net/{name}/mtu"))?,
                mtu.to_string(),
            )?;
            // What the host sends may be as long as always where the guest asks for less.
            equal("MTU at the host", net(vm, NET0)?.mtu, mtu.max(1500))?;
            longest = longest.max(traffic.gets_on(&format!("MTU {mtu}, change {round}"))?);
        }
        traffic.stop()?;
        ctx.figure(format!(
            "{times} changes, {:.1} s until all got on at most",
            longest.as_secs_f64()
        ));
        Ok(())
    })
}

fn channels(ctx: &Ctx) -> Result<()> {
    let times: u32 = ctx.count(100, 4);
    linked(ctx, ctx.config().smp(8).memory(768), |vm, name, peer| {
        let traffic = Traffic::start(vm, peer)?;
        for round in 0..times {
            let count = if round % 2 == 0 { 1 } else { 8 };
            tool_ok(vm, &format!("ethtool -L {name} combined {count}"))?;
            until("the channels at the host", SOON, || {
                Ok(open_channels(vm, NET0)? == count)
            })?;
            traffic.gets_on(&format!("{count} channels, change {round}"))?;
        }
        traffic.stop()?;
        ctx.figure(format!("{times} changes"));
        Ok(())
    })
}

fn links(ctx: &Ctx) -> Result<()> {
    // The driver lets at most one change through every two seconds, as C does.
    let times: u32 = ctx.count(100, 2);
    linked(ctx, ctx.config().smp(4), |vm, name, peer| {
        let traffic = Traffic::start(vm, peer)?;
        for round in 0..times {
            link(vm, NET0, NetLink::Down)?;
            carrier(vm, name, false)?;
            link(vm, NET0, NetLink::Up)?;
            carrier(vm, name, true)?;
            traffic.gets_on(&format!("the link's return, {round}"))?;
        }
        // By hand.
        for round in 0..times {
            vm.sh(&format!("ip link set {name} down; ip link set {name} up"))?;
            running(vm, NET0)?;
            traffic.gets_on(&format!("down and up by hand, {round}"))?;
        }
        traffic.stop()?;
        ctx.figure(format!("{times} times by the host, {times} by hand"));
        Ok(())
    })
}

fn rescind(ctx: &Ctx) -> Result<()> {
    let times: u32 = ctx.count(50, 3);
    linked(ctx, ctx.config().smp(4), |vm, _, peer| {
        let traffic = Traffic::start(vm, peer)?;
        for round in 0..times {
            take_away(vm).with_context(|| format!("round {round}"))?;
            let left = vm.sh("ls /sys/class/net | grep -c eth || true")?;
            equal("interfaces that are left", left.trim(), "0")?;
            vm.host().offer(NET0)?;
            let name = interface(vm, NET0)?;
            address(vm, &name, &format!("{OURS}/24"))?;
            traffic.gets_on(&format!("the new offer, {round}"))?;
        }
        traffic.stop()?;
        ctx.figure(format!("{times} times"));
        Ok(())
    })
}

fn cpus(ctx: &Ctx) -> Result<()> {
    const CPUS: u32 = 4;
    let rounds: u32 = ctx.count(10, 1);
    linked(ctx, ctx.config().smp(CPUS), |vm, name, peer| {
        let traffic = Traffic::start(vm, peer)?;
        let dir = format!("/sys/class/net/{name}/device/channels");
        for round in 0..rounds {
            for cpu in 1..CPUS {
                // A CPU that a channel is bound to stays; so it goes elsewhere first, as an administrator does it.
                vm.sh(&format!(
                    "for f in {dir}/*/cpu; do [ $(cat $f) != {cpu} ] || echo 0 > $f || exit 1; done; \
                     echo 0 > /sys/devices/system/cpu/cpu{cpu}/online"
                ))
                .with_context(|| format!("CPU {cpu} offline, round {round}"))?;
                traffic.gets_on(&format!("CPU {cpu} went, round {round}"))?;
                vm.sh(&format!(
                    "echo 1 > /sys/devices/system/cpu/cpu{cpu}/online; \
                     for f in {dir}/*/cpu; do [ $(cat $f) != 0 ] || {{ echo {cpu} > $f; break; }}; done"
                ))
                .with_context(|| format!("CPU {cpu} online, round {round}"))?;
                traffic.gets_on(&format!("CPU {cpu} came back, round {round}"))?;
            }
        }
        // Those that came back take packets.
        let before = by_queue(&statistics(vm, name)?, "rx_queue_", "_packets");
        until_in_guest(vm, "sleep 1", SOON)?;
        traffic.gets_on("all")?;
        let after = by_queue(&statistics(vm, name)?, "rx_queue_", "_packets");
        ensure!(
            before.iter().sum::<u64>() < after.iter().sum::<u64>(),
            "nothing was received: {before:?}, {after:?}"
        );
        traffic.stop()?;
        ctx.figure(format!("{} times", rounds * (CPUS - 1)));
        Ok(())
    })
}
