// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What each command line asks of the host, and how its answer is shown.

use clap::Parser as _;
use serde_json::{json, Value};

use super::{command, run, show, Cli};

fn cli(args: &str) -> Cli {
    let args = ["hvctl", "--socket", "/nonexistent/socket"]
        .into_iter()
        .chain(args.split_whitespace());
    Cli::try_parse_from(args).unwrap_or_else(|e| panic!("{e}"))
}

/// The request of a command line.
fn request(args: &str) -> Value {
    let command = command(cli(args).cmd).unwrap_or_else(|e| panic!("{args}: {e}"));
    serde_json::to_value(command).expect("serialises")
}

/// How an answer to a command line is shown.
fn shown(args: &str, answer: &Value) -> String {
    show::for_command(&cli(args).cmd)(answer)
}

/// For each: the command line, and the request without what is left out when absent.
#[test]
fn each_command_line_makes_its_request() {
    let how = json!({"wait_ms": 40_000, "force": false});
    let table = [
        ("status", json!({"cmd": "status"})),
        ("channels", json!({"cmd": "channels"})),
        ("counters", json!({"cmd": "counters"})),
        ("reset-counters", json!({"cmd": "reset-counters"})),
        ("violations", json!({"cmd": "violations"})),
        ("offer net0/1", json!({"cmd": "offer", "device": "net0/1"})),
        ("rescind net0", json!({"cmd": "rescind", "device": "net0"})),
        ("pause", json!({"cmd": "pause"})),
        ("resume", json!({"cmd": "resume"})),
        ("reset", json!({"cmd": "reset"})),
        ("power-off", json!({"cmd": "power-off"})),
        ("profile mark", json!({"cmd": "profile-mark"})),
        ("profile read", json!({"cmd": "profile-read"})),
        (
            "log-level debug",
            json!({"cmd": "log-level", "level": "debug"}),
        ),
        ("watch", json!({"cmd": "watch"})),
        (r#"raw {"cmd":"status"}"#, json!({"cmd": "status"})),
        (
            "heartbeat --interval 100",
            json!({"cmd": "heartbeat", "interval_ms": 100}),
        ),
        (
            "shutdown power-off",
            json!({"cmd": "shutdown", "kind": "power-off", "force": false, "reason": "", "wait_ms": 10_000}),
        ),
        (
            "shutdown reboot --reason why --wait 0.5",
            json!({"cmd": "shutdown", "kind": "reboot", "force": false, "reason": "why", "wait_ms": 500}),
        ),
        (
            "timesync --send probe --keep",
            json!({"cmd": "timesync", "send": "probe", "offset_ms": 0, "keep": true}),
        ),
        (
            "timesync --send sample --unix-ms -1 --interval 7 --sync-after-stop false",
            json!({"cmd": "timesync", "send": "sample", "offset_ms": 0, "unix_ms": -1, "keep": false, "interval_ms": 7,
                "sync_after_stop": false}),
        ),
        ("disk list", json!({"cmd": "disks"})),
        (
            "disk add scsi0 3 --ram 64M --sector 4096 --no-discard --volatile",
            json!({"cmd": "disk-add", "device": "scsi0", "lun": 3, "target": 0, "ram": true, "size": 64 << 20,
                "read_only": false, "sector": 4096, "discard": false, "volatile": true, "notify": true}),
        ),
        (
            "disk add scsi0 3 --file /x --size 1G --read-only --no-notify",
            json!({"cmd": "disk-add", "device": "scsi0", "lun": 3, "target": 0, "file": "/x", "ram": false,
                "size": 1 << 30, "read_only": true, "sector": 512, "discard": true, "volatile": false, "notify": false}),
        ),
        (
            "disk remove scsi0 3 --target 1",
            json!({"cmd": "disk-remove", "device": "scsi0", "lun": 3, "target": 1, "notify": true}),
        ),
        (
            "disk cut scsi0 3 --seed 9",
            json!({"cmd": "disk-cut", "device": "scsi0", "lun": 3, "target": 0, "seed": 9}),
        ),
        (
            "disk notify scsi0 enumerate",
            json!({"cmd": "disk-notify", "device": "scsi0", "what": "enumerate"}),
        ),
        (
            "disk notify scsi0 remove",
            json!({"cmd": "disk-notify", "device": "scsi0", "what": "remove"}),
        ),
        ("net list", json!({"cmd": "nets"})),
        (
            "net link net0 change --speed 10",
            json!({"cmd": "net-link", "device": "net0", "link": "change", "speed": 10}),
        ),
        (
            "net inject net0 --hex 00ff --queue 2 --ppi 01",
            json!({"cmd": "net-inject", "device": "net0", "hex": "00ff", "queue": 2, "ppi": "01"}),
        ),
        (
            "net vf net0 --serial 5",
            json!({"cmd": "net-vf", "device": "net0", "serial": 5}),
        ),
        (
            "net vf net0 --gone",
            json!({"cmd": "net-vf", "device": "net0"}),
        ),
        (
            "kvp get key",
            json!({"cmd": "kvp", "op": "get", "pool": "guest", "key": "key", "how": how}),
        ),
        (
            "kvp set key value --kind u64",
            json!({"cmd": "kvp", "op": "set", "pool": "external", "key": "key", "value": "value", "kind": "u64",
                "how": how}),
        ),
        (
            "kvp delete key --pool auto-external",
            json!({"cmd": "kvp", "op": "delete", "pool": "auto-external", "key": "key", "how": how}),
        ),
        (
            "kvp enumerate --index 3 --wait 1 --patch 4:ffff --cut 20 --force",
            json!({"cmd": "kvp", "op": "enumerate", "pool": "auto", "index": 3,
                "how": {"wait_ms": 1000, "patch": [{"at": 4, "hex": "ffff"}], "cut": 20, "force": true}}),
        ),
        (
            "kvp get-ip 02:15:5D:00:00:01 --family 3",
            json!({"cmd": "kvp", "op": "get-ip", "adapter": "02:15:5D:00:00:01", "family": 3, "how": how}),
        ),
        (
            "kvp set-ip {a} --address 10.0.0.2 --subnet 24 --gateway 10.0.0.1 --dns 10.0.0.3",
            json!({"cmd": "kvp", "op": "set-ip", "adapter": "{a}", "family": 1, "dhcp": false, "addresses": "10.0.0.2",
                "subnets": "24", "gateways": "10.0.0.1", "dns": "10.0.0.3", "how": how}),
        ),
        (
            "backup thaw",
            json!({"cmd": "backup", "op": "thaw", "how": how}),
        ),
        (
            "backup freeze",
            json!({"cmd": "backup", "op": "freeze", "how": {"wait_ms": 910_000, "force": false}}),
        ),
        (
            "copy /dev/null /tmp/ --overwrite --create-path --cancel-after 5",
            json!({"cmd": "copy", "file": "/dev/null", "directory": "/tmp", "name": "null", "overwrite": true,
                "create_path": true, "cancel_after": 5, "how": {"wait_ms": 900_000, "force": false}}),
        ),
        (
            "copy /dev/null /there",
            json!({"cmd": "copy", "file": "/dev/null", "directory": "/", "name": "there", "overwrite": false,
                "create_path": false, "how": {"wait_ms": 900_000, "force": false}}),
        ),
    ];
    for (args, expected) in table {
        assert_eq!(request(args), expected, "{args}");
    }
}

#[test]
fn each_fault_and_each_wait_has_its_name() {
    let waits = [
        ("connected", json!({"for": "connected"})),
        ("disconnected", json!({"for": "disconnected"})),
        ("open a", json!({"for": "channel-open", "device": "a"})),
        ("closed a", json!({"for": "channel-closed", "device": "a"})),
        ("released a", json!({"for": "released", "device": "a"})),
        ("negotiated a", json!({"for": "negotiated", "device": "a"})),
        (
            "net-running a",
            json!({"for": "net-running", "device": "a"}),
        ),
        ("beats 3", json!({"for": "beats", "count": 3})),
        ("crash", json!({"for": "guest-crash"})),
        ("violations 3", json!({"for": "violations", "count": 3})),
    ];
    for (args, expected) in waits {
        check(&request(&format!("wait {args}")), &expected, args);
    }
    let faults = [
        (
            "drop-message 2",
            json!({"fault": "drop-message", "skip": 2}),
        ),
        (
            "delay-messages 2 5",
            json!({"fault": "delay-messages", "count": 2, "ms": 5}),
        ),
        ("duplicate-message", json!({"fault": "duplicate-message"})),
        (
            "post-message 00 --vp 1",
            json!({"fault": "post-message", "hex": "00", "msg_type": 1, "vp": 1}),
        ),
        (
            "refuse-post 2",
            json!({"fault": "refuse-post", "count": 2, "status": 19}),
        ),
        (
            "refuse-open 2 7",
            json!({"fault": "refuse-open", "count": 2, "status": 7}),
        ),
        (
            "refuse-gpadl 2",
            json!({"fault": "refuse-gpadl", "count": 2, "status": 0x8000_ffff_u32}),
        ),
        (
            "corrupt-ring a guest-to-host read 1",
            json!({"fault": "corrupt-ring", "ring": "guest-to-host", "field": "read"}),
        ),
        (
            "corrupt-ring a host-to-guest mask 1",
            json!({"fault": "corrupt-ring", "ring": "host-to-guest", "field": "mask"}),
        ),
        (
            "corrupt-ring a host-to-guest pending 1",
            json!({"fault": "corrupt-ring", "field": "pending", "value": 1}),
        ),
        (
            "send-packet a 6 00 --flags 1",
            json!({"fault": "send-packet", "packet_type": 6, "flags": 1, "hex": "00"}),
        ),
        (
            "send-raw a 00",
            json!({"fault": "send-raw", "device": "a", "hex": "00"}),
        ),
        (
            "signal-event 1 2",
            json!({"fault": "signal-event", "vp": 1, "flag": 2}),
        ),
        (
            "stall a",
            json!({"fault": "stall-device", "device": "a", "on": true}),
        ),
        (
            "unstall a",
            json!({"fault": "stall-device", "device": "a", "on": false}),
        ),
    ];
    for (args, expected) in faults {
        check(&request(&format!("fault {args}")), &expected, args);
    }
    let disk = [
        ("status", json!({"kind": "status", "srb": 4, "scsi": 2})),
        ("delay 5", json!({"kind": "delay", "ms": 5})),
        ("lose", json!({"kind": "lose"})),
        ("stall 5", json!({"kind": "stall", "ms": 5})),
        ("reorder 5", json!({"kind": "reorder", "window": 5})),
        (
            "malformed short",
            json!({"kind": "malformed", "how": "short"}),
        ),
        ("malformed id-zero", json!({"how": "id-zero"})),
        ("malformed unknown-id", json!({"how": "unknown-id"})),
        ("malformed twice", json!({"how": "twice"})),
        ("malformed sense", json!({"how": "sense"})),
        ("malformed transfer", json!({"how": "transfer"})),
        ("malformed operation", json!({"how": "operation"})),
        ("clear", json!({"kind": "clear"})),
    ];
    for (args, expected) in disk {
        check(
            &request(&format!("disk fault scsi0 {args}")),
            &expected,
            args,
        );
    }
    let net = [
        ("drop", json!({"kind": "drop", "count": 1})),
        ("delay 5", json!({"kind": "delay", "ms": 5})),
        ("duplicate", json!({"kind": "duplicate"})),
        ("reorder 3", json!({"kind": "reorder", "window": 3})),
        ("corrupt", json!({"kind": "corrupt"})),
        ("stall 3", json!({"kind": "stall", "ms": 3})),
        (
            "cut data packet 3",
            json!({"kind": "cut", "message": "data", "part": "packet", "len": 3}),
        ),
        (
            "cut answer ranges 3",
            json!({"message": "answer", "part": "ranges"}),
        ),
        (
            "cut indication nvsp 3",
            json!({"message": "indication", "part": "nvsp"}),
        ),
        (
            "cut init-completion rndis 3",
            json!({"message": "init-completion", "part": "rndis"}),
        ),
        (
            "repeat send-completion",
            json!({"kind": "repeat", "message": "send-completion"}),
        ),
        (
            "lose recv-buf-completion",
            json!({"kind": "lose", "message": "recv-buf-completion"}),
        ),
        (
            "lose send-buf-completion",
            json!({"kind": "lose", "message": "send-buf-completion"}),
        ),
        (
            "lose subchannel-completion",
            json!({"kind": "lose", "message": "subchannel-completion"}),
        ),
        (
            "early send-table",
            json!({"kind": "early", "message": "send-table"}),
        ),
        ("early vf", json!({"kind": "early", "message": "vf"})),
        ("clear", json!({"kind": "clear"})),
    ];
    for (args, expected) in net {
        check(
            &request(&format!("net fault net0 --dir rx {args}")),
            &expected,
            args,
        );
    }
}

/// Whether all that is expected is there.
fn check(request: &Value, expected: &Value, args: &str) {
    for (key, value) in expected.as_object().expect("an object") {
        assert_eq!(request.get(key), Some(value), "{args}: {key} in {request}");
    }
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for args in [
        "disk add scsi0 3",
        "disk resize scsi0 3 big",
        "net link net0",
        "net vf net0",
        "net fault net0 patch data nothing 1",
        "net fault net0 patch data range-count x",
        "kvp get key --patch 4",
        "kvp get key --patch x:00",
        "kvp set-ip {a}",
        "heartbeat --every 3",
    ] {
        let words = ["hvctl", "-s", "s"]
            .into_iter()
            .chain(args.split_whitespace());
        assert!(Cli::try_parse_from(words).is_err(), "{args}");
    }
    for args in ["copy /dev/null there", "raw {"] {
        assert!(command(cli(args).cmd).is_err(), "{args}");
    }
    let missing = run(cli("profile read --kallsyms /nonexistent/kallsyms"));
    let text = missing.expect_err("no such file").to_string();
    assert!(text.starts_with("/nonexistent/kallsyms: "), "{text}");
}

#[test]
fn a_status_is_told_with_the_guests_last_words() {
    let text = shown(
        "status",
        &json!({
            "state": "offers-delivered", "version": "6.0", "max_version": "6.0", "message_vp": 0, "connects": 2,
            "unloads": 1, "gpadls": 3, "violations": 0, "vp_count": 4, "reference_time": 25_000_000,
            "partition": {"guest_os_id": "0x8100", "crashes": [{"vp": 1, "parameters": [1, 2], "text": "one\ntwo"}]}
        }),
    );
    for part in [
        "OffersDelivered, version 6.0 (newest accepted: 6.0)",
        "connects    2   unloads 1   GPADLs 3",
        "processors  4   reference time 2.500 s",
        "guest_os_id \"0x8100\"",
        "on processor 1, parameters [1,2]\n    one\n    two",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn channels_and_counters_are_tables() {
    let mut counters = json!({"packets_out": 7, "packets_in": 0, "bytes_out": 0, "bytes_in": 0, "interrupts": 5,
        "interrupts_merged": 0, "signals": 3, "unneeded_signals": 0, "monitor_signals": 0, "opens": 1});
    let channel = json!({
        "device": "net0", "class": "c", "instance": "i-1", "subchannel": 2, "relid": 9, "connection_id": 1,
        "state": "open", "target_vp": null, "monitor": false, "out_ring_bytes": 1, "in_ring_bytes": 1, "agreed": null,
        "counters": counters
    });
    let text = shown("channels", &json!([channel]));
    let row = text.lines().nth(1).expect("a row");
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(
        words,
        ["net0.2", "9", "open", "-", "-", "7", "0", "5", "3", "i-1"]
    );
    counters["opens"] = json!(0);
    let text = shown(
        "counters",
        &json!({"host": {"messages_in": 4, "nothing": 0}, "partition": {"hypercalls": 2}, "channels": {"net0": counters}}),
    );
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0], ["host", "messages_in", "4"]);
    assert_eq!(lines[1], ["partition", "hypercalls", "2"]);
    assert!(lines.contains(&vec!["net0", "packets_out", "7"]));
    assert!(!text.contains("nothing") && !text.contains("opens"));
    assert_eq!(
        shown(
            "violations",
            &json!({"count": 1, "texts": ["bad"], "unneeded_signals": 2})
        ),
        "1 violations, 2 unneeded signals\n  bad"
    );
}

#[test]
fn devices_are_told_in_a_few_lines() {
    let disk = serde_json::to_value(hvctl::DiskInfo {
        device: "scsi0".into(),
        size: 3 << 30,
        allocated: 512,
        read_only: true,
        ..hvctl::DiskInfo::default()
    })
    .expect("serialises");
    for text in [
        shown("disk list", &json!([disk])),
        shown("disk remove scsi0 0", &disk),
    ] {
        let row = text.lines().nth(1).expect("a row");
        assert!(
            row.contains("3.0G") && row.contains(" 512 ") && row.ends_with("RAM (read-only)"),
            "{row}"
        );
    }
    let net = hvctl::NetInfo {
        device: "net0".into(),
        mac: "00-15-5d-00-00-01".into(),
        nvsp: Some("6.1".into()),
        speed: 100,
        backend: "echo".into(),
        backend_counters: [("lost".to_owned(), 3)].into(),
        counters: hvctl::NetCounters {
            tx_lso: 2,
            ..hvctl::NetCounters::default()
        },
        queues: vec![
            hvctl::NetQueue {
                open: true,
                rx_bytes: 2048,
                ..hvctl::NetQueue::default()
            },
            hvctl::NetQueue::default(),
        ],
        ..hvctl::NetInfo::default()
    };
    let text = shown("net list", &json!([net]));
    for part in [
        "NVSP 6.1  NDIS -",
        "link down (100 Mbit/s)",
        "(2.0K)",
        "tx_lso 2",
        "echo.lost 3",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert_eq!(text.matches("queue").count(), 1);
}

#[test]
fn answers_of_services_are_sentences() {
    let table = [
        (
            "heartbeat",
            json!({"interval_ms": 2000, "sent": 5, "answered": 4, "missed": 1, "burst_left": 0, "agreed": "3.0/3.0",
                "last_rtt_us": 7, "max_rtt_us": null}),
            "versions 3.0/3.0   interval 2000 ms   sent 5   answered 4   missed 1\nanswer after 7 µs (longest -)",
        ),
        (
            "timesync",
            json!({"interval_ms": 1, "sent": 2, "syncs": 1, "answered": 2, "stops_seen": 0, "offset_ms": -3, "agreed": null}),
            "versions not agreed   interval 1 ms   sent 2 (1 forced)   answered 2   stops seen 0   offset -3 ms",
        ),
        ("shutdown reboot", json!({"status": null}), "request sent"),
        ("shutdown reboot", json!({"status": 0}), "accepted by the guest"),
        (
            "shutdown reboot",
            json!({"status": 0x8000_4005_u32}),
            "refused by the guest with status 0x80004005",
        ),
        ("kvp get a", json!({"status": 0, "value": "b"}), "b"),
        ("kvp enumerate", json!({"status": 0, "pairs": [{"key": "a", "value": "b"}]}), "a=b"),
        (
            "kvp get a",
            json!({"status": 0x8007_0103_u32}),
            "no such item, or no more (0x80070103)",
        ),
        ("backup thaw", json!({"status": 0, "flags": 0}), "done (0x00000000)"),
        ("copy /dev/null /a", json!({"status": 0x8007_0070_u32, "bytes": 9}), "disk full (0x80070070), 9 bytes"),
        ("pause", Value::Null, ""),
        // What this program does not know the shape of is shown as it is.
        ("timesync", json!({"new": 1}), "{\n  \"new\": 1\n}"),
    ];
    for (args, answer, expected) in table {
        assert_eq!(shown(args, &answer), expected, "{args}");
    }
    let ip = json!({"status": 0, "ip": {"adapter": "{a}", "dhcp": true, "addresses": "10.0.0.2"}});
    assert!(shown("kvp get-ip {a}", &ip).contains("addresses 10.0.0.2"));
    let event: hvctl::Event = serde_json::from_value(
        json!({"event": "opened", "device": "net0", "relid": 3, "target_vp": 1}),
    )
    .expect("an event");
    let text = show::event(&event);
    assert!(
        text.starts_with("opened ") && text.contains("device=net0") && text.contains("relid=3"),
        "{text}"
    );
}
