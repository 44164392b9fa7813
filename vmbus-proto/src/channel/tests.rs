// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A scripted host against the life of a channel.

use super::*;
use crate::class;
use crate::msg::{
    GpadlCreated, GpadlTorndown, ModifyChannelResponse, OpenChannelResult, RescindChannelOffer,
};
use std::vec;
use std::vec::Vec;

const RELID: Relid = Relid(7);
const RING: GpadlId = GpadlId(0xe1e10);

fn offer() -> OfferChannel {
    OfferChannel {
        relid: RELID,
        class_id: class::HEARTBEAT,
        instance_id: class::SHUTDOWN,
        ..OfferChannel::blank()
    }
}

fn channel(version: VmbusVersion) -> Channel {
    Channel::new(offer(), version)
}

fn request(open_id: u32) -> OpenRequest {
    OpenRequest {
        open_id,
        target_vp: 2,
        downstream_page_offset: 4,
        user_data: [9; USER_DATA_SIZE],
    }
}

fn created(relid: Relid, gpadl: GpadlId, status: u32) -> HostMessage {
    HostMessage::GpadlCreated(GpadlCreated {
        relid,
        gpadl,
        status: Status(status),
        ..GpadlCreated::blank()
    })
}

fn torndown(gpadl: GpadlId) -> HostMessage {
    HostMessage::GpadlTorndown(GpadlTorndown {
        gpadl,
        ..GpadlTorndown::blank()
    })
}

fn opened(relid: Relid, open_id: u32, status: u32) -> HostMessage {
    HostMessage::OpenChannelResult(OpenChannelResult {
        relid,
        open_id,
        status: Status(status),
        ..OpenChannelResult::blank()
    })
}

fn moved(status: u32) -> HostMessage {
    HostMessage::ModifyChannelResponse(ModifyChannelResponse {
        relid: RELID,
        status: Status(status),
        ..ModifyChannelResponse::blank()
    })
}

fn rescind(relid: Relid) -> HostMessage {
    HostMessage::RescindChannelOffer(RescindChannelOffer {
        relid,
        ..RescindChannelOffer::blank()
    })
}

/// A channel in each state in which it has a relid, by name.
fn in_each_state() -> Vec<Channel> {
    let offered = channel(VmbusVersion::V6_0);
    let mut sharing = offered.clone();
    sharing.share_ring(RING).unwrap();
    let mut shared = sharing.clone();
    assert_eq!(
        shared.on_message(&created(RELID, RING, 0)),
        Action::RingShared
    );
    let mut opening = shared.clone();
    opening.open(&request(5)).unwrap();
    let mut open = opening.clone();
    assert_eq!(open.on_message(&opened(RELID, 5, 0)), Action::Opened);
    let mut moving = open.clone();
    moving.move_to(1).unwrap();
    let mut unsharing = shared.clone();
    unsharing.unshare_ring().unwrap();
    vec![offered, sharing, shared, opening, open, moving, unsharing]
}

#[test]
fn opened_moved_and_closed() {
    let mut c = channel(VmbusVersion::V5_3);
    c.share_ring(RING).unwrap();
    assert!(c.state().host_may_use_ring());
    assert_eq!(c.on_message(&created(RELID, RING, 0)), Action::RingShared);
    let message = c.open(&request(5)).unwrap();
    assert_eq!(
        (
            message.relid,
            message.open_id,
            message.ring_gpadl,
            message.target_vp
        ),
        (RELID, 5, RING, 2)
    );
    assert_eq!(message.downstream_page_offset, 4);
    assert_eq!(message.user_data, [9; USER_DATA_SIZE]);
    assert_eq!(c.on_message(&opened(RELID, 5, 0)), Action::Opened);
    let message = c.move_to(9).unwrap();
    assert_eq!((message.relid, message.target_vp), (RELID, 9));
    assert!(matches!(c.move_to(8), Err(MoveError::WrongState(_))));
    assert_eq!(c.on_message(&moved(0)), Action::Moved(Status::SUCCESS));
    assert!(c.move_to(8).is_ok());
    assert_eq!(c.close().unwrap().relid, RELID);
    assert!(c.state().host_may_use_ring(), "CLOSE is not answered");
    assert_eq!(c.on_message(&moved(0)), Action::Late);
    assert_eq!(c.unshare_ring().unwrap().gpadl, RING);
    assert_eq!(c.on_message(&torndown(RING)), Action::RingFree);
    assert_eq!(c.state(), State::Offered);
    assert!(!c.state().host_may_use_ring());
    c.share_ring(GpadlId(2)).unwrap();
}

