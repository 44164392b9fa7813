// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Key-value pairs, backup and file copy, over real rings: at the other end the guest driver's state machine and a scripted daemon.

use std::collections::BTreeMap;

use hvctl::{
    BackupOp, BackupReply, Command, CopyReply, IpSettings, KvpKind, KvpOp, KvpPair, KvpPool,
    KvpReply, Patch, Sending,
};
use vmbus_proto::ic::exchange::{self, Buffers, Machine, Service, Step};
use vmbus_proto::ic::kvp::{DeviceMessage, Registration, Request, Value};
use vmbus_proto::ic::{fcopy, vss, Status};
use vmbus_proto::packet::PacketType;
use zerocopy::{FromZeros, IntoBytes};

use crate::testing::{Bench, GuestChannel};
use crate::DeviceConfig;

/// A guest with one service, its daemon registered.
struct Guest<S: Service> {
    name: &'static str,
    bench: Bench,
    channel: GuestChannel,
    machine: Machine<S>,
    buf: Box<Buffers>,
}

impl<S: Service> Guest<S> {
    fn new(name: &'static str, args: &[(&str, &str)], service: S, registration: &[u8]) -> Self {
        let mut bench = Bench::new(&[DeviceConfig {
            name: name.into(),
            args: args
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        }]);
        bench.connect();
        let channel = bench.open(name, 4);
        let mut guest = Self {
            name,
            bench,
            channel,
            machine: Machine::new(service),
            buf: Box::new(Buffers::new_zeroed()),
        };
        guest.machine.on_open().expect("one daemon");
        let step = guest.machine.on_write(0, registration, &mut guest.buf);
        guest.carry_out(&step.expect("a registration"));
        assert!(guest.machine.message(&guest.buf).is_some(), "a greeting");
        let step = guest.machine.on_read(0, &mut guest.buf);
        guest.carry_out(&step);
        guest
    }

    /// Answers the proposal of versions.
    fn negotiated(mut self) -> Self {
        assert_eq!(self.serve(|m| panic!("asked before versions: {m:?}")), 1);
        self
    }

    fn carry_out(&mut self, step: &Step) {
        if let Some((len, id)) = step.reply {
            self.bench
                .transmit(&mut self.channel, id, &self.buf.packet[..len]);
        }
    }

    /// Serves what is in the ring, and what comes while that is answered; how many packets that were. `daemon` makes of a message the
    /// bytes that it answers.
    fn serve(&mut self, mut daemon: impl FnMut(&[u8]) -> Vec<u8>) -> usize {
        let mut count = 0;
        while let Some((id, packet)) = self.bench.receive(&mut self.channel) {
            count += 1;
            self.buf.packet[..packet.len()].copy_from_slice(&packet);
            let step = self.machine.on_packet(0, packet.len(), id, &mut self.buf);
            self.carry_out(&step);
            let Some(message) = self.machine.message(&self.buf) else {
                continue;
            };
            let answer = daemon(message);
            let step = self.machine.on_read(0, &mut self.buf);
            self.carry_out(&step);
            let step = self.machine.on_write(0, &answer, &mut self.buf);
            self.carry_out(&step.expect("an answer"));
        }
        count
    }

    /// The answer to request `id` of the control socket.
    fn answer<T: serde::de::DeserializeOwned>(&mut self, id: u64) -> Result<T, String> {
        let value = self.bench.answer(id).expect("an answer")?;
        Ok(serde_json::from_value(value).expect("an answer of the right form"))
    }

    fn agreed(&mut self) -> Option<String> {
        let value = self.bench.control(Command::Channels).expect("channels");
        let channels: Vec<hvctl::ChannelInfo> = serde_json::from_value(value).expect("channels");
        let mine = channels.into_iter().find(|c| c.device == self.name);
        mine.expect("the channel").agreed
    }
}

fn now(wait_ms: u64) -> Sending {
    Sending {
        wait_ms,
        ..Sending::default()
    }
}

fn patched(at: usize, hex: &str) -> Sending {
    Sending {
        patch: vec![Patch {
            at,
            hex: hex.into(),
        }],
        ..Sending::default()
    }
}

// Key-value pairs.

fn kvp(args: &[(&str, &str)]) -> Guest<exchange::Kvp> {
    let mut registration = Box::<DeviceMessage>::default();
    registration
        .registration(Registration::Current, "")
        .expect("fits");
    Guest::new("kvp", args, exchange::Kvp::new(), registration.as_bytes())
}

