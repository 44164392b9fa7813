// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Guest RAM mapped out of QEMU, and the translated code that must follow what the host writes.

use std::ffi::c_void;
use std::sync::atomic::{fence, AtomicU64, Ordering};
use std::sync::Arc;

use hv_partition::{CodeCoherence, GuestRam};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::api::{Api, Variables};
use crate::machine::with_rcu_thread;

const PAGE_SHIFT: u32 = 12;
const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// RAM below this address is all RAM; from here to 1 MiB lie video memory and firmware.
const CONVENTIONAL_END: u64 = 0xa_0000;
const ONE_MIB: u64 = 0x10_0000;
const FOUR_GIB: u64 = 0x1_0000_0000;
/// `RAM_ADDR_INVALID` (`include/exec/cpu-common.h`).
const RAM_ADDR_INVALID: u64 = u64::MAX;

/// Which pages of a RAM block hold, or once held, code that QEMU translated.
struct PageMap {
    /// Host address of the block.
    base: usize,
    /// The parts of the block that the guest sees.
    ranges: Vec<Range>,
    /// One bit per page of the block. A bit is never cleared: discarding translated code that is
    /// not there is cheap, and a vCPU may be about to link what it has just translated.
    bits: Vec<AtomicU64>,
}

/// Guest-physical start, length and block offset of a part of the block.
#[derive(Clone, Copy)]
struct Range {
    gpa: u64,
    len: u64,
    offset: u64,
}

impl PageMap {
    /// A block of `size` bytes without code.
    fn new(base: usize, ranges: Vec<Range>, size: u64) -> Self {
        let words = (size >> PAGE_SHIFT).div_ceil(64) as usize;
        Self {
            base,
            ranges,
            bits: std::iter::repeat_with(AtomicU64::default)
                .take(words)
                .collect(),
        }
    }

    /// Block offset of a guest-physical address, and how many bytes follow in its range.
    fn offset(&self, gpa: u64) -> Option<(u64, u64)> {
        let within = |range: &&Range| gpa.wrapping_sub(range.gpa) < range.len;
        let range = self.ranges.iter().find(within)?;
        let distance = gpa - range.gpa;
        Some((range.offset + distance, range.len - distance))
    }

    fn note(&self, host: usize) {
        let page = host.wrapping_sub(self.base) >> PAGE_SHIFT;
        if let Some(word) = self.bits.get(page / 64) {
            let bit = 1 << (page % 64);
            if word.load(Ordering::Relaxed) & bit == 0 {
                // SeqCst: pairs with the fence of `code_in`. If that misses the bit, then the bytes
                // written before it were already there when this vCPU fetched them, or the guest
                // executes a page during a transfer into it.
                word.fetch_or(bit, Ordering::SeqCst);
            }
        }
    }

    fn note_gpa(&self, gpa: u64) {
        if let Some((offset, _)) = self.offset(gpa) {
            self.note(self.base + offset as usize);
        }
    }

    /// The parts of a guest-physical range that lie in pages with code, page by page: first and last
    /// block offset. The range ends at the end of its part of the block at the latest.
    fn code_in(&self, gpa: u64, len: usize) -> impl Iterator<Item = (u64, u64)> + '_ {
        let (start, rest) = self.offset(gpa).unwrap_or((0, 0));
        let end = start + rest.min(len as u64);
        let pages = if end > start {
            start >> PAGE_SHIFT..end.div_ceil(PAGE_SIZE)
        } else {
            0..0
        };
        fence(Ordering::SeqCst);
        pages.filter_map(move |page| {
            let word = self.bits.get(page as usize / 64)?.load(Ordering::SeqCst);
            let first = page << PAGE_SHIFT;
            (word & (1 << (page % 64)) != 0)
                .then(|| (start.max(first), (end - 1).min(first + PAGE_SIZE - 1)))
        })
    }
}

