// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! GPADLs: guest pages lent to the host, described by one header and any number of body messages.

use std::sync::Arc;

use vmbus_proto::gpadl::{AssembleError, GpadlAssembler, GpadlLimits, Progress, MAX_WORDS};
use vmbus_proto::msg::{
    ChannelMessage, GpadlCreated, GpadlHeader, GpadlId, GpadlTorndown, Relid, Status,
};
use vmbus_proto::range::GpaRanges;

use super::{take_fault, Action, ChannelState, OfferId, Server};

/// The most GPADLs at a time. Linux has two for a NIC and one for each channel otherwise.
const MAX_GPADLS: usize = 4096;
/// The most pages in all GPADLs together: 4 GiB, which bounds the host's memory for them to 8 MiB.
const MAX_PAGES: usize = 1 << 20;
/// What one GPADL may hold: whatever its format can say.
const LIMITS: GpadlLimits = GpadlLimits {
    max_words: MAX_WORDS,
    max_ranges: u16::MAX,
};

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
    assembler: GpadlAssembler,
    /// The range data received, until complete.
    data: Vec<u8>,
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
        self.send(&GpadlCreated {
            relid,
            gpadl,
            status,
            ..GpadlCreated::blank()
        });
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
        let assembler = match GpadlAssembler::begin(m, LIMITS) {
            Ok(assembler) => assembler,
            Err(e) => return refused(self, format!("id {id}: {e}")),
        };
        let expected = assembler.expected_words();
        if self.gpadls.len() >= MAX_GPADLS || self.gpadl_pages + expected > MAX_PAGES {
            return refused(self, "more GPADLs than this host holds".into());
        }
        self.gpadl_pages += expected;
        let gpadl = Gpadl {
            offer,
            assembler,
            data: Vec::with_capacity(expected * 8),
            live: None,
        };
        self.gpadls.insert(id, gpadl);
        self.append(id, data, what)
    }

    pub(super) fn on_gpadl_body(&mut self, id: GpadlId, data: &[u8]) -> Result<(), String> {
        let what = "GPADL_BODY";
        // Without its channel no answer can be sent for an unknown id.
        if !self.gpadls.contains_key(&id) {
            return Err(format!("{what}: id {id} has no header"));
        }
        self.append(id, data, what)
    }

    fn append(&mut self, id: GpadlId, data: &[u8], what: &str) -> Result<(), String> {
        let Some(gpadl) = self.gpadls.get_mut(&id) else {
            return Ok(());
        };
        let relid = gpadl.assembler.relid;
        let progress = gpadl.assembler.push(data, |word| {
            gpadl.data.extend_from_slice(&word.to_le_bytes())
        });
        let result = match progress {
            Ok(Progress::NeedMore) => return Ok(()),
            // The GPADL is live already, and unharmed.
            Err(e @ AssembleError::Complete) => return Err(format!("{what}: id {id}: {e}")),
            Ok(Progress::Complete) => {
                let data = std::mem::take(&mut gpadl.data);
                let count = gpadl.assembler.range_count;
                self.parse_ranges(&data, count)
            }
            Err(e) => Err(e.to_string()),
        };
        match result {
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
                Err(format!("{what}: id {id}: {text}"))
            }
        }
    }

    fn parse_ranges(&self, data: &[u8], count: u16) -> Result<Vec<GpadlRange>, String> {
        let ranges = GpaRanges::parse(data, count.into()).map_err(|e| e.to_string())?;
        ranges
            .iter()
            .map(|range| {
                let pfns: Vec<u64> = range.pfns().collect();
                for &pfn in &pfns {
                    let ok = pfn
                        .checked_mul(4096)
                        .is_some_and(|gpa| self.is_ram_page(gpa));
                    if !ok {
                        return Err(format!("page frame {pfn:#x} is not RAM"));
                    }
                }
                Ok(GpadlRange {
                    len: range.byte_count,
                    offset: range.byte_offset,
                    pfns,
                })
            })
            .collect()
    }

    pub(super) fn on_gpadl_teardown(&mut self, relid: Relid, id: GpadlId) -> Result<(), String> {
        let what = "GPADL_TEARDOWN";
        let offer = self.by_relid(relid, what)?;
        let Some(gpadl) = self.gpadls.get(&id) else {
            return Err(format!("{what}: id {} does not exist", id));
        };
        if gpadl.offer != offer {
            return Err(format!(
                "{what}: id {} belongs to relid {}, not {relid}",
                id, gpadl.assembler.relid
            ));
        }
        if !gpadl.is_live() {
            return Err(format!("{what}: id {} is not complete", id));
        }
        if let ChannelState::Open { request, .. } | ChannelState::Opening { request, .. } =
            &self.offers[offer.0].state
        {
            if request.gpadl == id {
                return Err(format!(
                    "{what}: id {} is the ring of open channel {relid}",
                    id
                ));
            }
        }
        self.forget_gpadl(id);
        self.actions.push_back(Action::GpadlGone { offer, id });
        self.send(&GpadlTorndown {
            gpadl: id,
            ..GpadlTorndown::blank()
        });
        Ok(())
    }

    fn forget_gpadl(&mut self, id: GpadlId) {
        if let Some(gpadl) = self.gpadls.remove(&id) {
            self.gpadl_pages -= gpadl.assembler.expected_words();
        }
    }

    /// Drops the GPADLs of a channel whose relid the guest gave back.
    pub(super) fn forget_gpadls_of(&mut self, offer: OfferId) {
        let ids: Vec<GpadlId> = self
            .gpadls
            .iter()
            .filter(|(_, g)| g.offer == offer)
            .map(|(&id, _)| id)
            .collect();
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
        self.gpadls
            .values()
            .map(|g| g.assembler.expected_words())
            .sum()
    }

    /// For the invariant checks of tests.
    #[cfg(test)]
    pub(super) fn gpadl_pages(&self) -> usize {
        self.gpadl_pages
    }
}
