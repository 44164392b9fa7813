// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! File copy: a file of the host comes whole or not at all.
//!
//! Our drivers have a device node for it, the in-tree ones leave the channel to a daemon by UIO; Debian's daemon knows only the latter.

use anyhow::{ensure, Context, Result};
use hvctl::{Command, CopyReply, Sending};
use sha2::{Digest, Sha256};

use super::{config, guest, installed, sending, status_is, Daemons, Running, FAIL};
use crate::disks::Scratch;
use crate::net::hex;
use crate::runner::{equal, Ctx, Scenario};
use crate::vm::{Vm, SOON};
use crate::Drivers;

const EXISTS: u32 = 0x8007_0050;
const INVALID: u32 = 0x8007_0057;
const DISK_FULL: u32 = 0x8007_0070;

pub fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::from(Scenario::both(
        "copy-ours",
        "files come whole or not at all: names, overwriting, full disk, other places, cancel, a daemon killed",
        |ctx| copies(ctx, Daemons::Ours),
    ));
    let mut debian = Scenario::new(
        "copy-debian-c",
        "Debian's daemon, by UIO, takes files of the same host",
        |ctx| copies(ctx, Daemons::Debian),
    );
    debian.drivers = Some(Drivers::C);
    all.push(debian);
    all
}

/// What is copied where.
pub(super) struct Copy<'a> {
    pub file: &'a str,
    pub directory: &'a str,
    pub name: &'a str,
    pub overwrite: bool,
    pub create_path: bool,
    pub cancel_after: Option<u64>,
}

impl<'a> Copy<'a> {
    pub fn new(file: &'a str, directory: &'a str, name: &'a str) -> Self {
        Self {
            file,
            directory,
            name,
            overwrite: false,
            create_path: false,
            cancel_after: None,
        }
    }

    fn command(self, how: Sending) -> Command {
        Command::Copy {
            file: self.file.into(),
            directory: self.directory.into(),
            name: self.name.into(),
            overwrite: self.overwrite,
            create_path: self.create_path,
            cancel_after: self.cancel_after,
            how,
        }
    }

    pub fn send(self, vm: &Vm, how: Sending) -> Result<CopyReply> {
        let value = vm.host().call(self.command(how))?;
        serde_json::from_value(value).context("answer to copy")
    }

    fn status(self, vm: &Vm) -> Result<u32> {
        let mut how = sending();
        how.wait_ms = 120_000;
        Ok(self.send(vm, how)?.status)
    }
}

