// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A scripted host against the client's connection.

use super::*;
use crate::msg::{
    AllOffersDelivered, GuestMessage, ModifyChannelResponse, OfferChannel, UnloadResponse,
    VersionResponse, VersionResponseMonitor,
};
use std::vec::Vec;

fn config() -> Config {
    Config {
        max_version: VmbusVersion::V6_0,
        target_vp: 3,
        vtl: 0,
        interrupt_page: 0x1000,
        monitor_pages: [0x2000, 0x3000],
        features: FeatureFlags::empty(),
        isolated: false,
    }
}

fn answer(supported: bool, connection_id: u32) -> HostMessage {
    HostMessage::VersionResponse(VersionAnswer {
        base: VersionResponse {
            version_supported: supported.into(),
            connection_id,
            ..VersionResponse::blank()
        },
        features: None,
        monitor: None,
    })
}

fn contact(post: &Post) -> InitiateContact {
    match GuestMessage::parse(post.message.as_bytes()) {
        Ok(GuestMessage::InitiateContact { base, .. }) => base,
        other => panic!("{other:?}"),
    }
}

/// A host that speaks one version: what is tried, where it is posted, what comes of it.
fn negotiate(config: Config, host: VmbusVersion) -> (Vec<(VmbusVersion, u32)>, Action, Connection) {
    let mut connection = Connection::new(config);
    let mut tried = Vec::new();
    let mut post = connection.start().unwrap();
    loop {
        let base = contact(&post);
        tried.push((base.version, post.connection_id.0));
        let action = connection.on_message(&answer(base.version == host, 0x1234));
        match action {
            Action::Post(next) => post = next,
            other => return (tried, other, connection),
        }
    }
}

#[test]
fn each_version_is_found_and_older_ones_are_tried_in_order() {
    for (i, host) in VmbusVersion::SUPPORTED.into_iter().enumerate() {
        let (tried, action, connection) = negotiate(config(), host);
        let Action::Connected(negotiated) = action else {
            panic!("{action:?}")
        };
        assert_eq!(negotiated.version, host);
        let new = host >= VmbusVersion::V5_0;
        assert_eq!(negotiated.connection_id.0, if new { 0x1234 } else { 1 });
        let expect: Vec<_> = VmbusVersion::SUPPORTED[..=i]
            .iter()
            .map(|v| (*v, if *v >= VmbusVersion::V5_0 { 4 } else { 1 }))
            .collect();
        assert_eq!(tried, expect);
        assert_eq!(connection.negotiated(), Some(negotiated));
    }
}

#[test]
fn max_version_and_isolation_narrow_what_is_tried() {
    let (tried, action, _) = negotiate(
        Config {
            max_version: VmbusVersion::V5_2,
            isolated: true,
            ..config()
        },
        VmbusVersion::V4_0,
    );
    assert_eq!(tried, [(VmbusVersion::V5_2, 4)]);
    assert!(matches!(
        action,
        Action::Failed(ConnectError::NoCommonVersion)
    ));
    let mut none = Connection::new(Config {
        max_version: VmbusVersion::V3_0,
        ..config()
    });
    assert_eq!(none.start().err(), Some(StartError::NoVersion));
    assert_eq!(none.state(), State::Disconnected);
}

#[test]
fn failure_leaves_a_connection_that_can_be_started_again() {
    let (_, action, mut connection) = negotiate(config(), VmbusVersion::V3_0);
    assert!(matches!(
        action,
        Action::Failed(ConnectError::NoCommonVersion)
    ));
    assert!(!connection.host_may_use_memory());
    assert!(connection.start().is_ok());
}

