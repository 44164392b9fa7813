// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A scripted host talks to the guest's services; malformed messages are named after the attack.

use super::negotiate::{self, MAX_VERSIONS};
use super::shutdown::{ShutdownFlags, ShutdownMessage, ShutdownRequest};
use super::timesync::{
    ClockSample, HostTime, Now, RefTime, SampleFlags, SampleV1, SampleV4, UnixNanos,
};
use super::*;
use zerocopy::little_endian::U64;

const HB: Negotiated = Negotiated {
    framework: FRAMEWORK_3_0,
    message: heartbeat::VERSION_3_0,
};

/// The host of the tests: one packet that goes out, is turned into its answer, and comes back.
struct Host {
    buf: [u8; 4096],
    len: usize,
}

impl Host {
    fn propose(framework: &[IcVersion], message: &[IcVersion]) -> Self {
        let mut buf = [0; 4096];
        let len = negotiate::propose(&mut buf, 7, framework, message).unwrap();
        Self { buf, len }
    }

    fn ask(versions: Negotiated, message_type: MessageType, body: &[u8]) -> Self {
        let mut buf = [0; 4096];
        let len = write_request(&mut buf, versions, message_type, 9, body).unwrap();
        Self { buf, len }
    }

    fn packet(&mut self) -> &mut [u8] {
        &mut self.buf[..self.len]
    }

    fn header(&mut self) -> &mut IcHeader {
        split_mut(&mut self.buf[..self.len]).unwrap().0
    }

    fn answer(&mut self) -> (IcHeader, &[u8]) {
        let (h, b) = parse_response(&self.buf[..self.len]).unwrap();
        (*h, b)
    }
}

fn heartbeat_guest() -> heartbeat::Guest {
    let mut guest = heartbeat::Guest::new();
    let mut host = Host::propose(FRAMEWORK_VERSIONS, heartbeat::VERSIONS);
    assert_eq!(
        guest.on_packet(host.packet()).event,
        Ok(heartbeat::Event::Negotiated(HB))
    );
    guest
}

fn refused<E: core::fmt::Debug + PartialEq>(outcome: Outcome<E>, host: &mut Host, error: IcError) {
    assert_eq!(
        outcome,
        Outcome {
            reply: true,
            event: Err(error)
        }
    );
    let (header, _) = host.answer();
    assert_eq!(header.status, Status::FAIL);
    assert_eq!(header.flags, IcFlags::ANSWER);
}

#[test]
fn negotiation_table() {
    let v = IcVersion::new;
    let (f1, f3) = (FRAMEWORK_1_0, FRAMEWORK_3_0);
    let ok = |framework, message| Ok(Negotiated { framework, message });
    type Row<'a> = (
        &'a [IcVersion],
        &'a [IcVersion],
        Result<Negotiated, IcError>,
    );
    let table: &[Row<'_>] = &[
        // Windows Server 2008 … current hosts: the order of their lists does not matter.
        (&[f1], &[v(1, 0)], ok(f1, v(1, 0))),
        (
            &[f1, f3],
            &[v(1, 0), v(3, 0), v(3, 1), v(3, 2)],
            ok(f3, v(3, 2)),
        ),
        (
            &[f3, f1],
            &[v(3, 2), v(3, 1), v(3, 0), v(1, 0)],
            ok(f3, v(3, 2)),
        ),
        (&[f3], &[v(3, 0), v(9, 9)], ok(f3, v(3, 0))),
        (&[v(2, 0)], &[v(3, 0)], Err(IcError::NoFrameworkVersion)),
        (&[f3], &[v(4, 0)], Err(IcError::NoMessageVersion)),
        // The minor number counts too.
        (&[f3], &[v(3, 3)], Err(IcError::NoMessageVersion)),
        (&[], &[], Err(IcError::NoFrameworkVersion)),
        (&[f3], &[], Err(IcError::NoMessageVersion)),
        (&[], &[v(3, 2)], Err(IcError::NoFrameworkVersion)),
    ];
    for (framework, message, want) in table {
        let mut host = Host::propose(framework, message);
        let len = host.len;
        let mut guest = shutdown::Guest::new(false);
        let outcome = guest.on_packet(host.packet());
        assert!(outcome.reply);
        assert_eq!(
            outcome.event,
            want.map(shutdown::Event::Negotiated),
            "{framework:?} {message:?}"
        );
        assert_eq!(host.len, len);
        let (header, body) = host.answer();
        assert_eq!(header.transaction_id, 7);
        assert_eq!(header.message_type, MessageType::NEGOTIATE);
        let counts = negotiate::NegotiateHeader::read_from_prefix(body)
            .unwrap()
            .0;
        let count = u16::from(want.is_ok());
        assert_eq!(
            (counts.framework_count.get(), counts.message_count.get()),
            (count, count)
        );
        let got = negotiate::parse_answer(host.packet(), framework, message);
        match want {
            Ok(n) => {
                assert_eq!(got, Ok(*n));
                assert_eq!(header.message_size.get(), 16);
            }
            Err(_) => assert_eq!(got, Err(IcError::NoMessageVersion)),
        }
    }
}

