// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Offering, opening, closing, moving and rescinding channels.

use hv_partition::VpIndex;
use hvctl::Event;

use vmbus_proto::msg::{
    ChannelMessage, GpadlId, ModifyChannelResponse, OfferChannel, OpenChannel, OpenChannelResult,
    Relid, RescindChannelOffer, Status, MAX_CHANNELS, USER_DATA_SIZE, VMBUS_SINT,
    VP_INDEX_DISABLE_INTERRUPT,
};

use super::{take_fault, Action, ChannelState, Offer, OfferId, OfferSpec, Server, SharedGpadl};

/// Monitor ids are below this: four groups of 32 (`hyperv.h`, `struct hv_monitor_page`).
const MONITOR_IDS: u8 = 128;
/// `monitor_id` of a channel without one (OpenVMM `MonitorId::INVALID`).
const NO_MONITOR: u8 = 0xff;

/// What the guest asked for when it opened a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRequest {
    /// Echoed in the result.
    pub open_id: u32,
    /// The GPADL that holds both rings.
    pub gpadl: GpadlId,
    /// Pages of the guest-to-host ring; the host-to-guest ring is the rest.
    pub ring_offset_pages: u32,
    /// VP to interrupt; `None`: no interrupts.
    pub target_vp: Option<VpIndex>,
}

/// What the device needs to open a channel.
#[derive(Clone, Debug)]
pub struct OpenParams {
    /// Event flag to set for the guest.
    pub event_flag: u16,
    /// Connection id on which the guest signals.
    pub connection_id: u32,
    /// VP to interrupt; `None`: no interrupts.
    pub target_vp: Option<VpIndex>,
    /// The one range that holds both rings.
    pub pages: SharedGpadl,
    /// Pages of the guest-to-host ring; the host-to-guest ring is the rest.
    pub ring_offset_pages: u32,
    /// The 120 bytes that belong to the driver.
    pub user_data: [u8; USER_DATA_SIZE],
    /// Bit in the monitor page on which the guest signals.
    pub monitor_id: Option<u8>,
}

/// Connection id of a channel's signals (OpenVMM `ConnectionId::new`, for VTL 0).
pub fn connection_id(relid: Relid) -> u32 {
    relid.0 | (u32::from(VMBUS_SINT) << 12)
}

/// The relid of a connection id, if it is one of a channel.
pub fn relid_of_connection(connection_id: u32) -> Option<Relid> {
    let relid = Relid(connection_id & 0xfff);
    (connection_id >> 12 == u32::from(VMBUS_SINT) && relid.is_valid()).then_some(relid)
}

impl Server {
    /// Adds a channel. It is offered at once if the guest has asked for offers.
    pub fn add_offer(&mut self, spec: OfferSpec, wanted: bool) -> OfferId {
        let id = OfferId(self.offers.len());
        self.offers.push(Offer {
            spec,
            wanted: false,
            state: ChannelState::Idle,
            monitor_id: None,
        });
        if wanted {
            self.offer(id);
        }
        id
    }

    /// Offers a channel that was not offered. If it was rescinded and not released yet, the new offer
    /// follows the release: Linux ignores a second offer of a device it still knows.
    pub fn offer(&mut self, id: OfferId) {
        self.offers[id.0].wanted = true;
        let requested = self.connection.as_ref().is_some_and(|c| c.offers_requested);
        if requested && matches!(self.offers[id.0].state, ChannelState::Idle) {
            self.send_offer(id);
        }
    }

    /// Takes a channel away from the guest.
    pub fn rescind(&mut self, id: OfferId) {
        self.offers[id.0].wanted = false;
        let state = std::mem::replace(&mut self.offers[id.0].state, ChannelState::Idle);
        let Some(relid) = state.relid() else { return };
        self.offers[id.0].state = ChannelState::Revoked { relid };
        match state {
            ChannelState::Revoked { .. } => return,
            ChannelState::Open { .. } => self.actions.push_back(Action::Close { offer: id }),
            // The guest waits for an answer to its open; Linux takes the rescind for one.
            ChannelState::Opening { .. } => self.actions.push_back(Action::Close { offer: id }),
            ChannelState::Offered { .. } | ChannelState::Idle => {}
        }
        self.send(&RescindChannelOffer {
            relid,
            ..RescindChannelOffer::blank()
        });
        let device = self.name(id);
        self.event(Event::Rescinded {
            device,
            relid: relid.0,
        });
    }

