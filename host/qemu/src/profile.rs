// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Exact count of guest instructions per translated block.
//!
//! Each distinct block (virtual address of its start, number of instructions) has a counter per
//! vCPU to which its length is added whenever it is entered; a translation that is discarded and
//! made again finds the same counter. A block that is left before its end, by an exception or by an
//! intercepted instruction, has the rest subtracted. An instruction that faults and is begun again
//! counts each time it is begun; an iteration of a REP string instruction that QEMU begins anew
//! counts as one.

use std::collections::HashMap;
use std::ffi::{c_uint, c_void};

use hv_hypervisor::Profiler;
use parking_lot::Mutex;
use serde_json::{json, Value};

use crate::api::{self, Api, PluginU64};

/// Counters per scoreboard; scoreboards cannot grow, so there are many.
const CHUNK: usize = 1 << 15;

struct Block {
    vaddr: u64,
    /// Addresses of its instructions behind the first, as offsets from it.
    offsets: Box<[u16]>,
    /// Count at the last mark.
    mark: u64,
}

#[derive(Default)]
struct Blocks {
    list: Vec<Block>,
    by_start: HashMap<(u64, u16), Vec<u32>>,
    scoreboards: Vec<usize>,
}

/// The instruction counter.
pub struct Profile {
    api: Api,
    vcpus: c_uint,
    /// Scoreboard with the slot that each vCPU entered last, plus one.
    current: usize,
    blocks: Mutex<Blocks>,
}

impl Profile {
    /// A counter for `vcpus` vCPUs.
    pub fn new(api: Api, vcpus: c_uint) -> Self {
        // SAFETY: the interface is up.
        let current = unsafe { (api.qemu_plugin_scoreboard_new)(8) } as usize;
        Self {
            api,
            vcpus,
            current,
            blocks: Mutex::default(),
        }
    }

    /// Gives a block its counter while it is translated; returns the slot.
    pub fn block(&self, api: &Api, tb: *mut c_void, count: usize) -> u32 {
        // SAFETY: `tb` is valid during the translation callback.
        let vaddr = unsafe { (api.qemu_plugin_tb_vaddr)(tb) };
        let offsets: Box<[u16]> = (0..count)
            .map(|i| {
                // SAFETY: as above, and `i` is within the block.
                let insn = unsafe { (api.qemu_plugin_tb_get_insn)(tb, i) };
                // SAFETY: as above.
                unsafe { (api.qemu_plugin_insn_vaddr)(insn) }.wrapping_sub(vaddr) as u16
            })
            .collect();
        let mut blocks = self.blocks.lock();
        let slot = blocks.slot(vaddr, offsets);
        let chunk = slot as usize / CHUNK;
        if blocks.scoreboards.len() <= chunk {
            // SAFETY: the interface is up; QEMU takes its plugin lock, under which it never calls
            // this.
            let board = unsafe { (api.qemu_plugin_scoreboard_new)(CHUNK * 8) } as usize;
            blocks.scoreboards.push(board);
        }
        let entry = PluginU64 {
            score: blocks.scoreboards[chunk] as *mut c_void,
            offset: slot as usize % CHUNK * 8,
        };
        drop(blocks);
        // SAFETY: the scoreboards live for ever and the offsets lie within them.
        unsafe {
            (api.qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu)(
                tb,
                api::INLINE_ADD_U64,
                entry,
                count as u64,
            );
            let current = PluginU64 {
                score: self.current as *mut c_void,
                offset: 0,
            };
            (api.qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu)(
                tb,
                api::INLINE_STORE_U64,
                current,
                u64::from(slot) + 1,
            );
        }
        slot
    }

    /// On a vCPU's thread: the block of `slot` is left with `skipped` instructions not begun.
    pub fn leave(&self, vcpu: c_uint, slot: u32, skipped: u16) {
        if skipped == 0 {
            return;
        }
        let board = self.blocks.lock().scoreboards[slot as usize / CHUNK];
        let counter = self.entry(board, slot as usize % CHUNK, vcpu);
        // SAFETY: see `entry`; only this thread writes the counter.
        unsafe { counter.write_volatile(counter.read_volatile().wrapping_sub(skipped.into())) };
    }

