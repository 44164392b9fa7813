// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What users' tools read: sysfs and lsvmbus.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{bail, ensure, Context, Result};
use guest_agent::Entry;

use super::connect::PACE_MS;
use crate::runner::{equal, Ctx, Scenario};
use crate::vm::{Vm, SOON};
use crate::Drivers;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "sysfs-contract",
            "the files of docs and tools are there and agree with the host",
            contract,
        ),
        Scenario::new(
            "channel-counters",
            "interrupts and events of the heartbeat channel rise; ring figures agree",
            counters,
        ),
        Scenario::new(
            "sysfs-binding",
            "new_id, remove_id and driver_override: what they accept, refuse and do",
            binding,
        ),
        Scenario::new(
            "monitor-pages",
            "a channel that signals by the monitor page, at the oldest and the newest version",
            monitored,
        ),
        Scenario::new(
            "lsvmbus",
            "unmodified lsvmbus lists the devices and their channels' CPUs",
            lsvmbus,
        ),
    ]
}

/// Rust beside C.
pub fn comparisons() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "sysfs-as-c",
            "/sys/bus/vmbus of Rust and C compared file by file",
            same_tree,
        ),
        Scenario::new(
            "lsvmbus-as-c",
            "lsvmbus, -v and -vv print the same for Rust and C",
            same_lsvmbus,
        ),
    ]
}

/// Files of every device.
const DEVICE_FILES: [&str; 19] = [
    "channel_vp_mapping",
    "class_id",
    "device",
    "device_id",
    "id",
    "in_intr_mask",
    "in_read_bytes_avail",
    "in_read_index",
    "in_write_bytes_avail",
    "in_write_index",
    "modalias",
    "out_intr_mask",
    "out_read_bytes_avail",
    "out_read_index",
    "out_write_bytes_avail",
    "out_write_index",
    "state",
    "uevent",
    "vendor",
];

/// Files of every channel.
const CHANNEL_FILES: [&str; 12] = [
    "cpu",
    "events",
    "in_mask",
    "interrupts",
    "intr_in_full",
    "intr_out_empty",
    "out_full_first",
    "out_full_total",
    "out_mask",
    "read_avail",
    "subchannel_id",
    "write_avail",
];

fn device_dir(instance: &str) -> String {
    format!("/sys/bus/vmbus/devices/{instance}")
}

fn contract(ctx: &Ctx) -> Result<()> {
    ctx.connected(ctx.config().smp(2), |vm| {
        for channel in vm.host().channels()? {
            let dir = device_dir(&channel.instance);
            let have: BTreeSet<String> = vm.sh(&format!("ls {dir}"))?.split_whitespace().map(str::to_owned).collect();
            for name in DEVICE_FILES {
                ensure!(have.contains(name), "{}: no file {name}", channel.device);
            }
            let relid = channel.relid.context("no relid")?;
            let have: BTreeSet<String> =
                vm.sh(&format!("ls {dir}/channels/{relid}"))?.split_whitespace().map(str::to_owned).collect();
            for name in CHANNEL_FILES {
                ensure!(have.contains(name), "{}: no file channels/{relid}/{name}", channel.device);
            }
            let is = |name: &str, value: &str| equal(name, vm.read(&format!("{dir}/{name}"))?.as_str(), value);
            is("class_id", &format!("{{{}}}", channel.class))?;
            is("device_id", &format!("{{{}}}", channel.instance))?;
            is("id", &relid.to_string())?;
            is("vendor", "0x1414")?;
            // CHANNEL_OPENED_STATE of include/linux/hyperv.h.
            is("state", "3")?;
            is("modalias", &format!("vmbus:{}", in_memory_order(&channel.class)))?;
            is("channel_vp_mapping", &format!("{relid}:{}", channel.target_vp.unwrap_or(0)))?;
            is("driver_override", "(null)")?;
            let uevent = vm.read(&format!("{dir}/uevent"))?;
            ensure!(uevent.contains("MODALIAS=vmbus:"), "uevent: {uevent:?}");
            ensure!(uevent.contains("DRIVER=hv_utils"), "uevent: {uevent:?}");
        }
        equal("hibernation", vm.read("/sys/bus/vmbus/hibernation")?.as_str(), "0")?;
        vm.sh("test -e /sys/bus/vmbus/drivers/hv_utils/new_id -a -e /sys/bus/vmbus/drivers/hv_utils/remove_id")?;
        Ok(())
    })
}