/// Bytes that do not repeat where pieces end.
fn content(len: usize) -> Vec<u8> {
    let mut x = 0x2545_f491_4f6c_dd1du64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn sha256(file: &Scratch) -> Result<String> {
    Ok(hex(Sha256::digest(std::fs::read(file.path())?).as_slice()))
}

fn copies(ctx: &Ctx, daemons: Daemons) -> Result<()> {
    let len = ctx.count(64 << 20, 2 << 20) + 4321;
    let source = Scratch::blank(&ctx.env.scratch(), 0)?;
    std::fs::write(source.path(), content(len))?;
    let other = Scratch::blank(&ctx.env.scratch(), 0)?;
    std::fs::write(other.path(), content(7))?;
    let empty = Scratch::blank(&ctx.env.scratch(), 0)?;
    let path = |s: &Scratch| s.path().display().to_string();
    let (file, small, empty_file) = (path(&source), path(&other), path(&empty));
    guest(ctx, config(ctx), |vm| {
        installed(vm, daemons)?;
        if ctx.drivers == Drivers::C {
            vm.sh("modprobe uio_hv_generic")?;
        }
        // By UIO the daemon itself agrees on versions.
        let start = |options: &str| -> Result<Running<'_>> {
            let command = match (daemons, ctx.drivers) {
                (Daemons::Ours, Drivers::Rust) => {
                    return Running::serving_with(vm, "fcopy", options)
                }
                (Daemons::Ours, _) => format!("{} {options}", Daemons::Ours.command("fcopy")),
                (Daemons::Debian, _) => "/usr/sbin/hv_fcopy_uio_daemon -n".into(),
            };
            let daemon = Running::start(vm, &command)?;
            vm.host().wait_negotiated("fcopy", SOON)?;
            Ok(daemon)
        };
        let daemon = start("")?;
        vm.sh("mkdir /run/in")?;
        let same = |path: &str, from: &Scratch| -> Result<()> {
            let sum = vm.sh(&format!("sha256sum '/run/in/{path}'"))?;
            let found = sum.split_whitespace().next().unwrap_or_default();
            equal(path, found, sha256(from)?.as_str())
        };
        let listing = || vm.sh("find /run/in | sort");

        let begin = std::time::Instant::now();
        // The C daemon makes the directories that have a `/` behind them, and converts names only in a locale of its own.
        let name = match daemons {
            Daemons::Ours => "Grüße.bin",
            Daemons::Debian => "file.bin",
        };
        let at = format!("a/b/{name}");
        let copy = Copy {
            create_path: true,
            ..Copy::new(&file, "/run/in/a/b/", name)
        };
        status_is("copy", copy.status(vm)?, 0)?;
        ctx.figure(format!(
            "{:.1} MB/s",
            len as f64 / begin.elapsed().as_secs_f64() / 1e6
        ));
        same(&at, &source)?;
        let mode = match daemons {
            Daemons::Ours => "644",
            Daemons::Debian => "744",
        };
        equal("mode", vm.sh("stat -c %a /run/in/a/b/*")?.trim(), mode)?;
        status_is(
            "an empty file",
            Copy::new(&empty_file, "/run/in/", "empty").status(vm)?,
            0,
        )?;
        same("empty", &empty)?;

        // What exists stays, unless it is to go.
        let again = || Copy::new(&small, "/run/in/a/b/", name);
        status_is("exists", again().status(vm)?, EXISTS)?;
        same(&at, &source)?;
        let over = Copy {
            overwrite: true,
            ..again()
        };
        status_is("overwrite", over.status(vm)?, 0)?;
        same(&at, &other)?;
        if daemons == Daemons::Debian {
            daemon.kill()?;
            return Ok(());
        }

        // Other places than the one that was named, and places that do not exist.
        let before = listing()?;
        vm.sh("mkdir /run/out; echo kept >/run/out/victim")?;
        for (directory, name, status) in [
            ("/run/in/../out", "x", INVALID),
            ("run/in", "x", INVALID),
            ("/run/in", "../out/x", INVALID),
            ("/run/in", "..", INVALID),
            ("/run/in", ".", INVALID),
            ("/run/in/no/such", "x", FAIL),
            ("/run/in/empty", "x", FAIL),
            ("/proc", "x", FAIL),
        ] {
            let found = Copy::new(&small, directory, name).status(vm)?;
            status_is(&format!("{directory} {name}"), found, status)?;
        }
        let found = Copy {
            overwrite: true,
            ..Copy::new(&small, "/run/in", "a")
        };
        status_is("over a directory", found.status(vm)?, EXISTS)?;

        // Somebody in the guest has laid a link where the host's file is to go: it is never written through.
        vm.sh("ln -s /run/out/victim /run/in/to-file; ln -s /run/out/none /run/in/to-none; ln -s /run/out /run/in/to-directory")?;
        for name in ["to-file", "to-none", "to-directory"] {
            let copy = || Copy::new(&small, "/run/in", name);
            status_is(&format!("{name} is a link"), copy().status(vm)?, EXISTS)?;
            vm.sh(&format!("test -h /run/in/{name}"))?;
            let over = Copy {
                overwrite: true,
                ..copy()
            };
            status_is(&format!("over the link {name}"), over.status(vm)?, 0)?;
            vm.sh(&format!(
                "test -f /run/in/{name} && test ! -h /run/in/{name}"
            ))?;
            same(name, &other)?;
        }
        vm.sh("rm /run/in/to-*")?;
        equal("behind links", out(vm)?.as_str(), "victim: kept")?;

        // A disk without the space: told at the start, and nothing is left.
        vm.sh("mkdir /run/full; mount -t tmpfs -o size=256k none /debian/run/full")?;
        status_is(
            "full disk",
            Copy::new(&file, "/run/full", "x").status(vm)?,
            DISK_FULL,
        )?;
        equal("left", vm.sh("ls -A /debian/run/full")?.trim(), "")?;

        // The host's user changes his mind; the daemon dies; both leave nothing under any name.
        let cancelled = Copy {
            cancel_after: Some(100_000),
            ..Copy::new(&file, "/run/in", "half")
        };
        status_is("cancelled", cancelled.status(vm)?, 0)?;
        equal("files after a cancel", listing()?, before.clone())?;
        let sent = |vm: &Vm| -> Result<u64> {
            let counters = vm.host().counters()?;
            Ok(counters.channels.get("fcopy").map_or(0, |c| c.packets_out))
        };
        let (first, mut second) = (sent(vm)?, vm.second_host()?);
        let half = Copy::new(&file, "/run/in", "half").command(sending());
        let stopped = std::thread::scope(|scope| -> Result<_> {
            let copying = scope.spawn(move || second.call(half));
            while sent(vm)? < first + 20 && !copying.is_finished() {}
            daemon.kill()?;
            Ok(copying.join().expect("no panic"))
        })?;
        match stopped {
            Ok(value) => {
                let reply: CopyReply = serde_json::from_value(value)?;
                status_is("copy to a killed daemon", reply.status, FAIL)?;
            }
            // By UIO the channel goes with the daemon.
            Err(e) => ensure!(ctx.drivers == Drivers::C, "copy to a killed daemon: {e}"),
        }
        equal("files after a kill", listing()?, before)?;
        let daemon = start("")?;
        status_is(
            "copy with the next daemon",
            Copy::new(&small, "/run/in", "after").status(vm)?,
            0,
        )?;
        same("after", &other)?;
        daemon.kill()?;
        confined(vm, &small, || start("--root /run/in"))?;
        same("d/inside", &other)
    })
}

