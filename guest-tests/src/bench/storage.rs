// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What a disk request costs: Rust beside C beside virtio-scsi.
//!
//! Each run boots a guest for each stack, twice: one that counts instructions, one that does not and is timed. The
//! disk is the same image file. See [`counts`] for what is counted.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use guest_agent::IoResult;
use hvctl::profile::{Symbols, KERNEL, USER};

use super::counts::{self, path_word, Part};
use super::report::{Report, Sample};
use super::{is_c_bus, is_virtio_bus, Options, Stack};
use crate::vm::SOON;
use crate::{Env, Vm, VmConfig};

/// Size of the disk in MiB. In the page cache of this machine after it was made.
const DISK_MIB: usize = 256;

/// What lies above the driver.
const LAYERS: &str = "SCSI and block layer";

/// A load on the disk.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Name in the report.
    pub name: &'static str,
    /// What one operation is.
    pub unit: &'static str,
    write: bool,
    random: bool,
    block: u64,
    depth: u64,
    /// Requests of the short run; the long one has five times as many.
    count: u64,
}

/// The loads of the suite.
pub const WORKLOADS: [Workload; 6] = [
    random("read 4 KiB, depth 1", false, 1),
    random("write 4 KiB, depth 1", true, 1),
    random("read 4 KiB, depth 32", false, 32),
    random("write 4 KiB, depth 32", true, 32),
    sequential("read 1 MiB sequential", false),
    sequential("write 1 MiB sequential", true),
];

const fn random(name: &'static str, write: bool, depth: u64) -> Workload {
    Workload {
        name,
        unit: "request",
        write,
        random: true,
        block: 4096,
        depth,
        count: 512,
    }
}

const fn sequential(name: &'static str, write: bool) -> Workload {
    Workload {
        name,
        unit: "MiB",
        write,
        random: false,
        block: 1 << 20,
        depth: 1,
        count: 32,
    }
}

