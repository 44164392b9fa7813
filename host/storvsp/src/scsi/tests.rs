// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The target as an initiator sees it.

use proptest::collection::vec;
use proptest::prelude::*;
use vmbus_proto::storvsc::srb::ScsiStatus;
use vmbus_proto::storvsc::SrbCode;

use super::cdb::op;
use super::{Disk, DiskConfig, Outcome, Patience, Sense, CDB_SIZE};
use crate::backend::Backend;
use crate::buffer::testing::VecBuffer;
use crate::buffer::Buffer;

const BLOCKS: u64 = 256;

fn disk(shift: u32, read_only: bool) -> Disk {
    let store = Backend::ram(BLOCKS << shift, read_only).expect("memory");
    let config = DiskConfig {
        shift,
        discard: !read_only,
        id: [7; 16],
    };
    Disk::new(store, config).expect("has blocks")
}

fn cdb(bytes: &[u8]) -> [u8; CDB_SIZE] {
    let mut cdb = [0; CDB_SIZE];
    cdb[..bytes.len()].copy_from_slice(bytes);
    cdb
}

fn run(disk: &Disk, bytes: &[u8], buffer: &VecBuffer) -> Outcome {
    disk.execute(&cdb(bytes), buffer, Patience::Wait)
        .expect("waits")
}

/// Runs a command that gives data; those that it gave.
fn ask(disk: &Disk, bytes: &[u8]) -> Result<Vec<u8>, Sense> {
    let buffer = VecBuffer::zeroed(4096);
    let outcome = run(disk, bytes, &buffer);
    match outcome.sense {
        Some(sense) => Err(sense),
        None => Ok(buffer.bytes()[..outcome.transferred as usize].to_vec()),
    }
}

fn rw16(opcode: u8, lba: u64, count: u32) -> [u8; CDB_SIZE] {
    let mut cdb = [0; CDB_SIZE];
    cdb[0] = opcode;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&count.to_be_bytes());
    cdb
}

fn write(disk: &Disk, lba: u64, data: &[u8]) -> Outcome {
    let count = (data.len() >> disk.config().shift) as u32;
    run(disk, &rw16(op::WRITE_16, lba, count), &VecBuffer::of(data))
}

fn read(disk: &Disk, lba: u64, count: u32) -> Result<Vec<u8>, Sense> {
    let buffer = VecBuffer::zeroed((count as usize) << disk.config().shift);
    match run(disk, &rw16(op::READ_16, lba, count), &buffer).sense {
        Some(sense) => Err(sense),
        None => Ok(buffer.bytes()),
    }
}

fn all(disk: &Disk) -> Vec<u8> {
    read(disk, 0, BLOCKS as u32).expect("reads")
}

