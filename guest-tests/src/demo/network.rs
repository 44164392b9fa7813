// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The demonstration's network: an address, ping, data with its checksum, speed.

use anyhow::{ensure, Context, Result};

use super::{say, Stage};
use crate::env::TempDir;
use crate::net::{dhcp, Backend, IperfReport, IperfServer, Nic, Passt, Web, GATEWAY, PREFIX6};
use crate::runner::equal;
use crate::scenarios::network::interface;
use crate::scenarios::programs::{tool, until_in_guest};
use crate::vm::{describe, COMMAND_LIMIT, SOON};

/// What the guest's card is plugged into.
pub struct Network {
    // Ends before its directory goes.
    passt: Passt,
    _dir: TempDir,
}

impl Network {
    /// Starts it.
    ///
    /// # Errors
    /// passt's words.
    pub fn start() -> Result<Self> {
        let dir = TempDir::new()?;
        Ok(Self {
            passt: Passt::start(dir.path())?,
            _dir: dir,
        })
    }

    /// The cards: one on passt, one on the host's own answers.
    pub fn nics(&self) -> Vec<Nic> {
        vec![
            Nic::new(Backend::Connect(self.passt.socket().to_owned())),
            Nic::new(Backend::Echo),
        ]
    }
}

pub fn addresses(stage: &mut Stage) -> Result<String> {
    let vm = stage.vm()?;
    let name = interface(vm, "net0")?;
    // Else an address waits for a second one like it.
    vm.sh(&format!("sysctl -q net.ipv6.conf.{name}.accept_dad=0"))?;
    let address = dhcp(vm, &name)?;
    let prefix = PREFIX6.trim_end_matches(':');
    until_in_guest(
        vm,
        &format!("ip -6 addr show dev {name} scope global | grep -q '{prefix}:.* dynamic'"),
        SOON,
    )
    .context("no address by SLAAC")?;
    say(vm.sh(&format!(
        "ip addr show dev {name} | grep -E 'inet|ether'; ip route"
    ))?);
    // The second card's wire ends in the host, which answers by itself. Whether passt may send a ping on is a setting of the
    // machine (net.ipv4.ping_group_range).
    let other = interface(vm, "net1")?;
    vm.sh(&format!(
        "ip link set {other} up; ip addr add 10.0.0.2/24 dev {other}"
    ))?;
    let out = vm.sh("ping -q -c 5 -i 0.2 10.0.0.1")?;
    ensure!(out.contains(" 0% packet loss"), "ping: {out}");
    let times = out.lines().last().unwrap_or_default();
    let (_, times) = times.split_once(" = ").context("ping's times")?;
    Ok(format!(
        "{name} has {address} and an IPv6 address; 5 pings, 0 lost, min/avg/max {times}"
    ))
}

pub fn transfer(stage: &mut Stage) -> Result<String> {
    const SIZE: u64 = 32 << 20;
    let vm = stage.vm()?;
    let web = Web::start()?;
    let url = format!("http://{GATEWAY}:{}", web.port());
    let out = vm.run(
        &format!("wget -q -O /tmp/data {url}/{SIZE}/1 && sha256sum < /tmp/data"),
        COMMAND_LIMIT * 3,
    )?;
    ensure!(out.rc == Some(0), "fetching: {}", describe(&out));
    let here = Web::sha256(SIZE, 1);
    let text = out.stdout.text();
    let there = text.split_whitespace().next().unwrap_or_default();
    say(format!("fetched: sent with {here}"));
    say(format!("     arrived with {there}"));
    equal("SHA-256 of what was fetched", there, here.as_str())?;
    // busybox' wget takes what it posts for a text, which ends at the first zero.
    let back = vm.run(
        &format!(
            "tr '\\000' x < /tmp/data > /tmp/back && rm /tmp/data && sha256sum < /tmp/back && \
             wget -q -O /dev/null --post-file /tmp/back {url}/up; rc=$?; rm /tmp/back; exit $rc"
        ),
        COMMAND_LIMIT * 3,
    )?;
    ensure!(back.rc == Some(0), "sending: {}", describe(&back));
    let text = back.stdout.text();
    let there = text.split_whitespace().next().unwrap_or_default();
    let upload = web.upload(SOON)?;
    say(format!("sent back with {there}"));
    say(format!("  arrived with {}", upload.sha256));
    equal("bytes that were sent back", upload.bytes, SIZE)?;
    equal(
        "SHA-256 of what was sent back",
        upload.sha256.as_str(),
        there,
    )?;
    Ok(format!(
        "{} MiB each way, SHA-256 equal at both ends",
        SIZE >> 20
    ))
}

pub fn speed(stage: &mut Stage) -> Result<String> {
    const SECONDS: u32 = 4;
    let vm = stage.vm()?;
    vm.tools()?;
    let server = IperfServer::start()?;
    let mut figures = Vec::new();
    for (title, arguments) in [
        ("out", ""),
        ("in", "-R"),
        ("16 flows out", "-P 16"),
        ("16 flows in", "-P 16 -R"),
    ] {
        let out = tool(
            vm,
            &format!(
                "iperf3 -J -t {SECONDS} {arguments} -c {GATEWAY} -p {}",
                server.port()
            ),
        )?;
        let report = IperfReport::parse(&out.stdout.text())?;
        let sum = report.end.sum_received.context("iperf3 told no sum")?;
        let figure = format!("{title} {:.0} Mbit/s", sum.bits_per_second / 1e6);
        say(&figure);
        figures.push(figure);
    }
    Ok(format!("TCP by iperf3: {}", figures.join(", ")))
}