#[test]
fn negotiation_with_full_lists() {
    let many = [IcVersion::new(8, 8); MAX_VERSIONS as usize];
    let mut list = many;
    list[99] = heartbeat::VERSION_1_0;
    let mut fw = many;
    fw[99] = FRAMEWORK_1_0;
    let mut host = Host::propose(&fw, &list);
    let mut guest = heartbeat::Guest::new();
    assert_eq!(
        guest.on_packet(host.packet()).event,
        Ok(heartbeat::Event::Negotiated(Negotiated {
            framework: FRAMEWORK_1_0,
            message: heartbeat::VERSION_1_0
        }))
    );
    let too_many = [IcVersion::new(8, 8); MAX_VERSIONS as usize + 1];
    assert_eq!(
        negotiate::propose(&mut [0; 4096], 0, &too_many, &[]),
        Err(IcError::TooManyVersions {
            framework: 101,
            message: 0
        })
    );
    assert_eq!(
        negotiate::propose(&mut [0; 43], 0, &[FRAMEWORK_3_0], &[FRAMEWORK_3_0]),
        Err(IcError::BufferTooSmall { need: 44 })
    );
}

/// Counts that the packet does not hold would make the guest read, and answer into, what lies behind it.
#[test]
fn attack_version_counts_beyond_packet() {
    for (framework, message) in [(2u16, 1u16), (1, 2), (100, 100), (0, 3), (3, 0)] {
        let mut host = Host::propose(&[FRAMEWORK_3_0], &[heartbeat::VERSION_3_0]);
        host.buf[28..30].copy_from_slice(&framework.to_le_bytes());
        host.buf[30..32].copy_from_slice(&message.to_le_bytes());
        let mut guest = heartbeat::Guest::new();
        let outcome = guest.on_packet(host.packet());
        refused(
            outcome,
            &mut host,
            IcError::VersionListTruncated { framework, message },
        );
    }
}

#[test]
fn attack_version_counts_above_limit() {
    for (framework, message) in [(101u16, 1u16), (1, 101), (u16::MAX, u16::MAX)] {
        let mut host = Host::propose(&[FRAMEWORK_3_0], &[heartbeat::VERSION_3_0]);
        host.len = 4096;
        host.buf[28..30].copy_from_slice(&framework.to_le_bytes());
        host.buf[30..32].copy_from_slice(&message.to_le_bytes());
        let mut guest = heartbeat::Guest::new();
        let outcome = guest.on_packet(host.packet());
        refused(
            outcome,
            &mut host,
            IcError::TooManyVersions { framework, message },
        );
    }
}

