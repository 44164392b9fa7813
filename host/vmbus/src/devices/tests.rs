// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The services against the guest's side of the same protocol, over real rings.

use hvctl::{Burst, Command, HeartbeatStatus, SampleKind, ShutdownKind, TimesyncStatus};
use vmbus_proto::ic::timesync::Action;
use vmbus_proto::ic::{heartbeat, shutdown, timesync};
use vmbus_proto::packet::PacketType;

use crate::testing::{Bench, GuestChannel};
use crate::DeviceConfig;

fn bench(name: &str, args: &[(&str, &str)]) -> (Bench, GuestChannel) {
    let config = DeviceConfig {
        name: name.into(),
        args: args
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
    };
    let mut bench = Bench::new(&[config]);
    bench.connect();
    let channel = bench.open(name, 4);
    (bench, channel)
}

/// Answers the proposal of versions, after which the service's requests come.
fn agree(bench: &mut Bench, channel: &mut GuestChannel, answer: impl FnOnce(&mut [u8])) {
    let (id, mut packet) = bench.receive(channel).expect("a proposal");
    answer(&mut packet);
    bench.transmit(channel, id, &packet);
}

/// A heartbeat device, and a guest that has agreed with it on versions.
fn heart() -> (Bench, GuestChannel, heartbeat::Guest) {
    let (mut bench, mut channel) = bench("heartbeat", &[]);
    let mut guest = heartbeat::Guest::new();
    agree(&mut bench, &mut channel, |p| {
        assert!(guest.on_packet(p).reply)
    });
    (bench, channel, guest)
}

/// Answers the heartbeats in the ring; how many there were.
fn beat(bench: &mut Bench, channel: &mut GuestChannel, guest: &mut heartbeat::Guest) -> usize {
    serve(bench, channel, |p| {
        let outcome = guest.on_packet(p);
        assert!(outcome.reply && outcome.event.is_ok());
    })
}

/// As [`heart`], for shutdown requests.
fn controlled(
    args: &[(&str, &str)],
    can_hibernate: bool,
) -> (Bench, GuestChannel, shutdown::Guest) {
    let (mut bench, mut channel) = bench("shutdown", args);
    let mut guest = shutdown::Guest::new(can_hibernate);
    agree(&mut bench, &mut channel, |p| {
        assert!(guest.on_packet(p).reply)
    });
    (bench, channel, guest)
}

/// Answers all packets in the ring with `serve`, which turns a packet into its answer.
fn serve(bench: &mut Bench, channel: &mut GuestChannel, mut serve: impl FnMut(&mut [u8])) -> usize {
    let mut count = 0;
    while let Some((id, mut packet)) = bench.receive(channel) {
        serve(&mut packet);
        bench.transmit(channel, id, &packet);
        count += 1;
    }
    count
}

fn beat_status(bench: &mut Bench) -> HeartbeatStatus {
    let value = bench
        .control(Command::Heartbeat {
            interval_ms: None,
            burst: None,
        })
        .expect("heartbeat");
    serde_json::from_value(value).expect("heartbeat status")
}

fn time_status(bench: &mut Bench) -> TimesyncStatus {
    let value = bench
        .control(Command::Timesync {
            send: None,
            offset_ms: 0,
            unix_ms: None,
            keep: false,
            interval_ms: None,
            sync_after_stop: None,
        })
        .expect("timesync");
    serde_json::from_value(value).expect("timesync status")
}

#[test]
fn a_hundred_beats_with_none_missed_and_one_signal_each_way() {
    let (mut bench, mut channel, mut guest) = heart();
    let mut served = 0;
    for _ in 0..100 {
        served += beat(&mut bench, &mut channel, &mut guest);
        bench.pass(2000, false);
    }
    served += beat(&mut bench, &mut channel, &mut guest);
    let status = beat_status(&mut bench);
    assert_eq!(
        (status.sent, status.answered, status.missed),
        (served as u64, served as u64, 0)
    );
    assert!(status.answered >= 100);
    assert_eq!(status.agreed.as_deref(), Some("3.0/3.0"));
    let counters: hvctl::Counters =
        serde_json::from_value(bench.control(Command::Counters).expect("counters"))
            .expect("counters");
    let c = counters.channels["heartbeat"];
    assert_eq!(
        (c.packets_out, c.packets_in),
        (status.sent + 1, status.sent + 1)
    );
    assert_eq!(
        (c.interrupts, c.signals),
        (status.sent + 1, status.sent + 1)
    );
    let violations = bench.violations();
    assert_eq!((violations.count, violations.unneeded_signals), (0, 0));
}

