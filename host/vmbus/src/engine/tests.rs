// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The engine with a scripted guest: rings that misbehave, faults, waits, monitor pages.

use std::sync::atomic::Ordering;
use std::time::Duration;

use hv_partition::{HypercallSink, Partition, VpIndex};
use hvctl::{Command, Event, Fault, RingField, RingSide, Until};
use vmbus_proto::ic::heartbeat;
use vmbus_proto::msg::HostMessage;
use vmbus_proto::ring::{ControlWord, RingMemory};
use vmbus_proto::VmbusVersion;
use zerocopy::IntoBytes;

use crate::testing::{contact, Bench, GuestChannel, MONITOR_PAGE};
use crate::DeviceConfig;

fn bench() -> (Bench, GuestChannel) {
    let mut bench = Bench::new(&[
        DeviceConfig::new("heartbeat"),
        DeviceConfig::new("shutdown"),
    ]);
    bench.connect();
    let channel = bench.open("heartbeat", 2);
    (bench, channel)
}

/// Answers the proposal, so that beats come.
fn negotiate(bench: &mut Bench, channel: &mut GuestChannel) -> heartbeat::Guest {
    let mut guest = heartbeat::Guest::new();
    let (id, mut packet) = bench.receive(channel).expect("a proposal");
    assert!(guest.on_packet(&mut packet).reply);
    bench.transmit(channel, id, &packet);
    guest
}

#[test]
fn a_write_index_out_of_range_kills_the_channel_and_nothing_else() {
    let (mut bench, channel) = bench();
    for bad in [4096, 4, u32::MAX, 0x8000_0000] {
        channel.tx.memory().store(ControlWord::WriteIndex, bad);
        bench.signal(channel.relid);
    }
    let violations = bench.violations();
    assert_eq!(violations.count, 1, "{:?}", violations.texts);
    assert!(violations.texts[0].contains("write index"));
    // Closed and opened anew it works.
    bench.close(&channel);
    let mut channel = bench.open("heartbeat", 2);
    negotiate(&mut bench, &mut channel);
    assert_eq!(bench.violations().count, 1);
}

#[test]
fn packets_with_lying_lengths_kill_the_channel() {
    for (offset8, len8) in [
        (0u16, 3u16),
        (1, 3),
        (2, 0),
        (2, 1),
        (4, 3),
        (2, 0xffff),
        (0xffff, 0xffff),
    ] {
        let (mut bench, channel) = bench();
        let mut bytes = vec![0; 32];
        bytes[0] = 6;
        bytes[2..4].copy_from_slice(&offset8.to_le_bytes());
        bytes[4..6].copy_from_slice(&len8.to_le_bytes());
        channel.tx.memory().write(0, &bytes);
        channel.tx.memory().store(ControlWord::WriteIndex, 32);
        bench.signal(channel.relid);
        bench.signal(channel.relid);
        assert_eq!(
            bench.violations().count,
            1,
            "offset8 {offset8}, len8 {len8}"
        );
    }
}

#[test]
fn a_read_index_out_of_range_is_found_when_room_is_needed() {
    let (mut bench, mut channel) = bench();
    negotiate(&mut bench, &mut channel);
    channel.rx.memory().store(ControlWord::ReadIndex, 4096 + 8);
    // 100 beats do not fit a ring of 4 KiB.
    bench.pass(200_000, false);
    let violations = bench.violations();
    assert_eq!(violations.count, 1, "{:?}", violations.texts);
    assert!(violations.texts[0].contains("read index"));
}

#[test]
fn a_full_ring_is_no_violation_and_drains_later() {
    let (mut bench, mut channel) = bench();
    let mut guest = negotiate(&mut bench, &mut channel);
    bench.pass(200_000, false);
    let mut answered = 0;
    while let Some((id, mut packet)) = bench.receive(&mut channel) {
        assert!(guest.on_packet(&mut packet).reply);
        bench.transmit(&mut channel, id, &packet);
        answered += 1;
    }
    assert!(answered > 20);
    assert_eq!(bench.violations().count, 0);
    bench.pass(2000, false);
    assert!(bench.receive(&mut channel).is_some(), "beats go on");
}

#[test]
fn unneeded_signals_are_counted_and_no_violation() {
    let (mut bench, mut channel) = bench();
    negotiate(&mut bench, &mut channel);
    for _ in 0..5 {
        bench.signal(channel.relid);
    }
    let violations = bench.violations();
    assert_eq!((violations.count, violations.unneeded_signals), (0, 5));
}

