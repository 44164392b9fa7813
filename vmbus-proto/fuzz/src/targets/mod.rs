// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The targets, by area.

pub mod bus;
pub mod ic;
pub mod net;
pub mod ring;
pub mod storage;

use arbitrary::Unstructured;
use vmbus_proto::packet::{Packet, PacketDescriptor, PacketFlags, PacketType};
use zerocopy::IntoBytes;

/// Most steps of one input: what comes later is found in a shorter input as well.
const STEPS: usize = 64;

/// Calls `step` with the rest of the input until that is used up.
fn steps<'a>(data: &'a [u8], mut step: impl FnMut(&mut Unstructured<'a>) -> arbitrary::Result<()>) {
    let mut input = Unstructured::new(data);
    for _ in 0..STEPS {
        if input.is_empty() || step(&mut input).is_err() {
            return;
        }
    }
}

/// Calls `on_packet` with packets of at most `most` bytes of payload, and the index of the channel that each comes by.
fn packets(data: &[u8], most: usize, mut on_packet: impl FnMut(u16, &Packet<'_>)) {
    steps(data, |input| {
        let index = input.int_in_range(0..=9)?;
        let bytes = packet(input, most)?;
        if let Ok(packet) = Packet::from_bytes(&bytes) {
            on_packet(index, &packet);
        }
        Ok(())
    });
}

/// A message of at most `most` bytes.
fn message<'a>(input: &mut Unstructured<'a>, most: usize) -> arbitrary::Result<&'a [u8]> {
    let len = input.int_in_range(0..=most)?.min(input.len());
    input.bytes(len)
}

/// Most ranges of a packet here, and most pages of a range.
const RANGES: u32 = 4;

/// A packet as it comes out of a ring, with a descriptor that holds, ranges that mostly do, and any payload of at most `most`
/// bytes. One in eight is any bytes.
fn packet(input: &mut Unstructured<'_>, most: usize) -> arbitrary::Result<Vec<u8>> {
    let mut extra = Vec::new();
    let packet_type = match input.int_in_range(0..=7)? {
        0 => return Ok(message(input, most)?.to_vec()),
        1 | 2 => PacketType::COMPLETION,
        3 | 4 => {
            let count = input.int_in_range(0..=RANGES)?;
            extra.extend([0; 4]);
            extra.extend(count.to_le_bytes());
            for _ in 0..count {
                let pages = input.int_in_range(0..=RANGES)?;
                extra.extend(input.int_in_range(0..=pages * 4096)?.to_le_bytes());
                extra.extend(input.int_in_range(0..=4095u32)?.to_le_bytes());
                for _ in 0..pages {
                    extra.extend(input.arbitrary::<u64>()?.to_le_bytes());
                }
            }
            PacketType::DATA_USING_GPA_DIRECT
        }
        _ => PacketType::DATA_INBAND,
    };
    let payload = message(input, most)?;
    let flags = if input.arbitrary()? {
        PacketFlags::COMPLETION_REQUESTED
    } else {
        PacketFlags::empty()
    };
    let id = input.arbitrary()?;
    let Some(descriptor) =
        PacketDescriptor::new(packet_type, flags, id, extra.len(), payload.len())
    else {
        return Ok(Vec::new());
    };
    let mut bytes = descriptor.as_bytes().to_vec();
    bytes.extend(extra);
    bytes.extend(payload);
    bytes.resize(descriptor.packet_len() as usize, 0);
    Ok(bytes)
}