#[test]
fn beats_without_an_answer_are_missed_and_late_answers_forgiven() {
    let (mut bench, mut channel, mut guest) = heart();
    // Beats after 0, 2, … 16 s; when the last is sent, the first four have waited for ten seconds.
    bench.pass(16_100, false);
    let status = beat_status(&mut bench);
    assert_eq!((status.sent, status.missed), (9, 4));
    beat(&mut bench, &mut channel, &mut guest);
    let status = beat_status(&mut bench);
    assert_eq!((status.answered, status.missed), (5, 4));
    assert_eq!(bench.violations().count, 0);
}

#[test]
fn no_beat_is_due_while_the_vm_is_stopped() {
    let (mut bench, mut channel, mut guest) = heart();
    beat(&mut bench, &mut channel, &mut guest);
    bench.pass(60_000, true);
    let status = beat_status(&mut bench);
    assert_eq!((status.sent, status.missed), (1, 0));
}

#[test]
fn bursts_go_as_fast_as_the_guest_or_as_told() {
    let (mut bench, mut channel, mut guest) = heart();
    beat(&mut bench, &mut channel, &mut guest);
    bench.control(Command::ResetCounters).expect("reset");
    let burst = |count, every_ms| Command::Heartbeat {
        interval_ms: None,
        burst: Some(Burst { count, every_ms }),
    };
    bench.control(burst(50, 0)).expect("burst");
    assert_eq!(beat(&mut bench, &mut channel, &mut guest), 50);
    bench.control(burst(5, 100)).expect("burst");
    let mut served = 0;
    for _ in 0..45 {
        served += beat(&mut bench, &mut channel, &mut guest);
        bench.pass(10, false);
    }
    assert_eq!(served, 5);
    let status = beat_status(&mut bench);
    assert_eq!((status.sent, status.answered, status.missed), (55, 55, 0));
}

/// A guest whose processors do not run for a while answers all that waits in the ring afterwards.
#[test]
fn a_fast_burst_to_a_guest_that_sleeps_makes_no_violation() {
    let (mut bench, mut channel, mut guest) = heart();
    bench
        .control(Command::Heartbeat {
            interval_ms: Some(0),
            burst: Some(Burst {
                count: 90,
                every_ms: 10,
            }),
        })
        .expect("burst");
    bench.pass(2000, false);
    let served = beat(&mut bench, &mut channel, &mut guest);
    assert!(served > 64, "{served}");
    assert_eq!(bench.violations().count, 0);
    let status = beat_status(&mut bench);
    assert_eq!(status.sent, 91);
}

/// A guest that reads but gives room back late does not miss the beats that found none.
#[test]
fn a_burst_waits_for_room_in_the_ring() {
    let (mut bench, mut channel, mut guest) = heart();
    let mut served = beat(&mut bench, &mut channel, &mut guest);
    let (count, every_ms) = (300, 1);
    bench
        .control(Command::Heartbeat {
            interval_ms: Some(0),
            burst: Some(Burst { count, every_ms }),
        })
        .expect("burst");
    for _ in 0..400 {
        bench.pass(1, false);
    }
    let full = beat_status(&mut bench);
    assert!((64..300).contains(&full.sent), "{full:?}");
    assert_eq!(full.missed, 0);
    for _ in 0..400 {
        served += beat(&mut bench, &mut channel, &mut guest);
        bench.pass(1, false);
    }
    let status = beat_status(&mut bench);
    assert_eq!((served, status.answered, status.missed), (301, 301, 0));
    assert_eq!(bench.violations().count, 0);
}

/// One that never does misses them, one by one.
#[test]
fn a_burst_to_a_guest_that_gives_no_room_is_missed() {
    let (mut bench, _channel, _guest) = heart();
    bench
        .control(Command::Heartbeat {
            interval_ms: Some(0),
            burst: Some(Burst {
                count: 300,
                every_ms: 1,
            }),
        })
        .expect("burst");
    for _ in 0..400 {
        bench.pass(1, false);
    }
    let full = beat_status(&mut bench);
    bench.pass(10_000, false);
    let later = beat_status(&mut bench);
    assert_eq!(later.sent, full.sent + 1, "{later:?}");
    assert!(later.missed >= full.sent, "{later:?}");
    assert_eq!(later.burst_left, full.burst_left - 1);
}

