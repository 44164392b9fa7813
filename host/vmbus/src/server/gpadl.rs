// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! GPADLs: guest pages lent to the host, described by one header and any number of body messages.

use std::sync::Arc;

use vmbus_proto::msg::{ChannelMessage, GpadlCreated, GpadlHeader, GpadlId, GpadlTorndown, Relid, Status};

use super::{take_fault, Action, ChannelState, OfferId, Server};

/// The most GPADLs at a time. Linux has two for a NIC and one for each channel otherwise.
const MAX_GPADLS: usize = 4096;
/// The most pages in all GPADLs together: 4 GiB, which bounds the host's memory for them to 8 MiB.
const MAX_PAGES: usize = 1 << 20;

/// A run of guest memory: page frame numbers, of which the first and last may be used in part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpadlRange {
    /// Bytes.
    pub len: u32,
    /// Offset of the first byte in the first page.
    pub offset: u32,
    /// Page frame numbers (4 KiB pages), all RAM.
    pub pfns: Vec<u64>,
}

/// The ranges of a live GPADL. Holding it keeps the list, not the guest's memory: after
/// [`Action::GpadlGone`] the pages must not be touched.
pub type SharedGpadl = Arc<[GpadlRange]>;

/// A GPADL, complete or not.
#[derive(Debug)]
pub struct Gpadl {
    pub(super) offer: OfferId,
    relid: Relid,
    range_count: u16,
    /// Words of range headers and PFNs promised.
    expected: usize,
    words: Vec<u64>,
    /// Present when complete.
    live: Option<SharedGpadl>,
}

impl Gpadl {
    pub(super) fn is_live(&self) -> bool {
        self.live.is_some()
    }
}

impl Server {
    /// The ranges of a live GPADL that belongs to `offer`.
    pub fn gpadl(&self, offer: OfferId, id: GpadlId) -> Option<SharedGpadl> {
        let gpadl = self.gpadls.get(&id)?;
        (gpadl.offer == offer).then(|| gpadl.live.clone()).flatten()
    }

    fn send_created(&mut self, relid: Relid, gpadl: GpadlId, status: Status) {
        self.send(&GpadlCreated { relid, gpadl, status, ..GpadlCreated::blank() });
    }

    pub(super) fn on_gpadl_header(&mut self, m: &GpadlHeader, data: &[u8]) -> Result<(), String> {
        let what = "GPADL_HEADER";
        let (relid, id) = (m.relid, m.gpadl);
        let refused = |server: &mut Self, text: String| {
            server.send_created(relid, id, Status::UNSUCCESSFUL);
            Err(format!("{what}: {text}"))
        };
        let offer = match self.by_relid(relid, what) {
            Ok(offer) => offer,
            Err(text) => {
                self.send_created(relid, id, Status::UNSUCCESSFUL);
                return Err(text);
            }
        };
        if let Some(status) = take_fault(&mut self.refuse_gpadl) {
            self.send_created(relid, id, status);
            return Ok(());
        }
        if self.gpadls.contains_key(&id) {
            return refused(self, format!("id {} is in use", id));
        }
        let expected = usize::from(m.range_buflen) / 8;
        // Each range has its header word and at least one PFN.
        if m.range_count == 0 || m.range_buflen % 8 != 0 || expected < usize::from(m.range_count) * 2 {
            return refused(self, format!("{} bytes cannot hold {} ranges", m.range_buflen, m.range_count));
        }
        if self.gpadls.len() >= MAX_GPADLS || self.gpadl_pages + expected > MAX_PAGES {
            return refused(self, "more GPADLs than this host holds".into());
        }
        self.gpadl_pages += expected;
        let gpadl = Gpadl { offer, relid, range_count: m.range_count, expected, words: Vec::with_capacity(expected), live: None };
        self.gpadls.insert(id, gpadl);
        self.append(id, data, what)
    }

    pub(super) fn on_gpadl_body(&mut self, id: GpadlId, data: &[u8]) -> Result<(), String> {
        let what = "GPADL_BODY";
        // Without its channel no answer can be sent for an unknown id.
        match self.gpadls.get(&id) {
            None => Err(format!("{what}: id {} has no header", id)),
            Some(gpadl) if gpadl.is_live() => Err(format!("{what}: id {} is complete", id)),
            Some(_) => self.append(id, data, what),
        }
    }

