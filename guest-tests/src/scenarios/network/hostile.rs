// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A host that breaks the rules: every field of every message with values that make no sense, messages cut short, doubled, lost.
//! The guest drops them; it neither crashes nor hangs, and delivers nothing that was not sent. The C driver is known not to
//! stand all of this, so only ours is tried.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use hvctl::{Command, NetFault, NetMessage, NetPart, NET_FIELDS};

use super::{
    cards::exchange, fault, fault_after, mac_of, net, on_wire, take_away, to_guest, wire_guest,
    Echo, NET0,
};
use crate::net::{udp, Udp, Wire};
use crate::runner::{Ctx, Scenario};
use crate::scenarios::programs::{bus_dir, until, until_in_guest};
use crate::vm::{Vm, SOON};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "malformed-data",
            "every field of the packets that carry frames, with impossible values, under traffic",
            data,
        ),
        Scenario::new(
            "malformed-control",
            "every field of NVSP and RNDIS control messages, with impossible values, while the card is set up",
            control,
        ),
        Scenario::new(
            "bad-network",
            "frames lost, late, doubled, out of order, corrupt; a stalled host",
            bad_network,
        ),
    ]
}

/// What a field is overwritten with: nothing, one, small, about a page, about a section, signed limits, all ones.
const VALUES: [u64; 12] = [
    0,
    1,
    3,
    44,
    4095,
    65_535,
    0x0100_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fff0,
    0xffff_ffff,
    u64::MAX,
];

/// Waits until `count` faults have hit since the counters were reset.
fn injected(vm: &Vm, count: u64) -> Result<()> {
    until("the fault hits", SOON, || {
        Ok(net(vm, NET0)?.counters.injected >= count)
    })
    .map(drop)
}

/// Frames that are hit, one after another, and some that are not: the latter must all be answered, and what comes back must
/// be what was sent.
fn hit(vm: &Vm, wire: &Wire, what: &str, hits: usize) -> Result<()> {
    let mac = mac_of(vm, NET0)?;
    let datagram = |text: String| to_guest(mac, Echo::PORT, text.into_bytes());
    let sent: Vec<Udp> = (0..hits)
        .map(|n| datagram(format!("{what} hit {n}")))
        .collect();
    wire.clear();
    for frame in &sent {
        // One at a time: the host would put several into one packet, and those that follow with them.
        let before = net(vm, NET0)?.counters.injected;
        wire.send(&frame.frame()?)?;
        injected(vm, before + 1).with_context(|| what.to_owned())?;
    }
    fault(vm, 0, NetFault::Clear)?;
    let after: Vec<Udp> = (0..5)
        .map(|n| datagram(format!("{what} after {n}")))
        .collect();
    let known: HashSet<Vec<u8>> = sent
        .iter()
        .chain(&after)
        .map(|udp| udp.turned().frame())
        .collect::<Result<_>>()?;
    let mut wrong = Vec::new();
    let mut left: HashSet<&[u8]> = after.iter().map(|udp| udp.payload.as_slice()).collect();
    for frame in &after {
        wire.send(&frame.frame()?)?;
    }
    wire.wait(after.len(), SOON, |frame| {
        let answer = udp(frame)?;
        if !known.contains(&answer.frame().ok()?) || !answer.checked {
            wrong.push(answer);
            return None;
        }
        left.remove(answer.payload.as_slice()).then_some(())
    })
    .with_context(|| format!("{what}: the guest no longer answers"))?;
    ensure!(
        wrong.is_empty(),
        "{what}: delivered what was not sent: {:?}",
        wrong.first()
    );
    Ok(())
}

/// A fault of packets with frames.
struct Attack {
    what: String,
    fault: NetFault,
    /// What comes is no packet with frames any more, so the guest does not complete it as one, C neither: the host has lost its
    /// section.
    loses: bool,
}