#[test]
fn a_wrong_sequence_number_is_a_violation() {
    let (mut bench, mut channel, mut guest) = heart();
    serve(&mut bench, &mut channel, |p| {
        assert!(guest.on_packet(p).reply);
        p[28] = p[28].wrapping_add(1);
    });
    let status = beat_status(&mut bench);
    assert_eq!((status.answered, status.missed), (0, 1));
    assert!(bench.violations().texts[0].contains("wrong sequence number"));
}

#[test]
fn packets_that_are_no_answers_are_violations() {
    let (mut bench, mut channel, mut guest) = heart();
    let (id, mut beat) = bench.receive(&mut channel).expect("a beat");
    // The request itself; too short; another type; an answer nobody asked for; and twice the right one.
    bench.transmit(&mut channel, id, &beat.clone());
    bench.transmit(&mut channel, id, &beat[..16]);
    bench.transmit(&mut channel, id, &[]);
    bench.transmit_type(&mut channel, PacketType::COMPLETION, &beat);
    assert!(guest.on_packet(&mut beat).reply);
    bench.transmit(&mut channel, id + 7, &beat);
    bench.transmit(&mut channel, id, &beat);
    bench.transmit(&mut channel, id, &beat);
    let violations = bench.violations();
    assert_eq!(violations.count, 6, "{:?}", violations.texts);
    assert_eq!(beat_status(&mut bench).answered, 1);
}

#[test]
fn old_versions_can_be_forced() {
    for (name, args, agreed) in [
        (
            "heartbeat",
            [("max", "1.0"), ("framework", "3.0")],
            "3.0/1.0",
        ),
        (
            "shutdown",
            [("max", "3.1"), ("framework", "1.0")],
            "1.0/3.1",
        ),
        (
            "timesync",
            [("max", "3.0"), ("framework", "3.0")],
            "3.0/3.0",
        ),
    ] {
        let (mut bench, mut channel) = bench(name, &args);
        let mut beat = heartbeat::Guest::new();
        let mut down = shutdown::Guest::new(true);
        let mut time = timesync::Guest::new();
        let (id, mut packet) = bench.receive(&mut channel).expect("a proposal");
        let replied = match name {
            "heartbeat" => beat.on_packet(&mut packet).reply,
            "shutdown" => down.on_packet(&mut packet).reply,
            _ => time.on_packet(&mut packet, now(&bench), false).reply,
        };
        assert!(replied);
        bench.transmit(&mut channel, id, &packet);
        let channels: Vec<hvctl::ChannelInfo> =
            serde_json::from_value(bench.control(Command::Channels).expect("channels"))
                .expect("channels");
        assert_eq!(channels[0].agreed.as_deref(), Some(agreed));
        assert_eq!(bench.violations().count, 0);
    }
}

#[test]
fn bad_arguments_are_refused_with_a_sentence() {
    for (key, value) in [
        ("max", "0.5"),
        ("max", "x"),
        ("colour", "red"),
        ("monitor", "maybe"),
    ] {
        let config = DeviceConfig {
            name: "heartbeat".into(),
            args: vec![(key.into(), value.into())],
        };
        let Err(e) = super::make(&config, &[]) else {
            panic!("{key}={value} accepted")
        };
        assert!(e.to_string().starts_with("device heartbeat: "), "{e}");
    }
    assert!(super::make(&DeviceConfig::new("toaster"), &[]).is_err());
}

fn now(bench: &Bench) -> timesync::Now {
    use hv_partition::Partition;
    timesync::Now {
        reference: timesync::RefTime(bench.partition.reference_time()),
        wall: 0,
    }
}

/// Serves the timesync channel and returns what the guest would do with each sample.
fn samples(
    bench: &mut Bench,
    channel: &mut GuestChannel,
    guest: &mut timesync::Guest,
) -> Vec<Action> {
    let mut actions = Vec::new();
    while let Some((id, mut packet)) = bench.receive(channel) {
        let now = now(bench);
        let outcome = guest.on_packet(&mut packet, now, false);
        assert!(outcome.reply);
        if let Ok(timesync::Event::Sample(action)) = outcome.event {
            actions.push(action);
        }
        bench.transmit(channel, id, &packet);
    }
    actions
}

