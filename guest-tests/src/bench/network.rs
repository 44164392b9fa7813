// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What a frame costs: Rust beside C beside virtio-net.
//!
//! Each run boots a guest for each stack, twice: one that counts instructions, one that does not and is timed. At the other
//! end of the NIC is the same [`Peer`] in this process, on the same socket. See [`counts`] for what is counted.

use std::path::PathBuf;

use anyhow::{bail, Context, Result};
use guest_agent::IoResult;
use hvctl::profile::{Symbols, KERNEL, USER};

use super::counts::{self, path_word, Part};
use super::peer::{self, Peer};
use super::report::{Report, Sample};
use super::{is_c_bus, is_virtio_bus, Options, Stack};
use crate::{Env, Vm, VmConfig};

/// A load on the network.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Name in the report.
    pub name: &'static str,
    /// What one operation is.
    pub unit: &'static str,
    /// What `hv-net` calls it.
    mode: &'static str,
    /// Bytes of a datagram's payload, or of one call.
    size: u64,
    /// Operations of the short run; the long one has five times as many.
    count: u64,
}

/// Bytes of Ethernet, IPv4 and UDP headers.
const HEADERS: u64 = 14 + 20 + 8;

/// The loads of the suite. Sizes are those of frames.
pub const WORKLOADS: [Workload; 7] = [
    udp("64 B sent", "udp-send", 64 - HEADERS, 1024),
    udp("64 B received", "udp-receive", 64 - HEADERS, 1024),
    udp("64 B there and back", "udp-echo", 64 - HEADERS, 256),
    udp("1500 B sent", "udp-send", 1514 - HEADERS, 1024),
    udp("1500 B received", "udp-receive", 1514 - HEADERS, 1024),
    tcp("TCP sent", "tcp-send"),
    tcp("TCP received", "tcp-receive"),
];

const fn udp(name: &'static str, mode: &'static str, size: u64, count: u64) -> Workload {
    Workload {
        name,
        unit: "packet",
        mode,
        size,
        count,
    }
}

const fn tcp(name: &'static str, mode: &'static str) -> Workload {
    Workload {
        name,
        unit: "MiB",
        mode,
        size: 1 << 20,
        count: 8,
    }
}

/// The figures, in the order of the table.
const METRICS: [(&str, usize); 9] = [
    ("driver", 0),
    ("bus", 0),
    ("driver + bus", 0),
    ("whole kernel", 0),
    ("whole guest", 0),
    ("hypercalls", 3),
    ("interrupts", 3),
    (RATE, 0),
    (BITS, 3),
];
const RATE: &str = "packets or MiB per s";
const BITS: &str = "Gbit/s";