/// Keeps translated code in step with what the host writes.
pub struct CodePages {
    api: Api,
    /// Address of the block in QEMU's RAM address space.
    ram_addr: u64,
    map: PageMap,
}

impl CodePages {
    /// Notes that the page at host address `host` holds code. Called on vCPU threads while they
    /// translate.
    pub fn note(&self, host: usize) {
        self.map.note(host);
    }

    /// As [`Self::note`], by guest-physical address.
    pub fn note_gpa(&self, gpa: u64) {
        self.map.note_gpa(gpa);
    }
}

impl CodeCoherence for CodePages {
    fn written(&self, gpa: u64, len: usize) {
        for (first, last) in self.map.code_in(gpa, len) {
            with_rcu_thread();
            // SAFETY: the range lies within the RAM block; QEMU takes the locks of the pages
            // itself. No vCPU is named: the block that the calling vCPU executes, if any, may be
            // discarded and is left by the caller.
            unsafe {
                (self.api.tb_invalidate_phys_range)(
                    std::ptr::null_mut(),
                    self.ram_addr + first,
                    self.ram_addr + last,
                );
            }
        }
    }
}

/// Maps guest RAM.
///
/// # Errors
/// A sentence when RAM is not one block, as it is for machines without NUMA nodes.
pub fn map(api: Api, variables: Variables) -> Result<(GuestRam, Arc<CodePages>), String> {
    let (low, low_len) = map_range(&api, &variables, 0)?;
    if low_len < CONVENTIONAL_END {
        return Err(format!(
            "RAM at address 0 has {low_len:#x} bytes, expected {CONVENTIONAL_END:#x}"
        ));
    }
    let (middle, middle_len) = map_range(&api, &variables, ONE_MIB)?;
    if middle != low + ONE_MIB as usize {
        return Err(
            "RAM at 0 and at 1 MiB are not one block (NUMA nodes are not supported)".to_owned(),
        );
    }
    let below = ONE_MIB + middle_len;
    let mut ranges = vec![
        Range {
            gpa: 0,
            len: CONVENTIONAL_END,
            offset: 0,
        },
        Range {
            gpa: ONE_MIB,
            len: middle_len,
            offset: ONE_MIB,
        },
    ];
    let mut size = below;
    if let Ok((high, high_len)) = map_range(&api, &variables, FOUR_GIB) {
        if high != low + below as usize {
            return Err(
                "RAM below and above 4 GiB are not one block (NUMA nodes are not supported)"
                    .to_owned(),
            );
        }
        ranges.push(Range {
            gpa: FOUR_GIB,
            len: high_len,
            offset: below,
        });
        size += high_len;
    }
    // SAFETY: `low` is the host address of a RAM block of QEMU.
    let ram_addr = unsafe { (api.qemu_ram_addr_from_host)(low as *mut c_void) };
    let regions = ranges
        .iter()
        .map(|range| region(low, *range))
        .collect::<Result<Vec<_>, String>>()?;
    let memory =
        GuestMemoryMmap::from_regions(regions).map_err(|error| format!("guest memory: {error}"))?;
    for range in &ranges {
        tracing::info!("RAM: {:#x} bytes at {:#x}", range.len, range.gpa);
    }
    let map = PageMap::new(low, ranges, size);
    let code = Arc::new(CodePages { api, ram_addr, map });
    Ok((GuestRam::new(memory, code.clone()), code))
}

fn region(base: usize, range: Range) -> Result<GuestRegionMmap, String> {
    let address = (base + range.offset as usize) as *mut u8;
    // SAFETY: QEMU mapped these bytes for reading and writing and keeps them until the process
    // ends: the mapping by `address_space_map` is never released. They are shared with the guest,
    // which vm-memory's volatile accesses are made for.
    let region = unsafe {
        MmapRegion::build_raw(
            address,
            range.len as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_PRIVATE,
        )
    };
    let region = region.map_err(|error| format!("guest memory at {:#x}: {error}", range.gpa))?;
    GuestRegionMmap::new(region, GuestAddress(range.gpa))
        .ok_or_else(|| "guest memory: address overflow".to_owned())
}

