// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A host that sends each message with every field out of range: refused, and the services go on.

use std::time::Instant;

use anyhow::{ensure, Context, Result};
use hvctl::{BackupOp, CopyReply, IpSettings, KvpKind, KvpOp, KvpPool, Patch, Sending};

use super::copy::Copy;
use super::{backup_how, config, guest, kvp_how, sending, status_is, Running, FAIL};
use crate::runner::{Ctx, Scenario};
use crate::vm::{Vm, SOON};
use crate::Drivers;

pub fn scenarios() -> Vec<Scenario> {
    let mut rust = Scenario::new(
        "hostile",
        "every field of every message out of range, messages cut short: refused, services alive",
        hostile,
    );
    rust.drivers = Some(Drivers::Rust);
    vec![rust]
}

fn patched(at: usize, hex: &str) -> Sending {
    Sending {
        patch: vec![Patch {
            at,
            hex: hex.into(),
        }],
        ..sending()
    }
}

fn cut(len: usize) -> Sending {
    Sending {
        cut: Some(len),
        ..sending()
    }
}

/// A request and how it is broken.
type Attack = (KvpOp, Sending);

fn attacks() -> Vec<Attack> {
    let pool = KvpPool::External;
    let key = "k".to_owned();
    let get = KvpOp::Get {
        pool,
        key: key.clone(),
    };
    let set = KvpOp::Set {
        pool,
        key: key.clone(),
        value: "v".into(),
        kind: KvpKind::Text,
    };
    let number = KvpOp::Set {
        pool,
        key: key.clone(),
        value: "7".into(),
        kind: KvpKind::U64,
    };
    let delete = KvpOp::Delete { pool, key };
    let one = KvpOp::Enumerate {
        pool,
        index: Some(0),
    };
    let ip = KvpOp::SetIp(IpSettings {
        adapter: "{00000000-1111-2222-3333-444444444444}".into(),
        family: 1,
        ..IpSettings::default()
    });
    let snow = |units: usize| "0326".repeat(units);
    let mut all = vec![
        (get.clone(), patched(0, "06")),
        (get.clone(), patched(0, "ff")),
        (get.clone(), patched(1, "05")),
        (one.clone(), patched(1, "ff")),
        (get.clone(), patched(8, "ffffffff")),
        (get.clone(), patched(8, "02020000")),
        (get.clone(), patched(8, "03000000")),
        (get.clone(), patched(8, "00000000")),
        (get.clone(), patched(16, "00d8")),
        (set.clone(), patched(4, "00000000")),
        (set.clone(), patched(4, "ffffffff")),
        (set.clone(), patched(12, "01080000")),
        (set.clone(), patched(12, "ffffff7f")),
        (set.clone(), patched(528, "00dc")),
        (number, patched(12, "04000000")),
        (delete.clone(), patched(4, "00040000")),
        (ip.clone(), patched(2, "0000")),
        (ip.clone(), patched(258, "ff")),
    ];
    // Text of three bytes a character, more than the daemon's fields hold.
    for (at, units) in [(260, 1024), (2308, 1024), (4356, 512), (5380, 1024)] {
        all.push((ip.clone(), patched(at, &snow(units))));
    }
    for (op, len) in [
        (&get, 2576),
        (&set, 2576),
        (&delete, 520),
        (&one, 2580),
        (&ip, 7428),
    ] {
        // Packets are padded to 8 bytes, so that less than that is not missed.
        for cut_at in [0, 1, 4, len / 2, len - 8] {
            all.push((op.clone(), cut(cut_at)));
        }
    }
    all
}

fn copy(vm: &Vm, file: &str, directory: &str, how: Sending) -> Result<CopyReply> {
    Copy::new(file, directory, "copied").send(vm, how)
}

fn hostile(ctx: &Ctx) -> Result<()> {
    guest(ctx, config(ctx), |vm| {
        let mut daemons = Vec::new();
        for service in ["kvp", "vss", "fcopy"] {
            daemons.push(Running::serving(vm, service)?);
        }
        let mut count = 0;
        for (op, how) in attacks() {
            let what = format!("{op:?} {how:?}");
            let reply = kvp_how(vm, op, how).context(what.clone())?;
            status_is(&what, reply.status, FAIL)?;
            count += 1;
        }
        for how in [
            patched(0, "07"),
            patched(0, "08"),
            patched(0, "80"),
            patched(0, "81"),
            patched(0, "ff"),
            cut(0),
            cut(4),
        ] {
            let what = format!("freeze {how:?}");
            let reply = backup_how(vm, BackupOp::Freeze, how).context(what.clone())?;
            status_is(&what, reply.status, FAIL)?;
            count += 1;
        }
        // Any file of the host.
        let file = ctx.env.kernel.display().to_string();
        for how in [
            patched(0, "04000000"),
            patched(36, "0000"),
            patched(36, "00d8"),
            patched(36, &"0326".repeat(260)),
            patched(556, "0000"),
            patched(1076, "04000000"),
            cut(36),
            cut(1080),
        ] {
            let what = format!("copy {how:?}");
            let reply = copy(vm, &file, "/run", how).context(what.clone())?;
            status_is(&what, reply.status, FAIL)?;
            count += 1;
        }
        // A host that goes on and on does not fill the log.
        let mark = vm.log_mark()?;
        let again = || KvpOp::Get {
            pool: KvpPool::External,
            key: "k".into(),
        };
        let (least, begin) = (ctx.count(5000, 300), Instant::now());
        let (mut flood, mut lines) = (0, 0);
        // Until one line at least has come: the messages above have used up the limit, which is for some seconds.
        while flood < least || lines == 0 {
            ensure!(
                lines != 0 || begin.elapsed() < SOON,
                "no line for {flood} messages"
            );
            for _ in 0..50 {
                let reply = kvp_how(vm, again(), patched(1, "05"))?;
                status_is("flood", reply.status, FAIL)?;
            }
            flood += 50;
            let log = vm.log_since(mark)?;
            lines = log
                .iter()
                .filter(|line| line.text.contains("unknown pool"))
                .count();
        }
        ensure!(lines * 3 < flood, "{lines} lines for {flood} messages");
        // All alive.
        let one = KvpOp::Enumerate {
            pool: KvpPool::Auto,
            index: Some(0),
        };
        status_is("enumerate", kvp_how(vm, one, sending())?.status, 0)?;
        status_is(
            "check",
            backup_how(vm, BackupOp::Check, sending())?.status,
            0,
        )?;
        let reply = copy(vm, &file, "/run", sending())?;
        status_is("copy", reply.status, 0)?;
        ensure!(
            reply.bytes == std::fs::metadata(&ctx.env.kernel)?.len(),
            "{} bytes copied",
            reply.bytes
        );
        for daemon in daemons {
            daemon.kill()?;
        }
        ctx.figure(format!(
            "{count} messages refused; {lines} lines of log for {flood} more"
        ));
        Ok(())
    })
}