#[test]
fn signals_to_closed_channels_are_refused() {
    let (mut bench, channel) = bench();
    bench.close(&channel);
    assert_eq!(bench.signal(channel.relid), 0x12);
    let closed = bench.offers["shutdown"].relid.0;
    assert_eq!(bench.signal(closed), 0x12, "never opened");
    bench.inbox.reset();
    bench.run();
    assert_eq!(bench.signal(channel.relid), 0x12);
}

/// A guest on another vCPU may answer the first packet before the worker is done with the open.
#[test]
fn the_answer_to_the_first_packet_is_not_lost_and_not_asked_for_before_the_open_result() {
    let mut bench = Bench::new(&[DeviceConfig::new("heartbeat")]);
    bench.connect();
    let seen = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
    let (inbox, partition, log) = (bench.inbox.clone(), bench.partition.clone(), seen.clone());
    *bench.partition.on_event.lock() = Some(Box::new(move || {
        let status = inbox.signal_event(VpIndex(1), 0x2001, 0);
        let told =
            partition.messages.lock().iter().any(|(_, m)| {
                matches!(HostMessage::parse(m), Ok(HostMessage::OpenChannelResult(_)))
            });
        log.lock().push((status, told));
    }));
    let mut channel = bench.open("heartbeat", 2);
    assert_eq!(*seen.lock(), [(0, true)]);
    *bench.partition.on_event.lock() = None;
    assert!(bench.receive(&mut channel).is_some());
}

#[test]
fn waits_hold_at_once_later_or_never() {
    let mut bench = Bench::new(&[DeviceConfig::new("heartbeat")]);
    let wait = |until, timeout_ms| Command::Wait { until, timeout_ms };
    let early = bench.ask(wait(Until::Connected, 10_000));
    let never = bench.ask(wait(Until::GuestCrash, 100));
    let unknown = bench.ask(wait(
        Until::Released {
            device: "toaster".into(),
        },
        100,
    ));
    assert!(bench
        .answer(unknown)
        .expect("at once")
        .expect_err("unknown")
        .contains("no device"));
    bench.connect();
    assert_eq!(bench.answer(early), Some(Ok(serde_json::Value::Null)));
    bench.pass(200, false);
    assert!(bench
        .answer(never)
        .expect("timed out")
        .expect_err("timed out")
        .contains("GuestCrash"));
    assert!(bench.control(wait(Until::Connected, 0)).is_ok());
    assert!(bench
        .control(wait(
            Until::ChannelClosed {
                device: "heartbeat".into()
            },
            0
        ))
        .is_ok());
    assert!(bench
        .control(wait(
            Until::ChannelOpen {
                device: "heartbeat".into()
            },
            0
        ))
        .is_err());
    bench.open("heartbeat", 2);
    assert!(bench
        .control(wait(
            Until::ChannelOpen {
                device: "heartbeat".into()
            },
            0
        ))
        .is_ok());
    // By instance GUID, too.
    let device = "FD149E91-82e0-4a7d-afa6-2a4166cbd7c0".to_owned();
    assert!(bench
        .control(wait(Until::ChannelOpen { device }, 0))
        .is_ok());
}

#[test]
fn rescind_release_and_offer_a_hundred_times() {
    let (mut bench, mut channel) = bench();
    for _ in 0..100 {
        negotiate(&mut bench, &mut channel);
        bench
            .control(Command::Rescind {
                device: "heartbeat".into(),
            })
            .expect("rescind");
        assert!(
            matches!(bench.heard(), Some(HostMessage::RescindChannelOffer(r)) if r.relid.0 == channel.relid)
        );
        let released = bench.ask(Command::Wait {
            until: Until::Released {
                device: "heartbeat".into(),
            },
            timeout_ms: 1000,
        });
        bench.close(&channel);
        assert_eq!(bench.answer(released), None);
        bench.release(channel.relid);
        assert!(bench.answer(released).expect("released").is_ok());
        bench
            .control(Command::Offer {
                device: "heartbeat".into(),
            })
            .expect("offer");
        bench.take_offers();
        channel = bench.open("heartbeat", 2);
    }
    assert_eq!(bench.violations().count, 0);
}