/// Host address and length of the RAM that starts at `gpa`.
fn map_range(api: &Api, variables: &Variables, gpa: u64) -> Result<(usize, u64), String> {
    let mut len = 1 << 46;
    // SAFETY: `address_space_memory` is initialised once the machine is; `len` is valid; called on
    // the main thread.
    let pointer =
        unsafe { (api.address_space_map)(variables.address_space_memory, gpa, &mut len, true, 0) };
    if pointer.is_null() {
        return Err(format!("no RAM at {gpa:#x}"));
    }
    // What is no RAM is given through a bounce buffer, which must be handed back.
    // SAFETY: any pointer may be asked for.
    if unsafe { (api.qemu_ram_addr_from_host)(pointer) } == RAM_ADDR_INVALID {
        // SAFETY: the mapping just made; no byte of it was written.
        unsafe { (api.address_space_unmap)(variables.address_space_memory, pointer, len, true, 0) };
        return Err(format!("no RAM at {gpa:#x}"));
    }
    Ok((pointer as usize, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: usize = 0x7000_0000;

    /// A machine with 3 GiB: conventional memory, from 1 MiB to 2 GiB, and 1 GiB above 4 GiB.
    fn map() -> PageMap {
        let ranges = vec![
            Range {
                gpa: 0,
                len: CONVENTIONAL_END,
                offset: 0,
            },
            Range {
                gpa: ONE_MIB,
                len: 0x7ff0_0000,
                offset: ONE_MIB,
            },
            Range {
                gpa: FOUR_GIB,
                len: 0x4000_0000,
                offset: 0x8000_0000,
            },
        ];
        PageMap::new(BASE, ranges, 0xc000_0000)
    }

    fn code(map: &PageMap, gpa: u64, len: usize) -> Vec<(u64, u64)> {
        map.code_in(gpa, len).collect()
    }

    #[test]
    fn only_pages_that_held_code_are_told_and_only_what_was_written() {
        let map = map();
        assert_eq!(code(&map, ONE_MIB, 0x10_0000), []);
        map.note(BASE + 0x10_1234);
        map.note(BASE + 0x10_3000);
        assert_eq!(code(&map, 0x10_0000, 0x1000), []);
        assert_eq!(code(&map, 0x10_1010, 4), [(0x10_1010, 0x10_1013)]);
        assert_eq!(code(&map, 0x10_0ffe, 4), [(0x10_1000, 0x10_1001)]);
        assert_eq!(
            code(&map, 0x10_1800, 0x2000),
            [(0x10_1800, 0x10_1fff), (0x10_3000, 0x10_37ff)]
        );
        assert_eq!(code(&map, 0x10_1010, 0), []);
    }

    #[test]
    fn memory_above_the_hole_is_found_in_its_block() {
        let map = map();
        map.note_gpa(FOUR_GIB + 0x5008);
        assert_eq!(
            code(&map, FOUR_GIB + 0x5000, 8),
            [(0x8000_5000, 0x8000_5007)]
        );
        map.note_gpa(FOUR_GIB + 0x3fff_f000);
        assert_eq!(
            code(&map, FOUR_GIB + 0x3fff_fff0, 64),
            [(0xbfff_fff0, 0xbfff_ffff)]
        );
    }

    #[test]
    fn what_is_not_ram_is_ignored() {
        let map = map();
        map.note(BASE - 0x1000);
        map.note(BASE + 0xc000_0000);
        map.note_gpa(0xf_0000);
        map.note_gpa(0x9000_0000);
        assert!(map
            .bits
            .iter()
            .all(|word| word.load(Ordering::Relaxed) == 0));
        assert_eq!(code(&map, 0xa_0000, 0x1000), []);
        assert_eq!(code(&map, u64::MAX, usize::MAX), []);
    }
}