/// A GUID's bytes as they lie in memory, in hexadecimal: the first three fields are little-endian. So modaliases have them.
fn in_memory_order(guid: &str) -> String {
    let mut all = String::new();
    for (number, field) in guid.split('-').enumerate() {
        let bytes: Vec<&str> = (0..field.len() / 2)
            .filter_map(|i| field.get(2 * i..2 * i + 2))
            .collect();
        if number < 3 {
            all.extend(bytes.iter().rev().copied());
        } else {
            all.extend(bytes);
        }
    }
    all
}

fn counters(ctx: &Ctx) -> Result<()> {
    ctx.connected(ctx.config().smp(2), |vm| {
        let channel = vm.host().channel("heartbeat")?;
        let relid = channel.relid.context("no relid")?;
        let dir = device_dir(&channel.instance);
        let number = |name: &str| -> Result<u64> {
            let text = vm.read(&format!("{dir}/{name}"))?;
            text.parse().with_context(|| format!("{name}: {text:?}"))
        };
        let interrupts = format!("channels/{relid}/interrupts");
        let events = format!("channels/{relid}/events");
        let before = (number(&interrupts)?, number(&events)?);
        let sent = vm.host().channel("heartbeat")?.counters.interrupts;
        vm.paced_beats(50, PACE_MS)?;
        let after = (number(&interrupts)?, number(&events)?);
        let sent = vm.host().channel("heartbeat")?.counters.interrupts - sent;
        ensure!(
            after.0 > before.0 && after.1 > before.1,
            "interrupts, events: {before:?}, then {after:?}"
        );
        // Both sides count each event flag once.
        ensure!(
            (after.0 - before.0).abs_diff(sent) <= 2,
            "the guest counted {} interrupts, the host sent {sent}",
            after.0 - before.0
        );
        // Channel values equal device values while nothing moves, and the ring is as large as the host thinks.
        vm.host().heartbeat_interval(std::time::Duration::ZERO)?;
        for (of_channel, of_device) in [
            ("read_avail", "in_read_bytes_avail"),
            ("write_avail", "out_write_bytes_avail"),
            ("out_mask", "out_intr_mask"),
            ("in_mask", "in_intr_mask"),
        ] {
            equal(
                of_channel,
                number(&format!("channels/{relid}/{of_channel}"))?,
                number(of_device)?,
            )?;
        }
        let size = number("in_read_bytes_avail")? + number("in_write_bytes_avail")?;
        equal(
            "size of the in ring",
            Some(size),
            channel.in_ring_bytes.map(u64::from),
        )?;
        let size = number("out_read_bytes_avail")? + number("out_write_bytes_avail")?;
        equal(
            "size of the out ring",
            Some(size),
            channel.out_ring_bytes.map(u64::from),
        )?;
        for index in [
            "in_read_index",
            "in_write_index",
            "out_read_index",
            "out_write_index",
        ] {
            ensure!(number(index)? < size, "{index} is outside of the ring");
        }
        ctx.figure(format!(
            "50 beats: {} interrupts, {} events",
            after.0 - before.0,
            after.1 - before.1
        ));
        Ok(())
    })
}

