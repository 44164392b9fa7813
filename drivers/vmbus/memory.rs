// SPDX-License-Identifier: GPL-2.0

//! Pages that are shared with the host.
//!
//! The host may write shared pages at any time, so no Rust reference to their contents is ever formed: they are reached
//! through raw pointers, by volatile or atomic accesses.

use core::ptr::NonNull;
use kernel::{bindings, ffi::c_void, prelude::*};

use crate::ffi;

/// Size of a page; the same as the host's on the architectures that are supported.
pub(crate) const PAGE: usize = vmbus_proto::PAGE_SIZE;

const _: () = assert!(PAGE == kernel::page::PAGE_SIZE);

/// One zeroed page. Freed on drop, so whoever owns it must be kept while the host may use it.
///
/// # Invariants
/// `page` is owned, `address` is where the kernel maps it.
pub(crate) struct SharedPage {
    page: NonNull<bindings::page>,
    address: NonNull<u8>,
}

// SAFETY: A page belongs to no thread.
unsafe impl Send for SharedPage {}
// SAFETY: The methods only give out the address.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    /// A page near NUMA node `node` (-1: any). May sleep.
    pub(crate) fn new(node: i32) -> Result<Self> {
        // SAFETY: No requirements; may sleep, as this may.
        let page = NonNull::new(unsafe { ffi::hv_rs_alloc_pages(node, 0, false) }).ok_or(ENOMEM)?;
        // SAFETY: `page` was just allocated, not from high memory.
        let address = NonNull::new(unsafe { ffi::hv_rs_page_address(page.as_ptr()) }.cast());
        let Some(address) = address else {
            // SAFETY: `page` is owned.
            unsafe { ffi::hv_rs_free_pages(page.as_ptr(), 0) };
            return Err(ENOMEM);
        };
        // INVARIANT: As just established.
        Ok(Self { page, address })
    }

    /// Where the page starts.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// Guest-physical address.
    pub(crate) fn gpa(&self) -> u64 {
        // SAFETY: `page` is valid by the type's invariant.
        (unsafe { ffi::hv_rs_page_pfn(self.page.as_ptr()) }) << PAGE.trailing_zeros()
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: `page` is owned by the type's invariant.
        unsafe { ffi::hv_rs_free_pages(self.page.as_ptr(), 0) };
    }
}

/// Zeroed pages that need not be contiguous. Freed on drop.
///
/// # Invariants
/// All pages are valid; they are those of `blocks`, which are owned, in order.
pub(crate) struct SharedPages {
    pages: KVVec<*mut bindings::page>,
    /// First page and order, as they were allocated.
    blocks: KVVec<(*mut bindings::page, u32)>,
}

// SAFETY: Pages belong to no thread.
unsafe impl Send for SharedPages {}
// SAFETY: The methods only give out addresses.
unsafe impl Sync for SharedPages {}

impl SharedPages {
    /// `count` pages near `node`, in blocks as large as can be had easily. May sleep.
    pub(crate) fn new(node: i32, count: usize) -> Result<Self> {
        let mut this = Self {
            pages: KVVec::with_capacity(count, GFP_KERNEL)?,
            blocks: KVVec::new(),
        };
        let mut order = count
            .checked_ilog2()
            .unwrap_or(0)
            .min(bindings::MAX_PAGE_ORDER);
        while this.pages.len() < count {
            let left = count - this.pages.len();
            while order > 0 && 1 << order > left {
                order -= 1;
            }
            this.blocks.reserve(1, GFP_KERNEL)?;
            // SAFETY: No requirements; may sleep, as this may.
            let first = unsafe { ffi::hv_rs_alloc_pages(node, order, order > 0) };
            if first.is_null() {
                if order == 0 {
                    return Err(ENOMEM);
                }
                order -= 1;
                continue;
            }
            // INVARIANT: The block is owned; room for it and its pages was reserved.
            this.blocks.push((first, order), GFP_KERNEL)?;
            for i in 0..1usize << order {
                // SAFETY: The `struct page`s of a block are adjacent.
                this.pages.push(unsafe { first.add(i) }, GFP_KERNEL)?;
            }
        }
        Ok(this)
    }

    /// Page frame numbers, in order.
    pub(crate) fn pfns(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.pages
            .iter()
            // SAFETY: The pages are valid by the type's invariant.
            .map(|&p| unsafe { ffi::hv_rs_page_pfn(p) })
    }

    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    /// Maps pages `first` to `first + count - 1` twice but for the first of them, one copy after the other: a ring whose
    /// data can be read and written across its end. The mapping must not outlive the pages.
    pub(crate) fn map_ring(&self, first: usize, count: usize) -> Result<RingMap> {
        let own = self
            .pages
            .get(first..first.checked_add(count).ok_or(EINVAL)?)
            .ok_or(EINVAL)?;
        let (header, data) = own.split_first().ok_or(EINVAL)?;
        let mut list = KVVec::with_capacity(1 + 2 * data.len(), GFP_KERNEL)?;
        list.push(*header, GFP_KERNEL)?;
        list.extend_from_slice(data, GFP_KERNEL)?;
        list.extend_from_slice(data, GFP_KERNEL)?;
        // SAFETY: `list` holds that many valid pages.
        let base = unsafe { ffi::hv_rs_vmap(list.as_mut_ptr(), list.len() as u32) };
        Ok(RingMap {
            base: NonNull::new(base.cast()).ok_or(ENOMEM)?,
            data_len: data.len() * PAGE,
        })
    }

    /// Maps all pages, in order. The mapping must not outlive the pages.
    pub(crate) fn map_all(&self) -> Result<NonNull<u8>> {
        let list = self.pages.as_ptr().cast_mut();
        // SAFETY: `pages` holds that many valid pages, and `vmap` only reads the list.
        let base = unsafe { ffi::hv_rs_vmap(list, self.pages.len() as u32) };
        NonNull::new(base.cast()).ok_or(ENOMEM)
    }

    /// Never frees the pages.
    pub(crate) fn leak(self) {
        core::mem::forget(self);
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        for &(first, order) in &self.blocks {
            // SAFETY: The block is owned by the type's invariant, and of this order.
            unsafe { ffi::hv_rs_free_pages(first, order) };
        }
    }
}

/// Mapping of a ring: a header page, then its data twice. Unmapped on drop.
///
/// # Invariants
/// `base` maps `PAGE + 2 * data_len` bytes.
pub(crate) struct RingMap {
    base: NonNull<u8>,
    data_len: usize,
}

// SAFETY: A mapping belongs to no thread.
unsafe impl Send for RingMap {}
// SAFETY: The methods only give out addresses.
unsafe impl Sync for RingMap {}

impl RingMap {
    /// The header page.
    pub(crate) fn header(&self) -> NonNull<u8> {
        self.base
    }

    /// The data: twice [`data_len`](Self::data_len) bytes, the second half the same memory as the first.
    pub(crate) fn data(&self) -> NonNull<u8> {
        // SAFETY: The header page is part of the mapping.
        unsafe { self.base.add(PAGE) }
    }

    /// Bytes of data.
    pub(crate) fn data_len(&self) -> usize {
        self.data_len
    }
}

impl Drop for RingMap {
    fn drop(&mut self) {
        // SAFETY: `base` came from `vmap`, and nobody uses it after this.
        unsafe { ffi::hv_rs_vunmap(self.base.as_ptr().cast::<c_void>()) };
    }
}