#[test]
fn third_field_by_version() {
    let mut connection = Connection::new(Config {
        features: FeatureFlags::MODIFY_CONNECTION,
        vtl: 1,
        ..config()
    });
    let post = connection.start().unwrap();
    let base = contact(&post);
    assert_eq!(base.interrupt_page_or_target, 0x4_0000_0102);
    assert_eq!(base.features(), FeatureFlags::MODIFY_CONNECTION);
    assert_eq!((base.monitor_page1, base.monitor_page2), (0x2000, 0x3000));
    assert_eq!(base.target_vp, 3);
    let Action::Post(post) = connection.on_message(&answer(false, 0)) else {
        panic!()
    };
    assert_eq!(
        contact(&post).interrupt_page_or_target,
        0x102,
        "5.3: no features"
    );
    let mut old = Connection::new(Config {
        max_version: VmbusVersion::V4_1,
        ..config()
    });
    let base = contact(&old.start().unwrap());
    assert_eq!(base.interrupt_page(), Some(0x1000));
    assert_eq!(base.target_info(), None);
}

/// A host before 5.0 has no connection 4, so posting fails rather than an answer coming.
#[test]
fn connection_4_missing() {
    let mut connection = Connection::new(config());
    let mut post = connection.start().unwrap();
    let mut tried = 1;
    while post.connection_id.0 == 4 {
        let Action::Post(next) = connection.on_post_failed(HvStatus::INVALID_CONNECTION_ID) else {
            panic!()
        };
        post = next;
        tried += 1;
    }
    assert_eq!(tried, 6);
    assert_eq!(contact(&post).version, VmbusVersion::V4_1);
    assert!(matches!(
        connection.on_post_failed(HvStatus::ACCESS_DENIED),
        Action::Failed(ConnectError::Post(HvStatus::ACCESS_DENIED))
    ));
    assert!(matches!(
        connection.on_post_failed(HvStatus::ACCESS_DENIED),
        Action::Unexpected(_)
    ));
}

#[test]
fn redirection_is_tried_first_in_vtl_2() {
    let mut connection = Connection::new(Config { vtl: 2, ..config() });
    let post = connection.start().unwrap();
    assert_eq!(post.connection_id.0, 0x80_0074);
    let Action::Post(post) = connection.on_post_failed(HvStatus::INVALID_CONNECTION_ID) else {
        panic!()
    };
    assert_eq!(post.connection_id.0, 4);
    assert_eq!(contact(&post).version, VmbusVersion::V6_0);
}

#[test]
fn features_are_granted_only_if_asked_for() {
    let asked = FeatureFlags::MODIFY_CONNECTION | FeatureFlags::SERVER_SPECIFIED_MONITOR_PAGES;
    let full = |connection_id| {
        let HostMessage::VersionResponse(mut a) = answer(true, connection_id) else {
            panic!()
        };
        a.features =
            Some(asked | FeatureFlags::PAUSE_RESUME | FeatureFlags::from_bits_retain(1 << 31));
        a.monitor = Some(VersionResponseMonitor {
            padding: 0,
            parent_to_child: [0, 0],
            child_to_parent: [0x5000, 1],
        });
        HostMessage::VersionResponse(a)
    };
    let connect = |features, max_version| {
        let mut connection = Connection::new(Config {
            features,
            max_version,
            ..config()
        });
        connection.start().unwrap();
        match connection.on_message(&full(9)) {
            Action::Connected(n) => n,
            other => panic!("{other:?}"),
        }
    };
    let n = connect(asked, VmbusVersion::V6_0);
    assert_eq!(n.features, asked);
    assert_eq!(n.host_monitor_pages, Some([0, 0x1_0000_5000]));
    let n = connect(FeatureFlags::empty(), VmbusVersion::V6_0);
    assert_eq!(
        (n.features, n.host_monitor_pages),
        (FeatureFlags::empty(), None)
    );
    let n = connect(asked, VmbusVersion::V5_3);
    assert_eq!(
        (n.features, n.host_monitor_pages),
        (FeatureFlags::empty(), None)
    );
}