#[test]
fn attack_every_truncation_of_a_proposal() {
    for len in 0..44 {
        let mut host = Host::propose(&[FRAMEWORK_3_0], &[heartbeat::VERSION_3_0]);
        host.buf[4..8].copy_from_slice(&0u32.to_le_bytes());
        host.len = len;
        let outcome = heartbeat::Guest::new().on_packet(host.packet());
        assert_eq!(outcome.reply, len >= HEADERS_SIZE, "{len}");
        match outcome.event {
            Err(IcError::TooShort { need, have }) => {
                assert_eq!(have, len);
                assert_eq!(need, if len < HEADERS_SIZE { 28 } else { 36 });
                assert!(len < 36);
            }
            Err(IcError::VersionListTruncated { .. }) => assert!(len >= 36),
            other => panic!("{len}: {other:?}"),
        }
    }
}

#[test]
fn attack_pipe_header_claims_more_than_packet() {
    for claimed in [37u32, 4096, u32::MAX] {
        let mut host = Host::propose(&[FRAMEWORK_3_0], &[heartbeat::VERSION_3_0]);
        host.buf[4..8].copy_from_slice(&claimed.to_le_bytes());
        let before = host.buf;
        let outcome = heartbeat::Guest::new().on_packet(host.packet());
        assert_eq!(
            outcome,
            Outcome {
                reply: false,
                event: Err(IcError::PipeLength { claimed, have: 36 })
            }
        );
        assert_eq!(host.buf, before);
    }
}

/// A response that is answered would bounce for ever between the two sides.
#[test]
fn attack_response_as_request() {
    let mut guest = heartbeat_guest();
    for flags in [IcFlags::RESPONSE, IcFlags::ANSWER, IcFlags::from_bits(0xff)] {
        let mut host = Host::ask(HB, MessageType::HEARTBEAT, &[0; 40]);
        host.header().flags = flags;
        let before = host.buf;
        assert_eq!(
            guest.on_packet(host.packet()),
            Outcome {
                reply: false,
                event: Err(IcError::Direction(flags))
            }
        );
        assert_eq!(host.buf, before);
    }
}

#[test]
fn attack_message_of_another_service() {
    let mut guest = heartbeat_guest();
    for t in [2, 3, 4, 5, 6, 7, 8, u16::MAX] {
        let mut host = Host::ask(HB, MessageType::new(t), &[0; 2060]);
        let outcome = guest.on_packet(host.packet());
        refused(
            outcome,
            &mut host,
            IcError::UnknownType(MessageType::new(t)),
        );
    }
}

#[test]
fn attack_message_before_negotiation() {
    let mut host = Host::ask(HB, MessageType::HEARTBEAT, &[0; 40]);
    let outcome = heartbeat::Guest::new().on_packet(host.packet());
    refused(outcome, &mut host, IcError::NotNegotiated);

    let mut host = Host::ask(HB, MessageType::SHUTDOWN, &[0; 2060]);
    let outcome = shutdown::Guest::new(true).on_packet(host.packet());
    refused(outcome, &mut host, IcError::NotNegotiated);

    let mut host = Host::ask(HB, MessageType::TIMESYNC, &[0; 25]);
    let outcome = timesync::Guest::new().on_packet(host.packet(), now(0), true);
    refused(outcome, &mut host, IcError::NotNegotiated);
}

/// A proposal that fails must not undo what was agreed, nor agree on half of it.
#[test]
fn failed_renegotiation_keeps_versions() {
    let mut guest = heartbeat_guest();
    let mut host = Host::propose(&[FRAMEWORK_3_0], &[IcVersion::new(9, 0)]);
    let outcome = guest.on_packet(host.packet());
    refused(outcome, &mut host, IcError::NoMessageVersion);
    let mut host = Host::ask(HB, MessageType::HEARTBEAT, &[0; 40]);
    assert_eq!(
        guest.on_packet(host.packet()).event,
        Ok(heartbeat::Event::Beat(0))
    );
}