#[test]
fn moving_by_version() {
    for (version, supported, answered) in [
        (VmbusVersion::V4_0, false, false),
        (VmbusVersion::V4_1, true, false),
        (VmbusVersion::V5_2, true, false),
        (VmbusVersion::V5_3, true, true),
        (VmbusVersion::V6_0, true, true),
    ] {
        let mut c = channel(version);
        c.share_ring(RING).unwrap();
        let _ = c.on_message(&created(RELID, RING, 0));
        c.open(&request(1)).unwrap();
        let _ = c.on_message(&opened(RELID, 1, 0));
        let result = c.move_to(1);
        assert_eq!(result.is_ok(), supported, "{version}");
        if !supported {
            assert_eq!(result, Err(MoveError::NotSupported(version)));
        }
        assert_eq!(
            c.state(),
            State::Open {
                ring: RING,
                moving: answered
            }
        );
    }
}

#[test]
fn refusals() {
    let failed = Status::UNSUCCESSFUL;
    let mut c = channel(VmbusVersion::V6_0);
    c.share_ring(RING).unwrap();
    assert_eq!(
        c.on_message(&created(RELID, RING, failed.0)),
        Action::RingRefused(failed)
    );
    assert_eq!(c.state(), State::Offered);
    c.share_ring(RING).unwrap();
    let _ = c.on_message(&created(RELID, RING, 0));
    c.open(&request(1)).unwrap();
    assert_eq!(
        c.on_message(&opened(RELID, 1, failed.0)),
        Action::OpenRefused(failed)
    );
    assert_eq!(c.state(), State::RingShared(RING));
    assert!(c.unshare_ring().is_ok());
}

/// Messages that do not fit the state are reported and change nothing; those about others are not ours.
#[test]
fn wrong_messages_change_nothing() {
    let other = Relid(8);
    for c in in_each_state() {
        let before = c.state();
        let check = |message: &HostMessage, expect: &[Action]| {
            let mut c = c.clone();
            let action = c.on_message(message);
            assert!(
                expect.contains(&action),
                "{before:?}: {message:?} gave {action:?}"
            );
            assert_eq!(c.state(), before, "{message:?}");
        };
        for message in [
            created(other, RING, 0),
            created(RELID, GpadlId(1), 0),
            torndown(GpadlId(1)),
            opened(other, 5, 0),
            rescind(other),
        ] {
            check(&message, &[Action::NotMine]);
        }
        check(
            &opened(RELID, 6, 0),
            &[Action::Unexpected(MessageType::OPEN_CHANNEL_RESULT)],
        );
        if !matches!(before, State::Sharing(_)) {
            check(
                &created(RELID, RING, 0),
                &[
                    Action::Unexpected(MessageType::GPADL_CREATED),
                    Action::NotMine,
                ],
            );
        }
        if !matches!(before, State::Unsharing(_)) {
            check(
                &torndown(RING),
                &[
                    Action::Unexpected(MessageType::GPADL_TORNDOWN),
                    Action::NotMine,
                ],
            );
        }
        if !matches!(before, State::Open { moving: true, .. }) {
            check(
                &moved(0),
                &[
                    Action::Unexpected(MessageType::MODIFY_CHANNEL_RESPONSE),
                    Action::Late,
                ],
            );
        }
    }
}

