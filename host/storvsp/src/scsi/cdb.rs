// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Command descriptor blocks, taken apart (SPC-4, SBC-3).

use super::sense::Sense;

/// Bytes of a CDB as a request carries it.
pub const CDB_SIZE: usize = 16;

/// Operation codes.
pub mod op {
    #![allow(missing_docs)]
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const REQUEST_SENSE: u8 = 0x03;
    pub const READ_6: u8 = 0x08;
    pub const WRITE_6: u8 = 0x0a;
    pub const INQUIRY: u8 = 0x12;
    pub const MODE_SELECT_6: u8 = 0x15;
    pub const RESERVE_6: u8 = 0x16;
    pub const RELEASE_6: u8 = 0x17;
    pub const MODE_SENSE_6: u8 = 0x1a;
    pub const START_STOP_UNIT: u8 = 0x1b;
    pub const SEND_DIAGNOSTIC: u8 = 0x1d;
    pub const PREVENT_ALLOW: u8 = 0x1e;
    pub const READ_CAPACITY_10: u8 = 0x25;
    pub const READ_10: u8 = 0x28;
    pub const WRITE_10: u8 = 0x2a;
    pub const VERIFY_10: u8 = 0x2f;
    pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    pub const WRITE_SAME_10: u8 = 0x41;
    pub const UNMAP: u8 = 0x42;
    pub const MODE_SELECT_10: u8 = 0x55;
    pub const MODE_SENSE_10: u8 = 0x5a;
    pub const PERSISTENT_RESERVE_IN: u8 = 0x5e;
    pub const PERSISTENT_RESERVE_OUT: u8 = 0x5f;
    pub const READ_16: u8 = 0x88;
    pub const WRITE_16: u8 = 0x8a;
    pub const VERIFY_16: u8 = 0x8f;
    pub const SYNCHRONIZE_CACHE_16: u8 = 0x91;
    pub const WRITE_SAME_16: u8 = 0x93;
    pub const SERVICE_ACTION_IN_16: u8 = 0x9e;
    pub const REPORT_LUNS: u8 = 0xa0;
    pub const READ_12: u8 = 0xa8;
    pub const WRITE_12: u8 = 0xaa;
    pub const VERIFY_12: u8 = 0xaf;
}

/// Logical blocks that a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// The first.
    pub lba: u64,
    /// How many.
    pub count: u32,
}

/// A command with its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cdb {
    /// TEST UNIT READY
    TestUnitReady,
    /// REQUEST SENSE
    RequestSense {
        /// Descriptor format is wanted.
        descriptor: bool,
        /// Bytes that the initiator takes.
        allocation: usize,
    },
    /// INQUIRY
    Inquiry {
        /// Page of vital product data; none: standard data.
        page: Option<u8>,
        /// Bytes that the initiator takes.
        allocation: usize,
    },
    /// REPORT LUNS
    ReportLuns {
        /// Which.
        select: u8,
        /// Bytes that the initiator takes.
        allocation: usize,
    },
    /// MODE SENSE
    ModeSense {
        /// The 10-byte command.
        long: bool,
        /// Page control: current, changeable, default, saved.
        control: u8,
        /// Page code.
        page: u8,
        /// Subpage code.
        subpage: u8,
        /// Bytes that the initiator takes.
        allocation: usize,
    },
    /// MODE SELECT
    ModeSelect {
        /// The 10-byte command.
        long: bool,
        /// Save pages.
        save: bool,
        /// Bytes of the list.
        length: usize,
    },
    /// RESERVE, RELEASE, PREVENT ALLOW MEDIUM REMOVAL: accepted, without effect for a single initiator and
    /// a medium that does not come out.
    NoEffect,
    /// START STOP UNIT
    StartStop {
        /// Stop: makes what was written durable.
        stop: bool,
        /// Load or eject.
        load_eject: bool,
    },
    /// SEND DIAGNOSTIC
    SendDiagnostic {
        /// The default self-test, without parameters.
        self_test: bool,
        /// Bytes of the list.
        length: usize,
    },
    /// READ CAPACITY(10)
    ReadCapacity10,
    /// READ CAPACITY(16)
    ReadCapacity16 {
        /// Bytes that the initiator takes.
        allocation: usize,
    },
    /// GET LBA STATUS
    GetLbaStatus {
        /// The first block asked about.
        lba: u64,
        /// Bytes that the initiator takes.
        allocation: usize,
    },
    /// READ
    Read {
        /// What.
        blocks: Blocks,
    },
    /// WRITE
    Write {
        /// Where.
        blocks: Blocks,
        /// Force unit access: durable when the command ends.
        fua: bool,
    },
    /// VERIFY
    Verify {
        /// What.
        blocks: Blocks,
        /// Compare with the data given: 0 none, 1 all, 3 one block for all.
        compare: u8,
    },
    /// SYNCHRONIZE CACHE
    SynchronizeCache {
        /// What; no blocks: up to the end.
        blocks: Blocks,
    },
    /// UNMAP
    Unmap {
        /// Bytes of the list.
        length: usize,
    },
    /// WRITE SAME
    WriteSame {
        /// Where.
        blocks: Blocks,
        /// Blocks may be deallocated instead.
        unmap: bool,
        /// There is no data buffer: zeroes.
        no_data: bool,
    },
    /// PERSISTENT RESERVE IN
    PersistentReserveIn {
        /// What is asked.
        action: u8,
        /// Bytes that the initiator takes.
        allocation: usize,
    },
    /// PERSISTENT RESERVE OUT
    PersistentReserveOut {
        /// What is to be done.
        action: u8,
        /// Scope and type.
        scope_type: u8,
        /// Bytes of the list.
        length: usize,
    },
}