fn binding(ctx: &Ctx) -> Result<()> {
    const DRIVER: &str = "/sys/bus/vmbus/drivers/hv_utils";
    ctx.connected(ctx.config(), |vm| {
        let writes = |path: &str, text: &str, error: &str| {
            let result = vm.write(path, text).map_err(|err| format!("{err:#}"));
            let found = result.err().unwrap_or_default();
            ensure!(
                found.is_empty() == error.is_empty() && found.contains(error),
                "writing {text:?} to {path}: {found:?}, expected {error:?}"
            );
            Ok(())
        };
        let (new, remove) = (format!("{DRIVER}/new_id"), format!("{DRIVER}/remove_id"));
        // As documented in the kernel's ABI: a GUID; no braces.
        let guid = "01234567-89ab-cdef-0123-456789abcdef";
        writes(&new, "nonsense", "Invalid argument")?;
        writes(
            &new,
            "01234567-89ab-cdef-0123-456789abcdeg",
            "Invalid argument",
        )?;
        writes(&remove, guid, "No such device")?;
        writes(&new, guid, "")?;
        writes(&new, guid, "File exists")?;
        writes(&remove, guid, "")?;
        writes(&remove, guid, "No such device")?;
        // The driver that root names is the only one that binds.
        let channel = vm.host().channel("timesync")?;
        let dir = device_dir(&channel.instance);
        let over = format!("{dir}/driver_override");
        let (unbind, bind) = (format!("{DRIVER}/unbind"), format!("{DRIVER}/bind"));
        writes(&unbind, &channel.instance, "")?;
        writes(&over, "no_such_driver", "")?;
        equal(
            "driver_override",
            vm.read(&over)?.as_str(),
            "no_such_driver",
        )?;
        writes(&bind, &channel.instance, "No such device")?;
        ensure!(
            vm.run(&format!("test -e {dir}/driver"), SOON)?.rc != Some(0),
            "bound in spite of driver_override"
        );
        writes(&over, "hv_utils", "")?;
        writes(&bind, &channel.instance, "")?;
        vm.host().wait_negotiated("timesync", SOON)?;
        writes(&over, "\n", "")?;
        equal("driver_override", vm.read(&over)?.as_str(), "(null)")?;
        vm.beats(5).map(drop)
    })
}

fn monitored(ctx: &Ctx) -> Result<()> {
    for version in ["4.0", "6.0"] {
        let mut config = ctx.config_for(version, ctx.drivers).smp(2).vmbus(version);
        config.devices = ["heartbeat:monitor=on", "shutdown", "timesync"]
            .map(str::to_owned)
            .to_vec();
        ctx.connected(config, |vm| {
            let channel = vm.host().channel("heartbeat")?;
            let relid = channel.relid.context("no relid")?;
            let dir = device_dir(&channel.instance);
            let number = |name: &str| -> Result<u64> {
                let text = vm.read(&format!("{dir}/{name}"))?;
                text.parse().with_context(|| format!("{name}: {text:?}"))
            };
            equal(
                "monitor_id of device and channel",
                number("monitor_id")?,
                number(&format!("channels/{relid}/monitor_id"))?,
            )?;
            let events = format!("channels/{relid}/events");
            let before = number(&events)?;
            let beats = ctx.count(500, 30);
            let status = vm.paced_beats(beats, PACE_MS)?;
            // Hypercalls are what the page saves.
            equal("signals by hypercall", number(&events)? - before, 0)?;
            ctx.figure(format!(
                "{version}: {beats} beats, longest {} us",
                status.max_rtt_us.unwrap_or(0)
            ));
            Ok(())
        })?;
    }
    Ok(())
}

fn lsvmbus(ctx: &Ctx) -> Result<()> {
    ctx.connected(ctx.config().smp(2), |vm| {
        let short = vm.sh("lsvmbus")?;
        for class in [
            "[Heartbeat]",
            "[Operating system shutdown]",
            "[Time Synchronization]",
        ] {
            ensure!(
                short.contains(class),
                "lsvmbus does not list {class}: {short}"
            );
        }
        let offered = vm.host().channels()?;
        equal("lines of lsvmbus", short.lines().count(), offered.len())?;
        let long = vm.sh("lsvmbus -vv")?;
        for channel in offered {
            let line = format!(
                "Rel_ID={}, target_cpu={}",
                channel.relid.unwrap_or(0),
                channel.target_vp.unwrap_or(0)
            );
            ensure!(
                long.contains(&line),
                "lsvmbus -vv does not say {line}: {long}"
            );
            ensure!(
                long.contains(&channel.instance),
                "lsvmbus -vv does not list {}",
                channel.instance
            );
        }
        Ok(())
    })
}

