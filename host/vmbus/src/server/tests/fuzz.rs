// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Random messages: the server never panics, its invariants hold, and its memory stays bounded.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Contact(usize, u32, u64, u64),
    Unload,
    RequestOffers,
    Gpadl {
        relid: u32,
        id: u32,
        buflen: u16,
        count: u16,
        words: Vec<u64>,
    },
    Body {
        id: u32,
        words: Vec<u64>,
    },
    Teardown(u32, u32),
    Open {
        relid: u32,
        gpadl: u32,
        vp: u32,
        offset: u32,
    },
    Close(u32),
    Release(u32),
    Modify(u32, u32),
    Rescind(usize),
    Offer(usize),
    Reset,
    Raw(Vec<u8>),
    Complete(usize, bool),
}

fn words() -> impl Strategy<Value = Vec<u64>> {
    let word = prop_oneof![
        Just(4096u64),
        Just(8 * 4096),
        Just(8192 | (8 << 32)),
        0..PAGES + 2,
        any::<u64>(),
    ];
    prop::collection::vec(word, 0..28)
}

fn step() -> impl Strategy<Value = Step> {
    let relid = || prop_oneof![4 => 0..6u32, 1 => any::<u32>()];
    let id = || prop_oneof![4 => 0..4u32, 1 => any::<u32>()];
    prop_oneof![
        2 => (0..7usize, 0..6u32, prop_oneof![Just(0u64), Just(0x2000), any::<u64>()], prop_oneof![Just(0u64), Just(0x3000), any::<u64>()])
            .prop_map(|(v, vp, a, b)| Step::Contact(v, vp, a, b)),
        1 => Just(Step::Unload),
        4 => Just(Step::RequestOffers),
        6 => (relid(), id(), prop_oneof![Just(16u16), Just(72), any::<u16>()], 0..4u16, words())
            .prop_map(|(relid, id, buflen, count, words)| Step::Gpadl { relid, id, buflen, count, words }),
        // A GPADL that is good for a ring.
        6 => (relid(), id()).prop_map(|(relid, id)| Step::Gpadl {
            relid, id, buflen: 72, count: 1, words: std::iter::once(8 * 4096).chain(16..24).collect()
        }),
        4 => (id(), words()).prop_map(|(id, words)| Step::Body { id, words }),
        4 => (relid(), id()).prop_map(|(r, i)| Step::Teardown(r, i)),
        6 => (relid(), id(), 0..6u32, 0..9u32).prop_map(|(relid, gpadl, vp, offset)| Step::Open { relid, gpadl, vp, offset }),
        4 => relid().prop_map(Step::Close),
        4 => relid().prop_map(Step::Release),
        2 => (relid(), 0..6u32).prop_map(|(r, v)| Step::Modify(r, v)),
        2 => (0..4usize).prop_map(Step::Rescind),
        2 => (0..4usize).prop_map(Step::Offer),
        1 => Just(Step::Reset),
        2 => prop::collection::vec(any::<u8>(), 0..260).prop_map(Step::Raw),
        // A header of any type over random bytes.
        2 => (0..32u8, prop::collection::vec(any::<u8>(), 0..232)).prop_map(|(t, bytes)| {
            Step::Raw([t, 0, 0, 0, 0, 0, 0, 0].into_iter().chain(bytes).collect())
        }),
        2 => (0..4usize, any::<bool>()).prop_map(|(o, ok)| Step::Complete(o, ok)),
    ]
}

fn with_words(head: &[u8], words: &[u64]) -> Vec<u8> {
    let mut bytes = head.to_vec();
    words
        .iter()
        .for_each(|w| bytes.extend_from_slice(&w.to_le_bytes()));
    bytes
}

fn play(bench: &mut Bench, step: Step) {
    match step {
        Step::Contact(v, target_vp, monitor_page1, monitor_page2) => bench.send(InitiateContact {
            target_vp,
            monitor_page1,
            monitor_page2,
            ..contact(VmbusVersion::SUPPORTED[v])
        }),
        Step::Unload => bench.send(Unload::blank()),
        Step::RequestOffers => bench.send(RequestOffers::blank()),
        Step::Gpadl {
            relid,
            id,
            buflen,
            count,
            words,
        } => {
            let header = GpadlHeader {
                relid: Relid(relid),
                gpadl: GpadlId(id),
                range_buflen: buflen,
                range_count: count,
                ..GpadlHeader::blank()
            };
            bench.raw(&with_words(header.as_bytes(), &words));
        }
        Step::Body { id, words } => {
            let body = vmbus_proto::msg::GpadlBody {
                gpadl: GpadlId(id),
                ..vmbus_proto::msg::GpadlBody::blank()
            };
            bench.raw(&with_words(body.as_bytes(), &words));
        }
        Step::Teardown(relid, id) => bench.teardown(relid, id),
        Step::Open {
            relid,
            gpadl,
            vp,
            offset,
        } => bench.send(OpenChannel {
            relid: Relid(relid),
            ring_gpadl: GpadlId(gpadl),
            target_vp: vp,
            downstream_page_offset: offset,
            ..OpenChannel::blank()
        }),
        Step::Close(relid) => bench.close(relid),
        Step::Release(relid) => bench.release(relid),
        Step::Modify(relid, vp) => bench.modify(relid, vp),
        Step::Rescind(i) => bench.server.rescind(OfferId(i)),
        Step::Offer(i) => bench.server.offer(OfferId(i)),
        Step::Reset => bench.server.reset(),
        Step::Raw(bytes) => bench.raw(&bytes),
        Step::Complete(i, ok) => {
            bench.server.open_complete(
                OfferId(i),
                if ok {
                    Status::SUCCESS
                } else {
                    Status::UNSUCCESSFUL
                },
            );
        }
    }
    bench.settle();
    check_invariants(&bench.server);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_messages_keeps_the_invariants(
        connect_first in prop::bool::weighted(0.9),
        answer_opens: bool,
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let mut bench = Bench::new(VmbusVersion::V6_0);
        bench.answer_opens = answer_opens;
        if connect_first {
            bench.connect(VmbusVersion::V6_0);
        }
        for step in steps {
            play(&mut bench, step);
        }
        // However it went: a new guest can connect and work.
        bench.answer_opens = true;
        bench.server.clear_violations();
        for i in [0, 1, 3] {
            bench.server.offer(OfferId(i));
        }
        bench.settle();
        bench.heard();
        let offers = bench.connect(VmbusVersion::V6_0);
        prop_assert_eq!(offers.len(), 3);
        bench.open_ring(1);
        prop_assert_eq!(bench.violations(), 0);
    }
}
