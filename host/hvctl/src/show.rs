// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Answers for people.

use std::fmt::Write as _;
use std::io::Write as _;

use hvctl::{
    ChannelInfo, Counters, DiskInfo, Event, HeartbeatStatus, NetInfo, ShutdownReply, Status,
    TimesyncStatus, Violations,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::disk_cmd::DiskCmd;
use super::net_cmd::NetCmd;
use super::Cmd;

/// Prints a line; a reader that has gone away ends the program quietly.
pub(crate) fn line(text: &str) {
    if writeln!(std::io::stdout(), "{text}").is_err() {
        std::process::exit(0);
    }
}

/// How the answer to a command is shown.
pub(crate) fn for_command(cmd: &Cmd) -> fn(&Value) -> String {
    match cmd {
        Cmd::Status => |v| typed(v, status),
        Cmd::Channels => |v| typed(v, |list: Vec<ChannelInfo>| channels(&list)),
        Cmd::Counters => |v| typed(v, counters),
        Cmd::Violations => |v| typed(v, violations),
        Cmd::Disk {
            what: DiskCmd::List,
        } => |v| typed(v, |list: Vec<DiskInfo>| disks(&list)),
        Cmd::Disk { .. } => |v| typed(v, |disk: DiskInfo| disks(&[disk])),
        Cmd::Net { what: NetCmd::List } => |v| typed(v, |list: Vec<NetInfo>| nets(&list)),
        Cmd::Heartbeat { .. } => |v| typed(v, heartbeat),
        Cmd::Timesync(_) => |v| typed(v, timesync),
        Cmd::Shutdown { .. } => |v| typed(v, shutdown),
        Cmd::Kvp(_) => |v| typed(v, |r: hvctl::KvpReply| kvp(&r)),
        Cmd::Backup(_) => |v| typed(v, |r: hvctl::BackupReply| status_line(r.status)),
        Cmd::Copy(_) => |v| {
            typed(v, |r: hvctl::CopyReply| {
                format!("{}, {} bytes", status_line(r.status), r.bytes)
            })
        },
        _ => plain,
    }
}

fn status_line(status: u32) -> String {
    format!("{} ({status:#010x})", hvctl::status_text(status))
}

fn kvp(reply: &hvctl::KvpReply) -> String {
    let mut out = String::new();
    for pair in &reply.pairs {
        let _ = writeln!(out, "{}={}", pair.key, pair.value);
    }
    if let Some(value) = &reply.value {
        let _ = writeln!(out, "{value}");
    }
    if let Some(ip) = &reply.ip {
        let _ = writeln!(
            out,
            "adapter   {}\ndhcp      {}\naddresses {}\nsubnets   {}\ngateways  {}\ndns       {}",
            ip.adapter, ip.dhcp, ip.addresses, ip.subnets, ip.gateways, ip.dns
        );
    }
    if reply.status != 0 || out.is_empty() {
        out += &status_line(reply.status);
    }
    out.trim_end().to_owned()
}

fn plain(v: &Value) -> String {
    match v {
        Value::Null => String::new(),
        other => serde_json::to_string_pretty(other).unwrap_or_default(),
    }
}

/// Shows what this program knows the shape of, and else the JSON.
fn typed<T: DeserializeOwned>(v: &Value, f: impl FnOnce(T) -> String) -> String {
    serde_json::from_value(v.clone()).map_or_else(|_| plain(v), f)
}

fn status(s: Status) -> String {
    let version = s.version.as_deref().unwrap_or("none");
    let mut out = format!(
        "VMBus       {:?}, version {version} (newest accepted: {})\n\
         connects    {}   unloads {}   GPADLs {}   violations {}\n\
         processors  {}   reference time {:.3} s",
        s.state,
        s.max_version,
        s.connects,
        s.unloads,
        s.gpadls,
        s.violations,
        s.vp_count,
        s.reference_time as f64 / 1e7
    );
    if let Value::Object(map) = &s.partition {
        for (key, value) in map {
            if key == "crashes" {
                crashes(&mut out, value);
                continue;
            }
            let _ = write!(out, "\n{key:<11} {value}");
        }
    }
    out
}

/// The last lines of what the guest said when it crashed.
fn crashes(out: &mut String, list: &Value) {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    let _ = write!(out, "\n{:<11} {}", "crashes", list.len());
    for crash in list {
        let _ = write!(
            out,
            "\n  on processor {}, parameters {}",
            crash["vp"], crash["parameters"]
        );
        let text = crash["text"].as_str().unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(12)..] {
            let _ = write!(out, "\n    {line}");
        }
    }
}

fn channels(list: &[ChannelInfo]) -> String {
    let mut out = format!(
        "{:<12} {:>5} {:<10} {:>3} {:<9} {:>9} {:>9} {:>8} {:>8}  instance",
        "device", "relid", "state", "vp", "agreed", "to guest", "to host", "intr", "signals"
    );
    for c in list {
        let name = if c.subchannel == 0 {
            c.device.clone()
        } else {
            format!("{}.{}", c.device, c.subchannel)
        };
        let number = |n: Option<u32>| n.map_or_else(|| "-".into(), |n| n.to_string());
        let state = format!("{:?}", c.state).to_lowercase();
        let _ = write!(
            out,
            "\n{name:<12} {:>5} {state:<10} {:>3} {:<9} {:>9} {:>9} {:>8} {:>8}  {}",
            number(c.relid),
            number(c.target_vp),
            c.agreed.as_deref().unwrap_or("-"),
            c.counters.packets_out,
            c.counters.packets_in,
            c.counters.interrupts,
            c.counters.signals,
            c.instance
        );
    }
    out
}

