// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The server against messages good and bad.

mod attacks;
mod fuzz;
mod table;

use hv_partition::GuestRam;
use vmbus_proto::msg::{
    ChannelMessage, CloseChannel, GpadlHeader, GpadlId, GpadlTeardown, HostMessage,
    InitiateContact, MessageBuffer, ModifyChannel, OfferChannel, OfferFlags, OpenChannel, Relid,
    RelidReleased, RequestOffers, Status, TargetInfo, Unload, MESSAGE_CONNECTION_ID_4,
};
use vmbus_proto::range::GpaRangeHeader;
use vmbus_proto::{FeatureFlags, Guid, VmbusVersion};
use zerocopy::IntoBytes;

use super::{Action, OfferId, OfferSpec, Server};

const PAGES: u64 = 256;
const VPS: u32 = 4;

/// A server with three devices, the second with a sub-channel, and what it said.
struct Bench {
    server: Server,
    sent: Vec<(u32, HostMessage)>,
    /// Opens that no one answered, when `answer_opens` is off.
    opened: Vec<OfferId>,
    closed: Vec<OfferId>,
    retargeted: Vec<(OfferId, u32)>,
    answer_opens: bool,
}

fn spec(name: &str, n: u32, subchannel: u16) -> OfferSpec {
    OfferSpec {
        name: name.into(),
        class: Guid::new(n, 0, 0, [0; 8]),
        instance: Guid::new(n, 1, 0, [0; 8]),
        subchannel,
        flags: OfferFlags::empty(),
        mmio_megabytes: 0,
        user_data: [7; 120],
        monitored: n == 3,
    }
}

impl Bench {
    fn new(max: VmbusVersion) -> Self {
        let mut server = Server::new(max, VPS, GuestRam::for_tests((PAGES * 4096) as usize));
        server.add_offer(spec("one", 1, 0), true);
        server.add_offer(spec("two", 2, 0), true);
        server.add_offer(spec("two", 2, 1), false);
        server.add_offer(spec("three", 3, 0), true);
        Self {
            server,
            sent: vec![],
            opened: vec![],
            closed: vec![],
            retargeted: vec![],
            answer_opens: true,
        }
    }

    fn settle(&mut self) {
        while let Some(action) = self.server.next_action() {
            match action {
                Action::Post { vp, message } => {
                    let message = HostMessage::parse(message.as_bytes())
                        .expect("the server sends what parses");
                    self.sent.push((vp.0, message));
                }
                Action::Open { offer, .. } if self.answer_opens => {
                    self.server.open_complete(offer, Status::SUCCESS)
                }
                Action::Open { offer, .. } => self.opened.push(offer),
                Action::Close { offer } => self.closed.push(offer),
                Action::Retarget { offer, vp } => self
                    .retargeted
                    .push((offer, vp.map_or(u32::MAX, |vp| vp.0))),
                Action::GpadlGone { .. } | Action::Event(_) => {}
            }
        }
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.server
            .on_guest_message(MESSAGE_CONNECTION_ID_4, 1, bytes);
        self.settle();
        check_invariants(&self.server);
    }

    fn send<M: ChannelMessage>(&mut self, message: M) {
        self.raw(message.as_bytes());
    }

    /// All that was said since the last call.
    fn heard(&mut self) -> Vec<HostMessage> {
        std::mem::take(&mut self.sent)
            .into_iter()
            .map(|(_, m)| m)
            .collect()
    }

    fn contact(&mut self, version: VmbusVersion) {
        self.send(contact(version));
    }

    /// Connects and takes the offers.
    fn connect(&mut self, version: VmbusVersion) -> Vec<OfferChannel> {
        self.contact(version);
        self.send(RequestOffers::blank());
        self.heard()
            .into_iter()
            .filter_map(|m| match m {
                HostMessage::OfferChannel(offer) => Some(offer),
                _ => None,
            })
            .collect()
    }

    fn gpadl(&mut self, relid: u32, id: u32, pages: u64) {
        let pfns: Vec<u64> = (0..pages).map(|i| 16 + i).collect();
        self.raw(gpadl_header(relid, id, &pfns).as_bytes());
    }

