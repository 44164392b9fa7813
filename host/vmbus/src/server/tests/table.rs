// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What a conforming guest does, and each message in each state.

use vmbus_proto::msg::ConnectionState;

use super::*;

#[test]
fn every_version_up_to_the_newest_is_accepted_and_others_refused_without_blame() {
    for max in VmbusVersion::SUPPORTED {
        for asked in VmbusVersion::SUPPORTED
            .into_iter()
            .chain([VmbusVersion::V3_0, VmbusVersion::new(6, 1)])
        {
            let mut bench = Bench::new(max);
            bench.contact(asked);
            let [HostMessage::VersionResponse(answer)] = bench.heard()[..] else {
                panic!("one answer")
            };
            let accepted = asked <= max && asked.is_supported();
            assert_eq!(
                answer.base.version_supported != 0,
                accepted,
                "{asked} of {max}"
            );
            assert_eq!(bench.server.version(), accepted.then_some(asked));
            if accepted {
                assert_eq!(answer.base.connection_state, ConnectionState::SUCCESSFUL);
                let id = if asked >= VmbusVersion::V5_0 {
                    4
                } else {
                    asked.0
                };
                assert_eq!(answer.base.connection_id, id);
                assert_eq!(answer.features.is_some(), asked >= VmbusVersion::V6_0);
            }
            assert_eq!(bench.violations(), 0);
        }
    }
}

#[test]
fn granted_features_are_those_asked_for_and_known() {
    let mut bench = Bench::new(VmbusVersion::V6_0);
    let mut m = contact(VmbusVersion::V6_0);
    let asked = FeatureFlags::MODIFY_CONNECTION
        | FeatureFlags::CONFIDENTIAL_CHANNELS
        | FeatureFlags::PAUSE_RESUME;
    m.interrupt_page_or_target = TargetInfo {
        sint: 2,
        vtl: 0,
        reserved: [0; 2],
        features: asked,
    }
    .to_u64();
    bench.send(m);
    let [HostMessage::VersionResponse(answer)] = bench.heard()[..] else {
        panic!("one answer")
    };
    assert_eq!(answer.features, Some(FeatureFlags::MODIFY_CONNECTION));
}

#[test]
fn offers_come_in_order_with_their_ids_and_an_end() {
    let mut bench = Bench::new(VmbusVersion::V6_0);
    bench.contact(VmbusVersion::V6_0);
    bench.heard();
    bench.send(RequestOffers::blank());
    let heard = bench.heard();
    let [HostMessage::OfferChannel(a), HostMessage::OfferChannel(b), HostMessage::OfferChannel(c), HostMessage::AllOffersDelivered(_)] =
        heard[..]
    else {
        panic!("{heard:?}")
    };
    assert_eq!([a, b, c].map(|o| o.relid.0), [1, 2, 3]);
    assert_eq!([a, b, c].map(|o| o.connection_id), [0x2001, 0x2002, 0x2003]);
    assert_eq!([a, b, c].map(|o| o.monitor_id()), [None, None, Some(0)]);
    assert!([a, b, c]
        .iter()
        .all(|o| o.has_dedicated_interrupt() && o.user_data == [7; 120]));
    bench.send(RequestOffers::blank());
    assert_eq!(bench.violations(), 1);
    assert!(bench.heard().is_empty());
}

#[test]
fn without_monitor_pages_no_channel_is_monitored() {
    let mut bench = Bench::new(VmbusVersion::V6_0);
    bench.send(InitiateContact {
        monitor_page1: 0,
        monitor_page2: 0,
        ..contact(VmbusVersion::V6_0)
    });
    bench.send(RequestOffers::blank());
    assert!(bench
        .heard()
        .iter()
        .all(|m| !matches!(m, HostMessage::OfferChannel(o) if o.monitor_id().is_some())));
}

#[test]
fn messages_go_to_the_vp_that_the_guest_named() {
    let mut bench = Bench::new(VmbusVersion::V5_2);
    bench.send(InitiateContact {
        target_vp: 3,
        ..contact(VmbusVersion::V6_0)
    });
    bench.send(InitiateContact {
        target_vp: 3,
        ..contact(VmbusVersion::V5_2)
    });
    bench.send(RequestOffers::blank());
    bench.send(Unload::blank());
    assert!(bench.sent.iter().all(|(vp, _)| *vp == 3));
    assert!(matches!(
        bench.sent.last(),
        Some((3, HostMessage::UnloadResponse(_)))
    ));
    assert_eq!(bench.violations(), 0);
}