#[test]
fn a_full_message_queue_is_tried_again_in_order() {
    let mut bench = Bench::new(&[
        DeviceConfig::new("heartbeat"),
        DeviceConfig::new("shutdown"),
    ]);
    bench.partition.message_room.store(1, Ordering::Relaxed);
    let mut heard = Vec::new();
    bench.send(crate::testing::contact());
    bench.send(<vmbus_proto::msg::RequestOffers as vmbus_proto::msg::ChannelMessage>::blank());
    for _ in 0..20 {
        heard.extend(bench.heard().map(|m| m.message_type().0));
        bench.pass(10, false);
    }
    assert_eq!(heard, [15, 1, 1, 4]);
}

#[test]
fn message_faults_hit_the_guest() {
    let (mut bench, channel) = bench();
    bench.close(&channel);
    let fault = |fault| Command::Fault { fault };
    bench
        .control(fault(Fault::DropMessage { skip: 0 }))
        .expect("armed");
    bench
        .control(Command::Rescind {
            device: "heartbeat".into(),
        })
        .expect("rescind");
    assert!(bench.heard().is_none());
    bench
        .control(fault(Fault::DuplicateMessage))
        .expect("armed");
    bench
        .control(Command::Rescind {
            device: "shutdown".into(),
        })
        .expect("rescind");
    assert!(bench.heard().is_some() && bench.heard().is_some() && bench.heard().is_none());
    let relid = bench.offers["shutdown"].relid.0;
    bench.release(relid);
    bench
        .control(fault(Fault::DelayMessages { count: 1, ms: 500 }))
        .expect("armed");
    bench
        .control(Command::Offer {
            device: "shutdown".into(),
        })
        .expect("offer");
    bench.pass(400, false);
    assert!(bench.heard().is_none());
    bench.pass(200, false);
    assert!(bench.heard().is_some());
    bench
        .control(fault(Fault::PostMessage {
            hex: "ffffffff00000000".into(),
            msg_type: 1,
            vp: 2,
        }))
        .expect("posted");
    assert_eq!(
        bench.partition.messages.lock().pop_front(),
        Some((VpIndex(2), vec![255, 255, 255, 255, 0, 0, 0, 0]))
    );
    let too_long = Fault::PostMessage {
        hex: "00".repeat(241),
        msg_type: 1,
        vp: 2,
    };
    assert!(bench.control(fault(too_long)).is_err());
    bench
        .control(fault(Fault::SignalEvent { vp: 3, flag: 2047 }))
        .expect("signalled");
    assert!(bench.partition.events.lock().contains(&(VpIndex(3), 2047)));
    bench
        .control(fault(Fault::RefusePost {
            count: 1,
            status: 19,
        }))
        .expect("armed");
    assert_eq!(bench.inbox.post_message(VpIndex(0), 4, 1, &[]), 19);
}

#[test]
fn ring_faults_hit_the_guest() {
    let (mut bench, mut channel) = bench();
    let fault = |fault| Command::Fault { fault };
    let corrupt = |ring| Fault::CorruptRing {
        device: "shutdown".into(),
        ring,
        field: RingField::Write,
        value: 1,
    };
    assert!(
        bench
            .control(fault(corrupt(RingSide::HostToGuest)))
            .is_err(),
        "not open"
    );
    negotiate(&mut bench, &mut channel);
    while bench.receive(&mut channel).is_some() {}
    let packet = Fault::SendPacket {
        device: "heartbeat".into(),
        packet_type: 6,
        flags: 1,
        transaction_id: 99,
        hex: "0102".into(),
    };
    bench.control(fault(packet)).expect("sent");
    assert_eq!(
        bench.receive(&mut channel),
        Some((99, vec![1, 2, 0, 0, 0, 0, 0, 0]))
    );
    let raw = Fault::SendRaw {
        device: "heartbeat".into(),
        hex: "0600ffffffff0000".repeat(3),
    };
    bench.control(fault(raw)).expect("sent");
    let mut buf = [0; 64];
    assert!(matches!(
        channel.rx.read(&mut buf),
        Err(vmbus_proto::ring::ReadError::Corrupt(_))
    ));
    let corrupt = Fault::CorruptRing {
        device: "heartbeat".into(),
        ring: RingSide::HostToGuest,
        field: RingField::Write,
        value: 0xffff_fff0,
    };
    bench.control(fault(corrupt)).expect("done");
    assert_eq!(
        channel.rx.memory().load(ControlWord::WriteIndex),
        0xffff_fff0
    );
}

