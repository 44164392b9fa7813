// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The suite `network`: network cards of the emulated host. Tests that end in `-rust` and `-c` are the same test with
//! either stack; the others compare the two or ask for more than the C driver gives.

mod cards;
mod ethtool;
mod hostile;
mod pair;
mod queues;
mod selftests;
mod traffic;
pub(crate) mod transfer;
mod vlan;
mod xdp;

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use hvctl::{Command, NetFault, NetInfo, NetLink, Until};

use super::programs::{bus_dir, tool_ok, until_in_guest};
use crate::env::TempDir;
use crate::net::{Backend, Nic, Passt, Udp, Wire, GATEWAY, GUEST, WIRE_MAC};
use crate::runner::{Ctx, Scenario};
use crate::vm::{Vm, SOON};
use crate::{Drivers, VmConfig};

pub fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(transfer::scenarios());
    all.extend(traffic::scenarios());
    all.extend(queues::scenarios());
    all.extend(xdp::scenarios());
    all.extend(vlan::scenarios());
    all.extend(pair::scenarios());
    all.extend(cards::scenarios());
    all.extend(ethtool::scenarios());
    all.extend(hostile::scenarios());
    all.extend(selftests::scenarios());
    all.into_iter()
        .map(
            |scenario| match LATER.iter().find(|(name, _)| *name == scenario.name) {
                Some((_, why)) => scenario.only_full(why),
                None => scenario,
            },
        )
        .collect()
}

/// Tests that run with `--full` only, and why.
///
/// C, when a card is rescinded, first takes away the channel's callback (`channel_mgmt.c`, `vmbus_onoffer_rescind`, which calls
/// `vmbus_reset_channel_cb`), and then waits without limit until all sends are completed and all its own completions are sent
/// (`rndis_filter.c`, `rndis_filter_halt_device`, `netvsc_device_idle`), which its poll would see to that nobody calls any more.
const LATER: &[(&str, &str)] = &[
    ("reload-c", "whether C keeps memory shows after minutes"),
    (
        "traffic-rescind-c",
        "C waits for ever when a completion comes with the rescind or after it",
    ),
];

/// The card that most tests use.
const NET0: &str = "net0";

/// From a rescind until the driver has let go, at most. C first waits for its ring to be read, which nobody does any more, two
/// thousand times for five to ten milliseconds (`netvsc_wait_until_empty`); on a busy machine each of them is longer.
const RELEASE: Duration = Duration::from_secs(120);

/// The guest's address on a [`Wire`], and that of the wire's end.
const ON_WIRE: [&str; 2] = ["10.0.0.2", "10.0.0.1"];

/// A guest in its initramfs with the network driver, and the programs of the Debian image below /debian. Its interfaces are
/// there and down.
fn network_guest<T>(ctx: &Ctx, config: VmConfig, test: impl FnOnce(&Vm) -> Result<T>) -> Result<T> {
    let config = VmConfig {
        tools: true,
        ..config
    };
    ctx.booted(config, |vm| {
        prepare(vm)?;
        test(vm)
    })
}

/// Makes the guest's programs usable and loads the drivers.
fn prepare(vm: &Vm) -> Result<()> {
    vm.tools()?;
    // Addresses do not wait for a second one like them: nobody else is on these wires. What `ss` asks comes from a
    // module that the kernel would look for in the initramfs.
    vm.sh("sysctl -q net.ipv6.conf.default.accept_dad=0; \
         modprobe -d /debian tcp_diag; ip link set lo up")?;
    vm.load_drivers()?;
    for number in 0..vm.config.nics.len() {
        interface(vm, &format!("net{number}"))?;
    }
    Ok(())
}

/// A guest on passt, with its address and its route. Its interface goes to `test` as well.
fn passt_guest<T>(
    ctx: &Ctx,
    config: VmConfig,
    test: impl FnOnce(&Vm, &str) -> Result<T>,
) -> Result<T> {
    let dir = TempDir::new()?;
    let passt = Passt::start(dir.path())?;
    let nic = Nic::new(Backend::Connect(passt.socket().to_owned()));
    network_guest(ctx, config.nic(nic), |vm| {
        let name = interface(vm, NET0)?;
        address(vm, &name, &format!("{GUEST}/24"))?;
        vm.sh(&format!("ip route add default via {GATEWAY}"))?;
        test(vm, &name)
    })
}