#[test]
fn host_refuses_answers_that_were_not_proposed() {
    let mut host = Host::propose(&[FRAMEWORK_3_0], &[heartbeat::VERSION_3_0]);
    assert_eq!(
        negotiate::parse_answer(host.packet(), FRAMEWORK_VERSIONS, heartbeat::VERSIONS),
        Err(IcError::Direction(IcFlags::ASK))
    );
    let _ = heartbeat::Guest::new().on_packet(host.packet());
    assert_eq!(
        negotiate::parse_answer(host.packet(), FRAMEWORK_VERSIONS, &[IcVersion::new(1, 0)]),
        Err(IcError::NotProposed(HB))
    );
    host.buf[28..32].copy_from_slice(&[2, 0, 0, 0]);
    assert_eq!(
        negotiate::parse_answer(host.packet(), FRAMEWORK_VERSIONS, heartbeat::VERSIONS),
        Err(IcError::NoMessageVersion)
    );
    host.header().message_type = MessageType::HEARTBEAT;
    assert_eq!(
        negotiate::parse_answer(host.packet(), FRAMEWORK_VERSIONS, heartbeat::VERSIONS),
        Err(IcError::UnknownType(MessageType::HEARTBEAT))
    );
}

#[test]
fn heartbeat_answers_with_next_number() {
    let mut guest = heartbeat_guest();
    for sequence in [0, 1, 41, u64::MAX] {
        let mut message = heartbeat::HeartbeatMessage::request(sequence);
        message.reserved[6].set(0x5a5a_5a5a);
        let mut host = Host::ask(HB, MessageType::HEARTBEAT, message.as_bytes());
        let outcome = guest.on_packet(host.packet());
        assert!(outcome.reply);
        assert_eq!(outcome.event, Ok(heartbeat::Event::Beat(sequence)));
        let (header, body) = host.answer();
        assert_eq!((header.status, header.transaction_id), (Status::OK, 9));
        assert_eq!(
            heartbeat::check_answer(body, sequence),
            Ok(Some(heartbeat::ApplicationState::UNKNOWN))
        );
        // Nothing but the number changes.
        message.sequence.set(sequence.wrapping_add(1));
        assert_eq!(body, message.as_bytes());
    }
}

#[test]
fn heartbeat_without_reserved_part() {
    let mut guest = heartbeat_guest();
    for len in 0..12 {
        let mut host = Host::ask(HB, MessageType::HEARTBEAT, &[0xff; 12][..len]);
        let outcome = guest.on_packet(host.packet());
        if len < 8 {
            let error = IcError::TooShort {
                need: 36,
                have: 28 + len,
            };
            refused(outcome, &mut host, error);
        } else {
            assert_eq!(outcome.event, Ok(heartbeat::Event::Beat(u64::MAX)));
            assert_eq!(
                heartbeat::check_answer(host.answer().1, u64::MAX),
                Ok(Some(heartbeat::ApplicationState::UNKNOWN))
            );
        }
    }
}

#[test]
fn host_checks_the_heartbeat_number() {
    assert_eq!(heartbeat::check_answer(&5u64.to_le_bytes(), 5), Ok(None));
    assert_eq!(
        heartbeat::check_answer(&[6, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], 5),
        Ok(Some(heartbeat::ApplicationState::HEALTHY))
    );
    assert_eq!(
        heartbeat::check_answer(&[0; 7], 0),
        Err(IcError::TooShort { need: 36, have: 35 })
    );
}

fn shutdown_guest(can_hibernate: bool) -> shutdown::Guest {
    let mut guest = shutdown::Guest::new(can_hibernate);
    let mut host = Host::propose(FRAMEWORK_VERSIONS, shutdown::VERSIONS);
    assert!(guest.on_packet(host.packet()).event.is_ok());
    guest
}