/// A daemon that keeps its pairs in memory, for one message.
fn keep(pairs: &mut BTreeMap<String, String>, message: &[u8]) -> Vec<u8> {
    let mut m = Box::<DeviceMessage>::default();
    m.as_mut_bytes().copy_from_slice(message);
    let copy = m.clone();
    match copy.parse().expect("the driver has checked it") {
        Request::Set {
            key,
            value: Value::Text(value),
            ..
        } => {
            pairs.insert(key.into(), value.into());
            m.answer(Status::OK);
        }
        Request::Get { key, .. } => match pairs.get(key) {
            Some(value) => m.answer_value(value).expect("fits"),
            None => m.answer(Status::NO_MORE_ITEMS),
        },
        Request::Delete { key, .. } => m.answer(match pairs.remove(key) {
            Some(_) => Status::OK,
            None => Status::NO_MORE_ITEMS,
        }),
        Request::Enumerate { index, .. } => match pairs.iter().nth(index as usize) {
            Some((key, value)) => m.answer_pair(key, value).expect("fits"),
            None => m.answer(Status::NO_MORE_ITEMS),
        },
        Request::GetIp { adapter, .. } => {
            let mut config = vmbus_proto::ic::kvp::IpConfig {
                adapter,
                family: vmbus_proto::ic::kvp::AddressFamily(3),
                dhcp: true,
                addresses: "192.0.2.7;2001:db8::7",
                subnets: "255.255.255.0;/64",
                gateways: "192.0.2.1",
                dns: "192.0.2.53",
            };
            config.adapter = "{4D36E972-E325-11CE-BFC1-08002BE10318}";
            m.answer_ip(&config).expect("fits");
        }
        Request::SetIp(config) => {
            pairs.insert("addresses".into(), config.addresses.into());
            pairs.insert("dhcp".into(), config.dhcp.to_string());
            m.answer(Status::OK);
        }
        other => panic!("{other:?}"),
    }
    m.as_bytes().to_vec()
}

impl Guest<exchange::Kvp> {
    fn ask(&mut self, op: KvpOp, how: Sending) -> u64 {
        self.bench.ask(Command::Kvp { op, how })
    }

    fn exchange(
        &mut self,
        pairs: &mut BTreeMap<String, String>,
        op: KvpOp,
    ) -> Result<KvpReply, String> {
        let id = self.ask(op, Sending::default());
        self.serve(|m| keep(pairs, m));
        self.answer(id)
    }
}

fn get(key: &str) -> KvpOp {
    KvpOp::Get {
        pool: KvpPool::External,
        key: key.into(),
    }
}

fn all() -> KvpOp {
    KvpOp::Enumerate {
        pool: KvpPool::Guest,
        index: None,
    }
}

#[test]
fn every_operation_of_key_value_pairs() {
    let mut guest = kvp(&[]).negotiated();
    let mut pairs = BTreeMap::new();
    let pool = KvpPool::External;
    for (key, value, kind) in [
        ("Grüße", "ü", KvpKind::Text),
        ("n32", "4294967295", KvpKind::U32),
        ("n64", "18446744073709551615", KvpKind::U64),
    ] {
        let set = KvpOp::Set {
            pool,
            key: key.into(),
            value: value.into(),
            kind,
        };
        assert_eq!(guest.exchange(&mut pairs, set).map(|r| r.status), Ok(0));
        let reply = guest.exchange(&mut pairs, get(key)).expect("got");
        assert_eq!((reply.status, reply.value.as_deref()), (0, Some(value)));
    }
    let reply = guest.exchange(&mut pairs, all()).expect("enumerated");
    let expected: Vec<_> = pairs
        .iter()
        .map(|(key, value)| KvpPair {
            key: key.clone(),
            value: value.clone(),
        })
        .collect();
    assert_eq!((reply.status, reply.pairs), (0, expected));
    let one = KvpOp::Enumerate {
        pool,
        index: Some(7),
    };
    let reply = guest.exchange(&mut pairs, one).expect("answered");
    assert_eq!((reply.status, reply.pairs.len()), (0x8007_0103, 0));
    for status in [0, 0x8007_0103] {
        let key = "n32".into();
        let reply = guest.exchange(&mut pairs, KvpOp::Delete { pool, key });
        assert_eq!(reply.map(|r| r.status), Ok(status));
    }
    let reply = guest
        .exchange(
            &mut pairs,
            KvpOp::GetIp {
                adapter: "02:15:5D:00:00:01".into(),
                family: 0,
            },
        )
        .expect("answered");
    let ip = reply.ip.expect("settings");
    assert_eq!(ip.addresses, "192.0.2.7;2001:db8::7");
    assert_eq!((ip.family, ip.dhcp), (3, true));
    let settings = IpSettings {
        addresses: "198.51.100.4".into(),
        dhcp: true,
        ..ip
    };
    let reply = guest.exchange(&mut pairs, KvpOp::SetIp(settings));
    assert_eq!(reply.map(|r| r.status), Ok(0));
    assert_eq!(
        (&*pairs["addresses"], &*pairs["dhcp"]),
        ("198.51.100.4", "true")
    );
    assert_eq!(guest.bench.violations().count, 0);
}