#[test]
fn a_channel_lives_through_open_move_close_and_open_again() {
    let mut bench = Bench::new(VmbusVersion::V6_0);
    bench.connect(VmbusVersion::V6_0);
    for _ in 0..3 {
        bench.open_ring(1);
        bench.modify(1, 2);
        assert!(
            matches!(bench.heard()[..], [HostMessage::ModifyChannelResponse(m)] if m.status.is_success())
        );
        bench.close(1);
        bench.teardown(1, 1);
        assert!(
            matches!(bench.heard()[..], [HostMessage::GpadlTorndown(t)] if t.gpadl == GpadlId(1))
        );
    }
    assert_eq!(bench.retargeted, [(OfferId(0), 2); 3]);
    assert_eq!(bench.closed, [OfferId(0); 3]);
    assert_eq!(bench.violations(), 0);
}

#[test]
fn modify_is_answered_from_5_3_on_and_unknown_before_4_1() {
    for (version, exists, answered) in [
        (VmbusVersion::V4_0, false, false),
        (VmbusVersion::V4_1, true, false),
        (VmbusVersion::V5_2, true, false),
        (VmbusVersion::V5_3, true, true),
    ] {
        let mut bench = Bench::new(VmbusVersion::V6_0);
        bench.connect(version);
        bench.open_ring(1);
        bench.modify(1, 3);
        assert_eq!(bench.heard().len(), usize::from(answered), "{version}");
        assert_eq!(bench.retargeted.len(), usize::from(exists), "{version}");
        assert_eq!(bench.violations(), u64::from(!exists), "{version}");
    }
}

#[test]
fn a_rescinded_channel_is_let_go_in_any_order_without_blame() {
    let mut bench = Bench::new(VmbusVersion::V6_0);
    bench.connect(VmbusVersion::V6_0);
    bench.open_ring(2);
    bench.server.rescind(OfferId(1));
    bench.settle();
    assert!(
        matches!(bench.heard()[..], [HostMessage::RescindChannelOffer(r)] if r.relid == Relid(2))
    );
    assert_eq!(bench.closed, [OfferId(1)]);
    // The guest did not know yet, or cleans up.
    bench.modify(2, 0);
    bench.gpadl(2, 77, 3);
    bench.open(2, 77, 2);
    bench.close(2);
    bench.close(2);
    bench.teardown(2, 2);
    let heard = bench.heard();
    assert!(
        matches!(heard[..], [HostMessage::ModifyChannelResponse(m), HostMessage::GpadlCreated(g), HostMessage::GpadlTorndown(_)]
            if !m.status.is_success() && g.status.is_success()),
        "{heard:?}"
    );
    bench.release(2);
    assert_eq!(bench.server.gpadl_count(), 0);
    assert_eq!(bench.violations(), 0);
    // The relid is gone.
    bench.close(2);
    assert_eq!(bench.violations(), 1);
}

#[test]
fn a_new_offer_waits_for_the_release_of_the_old_relid() {
    let mut bench = Bench::new(VmbusVersion::V6_0);
    bench.connect(VmbusVersion::V6_0);
    bench.server.rescind(OfferId(0));
    bench.server.offer(OfferId(0));
    bench.settle();
    assert!(matches!(
        bench.heard()[..],
        [HostMessage::RescindChannelOffer(_)]
    ));
    bench.release(1);
    assert!(
        matches!(bench.heard()[..], [HostMessage::OfferChannel(o)] if o.class_id == Guid::new(1, 0, 0, [0; 8]))
    );
    bench.open_ring(1);
    assert_eq!(bench.violations(), 0);
}