#[test]
fn attack_version_responses() {
    let start = || {
        let mut connection = Connection::new(config());
        connection.start().unwrap();
        connection
    };
    for id in [0, 0x100_0000, u32::MAX] {
        let mut connection = start();
        assert!(matches!(
            connection.on_message(&answer(true, id)),
            Action::Failed(ConnectError::BadConnectionId { connection_id }) if connection_id == id
        ));
    }
    let mut refused = answer(true, 4);
    if let HostMessage::VersionResponse(a) = &mut refused {
        a.base.connection_state = ConnectionState::FAILED_LOW_RESOURCES;
    }
    let mut connection = start();
    assert!(matches!(
        connection.on_message(&refused),
        Action::Failed(ConnectError::Refused { .. })
    ));
    // A second answer, and one nobody asked for.
    assert!(matches!(
        connection.on_message(&answer(true, 4)),
        Action::Unexpected(MessageType::VERSION_RESPONSE)
    ));
    let mut connection = start();
    assert!(matches!(
        connection.on_message(&answer(true, 5)),
        Action::Connected(_)
    ));
    let before = connection.state();
    assert!(matches!(
        connection.on_message(&answer(true, 6)),
        Action::Unexpected(MessageType::VERSION_RESPONSE)
    ));
    assert_eq!(connection.state(), before);
}

#[test]
fn offers_and_unload() {
    let offer = HostMessage::OfferChannel(OfferChannel::blank());
    let all = HostMessage::AllOffersDelivered(AllOffersDelivered::blank());
    let unloaded = HostMessage::UnloadResponse(UnloadResponse::blank());
    let mut connection = Connection::new(config());
    assert!(connection.request_offers().is_err() && connection.unload().is_err());
    assert!(matches!(
        connection.on_message(&offer),
        Action::Unexpected(_)
    ));
    connection.start().unwrap();
    assert_eq!(connection.start().err(), Some(StartError::WrongState));
    assert!(connection.request_offers().is_err() && connection.unload().is_err());
    let _ = connection.on_message(&answer(true, 5));

    assert!(
        matches!(connection.on_message(&offer), Action::Unexpected(_)),
        "not asked for"
    );
    assert!(matches!(connection.on_message(&all), Action::Unexpected(_)));
    let post = connection.request_offers().unwrap();
    assert_eq!(post.connection_id.0, 5);
    assert_eq!(post.message.message_type(), MessageType::REQUEST_OFFERS);
    assert!(connection.request_offers().is_err(), "once");
    assert!(matches!(connection.on_message(&offer), Action::Channel));
    assert!(matches!(
        connection.on_message(&all),
        Action::OffersDelivered
    ));
    assert!(
        matches!(connection.on_message(&all), Action::Unexpected(_)),
        "twice"
    );
    assert!(
        matches!(connection.on_message(&offer), Action::Channel),
        "hot-added"
    );
    assert!(matches!(
        connection.on_message(&unloaded),
        Action::Unexpected(_)
    ));

    let post = connection.unload().unwrap();
    assert_eq!(post.message.message_type(), MessageType::UNLOAD);
    assert!(connection.unload().is_err());
    assert!(connection.host_may_use_memory());
    assert!(matches!(connection.on_message(&offer), Action::Late));
    assert!(matches!(connection.on_message(&unloaded), Action::Unloaded));
    assert!(matches!(
        connection.on_message(&unloaded),
        Action::Unexpected(_)
    ));
    assert!(!connection.host_may_use_memory());
    let post = connection.restart(VmbusVersion::V5_1).unwrap();
    assert_eq!(contact(&post).version, VmbusVersion::V5_1);
    assert!(
        matches!(
            connection.on_message(&answer(false, 0)),
            Action::Failed(ConnectError::NoCommonVersion)
        ),
        "no other version is tried"
    );
}

#[test]
fn messages_newer_than_the_version_are_reported() {
    let response = HostMessage::ModifyChannelResponse(ModifyChannelResponse::blank());
    for (version, expect) in [(VmbusVersion::V5_2, false), (VmbusVersion::V5_3, true)] {
        let mut connection = Connection::new(Config {
            max_version: version,
            ..config()
        });
        connection.start().unwrap();
        let _ = connection.on_message(&answer(true, 5));
        assert_eq!(
            matches!(connection.on_message(&response), Action::Channel),
            expect
        );
    }
}