#[test]
fn shutdown_flags_table() {
    use shutdown::Action::*;
    let f = ShutdownFlags::from_bits;
    let table = [
        (0, false, PowerOff, Status::OK),
        (1, false, PowerOff, Status::OK),
        (2, false, Reboot, Status::OK),
        (3, false, Reboot, Status::OK),
        (4, true, Hibernate, Status::OK),
        (5, true, Hibernate, Status::OK),
        (4, false, RefuseHibernate, Status::FAIL),
        (5, false, RefuseHibernate, Status::FAIL),
        (6, true, RefuseFlags(f(6)), Status::FAIL),
        (7, true, RefuseFlags(f(7)), Status::FAIL),
        (8, true, RefuseFlags(f(8)), Status::FAIL),
        (0x8000_0000, true, RefuseFlags(f(0x8000_0000)), Status::FAIL),
        (u32::MAX, true, RefuseFlags(f(u32::MAX)), Status::FAIL),
    ];
    for (flags, can_hibernate, action, status) in table {
        let message = ShutdownMessage::request(f(flags), 30, b"maintenance");
        let mut host = Host::ask(HB, MessageType::SHUTDOWN, message.as_bytes());
        let outcome = shutdown_guest(can_hibernate).on_packet(host.packet());
        assert!(outcome.reply);
        assert_eq!(outcome.event, Ok(shutdown::Event::Request(action)));
        let (header, body) = host.answer();
        assert_eq!(header.status, status, "{flags:#x}");
        assert_eq!(body, message.as_bytes());
    }
}

#[test]
fn shutdown_text_is_optional_and_bounded() {
    let message = ShutdownMessage::request(ShutdownFlags::RESTART, 0, &[b'x'; 5000]);
    assert_eq!(message.display_message[2046..], [b'x', 0]);
    for len in 0..size_of::<ShutdownMessage>() {
        let mut host = Host::ask(HB, MessageType::SHUTDOWN, &message.as_bytes()[..len]);
        let outcome = shutdown_guest(false).on_packet(host.packet());
        if len < size_of::<ShutdownRequest>() {
            let error = IcError::TooShort {
                need: 40,
                have: 28 + len,
            };
            refused(outcome, &mut host, error);
        } else {
            assert_eq!(
                outcome.event,
                Ok(shutdown::Event::Request(shutdown::Action::Reboot))
            );
        }
    }
}

/// 22 November 2026, 05:22:38 UTC.
const T: u64 = 1_795_324_958_000_000_000;
const SECOND: u64 = 1_000_000_000;

fn now(wall: u64) -> Now {
    Now {
        reference: RefTime(1_000_000),
        wall,
    }
}

fn timesync_guest(version: IcVersion) -> timesync::Guest {
    let mut guest = timesync::Guest::new();
    let mut host = Host::propose(FRAMEWORK_VERSIONS, &[version]);
    assert!(guest.on_packet(host.packet(), now(0), false).event.is_ok());
    guest
}

fn v4(host: HostTime, reference: u64, flags: SampleFlags) -> SampleV4 {
    SampleV4 {
        parent_time: U64::new(host.0),
        vm_reference_time: U64::new(reference),
        flags,
        leap_indicator: 0,
        stratum: 0,
        reserved: [0; 3],
    }
}

#[test]
fn host_time_and_unix_time() {
    assert_eq!(HostTime::from_unix(0), timesync::UNIX_EPOCH);
    assert_eq!(HostTime::from_unix(T).to_unix(), UnixNanos::new(T));
    assert_eq!(HostTime(timesync::UNIX_EPOCH.0 - 1).to_unix(), None);
    assert_eq!(HostTime(0).to_unix(), None);
    assert_eq!(HostTime(u64::MAX).to_unix(), None);
    // The year 2232, just inside and just outside of what Linux takes.
    let last = 8_277_292_036 * SECOND - 100;
    assert_eq!(
        HostTime::from_unix(last).to_unix().map(UnixNanos::get),
        Some(last)
    );
    assert_eq!(HostTime(HostTime::from_unix(last).0 + 1).to_unix(), None);
    assert!(HostTime::from_unix(u64::MAX).to_unix().is_none());
}

