// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The kernel's own tests of network drivers (tools/testing/selftests/drivers/net of the kernel under test), on a card whose
//! other end is a second card in a network namespace. Those that a plain card can run are named here; ours must come out as the
//! C driver does, or better.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, ensure, Context, Result};

use super::{address, interface, network_guest};
use crate::disks::Scratch;
use crate::env::TempDir;
use crate::net::{Backend, Nic};
use crate::runner::{Ctx, Scenario};
use crate::scenarios::programs::{tool_ok, tool_within, IO_LIMIT};
use crate::vm::{describe, Vm};
use crate::Drivers;

pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new(
        "kernel-selftests",
        "the kernel's own tests of network drivers come out as with the C driver, or better",
        selftests,
    )]
}

/// A quick one, for CI.
const SHORT: &[&str] = &["drivers/net/ping.py"];

/// All that mean something for a card without hardware filters, timestamps, device memory, IPsec or devlink.
const FULL: &[&str] = &[
    "drivers/net/ping.py",
    "drivers/net/stats.py",
    "drivers/net/queues.py",
    "drivers/net/napi_id.py",
    "drivers/net/napi_threaded.py",
    "drivers/net/ring_reconfig.py",
    "drivers/net/hds.py",
    "drivers/net/shaper.py",
    "drivers/net/gro.py",
    "drivers/net/xdp.py",
    "drivers/net/so_txtime.py",
    "drivers/net/netpoll_basic.py",
    "drivers/net/hw/csum.py",
    "drivers/net/hw/irq.py",
    "drivers/net/hw/gro_hw.py",
    "drivers/net/hw/rss_api.py",
    "drivers/net/hw/rss_ctx.py",
    "drivers/net/hw/rss_drv.py",
    "drivers/net/hw/rss_flow_label.py",
    "drivers/net/hw/rss_input_xfrm.py",
    "drivers/net/hw/tso.py",
    "drivers/net/hw/uso.py",
    "drivers/net/hw/xdp_metadata.py",
    "drivers/net/hw/xsk_reconfig.py",
    "drivers/net/hw/pp_alloc_fail.py",
];

/// Where the tests are in the guest, as its Debian programs see it.
const IN_GUEST: &str = "/tmp/kernel";

/// How a case came out, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Missing,
    Failed,
    Skipped,
    Passed,
}

/// The kernel's source, as far as these tests need it, on a file system for the guest.
fn image(ctx: &Ctx) -> Result<Scratch> {
    let source = PathBuf::from(
        std::env::var_os("HV_KSRC")
            .context("HV_KSRC is not set; start this through scripts/test")?,
    );
    let dir = TempDir::new()?;
    let root = dir.path().join("kernel");
    let tests = root.join("tools/testing/selftests");
    for part in [
        "tools/testing/selftests/net/lib",
        "tools/testing/selftests/drivers/net",
        "tools/net/ynl/pyynl",
        "Documentation/netlink",
    ] {
        let to = root.join(part);
        fs::create_dir_all(to.parent().context("parent")?)?;
        run(Command::new("cp").arg("-a").arg(source.join(part)).arg(to))?;
    }
    for file in ["net/lib.sh", "kselftest.h", "kselftest/ktap_helpers.sh"] {
        let from = source.join("tools/testing/selftests").join(file);
        let to = tests.join(file);
        fs::create_dir_all(to.parent().context("parent")?)?;
        if from.exists() {
            fs::copy(from, to)?;
        }
    }
    for program in [
        "net/lib/csum",
        "net/lib/gro",
        "net/lib/xdp_helper",
        "drivers/net/napi_id_helper",
        "drivers/net/so_txtime",
    ] {
        let from = source.join(format!("tools/testing/selftests/{program}.c"));
        if from.exists() {
            run(Command::new("gcc")
                .args(["-O2", "-w"])
                .arg("-I")
                .arg(source.join("tools/testing/selftests"))
                .arg(&from)
                .arg("-o")
                .arg(tests.join(program)))?;
        }
    }
    for item in fs::read_dir(tests.join("net/lib"))? {
        let path = item?.path();
        if path.to_string_lossy().ends_with(".bpf.c") {
            run(Command::new("clang-19")
                .args(["-O2", "-g", "-w", "-target", "bpf"])
                .args(["-I/usr/include/x86_64-linux-gnu", "-c"])
                .arg(&path)
                .arg("-o")
                .arg(path.with_extension("o")))?;
        }
    }
    let image = Scratch::blank(&ctx.env.scratch(), 128 << 20)?;
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-d"])
        .arg(&root)
        .arg(image.path()))?;
    Ok(image)
}

fn run(command: &mut Command) -> Result<()> {
    let out = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        out.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(())
}

/// What TAP says: each case by its name, with what is said about it.
fn parse(text: &str) -> BTreeMap<String, (Outcome, String)> {
    let mut cases = BTreeMap::new();
    for line in text.lines() {
        let (failed, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => continue,
        };
        let (name, remark) = rest.split_once(" # ").unwrap_or((rest, ""));
        // Behind the number of the case.
        let name = name.split_once(' ').map_or(name, |(_, name)| name);
        let outcome = match (
            failed,
            remark.starts_with("SKIP") || remark.starts_with("XFAIL"),
        ) {
            (_, true) => Outcome::Skipped,
            (true, _) => Outcome::Failed,
            (false, _) => Outcome::Passed,
        };
        cases.insert(name.trim().to_owned(), (outcome, remark.to_owned()));
    }
    cases
}