/// A guest with the other end of its wire in the test's hands. It has the first address of [`ON_WIRE`] and knows the second
/// one. Its interface goes to `test` as well.
fn wire_guest<T>(
    ctx: &Ctx,
    config: VmConfig,
    test: impl FnOnce(&Vm, &str, &Wire) -> Result<T>,
) -> Result<T> {
    let dir = TempDir::new()?;
    let wire = Wire::new(&dir.path().join("wire.sock"))?;
    let nic = Nic::new(Backend::Connect(wire.path().to_owned()));
    network_guest(ctx, config.nic(nic), |vm| {
        let name = interface(vm, NET0)?;
        on_wire(vm, &name)?;
        test(vm, &name, &wire)
    })
}

/// Gives an interface its address on a wire, and tells it of the other end.
fn on_wire(vm: &Vm, name: &str) -> Result<()> {
    let [ours, theirs] = ON_WIRE;
    // No neighbour discovery of its own accord: what comes out is what the test had sent.
    vm.sh(&format!("sysctl -q net.ipv6.conf.{name}.disable_ipv6=1"))?;
    address(vm, name, &format!("{ours}/24"))?;
    tool_ok(
        vm,
        &format!(
            "ip neigh replace {theirs} lladdr {} dev {name} nud permanent && ip route replace default via {theirs} dev {name}",
            mac_text(&WIRE_MAC)
        ),
    )
    .map(drop)
}

/// The second address of [`ON_WIRE`].
fn wire_address() -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, 1)
}

/// An address behind the wire's end, one of thousands. The host spreads UDP by addresses alone.
fn behind_wire(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, (number / 250) as u8, (number % 250 + 1) as u8)
}

/// A datagram from the wire's end to a port of the guest.
fn to_guest(mac: [u8; 6], port: u16, payload: Vec<u8>) -> Udp {
    Udp {
        to: mac,
        from: WIRE_MAC,
        vlan: None,
        source: (wire_address(), 7000),
        destination: (Ipv4Addr::new(10, 0, 0, 2), port),
        payload,
        checked: true,
    }
}

/// A card's address.
fn mac_of(vm: &Vm, device: &str) -> Result<[u8; 6]> {
    let text = net(vm, device)?.mac;
    let bytes: Vec<u8> = text
        .split('-')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()?;
    bytes.try_into().ok().with_context(|| format!("MAC {text}"))
}

/// A program in the guest that sends every datagram to [`Echo::PORT`] back to where it came from. It ends with the guest.
struct Echo;

impl Echo {
    const PORT: u16 = 7;

    fn start(vm: &Vm) -> Result<Self> {
        let code = format!(
            "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)\n\
             s.bind((\"0.0.0.0\", {}))\nopen(\"/tmp/echo\", \"w\").close()\n\
             while True:\n d, a = s.recvfrom(65536)\n s.sendto(d, a)\n",
            Self::PORT
        );
        vm.sh("rm -f /tmp/echo; sysctl -q net.core.rmem_max=8388608")?;
        vm.write("/tmp/echo.py", &code)?;
        vm.sh("python3 /tmp/echo.py > /tmp/echo.log 2>&1 &")?;
        until_in_guest(vm, "[ -e /tmp/echo ]", SOON).context("the echo server did not start")?;
        Ok(Self)
    }
}

fn mac_text(mac: &[u8]) -> String {
    let parts: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    parts.join(":")
}

/// The interface of a card, such as `eth0`; waits for it.
pub(crate) fn interface(vm: &Vm, device: &str) -> Result<String> {
    let dir = format!("{}/net", bus_dir(vm, device)?);
    until_in_guest(vm, &format!("ls -d {dir}/* >/dev/null 2>&1"), SOON)
        .with_context(|| format!("{device} got no interface"))?;
    let name = vm.sh(&format!("ls {dir}"))?.trim().to_owned();
    ensure!(
        !name.contains(char::is_whitespace),
        "{device} has several interfaces: {name}"
    );
    Ok(name)
}

/// Sets an interface up, gives it an address, and waits until it can be used.
fn address(vm: &Vm, name: &str, address: &str) -> Result<()> {
    tool_ok(
        vm,
        &format!("ip link set {name} up && ip addr replace {address} dev {name}"),
    )?;
    carrier(vm, name, true)
}

/// Waits until an interface has a carrier or none.
pub(crate) fn carrier(vm: &Vm, name: &str, up: bool) -> Result<()> {
    let file = format!("/sys/class/net/{name}/carrier");
    until_in_guest(
        vm,
        &format!("[ \"$(cat {file} 2>/dev/null)\" = {} ]", u8::from(up)),
        SOON,
    )
    .with_context(|| format!("carrier of {name}"))
    .map(drop)
}