    fn open(&mut self, relid: u32, gpadl: u32, offset: u32) {
        self.send(OpenChannel {
            relid: Relid(relid),
            open_id: relid,
            ring_gpadl: GpadlId(gpadl),
            target_vp: 1,
            downstream_page_offset: offset,
            ..OpenChannel::blank()
        });
    }

    /// A channel open with GPADL `relid` of 8 pages.
    fn open_ring(&mut self, relid: u32) {
        self.gpadl(relid, relid, 8);
        self.open(relid, relid, 4);
        assert!(matches!(
            self.heard()[..],
            [HostMessage::GpadlCreated(g), HostMessage::OpenChannelResult(o)]
                if g.status.is_success() && o.status.is_success() && o.open_id == relid
        ));
    }

    fn teardown(&mut self, relid: u32, id: u32) {
        self.send(GpadlTeardown {
            relid: Relid(relid),
            gpadl: GpadlId(id),
            ..GpadlTeardown::blank()
        });
    }

    fn close(&mut self, relid: u32) {
        self.send(CloseChannel {
            relid: Relid(relid),
            ..CloseChannel::blank()
        });
    }

    fn release(&mut self, relid: u32) {
        self.send(RelidReleased {
            relid: Relid(relid),
            ..RelidReleased::blank()
        });
    }

    fn modify(&mut self, relid: u32, target_vp: u32) {
        self.send(ModifyChannel {
            relid: Relid(relid),
            target_vp,
            ..ModifyChannel::blank()
        });
    }

    fn violations(&self) -> u64 {
        self.server.violations().count()
    }

    fn last_violation(&self) -> String {
        self.server
            .violations()
            .texts()
            .last()
            .unwrap_or_default()
            .to_owned()
    }
}

fn contact(version: VmbusVersion) -> InitiateContact {
    let target = if version.has_message_connection_id() {
        TargetInfo {
            sint: 2,
            vtl: 0,
            reserved: [0; 2],
            features: FeatureFlags::empty(),
        }
        .to_u64()
    } else {
        0x5000
    };
    InitiateContact {
        version,
        target_vp: 0,
        interrupt_page_or_target: target,
        monitor_page1: 0x2000,
        monitor_page2: 0x3000,
        ..InitiateContact::blank()
    }
}

/// A GPADL of one range of whole pages in one message (at most 26 pages).
fn gpadl_header(relid: u32, id: u32, pfns: &[u64]) -> MessageBuffer {
    let header = GpadlHeader {
        relid: Relid(relid),
        gpadl: GpadlId(id),
        range_buflen: (8 + pfns.len() * 8) as u16,
        range_count: 1,
        ..GpadlHeader::blank()
    };
    let mut buffer = MessageBuffer::from_message(&header);
    let range = GpaRangeHeader {
        byte_count: pfns.len() as u32 * 4096,
        byte_offset: 0,
    };
    buffer.append(range.as_bytes()).expect("fits");
    for pfn in pfns {
        buffer.append(&pfn.to_le_bytes()).expect("fits");
    }
    buffer
}

/// What must hold after every message.
fn check_invariants(server: &Server) {
    let mut relids = std::collections::BTreeSet::new();
    for offer in &server.offers {
        if let Some(relid) = offer.state.relid() {
            assert!(relid.is_valid());
            assert!(relids.insert(relid), "relid {relid} twice");
            assert!(server.connection.is_some(), "relid without a connection");
        }
        if let super::ChannelState::Open { request, .. } = &offer.state {
            assert!(
                server.gpadls.contains_key(&request.gpadl),
                "open channel without its ring"
            );
        }
    }
    assert!(relids.iter().eq(server.relids.keys()));
    assert_eq!(server.gpadl_words(), server.gpadl_pages());
    if server.connection.is_none() {
        assert!(server.gpadls.is_empty());
    }
    for gpadl in server.gpadls.values() {
        assert!(
            server.offers[gpadl.offer.0].state.relid().is_some(),
            "GPADL of a channel the guest does not know"
        );
    }
    assert!(server.violations().texts().count() <= 64);
    assert!(server.actions.is_empty());
}