#[test]
fn old_hosts_offer_old_versions() {
    for (args, agreed, addresses) in [
        (&[("max", "4.0")][..], "3.0/4.0", true),
        (&[("max", "3.0")][..], "3.0/3.0", false),
        (
            &[("max", "1.0"), ("framework", "1.0")][..],
            "1.0/1.0",
            false,
        ),
    ] {
        let mut guest = kvp(args).negotiated();
        assert_eq!(guest.agreed().as_deref(), Some(agreed));
        let mut pairs = BTreeMap::from([("OSName".to_owned(), "Debian".to_owned())]);
        let reply = guest.exchange(&mut pairs, all()).expect("enumerated");
        assert_eq!(reply.pairs.len(), 1, "{agreed}");
        let asked = guest.exchange(
            &mut pairs,
            KvpOp::GetIp {
                adapter: "02:15:5D:00:00:01".into(),
                family: 0,
            },
        );
        match asked {
            Ok(reply) => assert!(addresses && reply.ip.is_some(), "{agreed}"),
            Err(e) => assert!(!addresses && e.contains("version 4.0"), "{agreed}: {e}"),
        }
        assert_eq!(guest.bench.violations().count, 0);
    }
}

#[test]
fn one_request_at_a_time_and_none_before_versions() {
    let mut guest = kvp(&[]);
    let id = guest.ask(get("k"), Sending::default());
    let e = guest.answer::<KvpReply>(id).expect_err("too early");
    assert!(e.contains("not negotiated"), "{e}");
    let mut guest = guest.negotiated();
    let first = guest.ask(get("k"), Sending::default());
    let second = guest.ask(get("k"), Sending::default());
    let e = guest.answer::<KvpReply>(second).expect_err("one at a time");
    assert!(e.contains("not answered yet"), "{e}");
    let forced = Sending {
        force: true,
        ..Sending::default()
    };
    let forced = guest.ask(get("k"), forced);
    let mut pairs = BTreeMap::new();
    assert_eq!(guest.serve(|m| keep(&mut pairs, m)), 2);
    for id in [first, forced] {
        let reply: KvpReply = guest.answer(id).expect("answered");
        assert_eq!(reply.status, 0x8007_0103);
    }
    assert_eq!(guest.bench.violations().count, 0);
}

#[test]
fn a_broken_request_is_refused_by_the_guest_and_no_violation() {
    let mut guest = kvp(&[]).negotiated();
    let cut = Sending {
        cut: Some(3),
        ..Sending::default()
    };
    for how in [
        patched(1, "09"),
        patched(0, "55"),
        patched(8, "ffffffff"),
        cut,
    ] {
        let id = guest.ask(get("k"), how.clone());
        guest.serve(|m| panic!("{how:?} got through: {m:?}"));
        let reply: KvpReply = guest.answer(id).expect("answered");
        assert_eq!(reply.status, Status::FAIL.get(), "{how:?}");
    }
    for how in [patched(100_000, "00"), patched(0, "0"), patched(0, "xx")] {
        let id = guest.ask(get("k"), how.clone());
        assert!(guest.answer::<KvpReply>(id).is_err(), "{how:?}");
    }
    assert_eq!(guest.bench.violations().count, 0);
}

