// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Addresses, and data that arrives as it was sent: in each direction, with each offload on and off, with each size of
//! packet.

use std::time::Duration;

use anyhow::{ensure, Context, Result};

use super::{address, carrier, changeable, interface, net, network_guest, passt_guest, NET0};
use crate::env::TempDir;
use crate::net::{dhcp, Backend, Nic, Passt, Web, GATEWAY, GUEST, PREFIX6};
use crate::runner::{equal, Ctx, Scenario};
use crate::scenarios::programs::{tool, tool_ok, until_in_guest};
use crate::vm::{describe, Vm, SOON};

pub fn scenarios() -> Vec<Scenario> {
    [
        Scenario::both("addresses", "DHCP and SLAAC through passt; ping", addresses),
        Scenario::both(
            "transfer",
            "HTTP in each direction through passt, SHA-256 equal at both ends, with each offload and each MTU",
            transfer,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn addresses(ctx: &Ctx) -> Result<()> {
    let dir = TempDir::new()?;
    let passt = Passt::start(dir.path())?;
    let nic = Nic::new(Backend::Connect(passt.socket().to_owned()));
    // For ping: whether passt may send it on is a setting of the machine (net.ipv4.ping_group_range).
    let config = ctx.config().smp(2).nic(nic).nic(Nic::new(Backend::Echo));
    network_guest(ctx, config, |vm| {
        let name = interface(vm, NET0)?;
        equal("address by DHCP", dhcp(vm, &name)?, format!("{GUEST}/24"))?;
        carrier(vm, &name, true)?;
        let prefix = PREFIX6.trim_end_matches(':');
        let took = until_in_guest(
            vm,
            &format!("ip -6 -o addr show dev {name} scope global | grep -q '{prefix}:.* dynamic'"),
            SOON,
        )
        .context("no address by SLAAC")?;
        let info = net(vm, NET0)?;
        let mac = vm.read(&format!("/sys/class/net/{name}/address"))?;
        equal("MAC", mac.replace(':', "-"), info.mac.clone())?;
        // The interface's half of the address is made of the MAC (RFC 4291, appendix A), Linux' default.
        let bytes: Vec<u8> = mac
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16))
            .collect::<Result<_, _>>()?;
        ensure!(bytes.len() == 6, "MAC {mac}");
        let eui = format!(
            "{:x}:{:x}:{:x}:{:x}",
            u16::from_be_bytes([bytes[0] ^ 2, bytes[1]]),
            u16::from_be_bytes([bytes[2], 0xff]),
            u16::from_be_bytes([0xfe, bytes[3]]),
            u16::from_be_bytes([bytes[4], bytes[5]])
        );
        let listed = vm.sh(&format!("ip -6 -o addr show dev {name} scope global"))?;
        ensure!(
            listed.contains(&eui),
            "the address by SLAAC is not made of {mac}: {listed}"
        );
        let times = ctx.count(100, 10);
        let other = interface(vm, "net1")?;
        address(vm, &other, "10.0.0.2/24")?;
        for target in ["10.0.0.1".to_owned(), format!("fe80::1%{other}")] {
            let out = tool_ok(vm, &format!("ping -q -n -i 0.05 -W 10 -c {times} {target}"))?;
            ensure!(out.contains(" 0% packet loss"), "ping {target}: {out}");
        }
        ctx.figure(format!("SLAAC after {:.1} s", took.as_secs_f64()));
        Ok(())
    })
}

/// Fetches `size` bytes and sends as many, and compares the sums. How long either took.
pub fn both_ways(vm: &Vm, web: &Web, host: &str, size: u64, seed: u64) -> Result<[Duration; 2]> {
    let url = format!("http://{host}:{}", web.port());
    let out = tool(
        vm,
        &format!("curl -sS --fail {url}/{size}/{seed} | sha256sum"),
    )?;
    ensure!(out.rc == Some(0), "fetching: {}", describe(&out));
    let wanted = Web::sha256(size, seed);
    ensure!(
        out.stdout.text().starts_with(&wanted),
        "{size} bytes came with the sum {}, they were sent with {wanted}; {}",
        out.stdout.text().trim(),
        out.stderr.text()
    );
    let down = Duration::from_micros(out.elapsed_us);
    // From a file that is shorter than what is sent: the guest keeps it in memory. Each turn has its number in front.
    let chunk = size.min(16 << 20);
    let turns = size.div_ceil(chunk);
    let file = format!("/tmp/chunk{chunk}");
    tool_ok(
        vm,
        &format!("[ -s {file} ] || curl -sS --fail -o {file} {url}/{chunk}/1"),
    )?;
    let script = format!(
        "rm -f /tmp/pipe; mkfifo /tmp/pipe; \
         sha256sum < /tmp/pipe > /tmp/sum & \
         i=0; while [ $i -lt {turns} ]; do printf %08d $i; cat {file}; i=$((i + 1)); done | tee /tmp/pipe | \
         curl -sS --fail -H Expect: -T - {url}/up && wait && cat /tmp/sum"
    );
    let out = tool(vm, &script)?;
    ensure!(out.rc == Some(0), "sending: {}", describe(&out));
    let upload = web.upload(SOON)?;
    equal("bytes received", upload.bytes, (chunk + 8) * turns)?;
    ensure!(upload.error.is_none(), "{upload:?}");
    ensure!(
        out.stdout.text().starts_with(&upload.sha256),
        "sent with the sum {}, received with {}",
        out.stdout.text().trim(),
        upload.sha256
    );
    Ok([down, Duration::from_micros(out.elapsed_us)])
}

/// The largest MTU that passt stands; more ends its connection to the host.
const PASST_MTU: u32 = 65520;

/// Features as `ethtool -K` calls them, and as `ethtool -k` does.
const FEATURES: [(&str, &str); 8] = [
    ("rx", "rx-checksumming"),
    ("tx", "tx-checksumming"),
    ("tso", "tcp-segmentation-offload"),
    ("gso", "generic-segmentation-offload"),
    ("gro", "generic-receive-offload"),
    ("lro", "large-receive-offload"),
    ("rxvlan", "rx-vlan-offload"),
    ("txvlan", "tx-vlan-offload"),
];

fn transfer(ctx: &Ctx) -> Result<()> {
    let web = Web::start()?;
    let size: u64 = ctx.count(1 << 30, 12 << 20);
    let small: u64 = ctx.count(64 << 20, 1 << 20);
    passt_guest(ctx, ctx.config().smp(2).memory(768), |vm, name| {
        let [down, up] = both_ways(vm, &web, GATEWAY, size, 1)?;
        let rate = |took: Duration| (size >> 20) as f64 / took.as_secs_f64();
        ctx.figure(format!(
            "{} MiB: down {:.0} MiB/s, up {:.0} MiB/s",
            size >> 20,
            rate(down),
            rate(up)
        ));
        let mut seed = 2;
        let mut again = |what: &str| -> Result<()> {
            seed += 1;
            both_ways(vm, &web, GATEWAY, small, seed)
                .with_context(|| what.to_owned())
                .map(drop)
        };
        let mut features = Vec::new();
        for (feature, long) in FEATURES {
            if changeable(vm, name, long)? {
                features.push(feature);
            }
        }
        ensure!(features.len() >= 6, "only {features:?} can be changed");
        for feature in &features {
            tool_ok(vm, &format!("ethtool -K {name} {feature} off"))?;
            again(&format!("{feature} off"))?;
            tool_ok(vm, &format!("ethtool -K {name} {feature} on"))?;
        }
        let all: Vec<_> = features
            .iter()
            .map(|feature| format!("{feature} off"))
            .collect();
        let all = all.join(" ");
        tool_ok(vm, &format!("ethtool -K {name} {all}"))?;
        again("all off")?;
        tool_ok(
            vm,
            &format!("ethtool -K {name} {}", all.replace("off", "on")),
        )?;
        for mtu in [9000, PASST_MTU, 1280, 1500] {
            vm.sh(&format!("ip link set {name} mtu {mtu}"))?;
            carrier(vm, name, true)?;
            again(&format!("MTU {mtu}"))?;
        }
        let info = net(vm, NET0)?;
        ensure!(info.counters.tx_malformed == 0, "{:?}", info.counters);
        Ok(())
    })
}