fn counters(c: Counters) -> String {
    let mut lines = Vec::new();
    for (group, map) in [("host", &c.host), ("partition", &c.partition)] {
        lines.extend(
            map.iter()
                .filter(|(_, v)| **v > 0)
                .map(|(k, v)| format!("{group:<10} {k:<40} {v:>12}")),
        );
    }
    for (name, counters) in &c.channels {
        if let Ok(Value::Object(map)) = serde_json::to_value(counters) {
            lines.extend(
                map.iter()
                    .filter(|(_, v)| v.as_u64() != Some(0))
                    .map(|(k, v)| format!("{name:<10} {k:<40} {v:>12}")),
            );
        }
    }
    lines.join("\n")
}

fn violations(v: Violations) -> String {
    let mut out = format!(
        "{} violations, {} unneeded signals",
        v.count, v.unneeded_signals
    );
    for text in v.texts {
        let _ = write!(out, "\n  {text}");
    }
    out
}

fn bytes(n: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    match units.iter().find(|(shift, _)| n >= 1 << shift) {
        Some((shift, unit)) => format!("{:.1}{unit}", n as f64 / (1u64 << shift) as f64),
        None => n.to_string(),
    }
}

fn disks(list: &[DiskInfo]) -> String {
    let mut out = format!(
        "{:<7} {:>3} {:>3} {:>8} {:>8} {:>9} {:>8} {:>9} {:>8} {:>7} {:>6} {:>5}  store",
        "device",
        "tgt",
        "lun",
        "size",
        "used",
        "reads",
        "read",
        "writes",
        "written",
        "flushes",
        "errors",
        "depth"
    );
    for d in list {
        let c = &d.counters;
        let _ = write!(
            out,
            "\n{:<7} {:>3} {:>3} {:>8} {:>8} {:>9} {:>8} {:>9} {:>8} {:>7} {:>6} {:>5}  {}{}",
            d.device,
            d.target,
            d.lun,
            bytes(d.size),
            bytes(d.allocated),
            c.reads,
            bytes(c.bytes_read),
            c.writes,
            bytes(c.bytes_written),
            c.flushes,
            c.errors,
            c.max_in_flight,
            d.file.as_deref().unwrap_or("RAM"),
            if d.read_only { " (read-only)" } else { "" }
        );
    }
    out
}

fn nets(list: &[NetInfo]) -> String {
    let mut out = String::new();
    for n in list {
        let none = || "-".to_owned();
        let _ = write!(
            out,
            "{}{}  {}  {:?}  NVSP {}  NDIS {}  MTU {}  link {} ({} Mbit/s)  filter {:#x}  back end {}",
            if out.is_empty() { "" } else { "\n" },
            n.device,
            n.mac,
            n.state,
            n.nvsp.clone().unwrap_or_else(none),
            n.ndis.clone().unwrap_or_else(none),
            n.mtu,
            if n.link { "up" } else { "down" },
            n.speed,
            n.filter,
            n.backend
        );
        let _ = write!(out, "\n  offloads {}", n.offloads.join(" "));
        for q in n.queues.iter().filter(|q| q.open) {
            let _ = write!(
                out,
                "\n  queue {:>2}  to guest {} ({}) in {} packets, {} held, {} waiting  from guest {} ({}) in {} packets, {} frames",
                q.index,
                q.rx_packets,
                bytes(q.rx_bytes),
                q.rx_messages,
                q.rx_held,
                q.rx_waiting,
                q.tx_packets,
                bytes(q.tx_bytes),
                q.tx_messages,
                q.tx_frames
            );
        }
        let Ok(Value::Object(counters)) = serde_json::to_value(n.counters) else {
            continue;
        };
        let mut list: Vec<String> = counters
            .iter()
            .filter(|(_, value)| value.as_u64() != Some(0))
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        list.extend(
            n.backend_counters
                .iter()
                .map(|(name, value)| format!("{}.{name} {value}", n.backend)),
        );
        if !list.is_empty() {
            let _ = write!(out, "\n  {}", list.join("  "));
        }
    }
    out
}

fn heartbeat(h: HeartbeatStatus) -> String {
    let rtt = |us: Option<u64>| us.map_or_else(|| "-".into(), |us| format!("{us} µs"));
    format!(
        "versions {}   interval {} ms   sent {}   answered {}   missed {}\nanswer after {} (longest {})",
        h.agreed.as_deref().unwrap_or("not agreed"),
        h.interval_ms,
        h.sent,
        h.answered,
        h.missed,
        rtt(h.last_rtt_us),
        rtt(h.max_rtt_us)
    )
}

fn timesync(t: TimesyncStatus) -> String {
    format!(
        "versions {}   interval {} ms   sent {} ({} forced)   answered {}   stops seen {}   offset {} ms",
        t.agreed.as_deref().unwrap_or("not agreed"),
        t.interval_ms,
        t.sent,
        t.syncs,
        t.answered,
        t.stops_seen,
        t.offset_ms
    )
}

fn shutdown(r: ShutdownReply) -> String {
    match r.status {
        None => "request sent".into(),
        Some(0) => "accepted by the guest".into(),
        Some(status) => format!("refused by the guest with status {status:#010x}"),
    }
}

/// One event.
pub(crate) fn event(event: &Event) -> String {
    let Ok(Value::Object(mut map)) = serde_json::to_value(event) else {
        return format!("{event:?}");
    };
    let name = map
        .remove("event")
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default();
    let mut out = format!("{name:<18}");
    for (key, value) in map {
        match value {
            Value::String(text) => {
                let _ = write!(out, " {key}={text}");
            }
            other => {
                let _ = write!(out, " {key}={other}");
            }
        }
    }
    out
}