/// Answers the request in the ring by hand: `spoil` changes the packet and its transaction id.
fn spoilt(
    guest: &mut Guest<exchange::Kvp>,
    op: KvpOp,
    spoil: impl FnOnce(&mut Vec<u8>, &mut u64),
) -> (Option<Result<serde_json::Value, String>>, u64) {
    let asked = guest.ask(op, Sending::default());
    let before = guest.bench.violations().count;
    let (mut id, mut packet) = guest.bench.receive(&mut guest.channel).expect("a request");
    // Transaction, response.
    packet[25] = 5;
    spoil(&mut packet, &mut id);
    guest.bench.transmit(&mut guest.channel, id, &packet);
    let answer = guest.bench.answer(asked);
    (answer, guest.bench.violations().count - before)
}

#[test]
fn answers_out_of_range_are_violations() {
    // Offsets in the packet: headers of 28 bytes, then operation and pool, then for ENUMERATE index, type, sizes of key and value.
    let one = || KvpOp::Enumerate {
        pool: KvpPool::Guest,
        index: Some(0),
    };
    type Spoil = fn(&mut Vec<u8>, &mut u64);
    let broken: [(&str, Spoil); 3] = [
        ("key size", |p, _| p[40..44].fill(0xff)),
        ("value size", |p, _| p[44..48].fill(0x7f)),
        ("odd key", |p, _| p[40] = 3),
    ];
    for (what, spoil) in broken {
        let mut guest = kvp(&[]).negotiated();
        let (answer, violations) = spoilt(&mut guest, one(), spoil);
        assert!(matches!(answer, Some(Err(_))), "{what}: {answer:?}");
        assert_eq!(violations, 1, "{what}");
    }
    // Those that belong to no request leave the request open.
    let strange: [(&str, Spoil); 5] = [
        ("transaction id", |_, id| *id += 1),
        ("id in the header", |p, _| p[24] ^= 1),
        ("service", |p, _| p[12] = 5),
        ("no headers", |p, _| p.truncate(8)),
        ("cut", |p, _| p.truncate(60)),
    ];
    for (what, spoil) in strange {
        let mut guest = kvp(&[]).negotiated();
        let (answer, violations) = spoilt(&mut guest, one(), spoil);
        assert_eq!((answer, violations), (None, 1), "{what}");
    }
    let mut guest = kvp(&[]).negotiated();
    guest
        .bench
        .transmit_type(&mut guest.channel, PacketType::COMPLETION, &[0; 8]);
    assert_eq!(guest.bench.violations().count, 1);
}

#[test]
fn an_answer_may_name_the_message_alone() {
    let mut guest = kvp(&[]).negotiated();
    // Past the 256 ids that a message can have.
    for turn in 0..300 {
        let (answer, violations) = spoilt(&mut guest, get("k"), |p, id| {
            p[20..24].copy_from_slice(&Status::NO_MORE_ITEMS.get().to_le_bytes());
            *id = u64::MAX;
        });
        let reply = answer.expect("an answer").expect("a reply");
        assert_eq!(
            (&reply["status"], violations),
            (&0x8007_0103u32.into(), 0),
            "{turn}"
        );
    }
    // The last is the answer to a request that has its answer.
    for change in [0, 1] {
        let (_, violations) = spoilt(&mut guest, get("k"), |p, id| {
            p[20..24].copy_from_slice(&Status::NO_MORE_ITEMS.get().to_le_bytes());
            p[24] = p[24].wrapping_sub(change);
            *id = u64::MAX;
        });
        assert_eq!(violations, u64::from(change), "{change}");
    }
}

#[test]
fn an_enumeration_without_an_end_is_given_up() {
    let mut guest = kvp(&[]).negotiated();
    let id = guest.ask(all(), Sending::default());
    let served = guest.serve(|message| {
        let mut m = Box::<DeviceMessage>::default();
        m.as_mut_bytes().copy_from_slice(message);
        m.answer_pair("again", "and again").expect("fits");
        m.as_bytes().to_vec()
    });
    assert_eq!(served, 4096);
    let e = guest.answer::<KvpReply>(id).expect_err("given up");
    assert!(e.contains("does not end"), "{e}");
    assert_eq!(guest.bench.violations().count, 1);
}

// Backup.

fn backup() -> Guest<exchange::Vss> {
    Guest::new(
        "vss",
        &[],
        exchange::Vss::new(),
        vss::DeviceMessage::REGISTER.as_bytes(),
    )
    .negotiated()
}