/// Every field of packets with frames, with impossible values, and these packets cut.
fn attacks(ctx: &Ctx) -> Vec<Attack> {
    let mut attacks = Vec::new();
    for field in NET_FIELDS {
        if !field.messages.contains(&NetMessage::Data) {
            continue;
        }
        for value in some_values(ctx, field.width, attacks.len(), 2) {
            attacks.push(Attack {
                what: format!("{} of Data = {value:#x}", field.name),
                fault: field.patch(NetMessage::Data, value),
                loses: match field.name {
                    "packet-type" | "set-id" | "nvsp-type" => true,
                    // There is one.
                    "range-count" => value != 1,
                    _ => false,
                },
            });
        }
    }
    // An NVSP message of these lengths is filled up with zeroes in the ring, so that its type can be read.
    let nvsp: &[u32] = &[0, 1, 4, 7, 8, 12, 16];
    let ranges: &[u32] = &[0, 8];
    let rndis: &[u32] = &[0, 1, 4, 7, 8, 12, 16, 40, 43, 44, 50];
    for (part, lengths, lost_below) in [
        (NetPart::Ranges, ranges, 16),
        (NetPart::Nvsp, nvsp, 1),
        (NetPart::Rndis, rndis, 0),
    ] {
        for &len in lengths.iter().step_by(ctx.count(1, 3)) {
            attacks.push(Attack {
                what: format!("Data cut to {len} in {part:?}"),
                fault: NetFault::Cut {
                    message: NetMessage::Data,
                    part,
                    len,
                },
                loses: len < lost_below,
            });
        }
    }
    attacks
}

fn data(ctx: &Ctx) -> Result<()> {
    let hits: u32 = ctx.count(20, 2);
    wire_guest(ctx, ctx.config().smp(2), |vm, _, wire| {
        let _echo = Echo::start(vm)?;
        let attacks = attacks(ctx);
        let mut expected = net(vm, NET0)?.buffers.recv_sections;
        for Attack { what, fault, loses } in &attacks {
            self::fault(vm, hits, fault.clone())?;
            hit(vm, wire, what, hits as usize)?;
            if *loses {
                expected -= hits;
            }
            let mut free = 0;
            until("all sections back but those lost", SOON, || {
                free = net(vm, NET0)?.buffers.recv_free;
                Ok(free == expected)
            })
            .with_context(|| format!("{what}: {free} are free, not {expected}"))?;
        }
        // A send that is not completed never ends, so there is a new card after each of these.
        let mut completions = 0;
        for field in NET_FIELDS {
            if !field.messages.contains(&NetMessage::SendCompletion) {
                continue;
            }
            for value in some_values(ctx, field.width, completions, 1) {
                let what = format!("{} of SendCompletion = {value:#x}", field.name);
                fault(vm, hits, field.patch(NetMessage::SendCompletion, value))?;
                let before = net(vm, NET0)?.counters.injected;
                let mac = mac_of(vm, NET0)?;
                wire.send(&to_guest(mac, Echo::PORT, what.clone().into_bytes()).frame()?)?;
                injected(vm, before + 1).with_context(|| what.clone())?;
                take_away(vm).with_context(|| what.clone())?;
                fault(vm, 0, NetFault::Clear)?;
                vm.host().offer(NET0)?;
                let name = super::interface(vm, NET0).with_context(|| what.clone())?;
                on_wire(vm, &name)?;
                exchange(vm, wire, 10).with_context(|| format!("after {what}"))?;
                completions += 1;
            }
        }
        ctx.figure(format!(
            "{} kinds, {} messages",
            attacks.len() + completions,
            net(vm, NET0)?.counters.injected
        ));
        Ok(())
    })
}

/// Values for a field of so many bytes: all of them with `--full`, else `few`, others for each `turn`.
fn some_values(ctx: &Ctx, width: u8, turn: usize, few: usize) -> Vec<u64> {
    let all = values(width);
    let count = ctx.count(all.len(), few.min(all.len()));
    (0..count)
        .map(|at| all[(turn + at * 5) % all.len()])
        .collect()
}