fn be16(cdb: &[u8; CDB_SIZE], at: usize) -> usize {
    usize::from(u16::from_be_bytes([cdb[at], cdb[at + 1]]))
}

fn be32(cdb: &[u8; CDB_SIZE], at: usize) -> u32 {
    u32::from_be_bytes([cdb[at], cdb[at + 1], cdb[at + 2], cdb[at + 3]])
}

fn be64(cdb: &[u8; CDB_SIZE], at: usize) -> u64 {
    (u64::from(be32(cdb, at)) << 32) | u64::from(be32(cdb, at + 4))
}

/// The blocks of a data command, by the size of its CDB.
fn blocks(cdb: &[u8; CDB_SIZE]) -> Blocks {
    match cdb[0] >> 5 {
        0 => Blocks {
            lba: u64::from(u32::from_be_bytes([0, cdb[1] & 0x1f, cdb[2], cdb[3]])),
            // SBC: 0 means 256 in the 6-byte commands.
            count: match cdb[4] {
                0 => 256,
                n => u32::from(n),
            },
        },
        1 | 2 => Blocks {
            lba: u64::from(be32(cdb, 2)),
            count: be16(cdb, 7) as u32,
        },
        4 => Blocks {
            lba: be64(cdb, 2),
            count: be32(cdb, 10),
        },
        _ => Blocks {
            lba: u64::from(be32(cdb, 2)),
            count: be32(cdb, 6),
        },
    }
}

/// RDPROTECT, WRPROTECT, VRPROTECT: this target keeps no protection information.
fn unprotected(cdb: &[u8; CDB_SIZE]) -> Result<(), Sense> {
    match cdb[1] >> 5 {
        0 => Ok(()),
        _ => Err(Sense::INVALID_FIELD_IN_CDB),
    }
}