/// Each method works in the states it says and leaves the others alone.
#[test]
fn methods_by_state() {
    let table: Vec<[bool; 6]> = in_each_state()
        .into_iter()
        .map(|c| {
            let try_on = |f: &dyn Fn(&mut Channel) -> bool| {
                let mut c2 = c.clone();
                let done = f(&mut c2);
                assert!(done || c2.state() == c.state());
                done
            };
            [
                try_on(&|c| c.share_ring(RING).is_ok()),
                try_on(&|c| c.open(&request(1)).is_ok()),
                try_on(&|c| c.move_to(1).is_ok()),
                try_on(&|c| c.close().is_ok()),
                try_on(&|c| c.unshare_ring().is_ok()),
                try_on(&|c| c.release().is_ok()),
            ]
        })
        .collect();
    let (t, f) = (true, false);
    assert_eq!(
        table,
        [
            // share, open, move, close, unshare, release
            [t, f, f, f, f, t], // offered
            [f, f, f, f, f, f], // sharing
            [f, t, f, f, t, f], // ring shared
            [f, f, f, f, f, f], // opening
            [f, f, t, t, f, f], // open
            [f, f, f, t, f, f], // open, moving
            [f, f, f, f, f, f], // unsharing
        ]
    );
}

#[test]
fn rescind_in_every_state() {
    for mut c in in_each_state() {
        let was = c.state();
        assert_eq!(c.on_message(&rescind(RELID)), Action::Rescinded { was });
        assert!(!c.state().host_may_use_ring());
        assert_eq!(
            c.on_message(&rescind(RELID)),
            Action::Unexpected(MessageType::RESCIND_CHANNEL_OFFER),
            "twice"
        );
        // Answers that were on their way.
        for late in [created(RELID, RING, 0), opened(RELID, 5, 0), moved(0)] {
            assert_eq!(c.on_message(&late), Action::Late);
        }
        let expect = match was.ring() {
            Some(_) => Action::Late,
            None => Action::NotMine,
        };
        assert_eq!(c.on_message(&torndown(RING)), expect);
        assert_eq!(c.on_message(&torndown(GpadlId(1))), Action::NotMine);
        assert!(c.close().is_err() && c.unshare_ring().is_err() && c.share_ring(RING).is_err());
        c.not_posted();
        assert_eq!(c.state(), State::Rescinded, "a failed post does not revive");
        assert_eq!(c.relid(), Some(RELID), "still ours");
        assert_eq!(c.release().unwrap().relid, RELID);
        assert_eq!(c.relid(), None);
        assert!(c.release().is_err(), "once");
        // The relid may be another channel's now.
        for message in [rescind(RELID), created(RELID, RING, 0), opened(RELID, 5, 0)] {
            assert_eq!(c.on_message(&message), Action::NotMine);
        }
    }
}

#[test]
fn a_message_not_posted_is_undone() {
    let mut c = channel(VmbusVersion::V6_0);
    c.share_ring(RING).unwrap();
    c.not_posted();
    assert_eq!(c.state(), State::Offered);
    c.share_ring(RING).unwrap();
    let _ = c.on_message(&created(RELID, RING, 0));
    c.open(&request(1)).unwrap();
    c.not_posted();
    assert_eq!(c.state(), State::RingShared(RING));
    c.open(&request(2)).unwrap();
    let _ = c.on_message(&opened(RELID, 2, 0));
    c.close().unwrap();
    c.not_posted();
    assert!(matches!(c.state(), State::Open { .. }));
}

#[test]
fn hibernation() {
    for mut c in in_each_state() {
        c.detach();
        assert_eq!((c.state(), c.relid()), (State::Detached, None));
        assert!(!c.state().host_may_use_ring());
        assert_eq!(c.on_message(&rescind(RELID)), Action::NotMine);
        let mut again = offer();
        again.relid = Relid(99);
        c.offered_again(again).unwrap();
        assert_eq!(c.relid(), Some(Relid(99)));
        assert!(c.offered_again(again).is_err());
    }
}