#[test]
fn completions_are_matched_with_what_asked_for_them() {
    let (mut bench, mut channel) = bench();
    negotiate(&mut bench, &mut channel);
    let packet = |flags| Command::Fault {
        fault: Fault::SendPacket {
            device: "heartbeat".into(),
            packet_type: 6,
            flags,
            transaction_id: 99,
            hex: "0102".into(),
        },
    };
    bench.control(packet(1)).expect("sent");
    bench.control(packet(1)).expect("sent");
    bench.control(packet(0)).expect("sent");
    let incomplete = |bench: &mut Bench| {
        let value = bench.control(Command::Counters).expect("counters");
        let counters: hvctl::Counters = serde_json::from_value(value).expect("counters");
        counters.channels["heartbeat"].incomplete
    };
    assert_eq!(incomplete(&mut bench), 2);
    for (id, left, text) in [
        (99, 1, "expected in-band data"),
        (99, 0, "expected in-band data"),
        (99, 0, "packet 0x63 that asked for none"),
        (98, 0, "packet 0x62 that asked for none"),
    ] {
        channel.tx.send_completion(id, &[]).expect("room");
        assert!(channel.tx.commit());
        bench.signal(channel.relid);
        assert_eq!(incomplete(&mut bench), left);
        // A heartbeat asks for no completion: none is right there, but only two are to nothing.
        let texts = bench.violations().texts;
        assert!(texts.last().is_some_and(|t| t.contains(text)), "{texts:?}");
    }
}

#[test]
fn a_stalled_device_reads_nothing_until_released() {
    let (mut bench, mut channel) = bench();
    let stall = |on| Command::Fault {
        fault: Fault::StallDevice {
            device: "heartbeat".into(),
            on,
        },
    };
    bench.control(stall(true)).expect("stalled");
    negotiate(&mut bench, &mut channel);
    bench.pass(5000, false);
    assert!(
        bench.receive(&mut channel).is_none(),
        "no beat, since the answer was not read"
    );
    bench.control(stall(false)).expect("released");
    bench.pass(10, false);
    assert!(bench.receive(&mut channel).is_some());
}

#[test]
fn monitored_channels_are_found_by_their_bit() {
    let config = DeviceConfig {
        name: "heartbeat".into(),
        args: vec![("monitor".into(), "on".into())],
    };
    let mut bench = Bench::new(&[DeviceConfig::new("shutdown"), config]);
    bench.connect();
    assert_eq!(bench.offers["shutdown"].monitor_id(), None);
    assert_eq!(bench.offers["heartbeat"].monitor_id(), Some(0));
    let mut channel = bench.open("heartbeat", 2);
    let mut guest = heartbeat::Guest::new();
    let (id, mut packet) = bench.receive(&mut channel).expect("a proposal");
    assert!(guest.on_packet(&mut packet).reply);
    channel.tx.send_in_band(&packet, id, false).expect("room");
    assert!(channel.tx.commit());
    // Trigger group 0, pending bit 0, and one that no channel has.
    let ram = bench.partition.ram().clone();
    ram.fetch_or_u32(MONITOR_PAGE + 8, 1 | (1 << 31), Ordering::SeqCst)
        .expect("RAM");
    bench.pass(10, false);
    assert!(bench.receive(&mut channel).is_some(), "the first beat");
    assert_eq!(ram.load_u32(MONITOR_PAGE + 8, Ordering::SeqCst), Ok(0));
    let channels: Vec<hvctl::ChannelInfo> =
        serde_json::from_value(bench.control(Command::Channels).expect("channels"))
            .expect("channels");
    let heartbeat = channels
        .iter()
        .find(|c| c.device == "heartbeat")
        .expect("heartbeat");
    assert_eq!(
        (heartbeat.monitor, heartbeat.counters.monitor_signals),
        (true, 1)
    );
    assert_eq!(bench.violations(), hvctl::Violations::default());
    // The host looks often while the channel is open, and rarely when none is.
    assert!(bench.engine.deadline(bench.now) <= bench.now + Duration::from_millis(1));
    bench.close(&channel);
    bench.pass(10, false);
    assert!(bench.engine.deadline(bench.now) > bench.now + Duration::from_millis(100));
}