/// The figures, in the order of the table.
const METRICS: [(&str, usize); 9] = [
    ("driver", 0),
    ("bus", 0),
    ("driver + bus", 0),
    (LAYERS, 0),
    ("whole kernel", 0),
    ("whole guest", 0),
    ("hypercalls", 3),
    ("interrupts", 3),
    ("requests or MiB per s", 0),
];

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
    let disk = Disk::new(env)?;
    let mut report = Report {
        suite: "storage",
        kernel: String::new(),
        workloads: chosen.iter().map(|w| (w.name, w.unit)).collect(),
        metrics: METRICS.to_vec(),
        samples: Vec::new(),
    };
    for run in 1..=options.runs {
        for stack in &options.stacks {
            let counted = Guest::boot(env, &disk, *stack, true)?;
            report.kernel = counted.vm.sh("uname -r")?.trim().to_owned();
            let mut samples = Vec::new();
            for workload in &chosen {
                samples.push(counted.count(workload, run)?);
            }
            counted.end()?;
            if !options.no_timing {
                let timed = Guest::boot(env, &disk, *stack, false)?;
                for (workload, sample) in chosen.iter().zip(&mut samples) {
                    let rate = timed.rate(workload)?;
                    sample.values.insert("requests or MiB per s", rate);
                }
                timed.end()?;
            }
            for sample in &samples {
                let of = |name| sample.values.get(name).copied().unwrap_or(f64::NAN);
                progress(&format!(
                    "run {run} {stack:6} {:24} driver {:.0} bus {:.0} kernel {:.0} hypercalls {:.2} interrupts {:.2}",
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

/// The image file. Removed on drop.
struct Disk(PathBuf);

impl Disk {
    fn new(env: &Env) -> Result<Self> {
        let path = env.state.join("bench-disk.img");
        let disk = Self(path.clone());
        let context = || path.display().to_string();
        let mut file = fs::File::create(&path).with_context(context)?;
        for index in 0..DISK_MIB {
            // No holes: they cost a file system less.
            file.write_all(&vec![1 + index as u8 % 255; 1 << 20])
                .with_context(context)?;
        }
        Ok(disk)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A guest with the disk as `/dev/sda`.
struct Guest {
    vm: Vm,
    stack: Stack,
    symbols: Option<Symbols>,
}

impl Guest {
    fn boot(env: &Env, disk: &Disk, stack: Stack, profile: bool) -> Result<Self> {
        let what = if profile { "counted" } else { "timed" };
        let mut config = VmConfig::new(&format!("bench-{stack}-{what}"), stack.drivers());
        config.profile = profile;
        match stack {
            Stack::Rust | Stack::C => {
                config = config.device(&format!("scsi0:lun0={}", path_word(&disk.0)?));
            }
            Stack::Virtio => {
                // No device of the host, as nobody serves it; the requests are run by a thread of their own, as the
                // host does.
                config = config.device("heartbeat");
                config.qemu_args = virtio_args(&disk.0);
            }
        }
        let vm = Vm::boot(env, config)?;
        match Self::with_disk(vm, stack, profile) {
            Ok(guest) => Ok(guest),
            Err((vm, err)) => Err(vm.explain(err)),
        }
    }

    fn with_disk(vm: Vm, stack: Stack, profile: bool) -> Result<Self, (Box<Vm>, anyhow::Error)> {
        let load = || -> Result<Option<Symbols>> {
            let modules: &[&str] = match stack {
                Stack::Rust => &["sd_mod", "hv_vmbus_rs", "hv_storvsc_rs"],
                Stack::C => &["sd_mod", "hv_storvsc"],
                Stack::Virtio => &["sd_mod", "virtio_pci", "virtio_scsi"],
            };
            for module in modules {
                vm.load(module)?;
            }
            vm.log("[sda] Attached SCSI disk", 0, SOON)
                .context("the disk did not appear")?;
            if profile {
                vm.symbols().map(Some)
            } else {
                Ok(None)
            }
        };
        match load() {
            Ok(symbols) => Ok(Self { vm, stack, symbols }),
            Err(err) => Err((Box::new(vm), err)),
        }
    }

    /// Looks at what must hold at the end.
    fn end(self) -> Result<()> {
        self.vm.check().map_err(|err| self.vm.explain(err))
    }

    fn load(&self, workload: &Workload, count: u64) -> Result<IoResult> {
        let mut argv = vec!["hv-io".to_owned(), "/dev/sda".to_owned()];
        argv.push(if workload.write { "write" } else { "read" }.into());
        argv.push(
            if workload.random {
                "random"
            } else {
                "sequential"
            }
            .into(),
        );
        argv.extend([workload.block, count, workload.depth].map(|n| n.to_string()));
        counts::load(&self.vm, argv)
    }

    fn count(&self, workload: &Workload, run: u32) -> Result<Sample> {
        let symbols = self.symbols.as_ref().context("no symbols")?;
        let sample = counts::Sampled {
            workload: workload.name,
            stack: self.stack,
            run,
            parts: part,
            layers: Some(LAYERS),
        };
        let load = |count| self.load(workload, count);
        counts::measure(&self.vm, symbols, sample, workload.count, load)
    }

    /// Operations per second.
    fn rate(&self, workload: &Workload) -> Result<f64> {
        let load = |count| self.load(workload, count);
        let (result, seconds) = counts::timed(workload.count, load)?;
        Ok(result.ios as f64 / seconds)
    }
}

fn part(stack: Stack, module: &str, function: &str) -> Part {
    match module {
        USER => Part::User,
        "hv_storvsc_rs" | "hv_storvsc" | "virtio_scsi" => Part::Driver,
        "hv_vmbus_rs" | "virtio" | "virtio_ring" => Part::Bus,
        name if name.starts_with("virtio_pci") => Part::Bus,
        "scsi_mod" | "sd_mod" | "scsi_common" => Part::Layers,
        KERNEL if stack == Stack::C && is_c_bus(function) => Part::Bus,
        KERNEL if stack == Stack::Virtio && is_virtio_bus(function) => Part::Bus,
        KERNEL if is_layer(function) => Part::Layers,
        _ => Part::Rest,
    }
}

/// Functions of the SCSI and block layers where those are part of the kernel image.
fn is_layer(function: &str) -> bool {
    const STARTS: [&str; 8] = [
        "blk_", "__blk_", "bio_", "__bio_", "scsi_", "__scsi_", "sd_", "blkdev_",
    ];
    STARTS.iter().any(|start| function.starts_with(start))
}

fn virtio_args(disk: &Path) -> Vec<String> {
    let file = disk.display().to_string().replace(',', ",,");
    [
        "-object",
        "iothread,id=bench",
        "-drive",
        &format!("if=none,id=bench-disk,format=raw,file={file}"),
        "-device",
        "virtio-scsi-pci,iothread=bench",
        "-device",
        "scsi-hd,drive=bench-disk",
    ]
    .map(String::from)
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::super::report::Values;
    use super::*;

    fn sums(stack: Stack, rows: &[(&str, &str, i64)]) -> Values {
        let difference = rows
            .iter()
            .map(|(module, function, count)| ((module.to_string(), function.to_string()), *count))
            .collect();
        counts::cost(stack, &difference, 10.0, part, Some(LAYERS)).values
    }

    #[test]
    fn code_is_told_apart() {
        let c = sums(
            Stack::C,
            &[
                ("hv_storvsc", "storvsc_queuecommand", 3000),
                (KERNEL, "hv_ringbuffer_write", 1750),
                (KERNEL, "vmbus_chan_sched", 860),
                (KERNEL, "hv_do_fast_hypercall8", 50),
                (KERNEL, "blk_mq_submit_bio", 1000),
                ("scsi_mod", "scsi_queue_rq", 500),
                (USER, USER, 7000),
            ],
        );
        assert_eq!(
            (c["driver"], c["bus"], c["driver + bus"]),
            (300.0, 261.0, 561.0)
        );
        assert_eq!(c["SCSI and block layer"], 150.0);
        assert_eq!((c["whole kernel"], c["whole guest"]), (716.0, 1416.0));
        let rust = sums(
            Stack::Rust,
            &[
                ("hv_storvsc_rs", "queue", 1000),
                ("hv_vmbus_rs", "send", 800),
                // Of the C bus nothing runs there; a name that looks like it is no part of ours.
                (KERNEL, "vmbus_isr", 10),
            ],
        );
        assert_eq!((rust["driver"], rust["bus"]), (100.0, 80.0));
        let virtio = sums(
            Stack::Virtio,
            &[
                ("virtio_scsi", "virtscsi_queuecommand", 1000),
                ("virtio_ring", "virtqueue_add_sgs", 700),
                ("virtio_pci", "vp_interrupt", 100),
                (KERNEL, "vring_interrupt", 150),
                (KERNEL, "hv_ringbuffer_write", 10),
            ],
        );
        assert_eq!((virtio["driver"], virtio["bus"]), (100.0, 95.0));
    }

    #[test]
    fn counts_divide_by_the_depth() {
        for workload in WORKLOADS {
            assert_eq!(workload.count % workload.depth, 0, "{}", workload.name);
        }
    }
}