    pub(super) fn send_offer(&mut self, id: OfferId) {
        let Some(relid) = (1..MAX_CHANNELS)
            .map(Relid)
            .find(|relid| !self.relids.contains_key(relid))
        else {
            tracing::error!("all relids are in use");
            return;
        };
        let has_pages = self
            .connection
            .as_ref()
            .is_some_and(|c| c.monitor_pages.is_some());
        let monitor_id = if self.offers[id.0].spec.monitored && has_pages {
            (0..MONITOR_IDS).find(|m| !self.offers.iter().any(|o| o.monitor_id == Some(*m)))
        } else {
            None
        };
        self.relids.insert(relid, id);
        let offer = &mut self.offers[id.0];
        offer.state = ChannelState::Offered { relid };
        offer.monitor_id = monitor_id;
        let spec = &offer.spec;
        let message = OfferChannel {
            class_id: spec.class,
            instance_id: spec.instance,
            flags: spec.flags,
            mmio_megabytes: spec.mmio_megabytes,
            user_data: spec.user_data,
            subchannel_index: spec.subchannel,
            relid,
            monitor_id: monitor_id.unwrap_or(NO_MONITOR),
            monitor_allocated: monitor_id.is_some().into(),
            is_dedicated: 1,
            connection_id: connection_id(relid),
            ..OfferChannel::blank()
        };
        self.send(&message);
        let device = self.name(id);
        self.event(Event::Offered {
            device,
            relid: relid.0,
        });
    }

    pub(super) fn on_open(&mut self, m: &OpenChannel) -> Result<(), String> {
        let what = "OPEN_CHANNEL";
        let relid = m.relid;
        let id = self.by_relid(relid, what)?;
        match &self.offers[id.0].state {
            ChannelState::Offered { .. } => {}
            // The rescind is on its way to the guest and will end its wait.
            ChannelState::Revoked { .. } => return Ok(()),
            ChannelState::Opening { .. } | ChannelState::Open { .. } | ChannelState::Idle => {
                return Err(format!("{what}: channel {relid} is open"));
            }
        }
        if let Some(status) = take_fault(&mut self.refuse_open) {
            self.send_open_result(relid, m.open_id, status);
            return Ok(());
        }
        let (pages, target_vp) = match self.check_open(id, m) {
            Ok(checked) => checked,
            Err(text) => {
                self.send_open_result(relid, m.open_id, Status::UNSUCCESSFUL);
                return Err(format!("{what}: channel {relid}: {text}"));
            }
        };
        let request = OpenRequest {
            open_id: m.open_id,
            gpadl: m.ring_gpadl,
            ring_offset_pages: m.downstream_page_offset,
            target_vp,
        };
        self.offers[id.0].state = ChannelState::Opening { relid, request };
        self.actions.push_back(Action::Open {
            offer: id,
            params: OpenParams {
                event_flag: relid.0 as u16,
                connection_id: connection_id(relid),
                target_vp,
                pages,
                ring_offset_pages: m.downstream_page_offset,
                user_data: m.user_data,
                monitor_id: self.offers[id.0].monitor_id,
            },
        });
        Ok(())
    }

    fn check_open(
        &self,
        id: OfferId,
        m: &OpenChannel,
    ) -> Result<(SharedGpadl, Option<VpIndex>), String> {
        let pages = self
            .gpadl(id, m.ring_gpadl)
            .ok_or_else(|| format!("GPADL {} is not a live GPADL of this channel", m.ring_gpadl))?;
        let [range] = &pages[..] else {
            return Err(format!(
                "ring GPADL {} has {} ranges, expected one",
                m.ring_gpadl,
                pages.len()
            ));
        };
        if range.offset != 0 || range.len % 4096 != 0 {
            return Err(format!(
                "ring GPADL {} is not made of whole pages",
                m.ring_gpadl
            ));
        }
        // Each ring has its control page and at least one page of data.
        let total = range.pfns.len() as u64;
        let first = u64::from(m.downstream_page_offset);
        if first < 2 || first + 2 > total {
            return Err(format!("ring offset {first} in a GPADL of {total} pages"));
        }
        if m.target_vp == VP_INDEX_DISABLE_INTERRUPT {
            Ok((pages, None))
        } else if self.valid_vp(m.target_vp) {
            Ok((pages, Some(VpIndex(m.target_vp))))
        } else {
            Err(format!(
                "target VP {}, there are {}",
                m.target_vp, self.vp_count
            ))
        }
    }

    fn send_open_result(&mut self, relid: Relid, open_id: u32, status: Status) {
        self.send(&OpenChannelResult {
            relid,
            open_id,
            status,
            ..OpenChannelResult::blank()
        });
    }