    fn append(&mut self, id: GpadlId, data: &[u8], what: &str) -> Result<(), String> {
        let Some(gpadl) = self.gpadls.get_mut(&id) else { return Ok(()) };
        // Bytes beyond what was promised are padding: some guests (UEFI, says OpenVMM) always send
        // messages of full length.
        let wanted = gpadl.expected - gpadl.words.len();
        gpadl.words.extend(data.chunks_exact(8).take(wanted).map(|w| u64::from_le_bytes(w.try_into().unwrap_or([0; 8]))));
        if gpadl.words.len() < gpadl.expected {
            if data.len() < 8 {
                let relid = gpadl.relid;
                self.forget_gpadl(id);
                self.send_created(relid, id, Status::UNSUCCESSFUL);
                return Err(format!("{what}: id {}: no page numbers in the message", id));
            }
            return Ok(());
        }
        let relid = gpadl.relid;
        let words = std::mem::take(&mut gpadl.words);
        let count = gpadl.range_count;
        match self.parse_ranges(&words, count) {
            Ok(ranges) => {
                if let Some(gpadl) = self.gpadls.get_mut(&id) {
                    gpadl.live = Some(Arc::from(ranges));
                }
                // Also for a rescinded channel: the guest may not know yet, and tears it down itself.
                self.send_created(relid, id, Status::SUCCESS);
                Ok(())
            }
            Err(text) => {
                self.forget_gpadl(id);
                self.send_created(relid, id, Status::UNSUCCESSFUL);
                Err(format!("{what}: id {}: {text}", id))
            }
        }
    }

    fn parse_ranges(&self, words: &[u64], count: u16) -> Result<Vec<GpadlRange>, String> {
        let mut rest = words;
        let mut ranges = Vec::with_capacity(usize::from(count));
        for i in 0..count {
            let (&head, tail) = rest.split_first().ok_or_else(|| format!("range {i} is missing"))?;
            let (len, offset) = (head as u32, (head >> 32) as u32);
            if offset >= 4096 {
                return Err(format!("range {i}: offset {offset} is not within a page"));
            }
            if len == 0 {
                return Err(format!("range {i} is empty"));
            }
            let pages = (u64::from(len) + u64::from(offset)).div_ceil(4096) as usize;
            if pages > tail.len() {
                return Err(format!("range {i}: {len} bytes need {pages} pages, {} are listed", tail.len()));
            }
            let (pfns, tail) = tail.split_at(pages);
            for &pfn in pfns {
                let ok = pfn.checked_mul(4096).is_some_and(|gpa| self.is_ram_page(gpa));
                if !ok {
                    return Err(format!("range {i}: page frame {pfn:#x} is not RAM"));
                }
            }
            ranges.push(GpadlRange { len, offset, pfns: pfns.to_vec() });
            rest = tail;
        }
        Ok(ranges)
    }

    pub(super) fn on_gpadl_teardown(&mut self, relid: Relid, id: GpadlId) -> Result<(), String> {
        let what = "GPADL_TEARDOWN";
        let offer = self.by_relid(relid, what)?;
        let Some(gpadl) = self.gpadls.get(&id) else {
            return Err(format!("{what}: id {} does not exist", id));
        };
        if gpadl.offer != offer {
            return Err(format!("{what}: id {} belongs to relid {}, not {relid}", id, gpadl.relid));
        }
        if !gpadl.is_live() {
            return Err(format!("{what}: id {} is not complete", id));
        }
        if let ChannelState::Open { request, .. } | ChannelState::Opening { request, .. } = &self.offers[offer.0].state {
            if request.gpadl == id {
                return Err(format!("{what}: id {} is the ring of open channel {relid}", id));
            }
        }
        self.forget_gpadl(id);
        self.actions.push_back(Action::GpadlGone { offer, id });
        self.send(&GpadlTorndown { gpadl: id, ..GpadlTorndown::blank() });
        Ok(())
    }

    fn forget_gpadl(&mut self, id: GpadlId) {
        if let Some(gpadl) = self.gpadls.remove(&id) {
            self.gpadl_pages -= gpadl.expected;
        }
    }

    /// Drops the GPADLs of a channel whose relid the guest gave back.
    pub(super) fn forget_gpadls_of(&mut self, offer: OfferId) {
        let ids: Vec<GpadlId> = self.gpadls.iter().filter(|(_, g)| g.offer == offer).map(|(&id, _)| id).collect();
        for id in ids {
            let live = self.gpadls.get(&id).is_some_and(Gpadl::is_live);
            self.forget_gpadl(id);
            if live {
                self.actions.push_back(Action::GpadlGone { offer, id });
            }
        }
    }

    /// For the invariant checks of tests.
    #[cfg(test)]
    pub(super) fn gpadl_words(&self) -> usize {
        self.gpadls.values().map(|g| g.expected).sum()
    }

    /// For the invariant checks of tests.
    #[cfg(test)]
    pub(super) fn gpadl_pages(&self) -> usize {
        self.gpadl_pages
    }
}