impl Cdb {
    /// Takes a CDB apart.
    ///
    /// # Errors
    /// [`Sense::INVALID_OPCODE`], [`Sense::INVALID_FIELD_IN_CDB`].
    pub fn parse(cdb: &[u8; CDB_SIZE]) -> Result<Self, Sense> {
        let blocks = blocks(cdb);
        Ok(match cdb[0] {
            op::TEST_UNIT_READY => Self::TestUnitReady,
            op::REQUEST_SENSE => Self::RequestSense {
                descriptor: cdb[1] & 1 != 0,
                allocation: usize::from(cdb[4]),
            },
            op::INQUIRY => {
                let vital = cdb[1] & 1 != 0;
                // CMDDT is obsolete; a page without EVPD is an error.
                if cdb[1] & 2 != 0 || (!vital && cdb[2] != 0) {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                }
                Self::Inquiry {
                    page: vital.then_some(cdb[2]),
                    allocation: be16(cdb, 3),
                }
            }
            op::REPORT_LUNS => Self::ReportLuns {
                select: cdb[2],
                allocation: be32(cdb, 6) as usize,
            },
            op::MODE_SENSE_6 => Self::ModeSense {
                long: false,
                control: cdb[2] >> 6,
                page: cdb[2] & 0x3f,
                subpage: cdb[3],
                allocation: usize::from(cdb[4]),
            },
            op::MODE_SENSE_10 => Self::ModeSense {
                long: true,
                control: cdb[2] >> 6,
                page: cdb[2] & 0x3f,
                subpage: cdb[3],
                allocation: be16(cdb, 7),
            },
            op::MODE_SELECT_6 | op::MODE_SELECT_10 => {
                // PF: the list is in the format of the standard.
                if cdb[1] & 0x10 == 0 {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                }
                let long = cdb[0] == op::MODE_SELECT_10;
                Self::ModeSelect {
                    long,
                    save: cdb[1] & 1 != 0,
                    length: if long {
                        be16(cdb, 7)
                    } else {
                        usize::from(cdb[4])
                    },
                }
            }
            op::RESERVE_6 | op::RELEASE_6 | op::PREVENT_ALLOW => Self::NoEffect,
            op::START_STOP_UNIT => Self::StartStop {
                stop: cdb[4] & 1 == 0,
                load_eject: cdb[4] & 2 != 0,
            },
            op::SEND_DIAGNOSTIC => Self::SendDiagnostic {
                self_test: cdb[1] & 4 != 0,
                length: be16(cdb, 3),
            },
            op::READ_CAPACITY_10 => Self::ReadCapacity10,
            op::SERVICE_ACTION_IN_16 => match cdb[1] & 0x1f {
                0x10 => Self::ReadCapacity16 {
                    allocation: be32(cdb, 10) as usize,
                },
                0x12 => Self::GetLbaStatus {
                    lba: be64(cdb, 2),
                    allocation: be32(cdb, 10) as usize,
                },
                _ => return Err(Sense::INVALID_FIELD_IN_CDB),
            },
            op::READ_6 => Self::Read { blocks },
            op::READ_10 | op::READ_12 | op::READ_16 => {
                unprotected(cdb)?;
                Self::Read { blocks }
            }
            op::WRITE_6 => Self::Write { blocks, fua: false },
            op::WRITE_10 | op::WRITE_12 | op::WRITE_16 => {
                unprotected(cdb)?;
                Self::Write {
                    blocks,
                    fua: cdb[1] & 8 != 0,
                }
            }
            op::VERIFY_10 | op::VERIFY_12 | op::VERIFY_16 => {
                unprotected(cdb)?;
                let compare = (cdb[1] >> 1) & 3;
                if compare == 2 {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                }
                Self::Verify { blocks, compare }
            }
            op::SYNCHRONIZE_CACHE_10 | op::SYNCHRONIZE_CACHE_16 => {
                Self::SynchronizeCache { blocks }
            }
            op::UNMAP => {
                // ANCHOR: nothing can be anchored here.
                if cdb[1] & 1 != 0 {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                }
                Self::Unmap {
                    length: be16(cdb, 7),
                }
            }
            op::WRITE_SAME_10 | op::WRITE_SAME_16 => {
                unprotected(cdb)?;
                // ANCHOR, and the obsolete PBDATA and LBDATA.
                let no_data = cdb[0] == op::WRITE_SAME_16 && cdb[1] & 1 != 0;
                if cdb[1] & 0x16 != 0 || (cdb[1] & 1 != 0 && !no_data) {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                }
                Self::WriteSame {
                    blocks,
                    unmap: cdb[1] & 8 != 0,
                    no_data,
                }
            }
            op::PERSISTENT_RESERVE_IN => Self::PersistentReserveIn {
                action: cdb[1] & 0x1f,
                allocation: be16(cdb, 7),
            },
            op::PERSISTENT_RESERVE_OUT => Self::PersistentReserveOut {
                action: cdb[1] & 0x1f,
                scope_type: cdb[2],
                length: be32(cdb, 5) as usize,
            },
            _ => return Err(Sense::INVALID_OPCODE),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cdb(bytes: &[u8]) -> [u8; CDB_SIZE] {
        let mut cdb = [0; CDB_SIZE];
        cdb[..bytes.len()].copy_from_slice(bytes);
        cdb
    }

    #[test]
    fn blocks_are_found_in_each_size_of_cdb() {
        let table: [(&[u8], u64, u32); 8] = [
            (&[0x08, 0xff, 2, 3, 4], 0x1f_0203, 4),
            (&[0x08, 0, 0, 1, 0], 1, 256),
            (&[0x28, 0, 0xff, 0, 0, 1, 0, 0xff, 0xff], 0xff00_0001, 65535),
            (&[0xa8, 0, 0, 0, 0, 9, 0x80, 0, 0, 1], 9, 0x8000_0001),
            (
                &[0x88, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 0],
                0x0100_0000_0000_0002,
                0x1_0000,
            ),
            (&[0x2a, 0, 0, 0, 0, 7, 0, 0, 0], 7, 0),
            (&[0x0a, 0, 0, 7, 1], 7, 1),
            (&[0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 3], 7, 3),
        ];
        for (bytes, lba, count) in table {
            let expected = Blocks { lba, count };
            match Cdb::parse(&cdb(bytes)) {
                Ok(Cdb::Read { blocks } | Cdb::Write { blocks, .. }) => {
                    assert_eq!(blocks, expected, "{bytes:x?}");
                }
                other => panic!("{bytes:x?}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_this_target_does_not_do_is_refused_by_name() {
        for bytes in [
            &[0x28u8, 0x20][..],
            &[0x2f, 0x04],
            &[0x42, 1],
            &[0x41, 1],
            &[0x12, 0, 0x80],
            &[0x9e, 0x13],
        ] {
            assert_eq!(
                Cdb::parse(&cdb(bytes)),
                Err(Sense::INVALID_FIELD_IN_CDB),
                "{bytes:x?}"
            );
        }
        for opcode in [0x04, 0x85, 0xa1, 0xa3, 0xff] {
            assert_eq!(Cdb::parse(&cdb(&[opcode])), Err(Sense::INVALID_OPCODE));
        }
    }
}