/// The values that fit into a field of so many bytes.
fn values(width: u8) -> Vec<u64> {
    let mask = if width >= 8 {
        u64::MAX
    } else {
        (1 << (8 * width)) - 1
    };
    let mut values: Vec<u64> = VALUES.iter().map(|value| value & mask).collect();
    values.sort_unstable();
    values.dedup();
    values
}

/// A fault of a message while the card is set up.
struct ControlFault {
    what: String,
    message: NetMessage,
    fault: NetFault,
    /// Messages of the kind that come first.
    skip: u32,
}

/// Every field of control messages with impossible values; these messages cut and doubled.
fn control_faults(ctx: &Ctx) -> Vec<ControlFault> {
    use NetMessage::{
        Answer, Data, InitCompletion, RecvBufCompletion, SendBufCompletion, SendCompletion,
        SubchannelCompletion,
    };
    let mut faults = Vec::new();
    for field in NET_FIELDS {
        for &message in field.messages {
            if matches!(message, Data | SendCompletion) {
                continue;
            }
            // The first answer is that to INITIALIZE, which has no information.
            let skip = u32::from(field.name.starts_with("info-"));
            for value in some_values(ctx, field.width, faults.len(), 1) {
                faults.push(ControlFault {
                    what: format!("{} of {message:?} = {value:#x}", field.name),
                    message,
                    fault: field.patch(message, value),
                    skip,
                });
            }
        }
    }
    for message in [
        InitCompletion,
        RecvBufCompletion,
        SendBufCompletion,
        SubchannelCompletion,
        Answer,
    ] {
        let cut = NetFault::Cut {
            message,
            part: NetPart::Nvsp,
            len: 5,
        };
        for (how, fault) in [("cut", cut), ("twice", NetFault::Repeat { message })] {
            faults.push(ControlFault {
                what: format!("{message:?} {how}"),
                message,
                fault,
                skip: 0,
            });
        }
    }
    // In CI every other one.
    faults.into_iter().step_by(ctx.count(1, 2)).collect()
}

/// What the host takes for a violation since it believes that its answer has come as it was sent.
fn explained(message: NetMessage, violation: &str) -> bool {
    match message {
        // Refused, for all that the guest knows: it tries an older version.
        NetMessage::InitCompletion => violation.contains("INIT again"),
        // Refused as well: what is not shared is not revoked.
        NetMessage::RecvBufCompletion => {
            violation.contains("receive buffer was torn down before it was revoked")
        }
        NetMessage::SendBufCompletion => {
            violation.contains("send buffer was torn down before it was revoked")
        }
        _ => false,
    }
}

fn control(ctx: &Ctx) -> Result<()> {
    wire_guest(ctx, ctx.config().smp(2), |vm, _, wire| {
        let _echo = Echo::start(vm)?;
        let faults = control_faults(ctx);
        let mut came_up = 0;
        take_away(vm)?;
        for ControlFault {
            what,
            message,
            fault,
            skip,
        } in &faults
        {
            // All counters from nothing, those of violations and of hits.
            vm.host().reset_counters()?;
            came_up += usize::from(
                one_control(ctx, vm, *message, fault, *skip).with_context(|| what.clone())?,
            );
            let violations = vm.host().violations()?;
            let (wrong, texts) = (violations.count, &violations.texts);
            ensure!(
                wrong == texts.len() as u64 && texts.iter().all(|text| explained(*message, text)),
                "{what}: {wrong} violations, not all explained: {}",
                texts.join("; ")
            );
        }
        vm.host().reset_counters()?;
        vm.host().offer(NET0)?;
        let name = super::interface(vm, NET0).context("after all of it")?;
        on_wire(vm, &name)?;
        exchange(vm, wire, 50).context("after all of it")?;
        ctx.figure(format!(
            "{} faults, the card came up with {came_up}",
            faults.len()
        ));
        Ok(())
    })
}