#[test]
fn offers() {
    let policy = OfferPolicy {
        version: VmbusVersion::V6_0,
        isolated: false,
        confidential: false,
    };
    let judge = |offer: &OfferChannel, primary| judge_offer(offer, policy, false, primary);
    let with = |f: &dyn Fn(&mut OfferChannel)| {
        let mut o = offer();
        f(&mut o);
        o
    };
    for relid in [0, 2048, u32::MAX] {
        assert_eq!(
            judge(&with(&|o| o.relid = Relid(relid)), None),
            Err(OfferError::BadRelid(Relid(relid)))
        );
    }
    for relid in [1, 2047] {
        assert_eq!(
            judge(&with(&|o| o.relid = Relid(relid)), None),
            Ok(Verdict::Primary)
        );
    }
    assert_eq!(
        judge_offer(&offer(), policy, true, None),
        Err(OfferError::RelidInUse(RELID))
    );
    let sub = with(&|o| o.subchannel_index = 1);
    let open = State::Open {
        ring: RING,
        moving: false,
    };
    for (primary, as_primary, as_sub) in [
        (None, Ok(Verdict::Primary), Err(OfferError::NoPrimary)),
        (
            Some(State::Released),
            Ok(Verdict::Primary),
            Err(OfferError::NoPrimary),
        ),
        (
            Some(State::Rescinded),
            Ok(Verdict::AfterOlder),
            Err(OfferError::NoPrimary),
        ),
        (
            Some(State::Detached),
            Ok(Verdict::Again),
            Err(OfferError::NoPrimary),
        ),
        (
            Some(State::Offered),
            Err(OfferError::DuplicateDevice),
            Ok(Verdict::Subchannel),
        ),
        (
            Some(open),
            Err(OfferError::DuplicateDevice),
            Ok(Verdict::Subchannel),
        ),
    ] {
        assert_eq!(judge(&offer(), primary), as_primary, "{primary:?}");
        assert_eq!(judge(&sub, primary), as_sub, "{primary:?}");
    }
}

#[test]
fn offers_to_guests_that_do_not_trust_their_host() {
    let with = |f: &dyn Fn(&mut OfferChannel)| {
        let mut o = offer();
        f(&mut o);
        o
    };
    let policy = OfferPolicy {
        version: VmbusVersion::V6_0,
        isolated: true,
        confidential: false,
    };
    let judge = |o: &OfferChannel, policy| judge_offer(o, policy, false, None);
    assert_eq!(judge(&offer(), policy), Ok(Verdict::Primary));
    let kvp = with(&|o| o.class_id = class::KVP);
    assert_eq!(judge(&kvp, policy), Err(OfferError::NotAllowed));
    let sock = with(&|o| {
        o.class_id = class::KVP;
        o.flags = OfferFlags::TLNPI_PROVIDER;
    });
    assert_eq!(judge(&sock, policy), Ok(Verdict::Primary));

    let rings = with(&|o| o.flags = OfferFlags::CONFIDENTIAL_RING_BUFFER);
    let memory = with(&|o| o.flags = OfferFlags::CONFIDENTIAL_EXTERNAL_MEMORY);
    let confidential = OfferPolicy {
        confidential: true,
        ..policy
    };
    assert_eq!(
        judge(&memory, confidential),
        Err(OfferError::ConfidentialMemoryOnly)
    );
    assert_eq!(judge(&rings, confidential), Ok(Verdict::Primary));
    assert_eq!(
        judge(&rings, policy),
        Err(OfferError::ConfidentialUnsupported)
    );
    let old = OfferPolicy {
        version: VmbusVersion::V5_3,
        ..confidential
    };
    assert_eq!(judge(&rings, old), Err(OfferError::ConfidentialUnsupported));
}
