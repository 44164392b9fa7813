// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Integration services.

use arbitrary::Unstructured;
use vmbus_proto::ic::exchange::{
    Buffers, Fcopy, Kvp, Machine, Service, Vss, MAX_MESSAGE, MAX_PACKET,
};
use vmbus_proto::ic::kvp::wire as kvp_wire;
use vmbus_proto::ic::negotiate::Negotiated;
use vmbus_proto::ic::timesync::{Now, RefTime};
use vmbus_proto::ic::{fcopy, heartbeat, kvp, shutdown, timesync, vss};
use vmbus_proto::ic::{write_request, IcVersion, MessageType, HEADERS_SIZE};
use zerocopy::FromBytes;

use super::{message, steps};

/// A request, with headers that mostly hold: of `kind`, or a negotiation with a few versions, or any bytes.
fn request(
    input: &mut Unstructured<'_>,
    kind: MessageType,
    most: usize,
) -> arbitrary::Result<Vec<u8>> {
    let mut body = Vec::new();
    let kind = match input.int_in_range(0..=7)? {
        0 => return Ok(message(input, most)?.to_vec()),
        1 | 2 => {
            // Counts of both lists, four reserved bytes, the versions: mostly those that somebody speaks.
            let counts: [u16; 2] = [input.int_in_range(0..=3)?, input.int_in_range(0..=5)?];
            body.extend(counts.into_iter().flat_map(u16::to_le_bytes));
            body.extend([0; 4]);
            for _ in 0..counts[0] + counts[1] {
                let version: [u16; 2] = [input.int_in_range(0..=6)?, input.int_in_range(0..=3)?];
                body.extend(version.into_iter().flat_map(u16::to_le_bytes));
            }
            MessageType::NEGOTIATE
        }
        3 => MessageType::new(input.int_in_range(0..=8)?),
        _ => kind,
    };
    body.extend(message(input, most)?);
    let mut packet = vec![0; HEADERS_SIZE + body.len()];
    let versions = Negotiated {
        framework: IcVersion::new(3, 0),
        message: IcVersion::new(input.int_in_range(1..=5)?, 0),
    };
    write_request(&mut packet, versions, kind, 1, &body).expect("there is room");
    Ok(packet)
}

/// Packets of a hostile host to the services that answer at once.
pub fn services(data: &[u8]) {
    let mut beat = heartbeat::Guest::new();
    let mut stop = shutdown::Guest::new(true);
    let mut time = timesync::Guest::new();
    steps(data, |input| {
        let which = input.int_in_range(0..=2)?;
        let kinds = [
            MessageType::HEARTBEAT,
            MessageType::SHUTDOWN,
            MessageType::TIMESYNC,
        ];
        let mut packet = request(input, kinds[which], 512)?;
        let len = packet.len();
        match which {
            0 => drop(beat.on_packet(&mut packet)),
            1 => drop(stop.on_packet(&mut packet)),
            _ => {
                let now = Now {
                    reference: RefTime(input.arbitrary()?),
                    wall: input.arbitrary()?,
                };
                let _ = time.on_packet(&mut packet, now, input.arbitrary()?);
            }
        }
        assert_eq!(packet.len(), len);
        Ok(())
    });
}

/// A hostile host on one side, a hostile daemon on the other.
pub fn exchange(data: &[u8]) {
    let Some((which, rest)) = data.split_first() else {
        return;
    };
    match which % 3 {
        0 => machine(Kvp::new(), rest),
        1 => machine(Vss::new(), rest),
        _ => machine(Fcopy, rest),
    }
}

fn machine<S: Service>(service: S, data: &[u8]) {
    let mut machine = Machine::new(service);
    let mut buffers = Box::new(Buffers {
        packet: [0; MAX_PACKET],
        message: [0; MAX_MESSAGE],
    });
    let mut now = 0u64;
    steps(data, |input| {
        let step = match input.int_in_range(0..=6)? {
            0 | 1 if machine.wants_packet() => {
                let packet = request(input, S::TYPE, 7000)?;
                buffers.packet[..packet.len()].copy_from_slice(&packet);
                Some(machine.on_packet(now, packet.len(), input.arbitrary()?, &mut buffers))
            }
            0..=2 => {
                now = now.saturating_add(input.int_in_range(0..=1_000_000)?);
                Some(machine.on_time(now, &mut buffers))
            }
            3 => {
                let _ = machine.on_open();
                None
            }
            4 => Some(machine.on_close(&mut buffers)),
            5 => {
                let readable = machine.message(&buffers).map(<[u8]>::len);
                assert!(readable.is_none_or(|len| len <= MAX_MESSAGE));
                Some(machine.on_read(now, &mut buffers))
            }
            _ => {
                let from = message(input, MAX_MESSAGE)?;
                machine.on_write(now, from, &mut buffers).ok()
            }
        };
        if let Some((len, _)) = step.and_then(|step| step.reply) {
            assert!(len <= MAX_PACKET);
        }
        Ok(())
    });
}

/// Bodies, taken as those of each service and of each side.
pub fn bodies(data: &[u8]) {
    let Some((selector, body)) = data.split_first() else {
        return;
    };
    let _ = vss::parse(body);
    let _ = vss::answer_flags(body);
    let _ = fcopy::parse_device(body);
    let mut out = [0; fcopy::MAX_BODY];
    if let Ok(len) = fcopy::to_device(body, &mut out) {
        let request = fcopy::parse_device(&out[..len]).expect("what we wrote can be read");
        let mut again = [0; fcopy::MAX_BODY];
        let _ = fcopy::write(&request, &mut again);
    }
    let _ = kvp_wire::parse_answer(kvp::Operation(*selector), body);
    if let Ok((message, _)) = kvp::DeviceMessage::read_from_prefix(body) {
        let _ = message.parse();
        let _ = message.ip_config();
        let _ = message.registers();
        let _ = message.driver_version();
    }
}
