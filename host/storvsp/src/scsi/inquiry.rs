// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! INQUIRY: standard data and pages of vital product data, as Hyper-V gives them (OpenVMM `scsidisk`,
//! `inquiry.rs`).

use super::sense::Sense;

/// VPD pages of this target, in order.
pub mod page {
    #![allow(missing_docs)]
    pub const SUPPORTED: u8 = 0x00;
    pub const SERIAL_NUMBER: u8 = 0x80;
    pub const DEVICE_IDENTIFICATION: u8 = 0x83;
    pub const BLOCK_LIMITS: u8 = 0xb0;
    pub const BLOCK_DEVICE_CHARACTERISTICS: u8 = 0xb1;
    pub const LOGICAL_BLOCK_PROVISIONING: u8 = 0xb2;
}

/// Largest WRITE SAME, in bytes (OpenVMM `VHDMP_MAX_WRITE_SAME_LENGTH_BYTES`).
pub const MAX_WRITE_SAME_BYTES: u64 = 8 << 20;
/// Most descriptors in one UNMAP (OpenVMM `UNMAP_RANGE_DESCRIPTOR_COUNT_MAX`).
pub const MAX_UNMAP_DESCRIPTORS: usize = 4096;
/// What discards should be multiples of: a block of the usual file systems.
const UNMAP_GRANULARITY_BYTES: u32 = 4096;
/// PERIPHERAL QUALIFIER 3, device type 1f: no such logical unit.
const NOT_PRESENT: u8 = 0x7f;

/// Sixteen bytes that tell disks apart.
pub type DiskId = [u8; 16];

/// What the pages say about a disk.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Tells it apart.
    pub id: DiskId,
    /// Log2 of the bytes in a block.
    pub shift: u32,
    /// Blocks.
    pub blocks: u64,
    /// Blocks can be given back.
    pub discard: bool,
}

/// Standard data.
pub fn standard() -> Vec<u8> {
    let mut data = vec![0; 104];
    data[2] = 0x05; // SPC-3
    data[3] = 0x02; // format of the data
    data[4] = (data.len() - 5) as u8;
    data[7] = 0x02; // CMDQUE
    data[8..16].copy_from_slice(b"Msft    ");
    data[16..32].copy_from_slice(b"Virtual Disk    ");
    data[32..36].copy_from_slice(b"1.0 ");
    data
}

/// Standard data of a logical unit that is not there. Names are given for unit 0 alone (OpenVMM `storvsp`,
/// `execute_scsi`).
pub fn absent(lun: u8) -> Vec<u8> {
    let mut data = standard();
    data[0] = NOT_PRESENT;
    data[7] = 0;
    if lun != 0 {
        data[8..36].fill(0);
    }
    data
}

/// The serial number: the disk's id in hexadecimal.
pub fn serial(id: &DiskId) -> String {
    format!("{:032x}", u128::from_be_bytes(*id))
}

impl Facts {
    /// The page, header included.
    ///
    /// # Errors
    /// [`Sense::INVALID_FIELD_IN_CDB`]: there is no such page.
    pub fn page(&self, code: u8) -> Result<Vec<u8>, Sense> {
        let body = match code {
            page::SUPPORTED => {
                let mut pages = vec![
                    page::SUPPORTED,
                    page::SERIAL_NUMBER,
                    page::DEVICE_IDENTIFICATION,
                ];
                if self.discard {
                    pages.extend([
                        page::BLOCK_LIMITS,
                        page::BLOCK_DEVICE_CHARACTERISTICS,
                        page::LOGICAL_BLOCK_PROVISIONING,
                    ]);
                }
                pages
            }
            page::SERIAL_NUMBER => serial(&self.id).into_bytes(),
            page::DEVICE_IDENTIFICATION => self.identification(),
            page::BLOCK_LIMITS if self.discard => self.block_limits(),
            page::BLOCK_DEVICE_CHARACTERISTICS if self.discard => {
                let mut body = vec![0; 60];
                body[1] = 1; // medium that does not rotate
                body
            }
            page::LOGICAL_BLOCK_PROVISIONING if self.discard => {
                vec![self.threshold_exponent(), 0x80, 0x02, 0]
            }
            _ => return Err(Sense::INVALID_FIELD_IN_CDB),
        };
        let mut data = vec![0, code];
        data.extend((body.len() as u16).to_be_bytes());
        data.extend(body);
        Ok(data)
    }

    /// T10 vendor id and NAA 6 name with Microsoft's OUI 00-22-48, both of the logical unit.
    fn identification(&self) -> Vec<u8> {
        let mut body = vec![1, 1, 0, 24];
        body.extend(*b"Msft    ");
        body.extend(self.id);
        body.extend([1, 3, 0, 16, 0x60, 0x02, 0x24, 0x80]);
        body.extend(&self.id[..6]);
        body.extend(&self.id[10..]);
        body
    }

    fn block_limits(&self) -> Vec<u8> {
        let mut body = vec![0; 60];
        body[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        body[20..24].copy_from_slice(&(MAX_UNMAP_DESCRIPTORS as u32).to_be_bytes());
        let granularity = (UNMAP_GRANULARITY_BYTES >> self.shift).max(1);
        body[24..28].copy_from_slice(&granularity.to_be_bytes());
        body[28] = 0x80; // alignment is given: 0
        body[32..40].copy_from_slice(&(MAX_WRITE_SAME_BYTES >> self.shift).to_be_bytes());
        body
    }

    /// So that blocks / 2^exponent fit in 32 bits; at least 1.
    fn threshold_exponent(&self) -> u8 {
        let bits = 64 - self.blocks.leading_zeros();
        bits.saturating_sub(32).max(1) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts {
        id: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
        shift: 9,
        blocks: 1 << 21,
        discard: true,
    };

    #[test]
    fn every_page_listed_exists_and_states_its_length() {
        for discard in [true, false] {
            let facts = Facts { discard, ..FACTS };
            let list = facts.page(0).expect("page 0");
            assert!(list[4..].is_sorted());
            for code in 0..=255 {
                match facts.page(code) {
                    Ok(data) => {
                        assert!(list[4..].contains(&code), "page {code:#x} is not listed");
                        assert_eq!(data[1], code);
                        assert_eq!(
                            usize::from(u16::from_be_bytes([data[2], data[3]])),
                            data.len() - 4
                        );
                    }
                    Err(sense) => {
                        assert!(!list[4..].contains(&code), "page {code:#x} is listed");
                        assert_eq!(sense, Sense::INVALID_FIELD_IN_CDB);
                    }
                }
            }
        }
    }

    #[test]
    fn pages_say_what_hyper_v_says() {
        let standard = standard();
        assert_eq!(standard.len(), 5 + usize::from(standard[4]));
        assert_eq!(&standard[8..32], b"Msft    Virtual Disk    ");
        let limits = FACTS.page(page::BLOCK_LIMITS).expect("page");
        assert_eq!(limits.len(), 64);
        assert_eq!(limits[20..24], [0xff; 4], "blocks in one UNMAP");
        assert_eq!(limits[28..32], [0, 0, 0, 8], "granularity");
        let ids = FACTS.page(page::DEVICE_IDENTIFICATION).expect("page");
        assert_eq!(ids[36..40], [0x60, 0x02, 0x24, 0x80]);
        assert_eq!(ids[40..52], [1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16]);
        let huge = Facts {
            blocks: 1 << 40,
            ..FACTS
        };
        assert_eq!(
            huge.page(page::LOGICAL_BLOCK_PROVISIONING).expect("page")[4],
            9
        );
    }
}
