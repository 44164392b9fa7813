// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Which queue a packet takes: receive side scaling, the indirection table, the hash's fields, the host's send-indirection
//! table. The counters of each queue are the proof, on both sides.

use anyhow::{ensure, Context, Result};
use hvctl::Command;

use super::{by_queue, net, statistics, wire_guest, Echo, NET0};
use crate::net::{udp, Udp, Wire};
use crate::runner::{equal, Ctx, Scenario};
use crate::scenarios::programs::{open_channels, tool, tool_ok, until};
use crate::vm::{Vm, SOON};

pub fn scenarios() -> Vec<Scenario> {
    [
        Scenario::both(
            "channels",
            "ethtool -L with every number of channels; counts of channels as promised",
            channels,
        ),
        Scenario::both(
            "rss",
            "ethtool -X: table, key and fields of the hash take effect, shown by counters of each queue",
            rss,
        ),
        Scenario::both(
            "send-table",
            "the host's send-indirection table takes effect",
            send_table,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Queues of the guests here.
const QUEUES: u32 = 4;

/// Flows that differ in their source; enough that a fair hash reaches each of four queues.
const FLOWS: u16 = 64;

/// One datagram from the wire for each flow.
fn flows(vm: &Vm) -> Result<Vec<Udp>> {
    let mac = super::mac_of(vm, NET0)?;
    Ok((0..FLOWS)
        .map(|flow| Udp {
            source: (super::behind_wire(flow.into()), 20_000 + flow),
            ..super::to_guest(mac, Echo::PORT, format!("flow {flow}").into_bytes())
        })
        .collect())
}

/// Sends one datagram of each flow and waits until the guest has answered them all. How many each queue received and sent.
fn spread(vm: &Vm, name: &str, wire: &Wire, flows: &[Udp]) -> Result<[Vec<u64>; 2]> {
    let read = || -> Result<[Vec<u64>; 2]> {
        let all = statistics(vm, name)?;
        Ok([
            by_queue(&all, "rx_queue_", "_packets"),
            by_queue(&all, "tx_queue_", "_packets"),
        ])
    };
    wire.clear();
    let before = read()?;
    for flow in flows {
        wire.send(&flow.frame()?)?;
    }
    wire.wait(flows.len(), SOON, |frame| {
        let answer = udp(frame)?;
        flows
            .iter()
            .any(|flow| answer.turned() == *flow)
            .then_some(())
    })
    .context("the guest's answers")?;
    let after = read()?;
    let difference = |way: usize| {
        after[way]
            .iter()
            .zip(&before[way])
            .map(|(after, before)| after - before)
            .collect()
    };
    Ok([difference(0), difference(1)])
}

fn channels(ctx: &Ctx) -> Result<()> {
    const CPUS: usize = 8;
    wire_guest(
        ctx,
        ctx.config().smp(CPUS as u32).memory(768),
        |vm, name, _| {
            let count = |want: usize| {
                until("channels at the host", SOON, || {
                    Ok(open_channels(vm, NET0)? == want)
                })
                .with_context(|| format!("{want} channels"))
            };
            // As many as the driver takes by itself: one for each CPU, up to what RSS of the kernel takes.
            count(CPUS.min(16))?;
            let text = tool_ok(vm, &format!("ethtool -l {name}"))?;
            let values: Vec<&str> = text
                .lines()
                .filter_map(|line| line.strip_prefix("Combined:"))
                .map(str::trim)
                .collect();
            equal(
                "channels, at most and now",
                values,
                vec![CPUS.to_string().as_str(); 2],
            )?;
            for want in (1..=CPUS).chain((1..CPUS).rev()) {
                tool_ok(vm, &format!("ethtool -L {name} combined {want}"))?;
                count(want)?;
                let statistics = statistics(vm, name)?;
                equal(
                    "queues with counters",
                    by_queue(&statistics, "rx_queue_", "_packets").len(),
                    want,
                )?;
            }
            for wrong in [
                "combined 0",
                &format!("combined {}", CPUS + 1),
                "rx 1",
                "other 1",
            ] {
                let out = tool(vm, &format!("ethtool -L {name} {wrong}"))?;
                ensure!(out.rc != Some(0), "ethtool -L {wrong} was accepted");
            }
            count(1)?;
            Ok(())
        },
    )
}

fn rss(ctx: &Ctx) -> Result<()> {
    wire_guest(ctx, ctx.config().smp(QUEUES), |vm, name, wire| {
        let _echo = Echo::start(vm)?;
        until("the channels", SOON, || {
            Ok(open_channels(vm, NET0)? == QUEUES as usize)
        })?;
        let flows = flows(vm)?;
        let table = |vm: &Vm| -> Result<Vec<u16>> {
            Ok(net(vm, NET0)?.rss.context("RSS is off at the host")?.table)
        };
        let [received, _] = spread(vm, name, wire, &flows)?;
        ensure!(
            received.iter().all(|&count| count > 0),
            "{FLOWS} flows came to the queues {received:?}"
        );
        // Every table: all to one queue, to two, by weights.
        for queue in 0..QUEUES as usize {
            let weights: Vec<_> = (0..QUEUES as usize)
                .map(|q| if q == queue { "1" } else { "0" })
                .collect();
            tool_ok(
                vm,
                &format!("ethtool -X {name} weight {}", weights.join(" ")),
            )?;
            ensure!(
                table(vm)?.iter().all(|&entry| usize::from(entry) == queue),
                "the host has the table {:?}",
                table(vm)?
            );
            let [received, _] = spread(vm, name, wire, &flows)?;
            equal(
                &format!("datagrams on queue {queue}, which alone is in the table"),
                received[queue],
                FLOWS.into(),
            )?;
        }
        tool_ok(vm, &format!("ethtool -X {name} equal 2"))?;
        let [received, _] = spread(vm, name, wire, &flows)?;
        ensure!(
            received[0] > 0 && received[1] > 0 && received[2..].iter().all(|&count| count == 0),
            "with a table of two queues: {received:?}"
        );
        tool_ok(vm, &format!("ethtool -X {name} default"))?;
        // Another key, another distribution; the same key, the same one.
        let [first, _] = spread(vm, name, wire, &flows)?;
        let key: Vec<String> = (0..40)
            .map(|byte: u8| format!("{:02x}", byte * 5 + 3))
            .collect();
        let shown = tool_ok(vm, &format!("ethtool -x {name}"))?;
        let old = shown
            .lines()
            .map(str::trim)
            .find(|line| line.len() == 119 && line.contains(':'))
            .context("no key in the output of ethtool -x")?
            .to_owned();
        tool_ok(vm, &format!("ethtool -X {name} hkey {}", key.join(":")))?;
        ensure!(
            tool_ok(vm, &format!("ethtool -x {name}"))?.contains(&key.join(":")),
            "the key is not read back"
        );
        equal(
            "the key at the host",
            net(vm, NET0)?.rss.context("RSS is off at the host")?.key,
            key.concat(),
        )?;
        let [second, _] = spread(vm, name, wire, &flows)?;
        ensure!(first != second, "another key changed nothing: {first:?}");
        tool_ok(vm, &format!("ethtool -X {name} hkey {old}"))?;
        let [third, _] = spread(vm, name, wire, &flows)?;
        equal("distribution with the first key again", &third, &first)?;
        // What makes no sense is refused and changes nothing.
        let before = table(vm)?;
        for wrong in [
            format!("ethtool -X {name} equal {}", QUEUES + 1),
            format!("ethtool -X {name} weight 0 0 0 0"),
            format!("ethtool -X {name} hkey 01:02"),
        ] {
            ensure!(tool(vm, &wrong)?.rc != Some(0), "{wrong} was accepted");
        }
        equal("table after wrong ones", table(vm)?, before)?;
        ctx.figure(format!("{FLOWS} flows over {QUEUES} queues: {third:?}"));
        Ok(())
    })
}

fn send_table(ctx: &Ctx) -> Result<()> {
    wire_guest(ctx, ctx.config().smp(QUEUES), |vm, name, wire| {
        until("the channels", SOON, || {
            Ok(open_channels(vm, NET0)? == QUEUES as usize)
        })?;
        // From a socket of its own for each, as a socket keeps its queue; and not as an answer, which goes out where the
        // question came in.
        let send = |round: u32| -> Result<Vec<u64>> {
            let before = by_queue(&statistics(vm, name)?, "tx_queue_", "_packets");
            wire.clear();
            vm.sh(&format!(
                "python3 -c '\nimport socket\nfor n in range({FLOWS}):\n s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n \
                 s.bind((\"0.0.0.0\", 21000 + n))\n s.sendto(b\"{round}\", (\"{}\", 9))\n'",
                super::ON_WIRE[1]
            ))?;
            wire.wait(FLOWS.into(), SOON, |frame| {
                udp(frame)
                    .filter(|udp| udp.payload == round.to_string().into_bytes() && udp.checked)
            })?;
            let after = by_queue(&statistics(vm, name)?, "tx_queue_", "_packets");
            Ok(after
                .iter()
                .zip(before)
                .map(|(after, before)| after - before)
                .collect())
        };
        // By addresses alone, all of it is one flow.
        tool_ok(vm, &format!("ethtool -N {name} rx-flow-hash udp4 sd"))?;
        let used = |sent: &[u64]| sent.iter().filter(|&&count| count > 0).count();
        equal("queues used with the fields sd", used(&send(100)?), 1)?;
        tool_ok(vm, &format!("ethtool -N {name} rx-flow-hash udp4 sdfn"))?;
        let sent = send(101)?;
        ensure!(used(&sent) > 1, "with the fields sdfn, {sent:?} were sent");
        for queue in 0..QUEUES {
            vm.host().call(Command::NetTable {
                device: NET0.into(),
                table: vec![queue; 16],
            })?;
            // The table is a message like any other; what comes behind it in the ring is taken up after it.
            until("the table takes effect", SOON, || {
                Ok(send(queue)?[queue as usize] == u64::from(FLOWS))
            })
            .with_context(|| format!("all entries are {queue}"))?;
        }
        vm.host().call(Command::NetTable {
            device: NET0.into(),
            table: (0..16).map(|entry| entry % 2).collect(),
        })?;
        until("a table of two queues takes effect", SOON, || {
            let sent = send(9)?;
            Ok(sent[0] > 0 && sent[1] > 0 && sent[2..].iter().all(|&count| count == 0))
        })?;
        Ok(())
    })
}
