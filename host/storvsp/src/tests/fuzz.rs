// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Rubbish from a guest that has done the handshake, and loads that the threads share.

use std::collections::HashSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What a packet of the guest is made of. Small numbers are likely: they come further.
#[derive(Clone, Debug)]
struct Rubbish {
    operation: u32,
    lun: u8,
    cdb: [u8; 16],
    cdb_length: u8,
    data_in: u8,
    len: u32,
    range: Option<(u32, u32, Vec<u64>)>,
    cut: usize,
}

fn rubbish() -> impl Strategy<Value = Rubbish> {
    let opcode = prop_oneof![
        any::<u8>(),
        proptest::sample::select(vec![
            0x00u8, 0x12, 0x1a, 0x25, 0x28, 0x2a, 0x35, 0x42, 0x88, 0x8a, 0x93, 0x9e, 0xa0
        ]),
    ];
    let pages = prop_oneof![
        vec(DATA..DATA + 200, 1..20),
        vec(any::<u64>(), 1..4),
        vec(0u64..2000, 1..4),
    ];
    let range = (0u32..4096, 1u32..80_000, pages).prop_map(|(offset, len, pages)| {
        // The ring refuses a packet whose ranges do not fit their pages; that is not the point here.
        let room = pages.len() as u32 * 4096 - offset;
        let least = (pages.len() as u32 - 1) * 4096 + 1;
        (
            offset,
            len.clamp(least.saturating_sub(offset).max(1), room),
            pages,
        )
    });
    (
        prop_oneof![4 => Just(3u32), 1 => 0u32..16, 1 => any::<u32>()],
        0u8..3,
        (opcode, any::<[u8; 15]>(), any::<bool>()),
        prop_oneof![4 => 6u8..17, 1 => any::<u8>()],
        prop_oneof![4 => 0u8..3, 1 => any::<u8>()],
        prop_oneof![4 => 0u32..80_000, 1 => any::<u32>()],
        proptest::option::of(range),
        prop_oneof![6 => Just(64usize), 1 => 0usize..64],
    )
        .prop_map(
            |(operation, lun, (opcode, rest, small), cdb_length, data_in, len, range, cut)| {
                let mut cdb = [0; 16];
                cdb[0] = opcode;
                if small {
                    cdb[5] = rest[0];
                    cdb[8] = rest[1];
                } else {
                    cdb[1..].copy_from_slice(&rest);
                }
                Rubbish {
                    operation,
                    lun,
                    cdb,
                    cdb_length,
                    data_in,
                    len,
                    range,
                    cut,
                }
            },
        )
}