/// What is beside the directory that files go to, with contents.
fn out(vm: &Vm) -> Result<String> {
    let text = vm.sh("cd /run/out; for f in $(ls -A); do echo \"$f: $(cat $f)\"; done")?;
    Ok(text.trim().to_owned())
}

/// The daemon is told to keep below a directory: links in it that lead out lead nowhere.
fn confined<'a>(vm: &'a Vm, file: &str, start: impl Fn() -> Result<Running<'a>>) -> Result<()> {
    let daemon = start()?;
    vm.sh(
        "cd /run/in; mkdir d; ln -s /run/out absolute; ln -s ../out up; ln -s ../../out d/far; ln -s d here; \
         ln -s /run/out/victim leaf",
    )?;
    for (directory, name) in [
        ("/absolute", "x"),
        ("/up", "x"),
        ("/d/far", "x"),
        ("/here/far/", "victim"),
        ("/run/out", "x"),
    ] {
        let copy = || Copy {
            overwrite: true,
            ..Copy::new(file, directory, name)
        };
        status_is(directory, copy().status(vm)?, FAIL)?;
        // Nor is the way made that a link names, outside.
        let create = Copy {
            create_path: true,
            ..copy()
        };
        let status = create.status(vm)?;
        ensure!(
            status == FAIL || directory == "/run/out",
            "{directory}, made: status {status:#x}"
        );
    }
    status_is(
        "a leaf that is a link",
        Copy {
            overwrite: true,
            ..Copy::new(file, "/", "leaf")
        }
        .status(vm)?,
        0,
    )?;
    // A link that stays inside is as good as a directory.
    status_is("inside", Copy::new(file, "/here", "inside").status(vm)?, 0)?;
    equal("beside the directory", out(vm)?.as_str(), "victim: kept")?;
    daemon.kill()?;
    Ok(())
}