#[test]
fn sample_ages_with_the_reference_time() {
    let sample = ClockSample::new(HostTime::from_unix(T), RefTime(5000));
    let at = |r| sample.at(RefTime(r)).map(UnixNanos::get);
    assert_eq!(at(5000), Some(T));
    assert_eq!(at(5001), Some(T + 100));
    assert_eq!(at(5000 + 10_000_000), Some(T + SECOND));
    // Taken in the future: counts as taken now.
    assert_eq!(at(4999), Some(T));
    assert_eq!(at(0), Some(T));
    assert_eq!(at(u64::MAX), None);
    assert!(sample.is_fresh(RefTime(0)));
    assert!(sample.is_fresh(RefTime(5000 + timesync::FRESH_TICKS)));
    assert!(!sample.is_fresh(RefTime(5001 + timesync::FRESH_TICKS)));
}

#[test]
fn timesync_table() {
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Want {
        Step,
        Note,
    }
    use Want::*;
    let (sync, sample, probe) = (SampleFlags::SYNC, SampleFlags::SAMPLE, SampleFlags::PROBE);
    let day = 86_400 * SECOND;
    let table = [
        // An order, whatever the distance: hours ahead, decades behind, already right.
        (sync, T, false, Step),
        (sync, T - 5 * 3600 * SECOND, false, Step),
        (sync, T + 5 * 3600 * SECOND, false, Step),
        (sync, 0, false, Step),
        (sync, T + 20_000 * day, false, Step),
        (SampleFlags::from_bits(3), T, false, Step),
        (SampleFlags::from_bits(0xfd), T, false, Step),
        // No order: noted, even when far off.
        (sample, T, false, Note),
        (sample, T - 5 * 3600 * SECOND, false, Note),
        (probe, T - 5 * 3600 * SECOND, false, Note),
        (SampleFlags::from_bits(0xfe), 0, false, Note),
        // timesync_implicit: 5 s behind or more, never ahead.
        (sample, T - 5 * SECOND, true, Step),
        (sample, T - 5 * SECOND + 1, true, Note),
        (sample, T, true, Note),
        (sample, T + 5 * 3600 * SECOND, true, Note),
        (probe, T - 5 * SECOND, true, Step),
    ];
    for (flags, wall, implicit, want) in table {
        let host_time = HostTime::from_unix(T);
        let clock = ClockSample::new(host_time, RefTime(1_000_000));
        let action = match want {
            Step => timesync::Action::Step(clock),
            Note => timesync::Action::Note(clock),
        };
        let event = Ok(timesync::Event::Sample(action));

        let message = v4(host_time, 1_000_000, flags);
        let mut host = Host::ask(HB, MessageType::TIMESYNC, message.as_bytes());
        let outcome =
            timesync_guest(timesync::VERSION_4_0).on_packet(host.packet(), now(wall), implicit);
        assert!(outcome.reply);
        assert_eq!(outcome.event, event, "{flags:?} {wall} {implicit}");
        let (header, body) = host.answer();
        assert_eq!(header.status, Status::OK);
        assert_eq!(body, message.as_bytes());

        let message = SampleV1 {
            parent_time: U64::new(host_time.0),
            child_time: U64::new(u64::MAX),
            round_trip_time: U64::new(u64::MAX),
            flags,
        };
        for version in [timesync::VERSION_1_0, timesync::VERSION_3_0] {
            let mut host = Host::ask(HB, MessageType::TIMESYNC, message.as_bytes());
            let outcome = timesync_guest(version).on_packet(host.packet(), now(wall), implicit);
            assert_eq!(outcome.event, event);
        }
    }
}

/// The way from the host to the guest must not make the clock late.
#[test]
fn delayed_sample_is_corrected_before_the_implicit_rule() {
    let reference = RefTime(60_000_000);
    let late = v4(HostTime::from_unix(T), 0, SampleFlags::SAMPLE);
    let mut host = Host::ask(HB, MessageType::TIMESYNC, late.as_bytes());
    let n = Now { reference, wall: T };
    let outcome = timesync_guest(timesync::VERSION_4_0).on_packet(host.packet(), n, true);
    let Ok(timesync::Event::Sample(timesync::Action::Step(sample))) = outcome.event else {
        panic!("{outcome:?}");
    };
    assert_eq!(
        sample.at(reference).map(UnixNanos::get),
        Some(T + 6 * SECOND)
    );
}