fn send(guest: &mut Guest, id: u64, r: &Rubbish) {
    let mut request =
        ScsiRequest::command(address(0, r.lun), &r.cdb, Transfer::None, true).expect("a command");
    request.cdb_length = r.cdb_length;
    request.data_in = DataIn(r.data_in);
    request.data_transfer_length = r.len;
    let mut packet = ScsiPacket::execute(request);
    packet.header.operation = Operation(r.operation);
    let bytes = &packet.as_bytes()[..r.cut];
    match &r.range {
        None => guest.bench.transmit_request(&mut guest.primary, id, bytes),
        Some((offset, len, pages)) => {
            guest
                .bench
                .transmit_gpa(&mut guest.primary, id, bytes, (*offset, *len, pages));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Each packet that says enough gets one answer of at most the size of a vstor packet, pages that were not
    /// named stay as they are, and the channel goes on.
    #[test]
    fn attack_rubbish_after_the_handshake(packets in vec(rubbish(), 1..60), fast in any::<bool>()) {
        let args = [("lun1", "ram;size=1M;sector=4096"), ("lun2", "ram;size=64K;ro"), ("fast", if fast { "on" } else { "off" })];
        let mut guest = Guest::with_ram_disk(&args);
        // Nobody names this page.
        let canary = [0xc7; 4096];
        guest.bench.ram().write(300 * 4096, &canary).expect("RAM");
        let mut expected = HashSet::new();
        for (id, r) in (1000..).zip(&packets) {
            let names_canary = r.range.as_ref().is_some_and(|(_, _, pages)| pages.iter().any(|p| *p < DATA));
            if names_canary {
                // Rings and the canary live there: a guest may well shoot itself, but that tells nothing here.
                continue;
            }
            send(&mut guest, id, r);
            // The descriptor counts in units of 8 bytes.
            if r.cut.next_multiple_of(8) >= 12 {
                expected.insert(id);
            }
        }
        while !expected.is_empty() {
            let (id, payload) = guest.wait();
            prop_assert!(expected.remove(&id), "answer {id} to nothing");
            prop_assert!(payload.len() <= 64 && payload.len() >= 16);
        }
        prop_assert!(guest.receive().is_none());
        let mut page = [0; 4096];
        guest.bench.ram().read(300 * 4096, &mut page).expect("RAM");
        prop_assert_eq!(page, canary);
        let tur = guest.run(&[0; 6], Transfer::None);
        prop_assert_eq!(tur.srb_status.code(), SrbCode::SUCCESS);
        for disk in guest.disks() {
            prop_assert_eq!(disk.counters.in_flight, 0);
        }
    }
}

#[test]
fn threads_complete_every_command_once() {
    let dir = tempfile::tempdir().expect("dir");
    let spec = format!("{};size=1M", dir.path().join("image").display());
    let args = [("lun1", spec.as_str()), ("fast", "off"), ("threads", "8")];
    let mut guest = Guest::with_ram_disk(&args);
    let mut waiting = HashSet::new();
    for n in 0..400u32 {
        let cdb = match n % 4 {
            0 | 1 => rw(op::WRITE_10, (n % 200) as u8, 8),
            2 => rw(op::READ_10, (n % 200) as u8, 8),
            _ => [op::SYNCHRONIZE_CACHE_10, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        };
        let transfer = match n % 4 {
            0 | 1 => Transfer::ToDevice(4096),
            2 => Transfer::FromDevice(4096),
            _ => Transfer::None,
        };
        waiting.insert(guest.send_to(address(0, (n % 2) as u8), &cdb, transfer));
        if waiting.len() >= 64 {
            let (id, payload) = guest.wait();
            assert_eq!(
                completion(&payload).request.srb_status.code(),
                SrbCode::SUCCESS
            );
            assert!(waiting.remove(&id));
        }
    }
    while !waiting.is_empty() {
        let (id, payload) = guest.wait();
        assert_eq!(
            completion(&payload).request.srb_status.code(),
            SrbCode::SUCCESS
        );
        assert!(waiting.remove(&id));
    }
    assert!(guest.receive().is_none());
    let total: u64 = guest.disks().iter().map(|d| d.counters.commands).sum();
    assert_eq!(total, 400);
    assert_eq!(guest.violations(), 0);
}

/// Channels are closed while threads are at work; nothing hangs, nothing is left.
#[test]
fn closing_under_load_leaves_nothing_behind() {
    let mut guest = Guest::with_ram_disk(&[("fast", "off"), ("subchannels", "0")]);
    for round in 0..20 {
        guest.fault(None, 3, DiskFault::Lose);
        guest.fault(None, 3, DiskFault::Delay { ms: 10_000 });
        for _ in 0..50 {
            guest.send(&rw(op::READ_10, 0, 128), Transfer::FromDevice(65536));
        }
        guest.bench.close(&guest.primary);
        guest.set_data(&[0xaa; 4096]);
        for _ in 0..50 {
            if guest.disks()[0].counters.in_flight == 0 {
                break;
            }
            guest.bench.wait_and_run();
        }
        assert_eq!(guest.disks()[0].counters.in_flight, 0, "round {round}");
        assert_eq!(guest.data(4096), [0xaa; 4096], "round {round}");
        guest.primary = guest.bench.open("scsi", 2);
        guest.handshake();
    }
}