#[test]
fn a_rescind_while_the_device_opens_ends_the_open() {
    let mut bench = Bench::new(VmbusVersion::V6_0);
    bench.connect(VmbusVersion::V6_0);
    bench.answer_opens = false;
    bench.gpadl(1, 1, 8);
    bench.open(1, 1, 4);
    bench.server.rescind(OfferId(0));
    bench.server.open_complete(OfferId(0), Status::SUCCESS);
    bench.settle();
    let heard = bench.heard();
    assert!(
        matches!(
            heard[..],
            [
                HostMessage::GpadlCreated(_),
                HostMessage::RescindChannelOffer(_)
            ]
        ),
        "{heard:?}"
    );
    assert!(!bench.server.is_open(OfferId(0)));
    assert_eq!(bench.closed, [OfferId(0)]);
    assert_eq!(bench.violations(), 0);
}

#[test]
fn sub_channels_come_late_and_go_with_their_primary() {
    let mut bench = Bench::new(VmbusVersion::V6_0);
    bench.connect(VmbusVersion::V6_0);
    bench.open_ring(2);
    bench.server.offer(OfferId(2));
    bench.settle();
    let [HostMessage::OfferChannel(sub)] = bench.heard()[..] else {
        panic!("one offer")
    };
    assert_eq!((sub.subchannel_index, sub.relid), (1, Relid(4)));
    bench.open_ring(4);
    bench.close(2);
    assert!(
        matches!(bench.heard()[..], [HostMessage::RescindChannelOffer(r)] if r.relid == Relid(4))
    );
    assert_eq!(bench.closed, [OfferId(1), OfferId(2)]);
    bench.release(4);
    assert_eq!(bench.violations(), 0);
}

#[test]
fn unload_takes_everything_back_and_a_new_contact_starts_over() {
    let mut bench = Bench::new(VmbusVersion::V6_0);
    for round in 1..=3 {
        let offers = bench.connect(VmbusVersion::V6_0);
        assert_eq!(
            offers.iter().map(|o| o.relid.0).collect::<Vec<_>>(),
            [1, 2, 3]
        );
        bench.open_ring(1);
        bench.gpadl(2, 50, 5);
        bench.heard();
        bench.send(Unload::blank());
        assert!(matches!(
            bench.heard()[..],
            [HostMessage::UnloadResponse(_)]
        ));
        assert_eq!(
            (bench.server.gpadl_count(), bench.server.unloads),
            (0, round)
        );
        assert_eq!(bench.closed.len() as u64, round);
    }
    assert_eq!(bench.violations(), 0);
}

#[test]
fn a_crash_kernel_contacts_again_without_unloading() {
    let mut bench = Bench::new(VmbusVersion::V6_0);
    bench.connect(VmbusVersion::V6_0);
    bench.open_ring(1);
    bench.open_ring(3);
    let offers = bench.connect(VmbusVersion::V4_0);
    assert_eq!(offers.len(), 3);
    assert_eq!(bench.closed.len(), 2);
    assert_eq!((bench.server.connects, bench.violations()), (2, 0));
}

#[test]
fn a_reset_is_silent() {
    let mut bench = Bench::new(VmbusVersion::V6_0);
    bench.connect(VmbusVersion::V6_0);
    bench.open_ring(1);
    bench.server.reset();
    bench.settle();
    assert!(bench.heard().is_empty());
    assert_eq!((bench.closed.len(), bench.server.version()), (1, None));
    check_invariants(&bench.server);
}

/// Each message of the guest in each state of the connection: how many violations it makes.
#[test]
fn messages_without_a_connection_or_before_offers_are_violations() {
    type Verb = fn(&mut Bench);
    let verbs: [(&str, Verb, u64, u64); 8] = [
        ("request offers", |b| b.send(RequestOffers::blank()), 1, 0),
        ("gpadl", |b| b.gpadl(1, 1, 4), 1, 1),
        ("teardown", |b| b.teardown(1, 1), 1, 1),
        ("open", |b| b.open(1, 1, 2), 1, 1),
        ("close", |b| b.close(1), 1, 1),
        ("release", |b| b.release(1), 1, 1),
        ("modify", |b| b.modify(1, 0), 1, 1),
        ("unload", |b| b.send(Unload::blank()), 1, 0),
    ];
    for (name, verb, disconnected, connected) in verbs {
        let mut bench = Bench::new(VmbusVersion::V6_0);
        verb(&mut bench);
        assert_eq!(
            bench.violations(),
            disconnected,
            "{name} without a connection"
        );
        assert!(
            bench.heard().is_empty(),
            "{name} without a connection is not answered"
        );
        bench.server.clear_violations();
        bench.contact(VmbusVersion::V6_0);
        verb(&mut bench);
        assert_eq!(bench.violations(), connected, "{name} before offers");
        // After unload it is as before.
        bench.send(Unload::blank());
        bench.server.clear_violations();
        bench.heard();
        verb(&mut bench);
        assert_eq!(bench.violations(), disconnected, "{name} after unload");
        assert!(
            bench.heard().is_empty(),
            "{name} after unload is not answered"
        );
    }
}