#[test]
fn a_moved_channel_is_signalled_where_it_went() {
    use vmbus_proto::msg::{ChannelMessage, ModifyChannel, Relid};
    let (mut bench, mut channel) = bench();
    negotiate(&mut bench, &mut channel);
    while bench.receive(&mut channel).is_some() {}
    bench.send(ModifyChannel {
        relid: Relid(channel.relid),
        target_vp: 3,
        ..ModifyChannel::blank()
    });
    assert!(
        matches!(bench.heard(), Some(HostMessage::ModifyChannelResponse(m)) if m.status.is_success())
    );
    bench.partition.events.lock().clear();
    bench.pass(2000, false);
    assert_eq!(
        *bench.partition.events.lock(),
        [(VpIndex(3), channel.relid as u16)].into()
    );
}

#[test]
fn machine_commands_reach_the_machine() {
    let mut bench = Bench::new(&[]);
    for cmd in [
        Command::Pause,
        Command::Resume,
        Command::Reset,
        Command::PowerOff,
    ] {
        bench.control(cmd).expect("done");
    }
    assert_eq!(
        *bench.machine.calls.lock(),
        ["pause", "resume", "reset", "power_off"]
    );
    assert_eq!(
        bench.control(Command::ProfileMark),
        Err("no profile".into())
    );
    assert!(bench
        .control(Command::LogLevel {
            level: "debug".into()
        })
        .is_err());
    assert!(bench
        .control(Command::Heartbeat {
            interval_ms: None,
            burst: None
        })
        .expect_err("no such device")
        .contains("no device"));
}

#[test]
fn counters_start_anew_on_request() {
    let (mut bench, mut channel) = bench();
    negotiate(&mut bench, &mut channel);
    let closed = bench.offers["shutdown"].relid.0;
    bench.signal(closed);
    bench.raw(&[]);
    bench.inbox.guest_crashed();
    bench.run();
    let counters = |bench: &mut Bench| -> hvctl::Counters {
        serde_json::from_value(bench.control(Command::Counters).expect("counters"))
            .expect("counters")
    };
    let before = counters(&mut bench);
    assert_eq!(
        (before.host["violations"], before.host["unknown_signals"]),
        (1, 1)
    );
    assert!(before.partition["synic_messages"] >= 100);
    bench.control(Command::ResetCounters).expect("reset");
    let after = counters(&mut bench);
    assert!(after.host.values().all(|v| *v == 0), "{:?}", after.host);
    assert_eq!(after.partition["synic_messages"], 0);
    assert_eq!(
        after.channels["heartbeat"],
        hvctl::ChannelCounters::default()
    );
    assert!(bench
        .control(Command::Wait {
            until: Until::GuestCrash,
            timeout_ms: 0
        })
        .is_err());
}

#[test]
fn watchers_see_what_happens_in_order() {
    let mut bench = Bench::new(&[DeviceConfig::new("heartbeat")]);
    bench.control(Command::Watch).expect("watching");
    bench.connect();
    let channel = bench.open("heartbeat", 2);
    bench.close(&channel);
    bench.raw(&[]);
    bench.inbox.guest_crashed();
    bench.run();
    let events: Vec<Event> = bench
        .all_lines()
        .iter()
        .map(|line| serde_json::from_str(line).expect("an event"))
        .collect();
    let device = "heartbeat".to_owned();
    assert_eq!(
        events,
        [
            Event::Connected {
                version: "6.0".into()
            },
            Event::Offered {
                device: device.clone(),
                relid: 1
            },
            Event::OffersDelivered,
            Event::Opened {
                device: device.clone(),
                relid: 1,
                target_vp: 1
            },
            Event::Closed { device, relid: 1 },
            Event::Violation {
                text: "0 bytes are too few for a message header".into()
            },
            Event::GuestCrash,
        ]
    );
}

#[test]
fn a_watcher_that_does_not_read_loses_events_and_learns_how_many() {
    let mut bench = Bench::new(&[]);
    bench.control(Command::Watch).expect("watching");
    for _ in 0..1500 {
        bench.inbox.guest_crashed();
    }
    bench.run();
    assert_eq!(bench.all_lines().len(), 1000);
    bench.inbox.guest_crashed();
    bench.run();
    let lines = bench.all_lines();
    assert_eq!(
        serde_json::from_str::<Event>(&lines[0]).expect("event"),
        Event::Lost { count: 500 }
    );
    assert_eq!(lines.len(), 2);
}

