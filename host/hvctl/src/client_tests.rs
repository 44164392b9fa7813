// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The client, with a host whose lines are written down here.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{spawn, JoinHandle};
use std::time::Duration;

use serde_json::{json, Value};

use crate::{Client, Error, Event, Fault, SampleKind, ShutdownKind, Until};

/// A host that answers each request with these lines, in turn, and then goes away. `ID` stands for the request's.
struct Host {
    path: PathBuf,
    thread: JoinHandle<Vec<Value>>,
}

impl Host {
    fn new(answers: &'static [&'static str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("hvctl-test-{}-{number}", std::process::id()));
        let listener = UnixListener::bind(&path).expect("a socket");
        let thread = spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            let mut writer = stream.try_clone().expect("a second handle");
            let mut lines = BufReader::new(stream).lines();
            let mut requests = Vec::new();
            for answer in answers {
                let line = lines.next().expect("a request").expect("a line");
                let request: Value = serde_json::from_str(&line).expect("JSON");
                let text = answer.replace("ID", &request["id"].to_string());
                // A client that has what it wants may be gone.
                let _ = writer.write_all(text.as_bytes());
                requests.push(request);
            }
            requests
        });
        Self { path, thread }
    }

    fn client(&self) -> Client {
        Client::connect(&self.path).expect("connects")
    }

    /// What it was asked, without ids.
    fn asked(self) -> Vec<Value> {
        let mut requests = self.thread.join().expect("the host ended well");
        std::fs::remove_file(self.path).expect("its socket");
        for request in &mut requests {
            request.as_object_mut().expect("an object").remove("id");
        }
        requests
    }
}

#[test]
fn answers_are_told_from_events_and_from_late_answers() {
    let host = Host::new(&[
        "{\"event\":\"vm-reset\"}\n{\"id\":999,\"ok\":1}\n{\"id\":ID,\"ok\":{\"count\":2,\"texts\":[\"a\",\"b\"],\"unneeded_signals\":0}}\n",
    ]);
    let violations = host.client().violations().expect("an answer");
    assert_eq!((violations.count, violations.texts.len()), (2, 2));
    assert_eq!(host.asked(), [json!({"cmd": "violations"})]);
}

#[test]
fn each_failure_has_its_own_error() {
    let host = Host::new(&[
        "{\"id\":ID,\"err\":\"no device x\"}\n",
        "nonsense\n",
        "{\"id\":ID,\"ok\":\"not a status\"}\n",
    ]);
    let mut client = host.client();
    assert!(matches!(client.offer("x"), Err(Error::Refused(text)) if text == "no device x"));
    assert!(matches!(client.rescind("x"), Err(Error::Garbled(_))));
    assert!(matches!(client.status(), Err(Error::Garbled(_))));
    // The VM has ended.
    host.asked();
    assert!(matches!(client.status(), Err(Error::Closed)));
    let nowhere = Client::connect_within("/nonexistent/socket", Duration::ZERO);
    assert!(matches!(nowhere, Err(Error::NoHost { .. })));
}

