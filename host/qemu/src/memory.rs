// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Guest RAM mapped out of QEMU, and the translated code that must follow what the host writes.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use hv_partition::{CodeCoherence, GuestRam};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::api::{Api, Variables};
use crate::machine::with_rcu_thread;

const PAGE_SHIFT: u32 = 12;
/// RAM below this address is all RAM; from here to 1 MiB lie video memory and firmware.
const CONVENTIONAL_END: u64 = 0xa_0000;
const ONE_MIB: u64 = 0x10_0000;
const FOUR_GIB: u64 = 0x1_0000_0000;
/// `RAM_ADDR_INVALID` (`include/exec/cpu-common.h`).
const RAM_ADDR_INVALID: u64 = u64::MAX;

/// Which pages of RAM hold, or once held, code that QEMU translated.
pub struct CodePages {
    api: Api,
    /// Host address of the RAM block.
    base: usize,
    /// Its address in QEMU's RAM address space.
    ram_addr: u64,
    /// Guest-physical start, length and block offset of each range of the block.
    ranges: Vec<Range>,
    /// One bit per page of the block. A bit is never cleared: discarding translated code that is
    /// not there is cheap.
    bits: Vec<AtomicU64>,
}

#[derive(Clone, Copy)]
struct Range {
    gpa: u64,
    len: u64,
    offset: u64,
}

impl CodePages {
    /// Notes that the page at host address `host` holds code. Called on vCPU threads while they
    /// translate.
    pub fn note(&self, host: usize) {
        let page = host.wrapping_sub(self.base) >> PAGE_SHIFT;
        if let Some(word) = self.bits.get(page / 64) {
            let bit = 1 << (page % 64);
            if word.load(Ordering::Relaxed) & bit == 0 {
                // SeqCst: pairs with the fence of `written`. If that misses the bit, then the bytes
                // it wrote were already there when this vCPU fetched them, or the guest executes a
                // page during a transfer into it.
                word.fetch_or(bit, Ordering::SeqCst);
            }
        }
    }

    /// As [`Self::note`], by guest-physical address.
    pub fn note_gpa(&self, gpa: u64) {
        if let Some(range) = self
            .ranges
            .iter()
            .find(|range| gpa.wrapping_sub(range.gpa) < range.len)
        {
            self.note(self.base + (range.offset + gpa - range.gpa) as usize);
        }
    }
}

impl CodeCoherence for CodePages {
    fn written(&self, gpa: u64, len: usize) {
        let Some(range) = self
            .ranges
            .iter()
            .find(|range| gpa.wrapping_sub(range.gpa) < range.len)
        else {
            return;
        };
        if len == 0 {
            return;
        }
        let start = range.offset + (gpa - range.gpa);
        let last = start + (len as u64 - 1).min(range.len - 1 - (gpa - range.gpa));
        std::sync::atomic::fence(Ordering::SeqCst);
        for page in start >> PAGE_SHIFT..=last >> PAGE_SHIFT {
            let word = self
                .bits
                .get(page as usize / 64)
                .map_or(0, |word| word.load(Ordering::SeqCst));
            if word & 1 << (page % 64) == 0 {
                continue;
            }
            let from = start.max(page << PAGE_SHIFT);
            let to = last.min((page << PAGE_SHIFT) | 0xfff);
            with_rcu_thread();
            // SAFETY: the range lies within the RAM block; QEMU takes the locks of the pages
            // itself. No vCPU is named: the block that the calling vCPU executes, if any, may be
            // discarded and is left by the caller.
            unsafe {
                (self.api.tb_invalidate_phys_range)(
                    std::ptr::null_mut(),
                    self.ram_addr + from,
                    self.ram_addr + to,
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
    let pages = (size >> PAGE_SHIFT) as usize;
    let bits = std::iter::repeat_with(AtomicU64::default)
        .take(pages.div_ceil(64))
        .collect();
    for range in &ranges {
        tracing::info!("RAM: {:#x} bytes at {:#x}", range.len, range.gpa);
    }
    let code = Arc::new(CodePages {
        api,
        base: low,
        ram_addr,
        ranges,
        bits,
    });
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