mod fuzz {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        /// Bytes anywhere in the rings or their control pages.
        Scribble {
            to_host: bool,
            at: u32,
            bytes: Vec<u8>,
        },
        Word {
            to_host: bool,
            word: usize,
            value: u32,
        },
        Packet(Vec<u8>),
        Answer,
        Signal,
        Pass(u64),
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        let index = || prop_oneof![(0..1024u32).prop_map(|i| i * 8), any::<u32>()];
        prop_oneof![
            1 => (any::<bool>(), 0..8192u32, prop::collection::vec(any::<u8>(), 0..64))
                .prop_map(|(to_host, at, bytes)| Step::Scribble { to_host, at, bytes }),
            1 => (any::<bool>(), 0..5usize, index())
                .prop_map(|(to_host, word, value)| Step::Word { to_host, word, value }),
            4 => prop::collection::vec(any::<u8>(), 0..128).prop_map(Step::Packet),
            6 => Just(Step::Answer),
            2 => Just(Step::Signal),
            2 => (1..3000u64).prop_map(Step::Pass),
            1 => Just(Step::Reopen),
        ]
    }

    fn play(
        bench: &mut Bench,
        channel: &mut GuestChannel,
        guest: &mut heartbeat::Guest,
        step: Step,
    ) {
        let words = [
            ControlWord::WriteIndex,
            ControlWord::ReadIndex,
            ControlWord::InterruptMask,
            ControlWord::PendingSendSize,
            ControlWord::FeatureBits,
        ];
        match step {
            Step::Scribble { to_host, at, bytes } => {
                let memory = if to_host {
                    channel.tx.memory()
                } else {
                    channel.rx.memory()
                };
                memory.write(at % memory.data_size(), &bytes);
            }
            Step::Word {
                to_host,
                word,
                value,
            } => {
                let memory = if to_host {
                    channel.tx.memory()
                } else {
                    channel.rx.memory()
                };
                memory.store(words[word], value);
            }
            Step::Packet(bytes) => {
                if channel.tx.send_in_band(&bytes, 3, false).is_ok() && channel.tx.commit() {
                    bench.signal(channel.relid);
                }
            }
            Step::Answer => {
                let mut buf = vec![0; 65536];
                let got = channel
                    .rx
                    .read(&mut buf)
                    .map(|p| (p.transaction_id(), p.payload.to_vec()));
                let _ = channel.rx.finish();
                if let Ok((id, mut payload)) = got {
                    let reply = guest.on_packet(&mut payload).reply;
                    if reply
                        && channel.tx.send_in_band(&payload, id, false).is_ok()
                        && channel.tx.commit()
                    {
                        bench.signal(channel.relid);
                    }
                }
            }
            Step::Signal => {
                bench.signal(channel.relid);
            }
            Step::Pass(ms) => bench.pass(ms, false),
            Step::Reopen => {
                bench.close(channel);
                *channel = bench.open("heartbeat", 2);
                *guest = heartbeat::Guest::new();
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Whatever a guest writes into its rings: the host does not panic, and the channel works once it is
        /// closed and opened anew.
        #[test]
        fn any_ring_contents_leave_a_host_that_works(steps in prop::collection::vec(step(), 0..60)) {
            let (mut bench, mut channel) = bench();
            let mut guest = heartbeat::Guest::new();
            let mut reopens = 0;
            for step in steps {
                // Each ring needs fresh pages of the test's memory.
                reopens += u32::from(matches!(step, Step::Reopen));
                if reopens < 200 {
                    play(&mut bench, &mut channel, &mut guest, step);
                }
            }
            bench.close(&channel);
            let before = bench.violations().count;
            let mut channel = bench.open("heartbeat", 2);
            negotiate(&mut bench, &mut channel);
            prop_assert!(bench.receive(&mut channel).is_some());
            prop_assert_eq!(bench.violations().count, before);
        }
    }
}

#[test]
fn a_guest_that_reads_no_answers_is_refused_before_memory_runs_out() {
    let (mut bench, _channel) = bench();
    let room = bench.partition.message_room.swap(0, Ordering::Relaxed);
    // Each is answered: no such version.
    let mut old = contact();
    old.version = VmbusVersion(1);
    let mut accepted = 0u32;
    for _ in 0..20_000 {
        let post = bench.inbox.post_message(VpIndex(0), 4, 1, old.as_bytes());
        accepted += u32::from(post == 0);
        bench.run();
    }
    assert!((1000..3000).contains(&accepted), "{accepted} accepted");
    // When it reads again, it may post again.
    bench.partition.message_room.store(room, Ordering::Relaxed);
    for _ in 0..100 {
        bench.partition.messages.lock().clear();
        bench.pass(10, false);
    }
    bench.connect();
    bench.open("heartbeat", 2);
}