/// Channel messages in each state of the channel: whether they make a violation.
#[test]
fn channel_messages_by_channel_state() {
    type Verb = fn(&mut Bench);
    let setups: [(&str, Verb); 3] = [
        ("offered", |b| {
            b.gpadl(1, 9, 8);
        }),
        ("open", |b| {
            b.gpadl(1, 9, 8);
            b.open(1, 9, 4);
        }),
        ("rescinded", |b| {
            b.gpadl(1, 9, 8);
            b.open(1, 9, 4);
            b.server.rescind(OfferId(0));
            b.settle();
        }),
    ];
    let verbs: [(&str, Verb, [u64; 3]); 6] = [
        ("open", |b| b.open(1, 9, 4), [0, 1, 0]),
        ("close", |b| b.close(1), [1, 0, 0]),
        ("release", |b| b.release(1), [0, 1, 0]),
        ("modify", |b| b.modify(1, 0), [1, 0, 0]),
        ("teardown of the ring", |b| b.teardown(1, 9), [0, 1, 0]),
        ("another gpadl", |b| b.gpadl(1, 10, 2), [0, 0, 0]),
    ];
    for (verb_name, verb, expect) in verbs {
        for ((state, setup), expect) in setups.iter().zip(expect) {
            let mut bench = Bench::new(VmbusVersion::V6_0);
            bench.connect(VmbusVersion::V6_0);
            setup(&mut bench);
            assert_eq!(bench.violations(), 0, "{state}");
            verb(&mut bench);
            assert_eq!(
                bench.violations(),
                expect,
                "{verb_name} when {state}: {}",
                bench.last_violation()
            );
        }
    }
}

#[test]
fn a_socket_connect_is_refused_where_the_protocol_has_words_for_it() {
    use vmbus_proto::msg::TlConnectRequest;
    for (version, answers) in [
        (VmbusVersion::V4_0, 0),
        (VmbusVersion::V4_1, 1),
        (VmbusVersion::V6_0, 1),
    ] {
        let mut bench = Bench::new(VmbusVersion::V6_0);
        bench.connect(version);
        let endpoint_id = Guid::new(9, 9, 9, [9; 8]);
        bench.send(TlConnectRequest {
            endpoint_id,
            ..TlConnectRequest::blank()
        });
        let heard = bench.heard();
        assert_eq!(heard.len(), answers);
        if let [HostMessage::TlConnectResult(r)] = heard[..] {
            assert_eq!(
                (r.endpoint_id, r.status),
                (endpoint_id, Status::CONNECTION_REFUSED)
            );
        }
        assert_eq!(bench.violations(), 0);
    }
}

#[test]
fn armed_refusals_hit_as_many_as_they_say() {
    let mut bench = Bench::new(VmbusVersion::V6_0);
    bench.connect(VmbusVersion::V6_0);
    bench.server.refuse_gpadls(1, Status(0xc000_009a));
    bench.server.refuse_opens(1, Status(0xc000_0001));
    bench.gpadl(1, 1, 8);
    bench.gpadl(1, 1, 8);
    bench.open(1, 1, 4);
    bench.open(1, 1, 4);
    let statuses: Vec<u32> = bench
        .heard()
        .iter()
        .map(|m| match m {
            HostMessage::GpadlCreated(g) => g.status.0,
            HostMessage::OpenChannelResult(o) => o.status.0,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(statuses, [0xc000_009a, 0, 0xc000_0001, 0]);
    assert_eq!(bench.violations(), 0);
}