type Results = BTreeMap<String, (Outcome, String)>;

fn results(ctx: &Ctx, drivers: Drivers, tests: &[&str], image: &Path) -> Result<Results> {
    let dir = TempDir::new()?;
    let socket = dir.path().join("link.sock");
    let mut config = ctx
        .config_for(drivers.name(), drivers)
        .smp(4)
        .memory(1536)
        .nic(Nic::new(Backend::Listen(socket.clone())))
        .nic(Nic::new(Backend::Connect(socket)));
    config.virtio_disks.push(image.to_owned());
    network_guest(ctx, config, |vm| {
        let name = interface(vm, "net0")?;
        let peer = interface(vm, "net1")?;
        vm.sh(&format!(
            "mkdir -p {IN_GUEST} && mount -t ext4 /dev/vdb /debian{IN_GUEST} && mount -t bpf bpf /sys/fs/bpf; \
             mount -t tracefs trace /sys/kernel/tracing; true"
        ))?;
        address(vm, &name, "192.0.2.1/24")?;
        tool_ok(
            vm,
            &format!(
                "ip addr add 2001:db8::1/64 dev {name} nodad; ip netns add peer && ip link set {peer} netns peer && \
                 ip -n peer link set lo up && ip -n peer link set {peer} up && ip -n peer addr add 192.0.2.2/24 dev {peer} && \
                 ip -n peer addr add 2001:db8::2/64 dev {peer} nodad"
            ),
        )?;
        let mut all = Results::new();
        for test in tests {
            let (cases, text) = one(vm, &name, test)?;
            fs::write(
                vm.logs.join(format!("{}.tap", test.replace('/', "-"))),
                &text,
            )?;
            for (case, outcome) in cases {
                all.insert(format!("{test} {case}"), outcome);
            }
            // Whatever it left behind.
            vm.sh(&format!(
                "ip link set {name} up; ip link set {name} mtu 1500"
            ))?;
        }
        Ok(all)
    })
}

/// Runs one program.
fn one(vm: &Vm, name: &str, test: &str) -> Result<(Results, String)> {
    let file = Path::new(test);
    let dir = file.parent().context("directory")?.display();
    let program = file.file_name().context("name")?.to_string_lossy();
    let out = tool_within(
        vm,
        &format!(
            "cd {IN_GUEST}/tools/testing/selftests/{dir} && HOME=/tmp PYTHONDONTWRITEBYTECODE=1 NETIF={name} LOCAL_V4=192.0.2.1 \
             REMOTE_V4=192.0.2.2 LOCAL_V6=2001:db8::1 REMOTE_V6=2001:db8::2 REMOTE_TYPE=netns REMOTE_ARGS=peer \
             python3 {program}"
        ),
        IO_LIMIT * 3,
    )?;
    let text = [out.stdout.text(), out.stderr.text()].concat();
    let cases = parse(&text);
    if cases.is_empty() {
        bail!("{test} gave no result: {}", describe(&out));
    }
    Ok((cases, text))
}

fn selftests(ctx: &Ctx) -> Result<()> {
    let tests: &[&str] = ctx.count(FULL, SHORT);
    let image = image(ctx)?;
    let c = results(ctx, Drivers::C, tests, image.path())?;
    let rust = results(ctx, Drivers::Rust, tests, image.path())?;
    let mut worse = Vec::new();
    for (case, (with_c, remark_c)) in &c {
        let (with_rust, remark) = rust
            .get(case)
            .cloned()
            .unwrap_or((Outcome::Missing, String::new()));
        if with_rust < *with_c {
            worse.push(format!(
                "{case}: C {with_c:?} {remark_c}, Rust {with_rust:?} {remark}"
            ));
        }
    }
    let passed = |results: &Results| {
        results
            .values()
            .filter(|(outcome, _)| *outcome == Outcome::Passed)
            .count()
    };
    ensure!(passed(&c) > 0, "no case passes with the C driver: {c:?}");
    ensure!(worse.is_empty(), "worse than with C:\n{}", worse.join("\n"));
    ctx.figure(format!(
        "{} programs, {} cases: {} pass with C, {} with Rust",
        tests.len(),
        c.len(),
        passed(&c),
        passed(&rust)
    ));
    Ok(())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn tap() {
        let cases = parse("TAP version 13\n1..3\n# text\nok 1 ping.v4\nok 2 ping.v6 # SKIP no address\nnot ok 3 ping.tcp\n");
        assert_eq!(cases["ping.v4"].0, Outcome::Passed);
        assert_eq!(cases["ping.v6"].0, Outcome::Skipped);
        assert_eq!(cases["ping.tcp"].0, Outcome::Failed);
        assert!(Outcome::Failed < Outcome::Skipped && Outcome::Skipped < Outcome::Passed);
    }
}