    /// On a vCPU's thread: the instruction at `from` raised an exception, and the rest of its block
    /// was not begun.
    pub fn exception(&self, vcpu: c_uint, from: u64) {
        let current = self.entry(self.current, 0, vcpu);
        // SAFETY: see `entry`; only this thread writes it.
        let slot = unsafe { current.read_volatile() };
        let Some(slot) = slot.checked_sub(1) else {
            return;
        };
        let skipped = {
            let blocks = self.blocks.lock();
            let Some(block) = blocks.list.get(slot as usize) else {
                return;
            };
            match block
                .offsets
                .iter()
                .position(|offset| block.vaddr.wrapping_add(u64::from(*offset)) == from)
            {
                Some(index) => block.offsets.len() - 1 - index,
                // Raised while fetching the block that would have followed: this one was executed
                // whole.
                None => 0,
            }
        };
        self.leave(vcpu, slot as u32, skipped as u16);
    }

    /// Address of counter `index` of `vcpu`. Scoreboards move only when a vCPU is added, and none
    /// is.
    fn entry(&self, board: usize, index: usize, vcpu: c_uint) -> *mut u64 {
        // SAFETY: a scoreboard of ours, a vCPU that exists, an index within the element.
        unsafe {
            (self.api.qemu_plugin_scoreboard_find)(board as *mut c_void, vcpu)
                .cast::<u64>()
                .add(index)
        }
    }

    fn count(&self, blocks: &Blocks, slot: usize) -> u64 {
        let board = blocks.scoreboards[slot / CHUNK];
        (0..self.vcpus)
            .map(|vcpu| {
                // SAFETY: see `entry`. The vCPU may write meanwhile; an aligned 64-bit read is not
                // torn on x86-64.
                unsafe { self.entry(board, slot % CHUNK, vcpu).read_volatile() }
            })
            .fold(0, u64::wrapping_add)
    }
}

impl Blocks {
    fn slot(&mut self, vaddr: u64, offsets: Box<[u16]>) -> u32 {
        let slots = self
            .by_start
            .entry((vaddr, offsets.len() as u16))
            .or_default();
        if let Some(slot) = slots
            .iter()
            .find(|slot| self.list[**slot as usize].offsets == offsets)
        {
            return *slot;
        }
        let slot = self.list.len() as u32;
        slots.push(slot);
        self.list.push(Block {
            vaddr,
            offsets,
            mark: 0,
        });
        slot
    }
}

impl Profiler for Profile {
    fn mark(&self) {
        let mut blocks = self.blocks.lock();
        let counts: Vec<u64> = (0..blocks.list.len())
            .map(|slot| self.count(&blocks, slot))
            .collect();
        for (block, count) in blocks.list.iter_mut().zip(counts) {
            block.mark = count;
        }
    }

    /// `{"total": N, "blocks": [["0xADDRESS", N], …]}`: instructions begun since the mark, by
    /// address of the block's first instruction, blocks that did not run left out.
    fn read(&self) -> Value {
        let blocks = self.blocks.lock();
        let mut by_address: HashMap<u64, u64> = HashMap::new();
        for (slot, block) in blocks.list.iter().enumerate() {
            let count = self.count(&blocks, slot).wrapping_sub(block.mark);
            if count != 0 {
                *by_address.entry(block.vaddr).or_default() += count;
            }
        }
        let total: u64 = by_address.values().sum();
        let mut list: Vec<(u64, u64)> = by_address.into_iter().collect();
        list.sort_unstable();
        let list: Vec<Value> = list
            .into_iter()
            .map(|(address, count)| json!([format!("{address:#x}"), count]))
            .collect();
        json!({ "total": total, "blocks": list })
    }
}