/// Difference in ms between what a sample says and this machine's clock.
fn error_ms(bench: &Bench, action: &Action) -> i64 {
    let (Action::Step(sample) | Action::Note(sample)) = action else {
        panic!("{action:?}")
    };
    let said = sample.at(now(bench).reference).expect("in range").get() / 1_000_000;
    let unix = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    said as i64 - unix.as_millis() as i64
}

#[test]
fn time_is_forced_once_and_then_sampled() {
    let (mut bench, mut channel) = bench("timesync", &[]);
    let mut guest = timesync::Guest::new();
    let first = samples(&mut bench, &mut channel, &mut guest);
    assert!(matches!(first[..], [Action::Step(_)]), "{first:?}");
    assert!(error_ms(&bench, &first[0]).abs() < 1000);
    for _ in 0..3 {
        bench.pass(5000, false);
        let next = samples(&mut bench, &mut channel, &mut guest);
        assert!(matches!(next[..], [Action::Note(_)]), "{next:?}");
    }
    let status = time_status(&mut bench);
    assert_eq!(
        (
            status.sent,
            status.syncs,
            status.answered,
            status.stops_seen
        ),
        (4, 1, 4, 0)
    );
}

#[test]
fn a_stopped_vm_gets_a_forced_sample_when_it_runs_again() {
    let (mut bench, mut channel) = bench("timesync", &[]);
    let mut guest = timesync::Guest::new();
    samples(&mut bench, &mut channel, &mut guest);
    bench.pass(1000, false);
    bench.pass(60_000, true);
    assert!(samples(&mut bench, &mut channel, &mut guest).is_empty());
    bench.pass(600, false);
    let after = samples(&mut bench, &mut channel, &mut guest);
    assert!(matches!(after[..], [Action::Step(_)]), "{after:?}");
    let status = time_status(&mut bench);
    assert_eq!((status.stops_seen, status.syncs), (1, 2));
    // And no more of them.
    bench.pass(20_000, false);
    assert_eq!(time_status(&mut bench).stops_seen, 1);
}

/// On a busy machine the worker loses its processor between its looks at the two clocks.
#[test]
fn a_worker_that_was_interrupted_sees_no_stop() {
    let (mut bench, mut channel) = bench("timesync", &[]);
    let mut guest = timesync::Guest::new();
    samples(&mut bench, &mut channel, &mut guest);
    let looks = std::sync::atomic::AtomicU32::new(0);
    let clock = bench.clock.clone();
    bench.engine.host_clock = Box::new(move || {
        // Each second pair of looks is 300 ms apart.
        let look = looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let late = u64::from(look % 4 == 3) * 300;
        *clock.lock() + std::time::Duration::from_millis(late)
    });
    bench.pass(10_000, false);
    assert_eq!(time_status(&mut bench).stops_seen, 0);
    bench.pass(1000, true);
    bench.pass(1000, false);
    assert_eq!(time_status(&mut bench).stops_seen, 1);
}

#[test]
fn a_guest_that_does_not_answer_gets_one_sample_only() {
    let (mut bench, mut channel) = bench("timesync", &[]);
    let mut guest = timesync::Guest::new();
    let now = now(&bench);
    agree(&mut bench, &mut channel, |p| {
        assert!(guest.on_packet(p, now, false).reply)
    });
    bench.pass(60_000, false);
    assert_eq!(time_status(&mut bench).sent, 1);
}

#[test]
fn a_wrong_time_can_be_told_once_or_for_good() {
    for args in [&[][..], &[("max", "1.0")]] {
        let (mut bench, mut channel) = bench("timesync", args);
        let mut guest = timesync::Guest::new();
        samples(&mut bench, &mut channel, &mut guest);
        let mut tell = |kind, offset_ms, unix_ms, keep| {
            bench
                .control(Command::Timesync {
                    send: Some(kind),
                    offset_ms,
                    unix_ms,
                    keep,
                    interval_ms: None,
                    sync_after_stop: None,
                })
                .expect("sent");
            let got = samples(&mut bench, &mut channel, &mut guest);
            assert_eq!(got.len(), 1);
            (matches!(got[0], Action::Step(_)), error_ms(&bench, &got[0]))
        };
        let near = |error: i64, want: i64| (error - want).abs() < 1000;
        let (step, error) = tell(SampleKind::Sync, 7_200_000, None, false);
        assert!(step && near(error, 7_200_000), "{error}");
        let (step, error) = tell(SampleKind::Sample, -60_000, None, true);
        assert!(!step && near(error, -60_000), "{error}");
        let (_, error) = tell(SampleKind::Probe, 0, Some(1_000_000), false);
        let unix = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970");
        assert!(near(error, 1_000_000 - unix.as_millis() as i64), "{error}");
        bench.pass(5000, false);
        let kept = samples(&mut bench, &mut channel, &mut guest);
        assert!(near(error_ms(&bench, &kept[0]), -60_000));
    }
}