impl Guest<exchange::Vss> {
    /// Asks, and has the daemon answer with `status`; the reply, and the operations that the daemon saw.
    fn exchange(
        &mut self,
        op: BackupOp,
        how: Sending,
        status: Status,
    ) -> (BackupReply, Vec<vss::Operation>) {
        let id = self.bench.ask(Command::Backup { op, how });
        let mut seen = Vec::new();
        self.serve(|message| {
            let mut m = vss::DeviceMessage::REGISTER;
            m.as_mut_bytes().copy_from_slice(message);
            seen.push(m.operation());
            m.answer(status).as_bytes().to_vec()
        });
        (self.answer(id).expect("answered"), seen)
    }
}

#[test]
fn backup_asks_freezes_and_thaws() {
    let mut guest = backup();
    assert_eq!(guest.agreed().as_deref(), Some("3.0/5.0"));
    for (op, daemon, flags) in [
        (BackupOp::Check, Some(vss::Operation::HOT_BACKUP), 5),
        (BackupOp::DmInfo, None, 0),
        (BackupOp::Freeze, Some(vss::Operation::FREEZE), 0),
        (BackupOp::Thaw, Some(vss::Operation::THAW), 0),
        (BackupOp::Complete, None, 0),
    ] {
        let (reply, seen) = guest.exchange(op, Sending::default(), Status::OK);
        assert_eq!((reply.status, reply.flags), (0, flags), "{op:?}");
        assert_eq!(seen, Vec::from_iter(daemon), "{op:?}");
    }
    // The daemon fails; what it cannot do is not promised.
    for op in [BackupOp::Check, BackupOp::Freeze, BackupOp::Thaw] {
        let (reply, _) = guest.exchange(op, Sending::default(), Status::FAIL);
        assert_eq!((reply.status, reply.flags), (0x8000_4005, 0), "{op:?}");
    }
    // Cut to nothing: refused without the daemon.
    let cut = Sending {
        cut: Some(0),
        ..Sending::default()
    };
    let (reply, seen) = guest.exchange(BackupOp::Freeze, cut, Status::OK);
    assert_eq!((reply.status, seen.len()), (0x8000_4005, 0));
    assert_eq!(guest.bench.violations().count, 0);
}

#[test]
fn a_freeze_ends_with_the_time_or_the_channel_and_a_late_answer_is_forgiven() {
    let freeze = |wait| Command::Backup {
        op: BackupOp::Freeze,
        how: now(wait),
    };
    let mut guest = backup();
    let id = guest.bench.ask(freeze(1000));
    guest.bench.pass(900, false);
    assert!(guest.bench.answer(id).is_none());
    guest.bench.pass(200, false);
    let e = guest.answer::<BackupReply>(id).expect_err("in time");
    assert!(e.contains("timed out"), "{e}");
    // It is still the guest's turn.
    let e = guest
        .bench
        .control(freeze(1000))
        .expect_err("one at a time");
    assert!(e.contains("not answered yet"), "{e}");
    guest.serve(|_| {
        let m = vss::DeviceMessage::request(vss::Operation::FREEZE);
        m.answer(Status::OK).as_bytes().to_vec()
    });
    let (reply, _) = guest.exchange(BackupOp::Thaw, Sending::default(), Status::OK);
    assert_eq!(reply.status, 0);
    assert_eq!(guest.bench.violations().count, 0);

    let id = guest.bench.ask(freeze(60_000));
    guest.bench.close(&guest.channel);
    let e = guest.answer::<BackupReply>(id).expect_err("closed");
    assert!(e.contains("closed"), "{e}");
    assert_eq!(guest.agreed(), None);
}

// File copy.

fn copying() -> Guest<exchange::Fcopy> {
    Guest::new(
        "fcopy",
        &[],
        exchange::Fcopy,
        &fcopy::DEVICE_VERSION.to_le_bytes(),
    )
    .negotiated()
}

/// What a daemon was told, and what it says.
#[derive(Default)]
struct Received {
    log: Vec<&'static str>,
    start: Option<(String, String, u32, u64)>,
    bytes: Vec<u8>,
    /// The answer to the request with this number.
    fail: Option<(usize, Status)>,
}