#[test]
fn calls_ask_for_what_they_are_called() {
    const BEAT: &str = "{\"id\":ID,\"ok\":{\"interval_ms\":1,\"sent\":0,\"answered\":0,\"missed\":0,\"burst_left\":0}}\n";
    const TIME: &str =
        "{\"id\":ID,\"ok\":{\"interval_ms\":1,\"sent\":0,\"syncs\":0,\"answered\":0,\"stops_seen\":0,\"offset_ms\":0}}\n";
    const OK: &str = "{\"id\":ID}\n";
    let host = Host::new(&[
        OK,
        OK,
        OK,
        BEAT,
        BEAT,
        BEAT,
        TIME,
        TIME,
        OK,
        "{\"id\":ID,\"ok\":{\"status\":0}}\n",
        "{\"id\":ID,\"ok\":{\"host\":{},\"partition\":{},\"channels\":{}}}\n",
        OK,
    ]);
    let mut client = host.client();
    let second = Duration::from_secs(1);
    client.set_patience(3);
    client.wait_connected(second).expect("ok");
    client.wait_negotiated("heartbeat", second).expect("ok");
    client.wait(Until::GuestCrash, Duration::MAX).expect("ok");
    assert_eq!(client.heartbeat().expect("ok").interval_ms, 1);
    client.heartbeat_interval(second).expect("ok");
    client.heartbeat_burst(5, 2).expect("ok");
    client.timesync().expect("ok");
    client.time_sample(SampleKind::Sync, -5, true).expect("ok");
    client.fault(Fault::DuplicateMessage).expect("ok");
    let reply = client.shutdown(ShutdownKind::Reboot, true, second);
    assert_eq!(reply.expect("ok").status, Some(0));
    assert!(client.counters().expect("ok").host.is_empty());
    client.reset_counters().expect("ok");
    assert_eq!(
        host.asked(),
        [
            json!({"cmd": "wait", "for": "connected", "timeout_ms": 3000}),
            json!({"cmd": "wait", "for": "negotiated", "device": "heartbeat", "timeout_ms": 3000}),
            json!({"cmd": "wait", "for": "guest-crash", "timeout_ms": u64::MAX}),
            json!({"cmd": "heartbeat"}),
            json!({"cmd": "heartbeat", "interval_ms": 1000}),
            json!({"cmd": "heartbeat", "burst": {"count": 5, "every_ms": 2}}),
            json!({"cmd": "timesync", "offset_ms": 0, "keep": false}),
            json!({"cmd": "timesync", "send": "sync", "offset_ms": -5, "keep": true}),
            json!({"cmd": "fault", "fault": "duplicate-message"}),
            json!({"cmd": "shutdown", "kind": "reboot", "force": true, "reason": "", "wait_ms": 3000}),
            json!({"cmd": "counters"}),
            json!({"cmd": "reset-counters"}),
        ]
    );
}

#[test]
fn a_channel_is_found_by_name_or_instance() {
    const LIST: &str = "{\"id\":ID,\"ok\":[{\"device\":\"net0\",\"class\":\"c\",\"instance\":\"ab-1\",\"subchannel\":1,\
        \"relid\":null,\"connection_id\":null,\"state\":\"hidden\",\"target_vp\":null,\"monitor\":false,\
        \"out_ring_bytes\":null,\"in_ring_bytes\":null,\"agreed\":null,\"counters\":{\"packets_out\":0,\"packets_in\":0,\
        \"bytes_out\":0,\"bytes_in\":0,\"interrupts\":0,\"interrupts_merged\":0,\"signals\":0,\"unneeded_signals\":0,\
        \"monitor_signals\":0,\"opens\":0}},{\"device\":\"net0\",\"class\":\"c\",\"instance\":\"ab-2\",\"subchannel\":0,\
        \"relid\":7,\"connection_id\":null,\"state\":\"open\",\"target_vp\":0,\"monitor\":false,\"out_ring_bytes\":null,\
        \"in_ring_bytes\":null,\"agreed\":null,\"counters\":{\"packets_out\":0,\"packets_in\":0,\"bytes_out\":0,\
        \"bytes_in\":0,\"interrupts\":0,\"interrupts_merged\":0,\"signals\":0,\"unneeded_signals\":0,\
        \"monitor_signals\":0,\"opens\":0}}]}\n";
    let host = Host::new(&[LIST, LIST, LIST]);
    let mut client = host.client();
    assert_eq!(client.channel("net0").expect("by name").relid, Some(7));
    assert_eq!(client.channel("AB-2").expect("by instance").relid, Some(7));
    // Of a sub-channel.
    assert!(matches!(client.channel("ab-1"), Err(Error::Refused(_))));
    host.asked();
}

#[test]
fn a_watcher_gets_events_until_the_end() {
    let host =
        Host::new(&["{\"id\":ID}\n{\"event\":\"lost\",\"count\":3}\n{\"event\":\"dance\"}\n"]);
    let mut watch = host.client().watch().expect("watches");
    watch
        .set_limit(Some(Duration::from_secs(60)))
        .expect("a limit");
    assert_eq!(
        watch.next_event().expect("an event"),
        Event::Lost { count: 3 }
    );
    assert!(matches!(watch.next_event(), Err(Error::Garbled(_))));
    assert_eq!(host.asked(), [json!({"cmd": "watch"})]);
    assert!(matches!(watch.next_event(), Err(Error::Closed)));
}