fn unmap_list(ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut list = ((ranges.len() * 16 + 6) as u16).to_be_bytes().to_vec();
    list.extend(((ranges.len() * 16) as u16).to_be_bytes());
    list.extend([0; 4]);
    for (lba, count) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

fn unmap(disk: &Disk, list: &[u8]) -> Outcome {
    let [high, low] = (list.len() as u16).to_be_bytes();
    run(
        disk,
        &[op::UNMAP, 0, 0, 0, 0, 0, 0, high, low],
        &VecBuffer::of(list),
    )
}

#[test]
fn capacity_is_that_of_the_store_in_each_block_size() {
    for (shift, last, physical) in [(9, BLOCKS - 1, 3), (12, BLOCKS - 1, 0)] {
        let disk = disk(shift, false);
        let short = ask(&disk, &[op::READ_CAPACITY_10]).expect("data");
        assert_eq!(short[..4], (last as u32).to_be_bytes());
        assert_eq!(short[4..], (1u32 << shift).to_be_bytes());
        let long = ask(
            &disk,
            &[
                op::SERVICE_ACTION_IN_16,
                0x10,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                32,
            ],
        )
        .expect("data");
        assert_eq!(long.len(), 32);
        assert_eq!(long[..8], last.to_be_bytes());
        assert_eq!((long[13], long[14]), (physical, 0x80), "LBPME");
    }
}

#[test]
fn a_range_is_in_the_disk_or_refused() {
    let disk = disk(9, false);
    let block = [1; 512];
    assert!(!write(&disk, BLOCKS - 1, &block).is_error());
    let refused = |o: Outcome| {
        assert_eq!(o.srb_code, SrbCode::INVALID_REQUEST);
        assert_eq!(o.scsi_status, ScsiStatus::CHECK_CONDITION);
        assert_eq!(o.sense, Some(Sense::LBA_OUT_OF_RANGE));
        assert_eq!(o.transferred, 0);
    };
    refused(write(&disk, BLOCKS, &block));
    refused(write(&disk, u64::MAX, &block));
    refused(write(&disk, BLOCKS - 1, &[1; 1024]));
    refused(write(&disk, BLOCKS, &[]));
    assert!(!write(&disk, BLOCKS - 1, &[]).is_error(), "no blocks");
    assert_eq!(read(&disk, u64::MAX - 1, 4), Err(Sense::LBA_OUT_OF_RANGE));
    // More blocks than the buffer holds.
    refused(run(
        &disk,
        &rw16(op::READ_16, 0, 2),
        &VecBuffer::zeroed(1023),
    ));
    refused(unmap(&disk, &unmap_list(&[(0, 1), (BLOCKS, 1)])));
    assert_eq!(all(&disk)[(BLOCKS as usize - 1) * 512..], block);
}

#[test]
fn a_read_only_disk_says_so_and_stays_as_it_is() {
    let disk = disk(9, true);
    let modes = ask(&disk, &[op::MODE_SENSE_6, 0, 0x3f, 0, 255]).expect("pages");
    assert_eq!(modes[2] & 0x80, 0x80);
    for bytes in [
        rw16(op::WRITE_16, 0, 1),
        cdb(&[op::WRITE_6, 0, 0, 0, 1]),
        rw16(op::WRITE_SAME_16, 0, 1),
    ] {
        let outcome = run(&disk, &bytes, &VecBuffer::of(&[1; 512]));
        assert_eq!(outcome.sense, Some(Sense::WRITE_PROTECTED), "{bytes:x?}");
        assert_eq!(outcome.srb_code, SrbCode::ERROR);
    }
    assert_eq!(all(&disk), vec![0; 512 * BLOCKS as usize]);
}

#[test]
fn blocks_given_back_free_space_and_read_as_zeroes() {
    let disk = disk(9, false);
    let size = 512 * BLOCKS as usize;
    assert!(!write(&disk, 0, &vec![9; size]).is_error());
    assert_eq!(disk.store().allocated(), size as u64);
    assert!(!unmap(&disk, &unmap_list(&[(0, 8), (128, 64), (5, 0)])).is_error());
    assert_eq!(disk.store().allocated(), (size - 72 * 512) as u64);
    let data = all(&disk);
    assert!(data[..8 * 512].iter().all(|b| *b == 0));
    assert!(data[8 * 512..128 * 512].iter().all(|b| *b == 9));
    assert!(data[128 * 512..192 * 512].iter().all(|b| *b == 0));
    let mut get = rw16(op::SERVICE_ACTION_IN_16, 4, 4096);
    get[1] = 0x12;
    let status = ask(&disk, &get).expect("extents");
    let extents: Vec<(u64, u32, u8)> = status[8..]
        .chunks(16)
        .map(|d| {
            let number = |b: &[u8]| b.iter().fold(0u64, |n, b| (n << 8) | u64::from(*b));
            (number(&d[..8]), number(&d[8..12]) as u32, d[12])
        })
        .collect();
    assert_eq!(
        extents,
        [(4, 4, 1), (8, 120, 0), (128, 64, 1), (192, 64, 0)]
    );
}

#[test]
fn write_same_repeats_zeroes_or_gives_back() {
    let disk = disk(9, false);
    let block: Vec<u8> = (0..512u32).map(|i| i as u8).collect();
    let same = |flags: u8, lba, count, data: &[u8]| {
        let mut cdb = rw16(op::WRITE_SAME_16, lba, count);
        cdb[1] = flags;
        run(&disk, &cdb, &VecBuffer::of(data))
    };
    assert_eq!(same(0, 8, 200, &block), Outcome::good(512));
    assert!(all(&disk)[8 * 512..208 * 512]
        .chunks(512)
        .all(|b| b == block));
    assert_eq!(same(8, 8, 8, &[0; 512]), Outcome::good(512));
    assert_eq!(disk.store().allocated() % 4096, 0);
    assert_eq!(read(&disk, 8, 8).expect("reads"), [0; 4096]);
    assert_eq!(
        same(8, 16, 8, &block),
        Outcome::good(512),
        "data that no hole can stand for"
    );
    assert_eq!(read(&disk, 16, 1).expect("reads"), block);
    assert_eq!(same(1, 16, 8, &[]), Outcome::good(0), "no data: zeroes");
    assert_eq!(read(&disk, 16, 8).expect("reads"), [0; 4096]);
    assert_eq!(
        same(0, BLOCKS - 2, 0, &block),
        Outcome::good(512),
        "up to the end"
    );
    assert_eq!(read(&disk, BLOCKS - 1, 1).expect("reads"), block);
    assert_eq!(
        same(0, 0, 1, &block[..511]).sense,
        Some(Sense::INVALID_FIELD_IN_CDB)
    );
    let store = Backend::ram(32 << 20, false).expect("memory");
    let big = Disk::new(store, *disk.config()).expect("has blocks");
    let outcome = run(
        &big,
        &rw16(op::WRITE_SAME_16, 0, 16385),
        &VecBuffer::of(&block),
    );
    assert_eq!(
        outcome.sense,
        Some(Sense::INVALID_FIELD_IN_CDB),
        "beyond the stated limit"
    );
}

#[test]
fn verify_compares_when_asked_to() {
    let disk = disk(9, false);
    assert!(!write(&disk, 3, &[5; 1024]).is_error());
    let verify = |flags: u8, lba, count, data: &[u8]| {
        let mut cdb = rw16(op::VERIFY_16, lba, count);
        cdb[1] = flags;
        run(&disk, &cdb, &VecBuffer::of(data))
    };
    assert_eq!(verify(0, 0, 200, &[]), Outcome::good(0));
    assert_eq!(verify(2, 3, 2, &[5; 1024]), Outcome::good(1024));
    assert_eq!(verify(6, 3, 2, &[5; 512]), Outcome::good(512));
    assert_eq!(verify(2, 3, 2, &[6; 1024]).sense, Some(Sense::MISCOMPARE));
    assert_eq!(verify(6, 3, 3, &[5; 512]).sense, Some(Sense::MISCOMPARE));
    assert_eq!(
        verify(2, 3, 2, &[5; 1023]).sense,
        Some(Sense::INVALID_FIELD_IN_CDB)
    );
    assert_eq!(verify(0, 250, 7, &[]).sense, Some(Sense::LBA_OUT_OF_RANGE));
}

#[test]
fn a_resize_is_told_once_and_not_to_inquiries() {
    let disk = disk(9, false);
    disk.resize(BLOCKS * 1024).expect("grows");
    assert!(ask(&disk, &[op::INQUIRY, 0, 0, 0, 255]).is_ok());
    assert_eq!(
        ask(&disk, &[op::TEST_UNIT_READY]),
        Err(Sense::CAPACITY_CHANGED)
    );
    assert_eq!(ask(&disk, &[op::TEST_UNIT_READY]), Ok(vec![]));
    let capacity = ask(&disk, &[op::READ_CAPACITY_10]).expect("data");
    assert_eq!(capacity[..4], (BLOCKS as u32 * 2 - 1).to_be_bytes());
    disk.resize(512).expect("shrinks");
    let sense = ask(&disk, &[op::REQUEST_SENSE, 0, 0, 0, 255]).expect("sense");
    assert_eq!((sense[2], sense[12], sense[13]), (6, 0x2a, 9));
    assert_eq!(read(&disk, 1, 1), Err(Sense::LBA_OUT_OF_RANGE));
    assert!(disk.resize(511).is_err(), "no block would be left");
    assert_eq!(
        disk.counters()
            .errors
            .load(std::sync::atomic::Ordering::Relaxed),
        1
    );
}

#[test]
fn attack_unmap_lists() {
    let disk = disk(9, false);
    let good = unmap_list(&[(0, 1)]);
    assert_eq!(
        unmap(&disk, &good[..7]).sense,
        Some(Sense::PARAMETER_LIST_LENGTH)
    );
    assert!(
        !unmap(&disk, &good[..20]).is_error(),
        "a part of a descriptor"
    );
    assert!(!unmap(&disk, &[]).is_error());
    let short = VecBuffer::of(&good[..10]);
    let outcome = run(&disk, &[op::UNMAP, 0, 0, 0, 0, 0, 0, 0, 24], &short);
    assert_eq!(
        outcome.sense,
        Some(Sense::PARAMETER_LIST_LENGTH),
        "shorter than the CDB says"
    );
    assert_eq!(
        unmap(&disk, &unmap_list(&[(u64::MAX, 2)])).sense,
        Some(Sense::LBA_OUT_OF_RANGE)
    );
    let mut many = unmap_list(&vec![(0, 1); 4095]);
    many[2..4].copy_from_slice(&u16::MAX.to_be_bytes());
    assert!(!unmap(&disk, &many).is_error(), "{} descriptors", 4095);
}

#[test]
fn an_image_that_is_not_cached_is_not_waited_for() {
    let dir = tempfile::tempdir().expect("dir");
    let store = Backend::open(&dir.path().join("i"), Some(1 << 20), false).expect("image");
    let config = *disk(9, false).config();
    let disk = Disk::new(store, config).expect("has blocks");
    let now = |bytes: &[u8; CDB_SIZE]| disk.execute(bytes, &VecBuffer::zeroed(4096), Patience::Now);
    assert_eq!(now(&rw16(op::WRITE_16, 0, 8)), None);
    assert_eq!(now(&cdb(&[op::SYNCHRONIZE_CACHE_10])), None);
    assert!(now(&cdb(&[op::TEST_UNIT_READY])).is_some());
    assert!(
        now(&rw16(op::WRITE_16, u64::MAX, 8)).is_some(),
        "an error needs no waiting"
    );
    assert!(!write(&disk, 0, &[1; 4096]).is_error());
    // Where the file system cannot tell what is cached, nothing is.
    let cached = now(&rw16(op::READ_16, 0, 8));
    assert!(cached.is_none() || cached == Some(Outcome::good(4096)));
}

/// What may change the store.
fn changes(opcode: u8) -> bool {
    matches!(
        opcode,
        op::WRITE_6
            | op::WRITE_10
            | op::WRITE_12
            | op::WRITE_16
            | op::WRITE_SAME_10
            | op::WRITE_SAME_16
            | op::UNMAP
    )
}

proptest! {
    /// Rubbish CDBs: an answer each time, within the buffer, with sense data if and only if it is an error that
    /// has some; and nothing but writes changes a byte.
    #[test]
    fn attack_rubbish_cdbs(
        cdbs in vec((any::<[u8; 16]>(), any::<bool>(), 0usize..5000), 1..40),
        read_only in any::<bool>(),
    ) {
        let disk = disk(9, read_only);
        let known = [
            0x00, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x16, 0x1a, 0x1b, 0x1d, 0x25, 0x28, 0x2a, 0x2f, 0x35,
            0x41, 0x42, 0x55, 0x5a, 0x5e, 0x5f, 0x88, 0x8a, 0x8f, 0x91, 0x93, 0x9e, 0xa0, 0xa8, 0xaa, 0xaf,
        ];
        for (mut raw, likely, len) in cdbs {
            if likely {
                raw[0] = known[usize::from(raw[0]) % known.len()];
                // Small addresses are more interesting than refused ones.
                raw[2..9].fill(0);
            }
            let before = all(&disk);
            let buffer = VecBuffer::of(&vec![raw[15]; len]);
            let outcome = disk.execute(&raw, &buffer, Patience::Wait).expect("waits");
            prop_assert!(outcome.transferred as usize <= buffer.len());
            prop_assert_eq!(outcome.scsi_status == ScsiStatus::CHECK_CONDITION, outcome.sense.is_some());
            prop_assert_eq!(outcome.scsi_status == ScsiStatus::GOOD, outcome.srb_code == SrbCode::SUCCESS);
            prop_assert_eq!(disk.blocks(), BLOCKS);
            if read_only || !changes(raw[0]) || outcome.is_error() {
                prop_assert_eq!(all(&disk), before, "{:x?}", raw);
            }
        }
    }

    /// Reads, writes, WRITE SAME and UNMAP of every form against a model in plain memory.
    #[test]
    fn behaves_like_memory(
        ops in vec((0u8..8, 0u64..BLOCKS, 1u32..40, any::<u8>()), 1..60),
        shift in prop_oneof![Just(9u32), Just(12)],
    ) {
        let disk = disk(shift, false);
        let size = 1usize << shift;
        let mut model = vec![0u8; size * BLOCKS as usize];
        for (what, lba, count, seed) in ops {
            let count = count.min((BLOCKS - lba) as u32);
            let at = lba as usize * size..(lba as usize + count as usize) * size;
            let data: Vec<u8> = (0..at.len()).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
            match what {
                0 | 1 => {
                    let mut cdb = if what == 0 {
                        rw16(op::WRITE_16, lba, count)
                    } else {
                        cdb(&[op::WRITE_10, 0, 0, 0, 0, lba as u8, 0, 0, count as u8])
                    };
                    cdb[1] = seed & 8;
                    prop_assert_eq!(run(&disk, &cdb, &VecBuffer::of(&data)), Outcome::good(data.len() as u32));
                    model[at].copy_from_slice(&data);
                }
                2 => {
                    prop_assert!(!unmap(&disk, &unmap_list(&[(lba, count)])).is_error());
                    model[at].fill(0);
                }
                3 | 4 => {
                    let mut cdb = rw16(op::WRITE_SAME_16, lba, count);
                    let block = if what == 3 { data[..size].to_vec() } else { vec![0; size] };
                    cdb[1] = seed & 8;
                    prop_assert!(!run(&disk, &cdb, &VecBuffer::of(&block)).is_error());
                    model[at].chunks_mut(size).for_each(|c| c.copy_from_slice(&block));
                }
                5 => {
                    let bytes = [op::READ_6, 0, 0, lba as u8, count as u8];
                    let buffer = VecBuffer::zeroed(at.len());
                    prop_assert_eq!(run(&disk, &bytes, &buffer), Outcome::good(at.len() as u32));
                    prop_assert_eq!(&buffer.bytes()[..], &model[at]);
                }
                6 => {
                    let bytes = [op::READ_12, 0, 0, 0, 0, lba as u8, 0, 0, 0, count as u8];
                    let buffer = VecBuffer::zeroed(at.len());
                    prop_assert_eq!(run(&disk, &bytes, &buffer), Outcome::good(at.len() as u32));
                    prop_assert_eq!(&buffer.bytes()[..], &model[at]);
                }
                _ => prop_assert_eq!(&read(&disk, lba, count).expect("reads")[..], &model[at]),
            }
        }
        prop_assert_eq!(all(&disk), model);
    }
}