/// Boots a guest with each stack and gives what `look` sees in each: Rust first.
fn both<T>(ctx: &Ctx, look: impl Fn(&Vm) -> Result<T>) -> Result<(T, T)> {
    let config = |name: &str, drivers| {
        let mut config = ctx.config_for(name, drivers);
        // One with monitor files, two without.
        config.devices = ["heartbeat:monitor=on", "shutdown", "timesync"]
            .map(str::to_owned)
            .to_vec();
        config
    };
    let rust = ctx.connected(config("rust", Drivers::Rust), &look)?;
    let c = ctx.connected(config("c", Drivers::C), &look)?;
    Ok((rust, c))
}

fn same_lsvmbus(ctx: &Ctx) -> Result<()> {
    const OPTIONS: [&str; 3] = ["", "-v", "-vv"];
    // The path of a device in sysfs and the ids are part of the output: both must be the same.
    let (rust, c) = both(ctx, |vm| {
        OPTIONS
            .iter()
            .map(|options| vm.sh(&format!("lsvmbus {options}")))
            .collect()
    })?;
    let (rust, c): (Vec<String>, Vec<String>) = (rust, c);
    for ((options, rust), c) in OPTIONS.iter().zip(rust).zip(c) {
        equal(
            &format!("output of lsvmbus {options} (Rust, expected: C)"),
            rust,
            c,
        )?;
    }
    Ok(())
}

/// Values that change from one reading to the next or from one boot to the next. Their format is compared, not their
/// value. All of them are counters or positions in rings.
const VARYING: [&str; 19] = [
    "in_read_bytes_avail",
    "in_read_index",
    "in_write_bytes_avail",
    "in_write_index",
    "in_intr_mask",
    "out_read_bytes_avail",
    "out_read_index",
    "out_write_bytes_avail",
    "out_write_index",
    "read_avail",
    "write_avail",
    "in_mask",
    "interrupts",
    "events",
    "intr_in_full",
    "intr_out_empty",
    "client_monitor_pending",
    "server_monitor_pending",
    "pending",
];

/// What differs on purpose, or has nothing to do with the drivers compared.
const EXCEPTED: [(&str, &str); 3] = [
    ("module", "the modules are named hv_vmbus_rs and hv_utils_rs, so that both stacks can be installed"),
    ("power/", "run-time power management, the driver core's own; its times differ"),
    ("drivers/", "the bus's list of drivers: the kernel image holds hv_pci and others, compared one by one elsewhere"),
];

fn same_tree(ctx: &Ctx) -> Result<()> {
    let (rust, c) = both(ctx, |vm| {
        vm.beats(5)?;
        let mut all = BTreeMap::new();
        for (name, path, depth) in [
            ("bus", "/sys/bus/vmbus".to_owned(), 1),
            ("driver", "/sys/bus/vmbus/drivers/hv_utils".to_owned(), 1),
        ]
        .into_iter()
        .chain(
            vm.host()
                .channels()?
                .into_iter()
                .map(|channel| ("", device_dir(&channel.instance), 4)),
        ) {
            let name = if name.is_empty() {
                path.rsplit('/').next().unwrap_or_default().to_owned()
            } else {
                name.into()
            };
            for entry in vm.tree(&path, depth)? {
                all.insert(format!("{name}/{}", entry.path), entry);
            }
        }
        Ok(all)
    })?;
    let differences = compare(&rust, &c);
    if !differences.is_empty() {
        bail!(
            "{} differences:\n{}",
            differences.len(),
            differences.join("\n")
        );
    }
    ctx.figure(format!("{} files and links compared", c.len()));
    Ok(())
}