    /// The device's answer to [`Action::Open`].
    pub fn open_complete(&mut self, id: OfferId, status: Status) {
        let state = std::mem::replace(&mut self.offers[id.0].state, ChannelState::Idle);
        let ChannelState::Opening { relid, request } = state else {
            // Rescinded or disconnected meanwhile.
            self.offers[id.0].state = state;
            return;
        };
        let open_id = request.open_id;
        let target_vp = request
            .target_vp
            .map_or(VP_INDEX_DISABLE_INTERRUPT, |vp| vp.0);
        self.offers[id.0].state = if status.is_success() {
            ChannelState::Open { relid, request }
        } else {
            ChannelState::Offered { relid }
        };
        self.send_open_result(relid, open_id, status);
        if status.is_success() {
            let device = self.name(id);
            self.event(Event::Opened {
                device,
                relid: relid.0,
                target_vp,
            });
        }
    }

    pub(super) fn on_close(&mut self, relid: Relid) -> Result<(), String> {
        let id = self.by_relid(relid, "CLOSE_CHANNEL")?;
        match self.offers[id.0].state {
            ChannelState::Open { .. } => {
                self.offers[id.0].state = ChannelState::Offered { relid };
                self.actions.push_back(Action::Close { offer: id });
                let device = self.name(id);
                self.event(Event::Closed {
                    device,
                    relid: relid.0,
                });
                self.rescind_subchannels_of(id);
                Ok(())
            }
            ChannelState::Revoked { .. } => Ok(()),
            _ => Err(format!("CLOSE_CHANNEL: channel {relid} is not open")),
        }
    }

    /// Sub-channels do not outlive their primary channel.
    fn rescind_subchannels_of(&mut self, id: OfferId) {
        let spec = &self.offers[id.0].spec;
        if spec.subchannel != 0 {
            return;
        }
        let (class, instance) = (spec.class, spec.instance);
        for i in 0..self.offers.len() {
            let other = &self.offers[i].spec;
            if other.subchannel != 0 && other.class == class && other.instance == instance {
                self.rescind(OfferId(i));
            }
        }
    }

    pub(super) fn on_relid_released(&mut self, relid: Relid) -> Result<(), String> {
        let what = "RELID_RELEASED";
        let id = self.by_relid(relid, what)?;
        let was_revoked = match self.offers[id.0].state {
            ChannelState::Revoked { .. } => true,
            // A guest may give back an offer that it does not want (OpenVMM).
            ChannelState::Offered { .. } => false,
            ChannelState::Open { .. } | ChannelState::Opening { .. } | ChannelState::Idle => {
                return Err(format!("{what}: channel {relid} is open"));
            }
        };
        self.forget_gpadls_of(id);
        self.relids.remove(&relid);
        let offer = &mut self.offers[id.0];
        offer.state = ChannelState::Idle;
        offer.monitor_id = None;
        let wanted = offer.wanted;
        let device = self.name(id);
        self.event(Event::Released {
            device,
            relid: relid.0,
        });
        if was_revoked && wanted {
            self.send_offer(id);
        }
        Ok(())
    }

    pub(super) fn on_modify(&mut self, relid: Relid, target_vp: u32) -> Result<(), String> {
        let result = self.modify(relid, target_vp);
        // Before 5.3 the guest is not told.
        if self
            .connection
            .as_ref()
            .is_some_and(|c| c.version.has_modify_channel_response())
        {
            let status = if matches!(result, Ok(true)) {
                Status::SUCCESS
            } else {
                Status::UNSUCCESSFUL
            };
            self.send(&ModifyChannelResponse {
                relid,
                status,
                ..ModifyChannelResponse::blank()
            });
        }
        result.map(|_| ())
    }

    /// `Ok(false)`: refused, but the guest could not know better.
    fn modify(&mut self, relid: Relid, target_vp: u32) -> Result<bool, String> {
        let what = "MODIFY_CHANNEL";
        let id = self.by_relid(relid, what)?;
        if !self.valid_vp(target_vp) {
            return Err(format!(
                "{what}: channel {relid}: target VP {target_vp}, there are {}",
                self.vp_count
            ));
        }
        match &mut self.offers[id.0].state {
            ChannelState::Open { request, .. } if request.target_vp.is_some() => {
                request.target_vp = Some(VpIndex(target_vp));
                self.actions.push_back(Action::Retarget {
                    offer: id,
                    vp: Some(VpIndex(target_vp)),
                });
                Ok(true)
            }
            ChannelState::Open { .. } => Err(format!(
                "{what}: channel {relid} was opened without interrupts"
            )),
            ChannelState::Revoked { .. } => Ok(false),
            _ => Err(format!("{what}: channel {relid} is not open")),
        }
    }

    fn name(&self, id: OfferId) -> String {
        let spec = &self.offers[id.0].spec;
        if spec.subchannel == 0 {
            spec.name.clone()
        } else {
            format!("{}.{}", spec.name, spec.subchannel)
        }
    }
}