#[test]
fn shutdown_is_answered_with_the_guests_status() {
    let (mut bench, mut channel) = bench("shutdown", &[]);
    let command = |kind, force| Command::Shutdown {
        kind,
        force,
        reason: "test".into(),
        wait_ms: Some(1000),
    };
    assert!(
        bench.control(command(ShutdownKind::Reboot, false)).is_err(),
        "before negotiation"
    );
    let mut guest = shutdown::Guest::new(false);
    agree(&mut bench, &mut channel, |p| {
        assert!(guest.on_packet(p).reply)
    });
    for (kind, force, want, status) in [
        (ShutdownKind::PowerOff, false, shutdown::Action::PowerOff, 0),
        (ShutdownKind::Reboot, true, shutdown::Action::Reboot, 0),
        (
            ShutdownKind::Hibernate,
            false,
            shutdown::Action::RefuseHibernate,
            0x8000_4005u32,
        ),
    ] {
        let id = bench.ask(command(kind, force));
        assert_eq!(bench.answer(id), None);
        serve(&mut bench, &mut channel, |p| {
            assert_eq!(guest.on_packet(p).event, Ok(shutdown::Event::Request(want)));
        });
        let answer = bench.answer(id).expect("answered").expect("answered");
        assert_eq!(answer["status"], status);
    }
    assert_eq!(bench.violations().count, 0);
}

#[test]
fn a_shutdown_without_an_answer_ends_with_the_time_or_the_channel() {
    let (mut bench, channel, _guest) = controlled(&[], false);
    let command = Command::Shutdown {
        kind: ShutdownKind::PowerOff,
        force: false,
        reason: String::new(),
        wait_ms: Some(1000),
    };
    let id = bench.ask(command.clone());
    bench.pass(900, false);
    assert_eq!(bench.answer(id), None);
    bench.pass(200, false);
    assert!(bench
        .answer(id)
        .expect("answered")
        .expect_err("in time")
        .contains("timed out"));
    let id = bench.ask(command);
    bench.close(&channel);
    assert!(bench
        .answer(id)
        .expect("answered")
        .expect_err("closed")
        .contains("closed"));
}

#[test]
fn hibernation_is_not_asked_of_versions_without_it() {
    let (mut bench, _channel, _guest) = controlled(&[("max", "3.1")], true);
    let command = Command::Shutdown {
        kind: ShutdownKind::Hibernate,
        force: false,
        reason: String::new(),
        wait_ms: None,
    };
    assert!(bench
        .control(command)
        .expect_err("refused")
        .contains("no hibernation"));
}

#[test]
fn reset_and_reopen_start_the_negotiation_anew() {
    let (mut bench, mut channel) = bench("heartbeat", &[]);
    for _ in 0..3 {
        let mut guest = heartbeat::Guest::new();
        agree(&mut bench, &mut channel, |p| {
            assert!(guest.on_packet(p).reply)
        });
        assert!(beat_status(&mut bench).agreed.is_some());
        bench.close(&channel);
        assert!(beat_status(&mut bench).agreed.is_none());
        channel = bench.open("heartbeat", 4);
    }
    assert_eq!(bench.violations().count, 0);
}

/// A model of another crate, as far as it is needed here.
fn made_elsewhere(config: &DeviceConfig) -> Option<Result<Box<dyn crate::device::Device>, String>> {
    match config.name.as_str() {
        "good" => Some(Ok(Box::new(
            super::heartbeat::Heartbeat::new(&config.args).expect("no arguments"),
        ))),
        "bad" => Some(Err("no such argument".into())),
        _ => None,
    }
}

#[test]
fn other_crates_make_the_devices_that_this_one_does_not_know() {
    let make = |name| super::make(&DeviceConfig::new(name), &[made_elsewhere]);
    assert!(make("good").is_ok());
    assert!(make("shutdown").is_ok());
    for (name, part) in [
        ("bad", "device bad: no such argument"),
        ("toaster", "no device model"),
    ] {
        let Err(e) = make(name) else {
            panic!("{name} was made");
        };
        assert!(e.to_string().contains(part), "{e}");
    }
}