/// A card is offered, hit by one fault, and taken away; whether it came up.
fn one_control(
    ctx: &Ctx,
    vm: &Vm,
    message: NetMessage,
    fault: &NetFault,
    skip: u32,
) -> Result<bool> {
    fault_after(vm, skip, 1, fault.clone())?;
    vm.host().offer(NET0)?;
    let dir = bus_dir(vm, NET0)?;
    if message == NetMessage::Vf {
        // The host has none to tell of by itself.
        super::interface(vm, NET0)?;
        vm.host().call(Command::NetVf {
            device: NET0.into(),
            serial: Some(1),
        })?;
    }
    injected(vm, 1)?;
    // It comes up, or the driver gives up, or waits for an answer that the fault has spoilt.
    let settled = until_in_guest(
        vm,
        &format!("[ -e {dir}/net ] || [ -e {dir} -a ! -e {dir}/driver -a -e /sys/bus/vmbus/drivers/hv_netvsc* ]"),
        Duration::from_secs(ctx.count(20, 1)),
    );
    let came_up = settled.is_ok() && vm.run(&format!("[ -e {dir}/net ]"), SOON)?.rc == Some(0);
    self::fault(vm, 0, NetFault::Clear)?;
    alive(vm)?;
    take_away(vm)?;
    Ok(came_up)
}

/// The guest answers, and its kernel log was not flooded.
fn alive(vm: &Vm) -> Result<()> {
    vm.sh("true").map(drop)
}

fn bad_network(ctx: &Ctx) -> Result<()> {
    let frames = ctx.count(2000, 200);
    wire_guest(ctx, ctx.config().smp(2), |vm, _, wire| {
        let _echo = Echo::start(vm)?;
        for one in [
            NetFault::Drop,
            NetFault::Delay { ms: 20 },
            NetFault::Duplicate,
            NetFault::Reorder { window: 8 },
            NetFault::Corrupt,
        ] {
            // Each frame, until `hit` clears it.
            fault(vm, 0, one.clone())?;
            hit(vm, wire, &format!("{one:?}"), frames as usize / 8)?;
            exchange(vm, wire, 50).with_context(|| format!("after {one:?}"))?;
        }
        fault(vm, 1, NetFault::Stall { ms: 2000 })?;
        exchange(vm, wire, 500).context("after a stall")?;
        let longest = long_messages(vm, wire)?;
        ctx.figure(format!("{longest} frames in a message"));
        Ok(())
    })
}

/// More frames in a message than the guest takes at a time: its driver must come back for the rest. How many there were, on the
/// average.
fn long_messages(vm: &Vm, wire: &Wire) -> Result<u64> {
    const FRAMES: usize = 300;
    /// Linux' `NAPI_POLL_WEIGHT`.
    const BUDGET: u64 = 64;
    let received = || -> Result<(u64, u64)> {
        let queues = net(vm, NET0)?.queues.into_iter();
        Ok(queues.fold((0, 0), |(frames, messages), queue| {
            (frames + queue.rx_packets, messages + queue.rx_messages)
        }))
    };
    let mac = mac_of(vm, NET0)?;
    let hit = net(vm, NET0)?.counters.injected;
    fault(vm, 0, NetFault::Delay { ms: 600_000 })?;
    wire.clear();
    // From one place, so to one queue.
    let sent: Vec<Udp> = (0..FRAMES)
        .map(|n| to_guest(mac, Echo::PORT, format!("together {n}").into_bytes()))
        .collect();
    for frame in &sent {
        wire.send(&frame.frame()?)?;
    }
    injected(vm, hit + FRAMES as u64)?;
    let before = received()?;
    // Lets go of them all.
    fault(vm, 0, NetFault::Clear)?;
    let mut left: HashSet<&[u8]> = sent.iter().map(|udp| udp.payload.as_slice()).collect();
    wire.wait(FRAMES, SOON, |frame| {
        left.remove(udp(frame)?.payload.as_slice()).then_some(())
    })
    .context("frames that came together")?;
    let after = received()?;
    let longest = (after.0 - before.0) / (after.1 - before.1).max(1);
    ensure!(
        longest > BUDGET,
        "{longest} frames in a message: {before:?}, {after:?}"
    );
    Ok(longest)
}