/// Runs the suite; `progress` is told each step.
///
/// # Errors
/// The first guest that does not do what it should, with its logs.
pub fn run(env: &Env, options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Report> {
    let chosen: Vec<Workload> = WORKLOADS
        .into_iter()
        .filter(|w| options.filter.as_ref().is_none_or(|f| w.name.contains(f)))
        .collect();
    if chosen.is_empty() {
        bail!("no workload matches the filter");
    }
    let mut report = Report {
        suite: "network",
        kernel: String::new(),
        workloads: chosen.iter().map(|w| (w.name, w.unit)).collect(),
        metrics: METRICS.to_vec(),
        samples: Vec::new(),
    };
    for run in 1..=options.runs {
        for stack in &options.stacks {
            let counted = Guest::boot(env, *stack, true)?;
            report.kernel = counted.vm.sh("uname -r")?.trim().to_owned();
            let mut samples = Vec::new();
            for workload in &chosen {
                let sample = counted.count(workload, run);
                samples.push(sample.map_err(|err| counted.vm.explain(err))?);
            }
            counted.end()?;
            if !options.no_timing {
                let timed = Guest::boot(env, *stack, false)?;
                for (workload, sample) in chosen.iter().zip(&mut samples) {
                    let (rate, bits) = timed.rate(workload)?;
                    sample.values.extend([(RATE, rate), (BITS, bits)]);
                }
                timed.end()?;
            }
            for sample in &samples {
                let of = |name| sample.values.get(name).copied().unwrap_or(f64::NAN);
                progress(&format!(
                    "run {run} {stack:6} {:20} driver {:.0} bus {:.0} kernel {:.0} hypercalls {:.2} interrupts {:.2}",
                    sample.workload,
                    of("driver"),
                    of("bus"),
                    of("whole kernel"),
                    of("hypercalls"),
                    of("interrupts"),
                ));
            }
            report.samples.extend(samples);
        }
    }
    Ok(report)
}

/// A guest with the NIC as `eth0`, and what that is plugged into.
struct Guest {
    vm: Vm,
    stack: Stack,
    symbols: Option<Symbols>,
    _peer: Peer,
}

/// The guest's MTU.
const MTU: usize = 1500;

impl Guest {
    fn boot(env: &Env, stack: Stack, profile: bool) -> Result<Self> {
        let what = if profile { "counted" } else { "timed" };
        let path = env.state.join("bench-net.sock");
        let peer = Peer::listen(&path, MTU)?;
        let mut config = VmConfig::new(&format!("bench-{stack}-{what}"), stack.drivers());
        config.profile = profile;
        match stack {
            Stack::Rust | Stack::C => {
                let backend = path_word(&path)?;
                config = config.device(&format!("net0:backend=connect;{backend}"));
            }
            Stack::Virtio => {
                // No device of the host, as nobody serves it.
                config = config.device("heartbeat");
                config.qemu_args = virtio_args(&path);
            }
        }
        let vm = Vm::boot(env, config)?;
        let set_up = || -> Result<Option<Symbols>> {
            let modules: &[&str] = match stack {
                Stack::Rust => &["hv_vmbus_rs", "hv_netvsc_rs"],
                Stack::C => &["hv_netvsc"],
                Stack::Virtio => &["virtio_pci", "virtio_net"],
            };
            for module in modules {
                vm.load(module)?;
            }
            vm.sh(&format!(
                "ip addr add {} dev eth0 && ip link set eth0 up",
                peer::GUEST
            ))?;
            if profile {
                vm.symbols().map(Some)
            } else {
                Ok(None)
            }
        };
        match set_up() {
            Ok(symbols) => Ok(Self {
                vm,
                stack,
                symbols,
                _peer: peer,
            }),
            Err(err) => Err(vm.explain(err)),
        }
    }

    /// Looks at what must hold at the end.
    fn end(self) -> Result<()> {
        self.vm.check().map_err(|err| self.vm.explain(err))
    }

    fn load(&self, workload: &Workload, count: u64) -> Result<IoResult> {
        let [a, b, c, d] = peer::ADDRESS;
        let argv = vec![
            "hv-net".to_owned(),
            workload.mode.to_owned(),
            format!("{a}.{b}.{c}.{d}"),
            workload.size.to_string(),
            count.to_string(),
        ];
        counts::load(&self.vm, argv)
    }

    fn count(&self, workload: &Workload, run: u32) -> Result<Sample> {
        let symbols = self.symbols.as_ref().context("no symbols")?;
        let sample = counts::Sampled {
            workload: workload.name,
            stack: self.stack,
            run,
            parts: part,
            layers: None,
        };
        let load = |count| self.load(workload, count);
        counts::measure(&self.vm, symbols, sample, workload.count, load)
    }

    /// Operations and gigabits of payload per second.
    fn rate(&self, workload: &Workload) -> Result<(f64, f64)> {
        let load = |count| self.load(workload, count);
        let (result, seconds) = counts::timed(workload.count, load)?;
        let bits = result.bytes as f64 * 8.0 / 1e9;
        Ok((result.ios as f64 / seconds, bits / seconds))
    }
}

fn part(stack: Stack, module: &str, function: &str) -> Part {
    match module {
        USER => Part::User,
        "hv_netvsc_rs" | "hv_netvsc" | "virtio_net" => Part::Driver,
        "hv_vmbus_rs" | "virtio" | "virtio_ring" => Part::Bus,
        name if name.starts_with("virtio_pci") => Part::Bus,
        KERNEL if stack == Stack::C && is_c_bus(function) => Part::Bus,
        KERNEL if stack == Stack::Virtio && is_virtio_bus(function) => Part::Bus,
        _ => Part::Rest,
    }
}

fn virtio_args(path: &std::path::Path) -> Vec<String> {
    let path: PathBuf = path.into();
    let path = path.display().to_string().replace(',', ",,");
    [
        "-netdev",
        &format!("stream,id=bench,server=off,addr.type=unix,addr.path={path}"),
        "-device",
        "virtio-net-pci,netdev=bench",
    ]
    .map(String::from)
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_agent::NET_BURST;

    #[test]
    fn code_is_told_apart() {
        for (stack, module, function, expected) in [
            (Stack::C, "hv_netvsc", "netvsc_poll", Part::Driver),
            (Stack::C, KERNEL, "hv_pkt_iter_first", Part::Bus),
            (Stack::C, KERNEL, "napi_gro_receive", Part::Rest),
            (Stack::Rust, "hv_netvsc_rs", "poll", Part::Driver),
            (Stack::Rust, "hv_vmbus_rs", "send", Part::Bus),
            // Of the C bus nothing runs there.
            (Stack::Rust, KERNEL, "vmbus_isr", Part::Rest),
            (Stack::Virtio, KERNEL, "virtqueue_add_outbuf", Part::Bus),
            (Stack::Virtio, USER, USER, Part::User),
        ] {
            assert_eq!(part(stack, module, function), expected, "{function}");
        }
    }

    #[test]
    fn datagrams_come_in_whole_bursts() {
        for workload in WORKLOADS {
            let burst = workload.mode == "udp-send" || workload.mode == "udp-receive";
            assert!(!burst || workload.count % NET_BURST == 0, "{workload:?}");
            assert!(workload.size >= 8);
        }
    }
}
