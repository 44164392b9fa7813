// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Tests: client against server, each against a hostile peer, and how completions are judged.

mod completion;
mod handshake;
mod server;

use std::vec::Vec;
use zerocopy::FromBytes;

use super::server::{Config, Server, Verdict};
use super::wire::{NtStatus, StorVersion, VstorPacket};
use crate::packet::{Packet, PacketDescriptor, PacketFlags, PacketType};
use zerocopy::IntoBytes;

/// A controller as the host offers it by default.
fn server_config() -> Config {
    Config {
        newest: StorVersion::V6_2,
        max_transfer_bytes: 0x4_0000,
        max_sub_channels: 3,
        fc: None,
    }
}

/// The bytes of a ring packet; `ranges` as words for a GPA-direct one.
fn ring_packet(packet_type: PacketType, id: u64, ranges: &[u64], payload: &[u8]) -> Vec<u8> {
    let flags = PacketFlags::COMPLETION_REQUESTED;
    let mut bytes = PacketDescriptor::new(packet_type, flags, id, ranges.len() * 8, payload.len())
        .unwrap()
        .as_bytes()
        .to_vec();
    bytes.extend_from_slice(ranges.as_bytes());
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// Sends `payload` in-band with id 1 on channel `index`.
fn send(server: &mut Server, index: u16, payload: &[u8]) -> Verdict {
    let bytes = ring_packet(PacketType::DATA_INBAND, 1, &[], payload);
    server.on_packet(index, &Packet::from_bytes(&bytes).unwrap())
}

/// Status of an answer's bytes.
fn status(answer: &[u8]) -> NtStatus {
    NtStatus::read_from_bytes(&answer[8..12]).unwrap()
}

/// A server on which the initialization is over.
fn ready_server(config: Config) -> Server {
    use super::wire::{Operation, VersionBody};
    let mut server = Server::new(config);
    let version = VersionBody {
        version: config.newest,
        revision: 0,
    };
    for packet in [
        VstorPacket::request(Operation::BEGIN_INITIALIZATION),
        VstorPacket::request(Operation::QUERY_PROTOCOL_VERSION).with_body(&version),
        VstorPacket::request(Operation::QUERY_PROPERTIES),
        VstorPacket::request(Operation::END_INITIALIZATION),
    ] {
        match send(&mut server, 0, packet.bytes()) {
            Verdict::Answer(answer) | Verdict::Ready(answer, _) => {
                assert_eq!(answer.status(), NtStatus::SUCCESS);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(server.is_ready());
    server
}