/// Makes the card misbehave towards the next `count` messages; 0: all.
fn fault(vm: &Vm, count: u32, fault: NetFault) -> Result<()> {
    fault_after(vm, 0, count, fault)
}

/// The same, but `skip` messages pass first.
fn fault_after(vm: &Vm, skip: u32, count: u32, fault: NetFault) -> Result<()> {
    vm.host().call(Command::NetFault {
        device: NET0.into(),
        direction: None,
        queue: None,
        count,
        skip,
        fault,
    })?;
    Ok(())
}

/// The host's cards.
fn nets(vm: &Vm) -> Result<Vec<NetInfo>> {
    let value = vm.host().call(Command::Nets)?;
    serde_json::from_value(value).context("nets")
}

/// One card of the host.
fn net(vm: &Vm, device: &str) -> Result<NetInfo> {
    nets(vm)?
        .into_iter()
        .find(|net| net.device == device)
        .with_context(|| format!("the host has no card {device}"))
}

/// Changes the link of a card.
fn link(vm: &Vm, device: &str, link: NetLink) -> Result<()> {
    let command = Command::NetLink {
        device: device.into(),
        link: Some(link),
        speed: None,
    };
    vm.host().call(command)?;
    Ok(())
}

/// Waits until the driver of a card lets frames pass.
fn running(vm: &Vm, device: &str) -> Result<()> {
    let until = Until::NetRunning {
        device: device.into(),
    };
    vm.host()
        .wait(until, SOON)
        .with_context(|| format!("{device} does not run"))
}

/// Takes the card away; whatever became of it, its driver must let go.
fn take_away(vm: &Vm) -> Result<()> {
    vm.host().rescind(NET0)?;
    let released = Until::Released {
        device: NET0.into(),
    };
    // In two steps: `where_it_waits` asks the host as well, one at a time.
    let waited = vm.host().wait(released, RELEASE);
    waited.with_context(|| format!("the card was not released; {}", where_it_waits(vm)))?;
    Ok(())
}

/// What is known of a card that does not come up, or does not go: what waits in the guest, its rings as it sees them, the host's counters.
fn where_it_waits(vm: &Vm) -> String {
    let guest = vm.sh(
        "for s in $(grep -l '^State:.D' /proc/[0-9]*/status); do \
           p=${s%/status}; echo \"$p $(cat $p/comm)\"; cat $p/stack; done; \
         for c in /sys/bus/vmbus/drivers/hv_netvsc*/*/channels/*; do \
           for f in read_avail write_avail in_mask out_mask interrupts events; do echo \"$c/$f $(cat $c/$f)\"; done; done; \
         dmesg | tail -n 20",
    );
    let channels: Vec<_> = vm
        .host()
        .channels()
        .unwrap_or_default()
        .into_iter()
        .filter(|channel| channel.device == NET0)
        .map(|channel| (channel.subchannel, channel.state, channel.counters))
        .collect();
    format!(
        "the guest: {}; the host: {channels:?}, {:?}",
        guest.unwrap_or_else(|err| format!("{err:#}")),
        net(vm, NET0).map(|net| (net.state, net.nvsp, net.counters))
    )
}

/// The driver's module, for sysfs and `rmmod`.
fn module(drivers: Drivers) -> Result<&'static str> {
    match drivers.network_modules() {
        [module] => Ok(module),
        _ => bail!("no network module"),
    }
}

/// Whether a driver lets a feature, by its long name, be changed. C's VLAN offloads are fixed.
fn changeable(vm: &Vm, name: &str, feature: &str) -> Result<bool> {
    let text = tool_ok(vm, &format!("ethtool -k {name}"))?;
    let line = text
        .lines()
        .find(|line| line.trim().starts_with(&format!("{feature}:")))
        .with_context(|| format!("no feature {feature}"))?;
    Ok(!line.contains("[fixed]"))
}

/// Counters of `ethtool -S`.
fn statistics(vm: &Vm, name: &str) -> Result<Vec<(String, u64)>> {
    let text = tool_ok(vm, &format!("ethtool -S {name}"))?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let (name, value) = line.trim().rsplit_once(": ")?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        })
        .collect())
}

/// One counter of `ethtool -S` for each queue, such as `rx_queue_3_packets`.
fn by_queue(statistics: &[(String, u64)], prefix: &str, suffix: &str) -> Vec<u64> {
    let mut found: Vec<(usize, u64)> = statistics
        .iter()
        .filter_map(|(name, value)| {
            let number = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
            Some((number.parse().ok()?, *value))
        })
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(_, value)| value).collect()
}