impl Received {
    fn take(&mut self, message: &[u8]) -> Vec<u8> {
        match fcopy::parse_device(message).expect("the driver has checked it") {
            fcopy::Request::Start {
                file,
                directory,
                flags,
                size,
            } => {
                self.start = Some((file.into(), directory.into(), flags.bits(), size));
                self.log.push("start");
            }
            fcopy::Request::Write { offset, data } => {
                assert_eq!(offset, self.bytes.len() as u64);
                self.bytes.extend_from_slice(data);
                self.log.push("write");
            }
            fcopy::Request::Complete => self.log.push("complete"),
            fcopy::Request::Cancel => self.log.push("cancel"),
        }
        let status = match self.fail {
            Some((at, status)) if at == self.log.len() => status,
            _ => Status::OK,
        };
        status.get().to_le_bytes().to_vec()
    }
}

impl Guest<exchange::Fcopy> {
    fn copy(
        &mut self,
        content: &[u8],
        cancel_after: Option<u64>,
        fail: Option<(usize, Status)>,
    ) -> (CopyReply, Received) {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("from");
        std::fs::write(&file, content).expect("written");
        let id = self.bench.ask(Command::Copy {
            file: file.display().to_string(),
            directory: "/a/b".into(),
            name: "tø".into(),
            overwrite: true,
            create_path: false,
            cancel_after,
            how: Sending::default(),
        });
        let mut received = Received {
            fail,
            ..Received::default()
        };
        loop {
            self.serve(|m| received.take(m));
            if let Some(answer) = self.bench.answer(id) {
                let value = answer.expect("a reply");
                return (serde_json::from_value(value).expect("a reply"), received);
            }
            // The thread that reads the file is not as far yet.
            self.bench.wait_and_run();
        }
    }
}

#[test]
fn a_file_is_copied_piece_by_piece() {
    let mut guest = copying();
    assert_eq!(guest.agreed().as_deref(), Some("3.0/1.1"));
    for size in [0usize, 1, 6143, 6144, 6145, 100_000] {
        let content: Vec<u8> = (0..size).map(|i| (i * 7 + i / 251) as u8).collect();
        let (reply, received) = guest.copy(&content, None, None);
        assert_eq!((reply.status, reply.bytes), (0, size as u64));
        assert!(received.bytes == content, "{size} bytes arrived as others");
        assert_eq!(
            received.start,
            Some(("tø".into(), "/a/b".into(), 1, size as u64))
        );
        assert_eq!(received.log.first(), Some(&"start"));
        assert_eq!(received.log.last(), Some(&"complete"));
        assert_eq!(received.log.len(), 2 + size.div_ceil(6144));
    }
    assert_eq!(guest.bench.violations().count, 0);
}

#[test]
fn what_fails_is_cancelled_and_told() {
    let mut guest = copying();
    let content = [1; 20_000];
    // Refused at once: nothing to cancel.
    let (reply, got) = guest.copy(&content, None, Some((1, Status::ALREADY_EXISTS)));
    assert_eq!((reply.status, reply.bytes), (0x8007_0050, 0));
    assert_eq!(got.log, ["start"]);
    // At the second piece.
    let (reply, got) = guest.copy(&content, None, Some((3, Status::DISK_FULL)));
    assert_eq!((reply.status, reply.bytes), (0x8007_0070, 6144));
    assert_eq!(got.log, ["start", "write", "write", "cancel"]);
    // At the end.
    let (reply, got) = guest.copy(&[2; 10], None, Some((3, Status::FAIL)));
    assert_eq!(reply.status, 0x8000_4005);
    assert_eq!(got.log, ["start", "write", "complete"]);
    // The host's user thinks better of it.
    let (reply, got) = guest.copy(&content, Some(7000), None);
    assert_eq!((reply.status, reply.bytes), (0, 12_288));
    assert_eq!(got.log, ["start", "write", "write", "cancel"]);
    assert_eq!(guest.bench.violations().count, 0);
}

#[test]
fn a_file_that_is_not_there_is_told_and_nothing_sent() {
    let mut guest = copying();
    let e = guest
        .bench
        .control(Command::Copy {
            file: "/nonexistent/file".into(),
            directory: "/".into(),
            name: "x".into(),
            overwrite: false,
            create_path: false,
            cancel_after: None,
            how: Sending::default(),
        })
        .expect_err("no such file");
    assert!(e.contains("/nonexistent/file"), "{e}");
    assert_eq!(guest.serve(|m| panic!("{m:?}")), 0);
}