fn compare(rust: &BTreeMap<String, Entry>, c: &BTreeMap<String, Entry>) -> Vec<String> {
    let excepted = |path: &str| {
        EXCEPTED
            .iter()
            .any(|(part, _)| path.ends_with(part) || path.contains(&format!("/{part}")))
    };
    let mut differences = Vec::new();
    let paths: BTreeSet<&String> = rust.keys().chain(c.keys()).collect();
    for path in paths {
        if excepted(path) {
            continue;
        }
        let (a, b) = match (rust.get(path), c.get(path)) {
            (Some(a), Some(b)) => (a, b),
            (Some(_), None) => {
                differences.push(format!("{path}: only with Rust"));
                continue;
            }
            _ => {
                differences.push(format!("{path}: only with C"));
                continue;
            }
        };
        if a.kind != b.kind || a.mode != b.mode {
            differences.push(format!(
                "{path}: {} {:o} with Rust, {} {:o} with C",
                a.kind, a.mode, b.kind, b.mode
            ));
        }
        if a.err != b.err {
            differences.push(format!(
                "{path}: reading gives {:?} with Rust, {:?} with C",
                a.err, b.err
            ));
        }
        let text = |entry: &Entry| {
            entry
                .data
                .as_ref()
                .map(guest_agent::Bytes::text)
                .unwrap_or_default()
        };
        let (a, b) = (text(a), text(b));
        let name = path.rsplit('/').next().unwrap_or_default();
        let same = if VARYING.contains(&name) {
            format_of(&a) == format_of(&b)
        } else {
            a == b
        };
        if !same {
            differences.push(format!("{path}: {a:?} with Rust, {b:?} with C"));
        }
    }
    differences
}

/// A value with its digits taken out: what is left is its format.
fn format_of(value: &str) -> String {
    let mut format = String::new();
    let mut rest = value;
    while let Some(c) = rest.chars().next() {
        let after_prefix = rest.strip_prefix("0x").unwrap_or_default();
        if after_prefix.starts_with(|c: char| c.is_ascii_hexdigit()) {
            format.push_str("0x#");
            rest = after_prefix.trim_start_matches(|c: char| c.is_ascii_hexdigit());
        } else if c.is_ascii_digit() {
            format.push('#');
            rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        } else {
            format.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    format
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modaliases_hold_the_bytes_of_memory() {
        // Heartbeat's, as in modules.alias of a Debian kernel.
        assert_eq!(
            in_memory_order("57164f39-9115-4e78-ab55-382f3bd5422d"),
            "394f16571591784eab55382f3bd5422d"
        );
    }

    #[test]
    fn formats() {
        assert_eq!(format_of("1204\n"), "#\n");
        assert_eq!(format_of("7"), format_of("123456"));
        assert_ne!(format_of("0x7f\n"), format_of("7\n"));
        assert_ne!(format_of("7\n"), format_of("7"));
        assert_ne!(format_of("-1"), format_of("1"));
        assert_eq!(format_of("0x7f 3"), "0x# #");
        assert_eq!(format_of("0xzz"), "#xzz");
    }

    fn entry(mode: u32, data: &str) -> Entry {
        Entry {
            path: String::new(),
            kind: "file".into(),
            mode,
            data: Some(data.into()),
            err: None,
        }
    }

    #[test]
    fn differences_are_found() {
        let tree = |files: &[(&str, u32, &str)]| -> BTreeMap<String, Entry> {
            files
                .iter()
                .map(|&(path, mode, data)| (path.to_owned(), entry(mode, data)))
                .collect()
        };
        let c = tree(&[
            ("d/id", 0o444, "7\n"),
            ("d/events", 0o444, "99\n"),
            ("d/power/control", 0o644, "on\n"),
        ]);
        let same = tree(&[("d/id", 0o444, "7\n"), ("d/events", 0o444, "3\n")]);
        assert_eq!(compare(&same, &c), Vec::<String>::new());
        for other in [
            tree(&[("d/id", 0o444, "8\n"), ("d/events", 0o444, "3\n")]),
            tree(&[("d/id", 0o644, "7\n"), ("d/events", 0o444, "3\n")]),
            tree(&[("d/id", 0o444, "7\n"), ("d/events", 0o444, "3")]),
            tree(&[("d/id", 0o444, "7\n")]),
            tree(&[
                ("d/id", 0o444, "7\n"),
                ("d/events", 0o444, "3\n"),
                ("d/more", 0o444, ""),
            ]),
        ] {
            assert_eq!(compare(&other, &c).len(), 1);
        }
    }
}