#[test]
fn attack_times_out_of_range() {
    let ignored = Ok(timesync::Event::Sample(timesync::Action::Ignore(
        timesync::IgnoreReason::OutOfRange,
    )));
    for host_time in [
        0,
        timesync::UNIX_EPOCH.0 - 1_000_001,
        HostTime::from_unix(8_277_292_036 * SECOND).0,
        i64::MAX as u64,
        u64::MAX - 999_999,
        u64::MAX,
    ] {
        for flags in [SampleFlags::SYNC, SampleFlags::SAMPLE] {
            let message = v4(HostTime(host_time), 0, flags);
            let mut host = Host::ask(HB, MessageType::TIMESYNC, message.as_bytes());
            let outcome =
                timesync_guest(timesync::VERSION_4_0).on_packet(host.packet(), now(0), true);
            assert_eq!(outcome.event, ignored, "{host_time}");
            assert_eq!(host.answer().0.status, Status::FAIL);
        }
    }
}

#[test]
fn attack_truncated_samples() {
    for (version, size) in [
        (timesync::VERSION_4_0, 22),
        (timesync::VERSION_3_0, 25),
        (timesync::VERSION_1_0, 25),
    ] {
        for len in 0..size {
            let mut host = Host::ask(HB, MessageType::TIMESYNC, &[0xff; 25][..len]);
            let outcome = timesync_guest(version).on_packet(host.packet(), now(0), true);
            let error = IcError::TooShort {
                need: 28 + size,
                have: 28 + len,
            };
            refused(outcome, &mut host, error);
        }
    }
}

/// Whatever the bytes, at whatever address: no panic, an answer only to requests, and nothing written behind the packet.
#[test]
fn attack_random_packets() {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    for _ in 0..20_000 {
        let mut buf = [0u8; 160];
        for chunk in buf.chunks_mut(8) {
            chunk.copy_from_slice(&next().to_le_bytes());
        }
        let (start, len) = (next() as usize % 8, next() as usize % 150);
        // Most random headers would be refused at once: make the first checks pass in most packets.
        if next() % 8 != 0 {
            buf[start + 4..start + 8]
                .copy_from_slice(&(len.saturating_sub(8) as u32).to_le_bytes());
            buf[start + 12..start + 14].copy_from_slice(&[[0, 1, 3, 4][next() as usize % 4], 0]);
            buf[start + 25] &= 3;
            if next() % 2 == 0 {
                buf[start + 28..start + 32].copy_from_slice(&[
                    (next() % 9) as u8,
                    0,
                    (next() % 9) as u8,
                    0,
                ]);
            }
        }
        let before = buf;
        let packet = &mut buf[start..start + len];
        let replied = match next() % 3 {
            0 => heartbeat_guest().on_packet(packet).reply,
            1 => shutdown_guest(true).on_packet(packet).reply,
            _ => {
                timesync_guest(timesync::VERSION_4_0)
                    .on_packet(packet, now(T), true)
                    .reply
            }
        };
        if replied {
            let (header, _) = parse_response(&buf[start..start + len]).unwrap();
            assert_eq!(header.flags, IcFlags::ANSWER);
        } else {
            assert_eq!(buf, before);
        }
        assert_eq!(buf[..start], before[..start]);
        assert_eq!(buf[start + len..], before[start + len..]);
    }
}

#[test]
fn errors_read_well() {
    extern crate std;
    use std::string::ToString;
    assert_eq!(
        IcError::TooShort { need: 36, have: 5 }.to_string(),
        "message too short: 5 bytes, 36 needed"
    );
    assert_eq!(
        IcError::NotProposed(HB).to_string(),
        "answer 3.0 / 3.0 was not proposed"
    );
}
