// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! `scripts/vm`: boots a guest by hand, with its console on this terminal.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, ensure, Context, Result};
use clap::Parser;
use guest_tests::disks::{ext4_uuid, sweep, Disk, DiskArg, Scratch, Source, DEBIAN};
use guest_tests::env::TempDir;
use guest_tests::net::{Backend, Nic, NicArg, NicKind, Passt};
use guest_tests::{Drivers, Env, VmConfig};

const AFTER_HELP: &str = "\
Without --disk, the guest is an initramfs in memory: nothing survives it. Leave it with `exit` or `poweroff`.
In the guest: /lib/modules-rs holds the Rust modules (insmod hv_vmbus_rs.ko, then hv_utils_rs.ko), modprobe
loads the kernel's own, lsvmbus lists the devices.

The host listens on a control socket, whose path is printed at the start; from another terminal:
    scripts/hvctl --socket PATH status
    scripts/hvctl --socket PATH channels
    scripts/hvctl --socket PATH rescind heartbeat
    scripts/hvctl --help
Under --profile, `hvctl profile mark` and `hvctl profile read --kallsyms FILE` bracket what is to be measured; the
guest's symbols are written to the FILE that is printed at the start.";

/// Boot a guest under the emulated Hyper-V host, with its console on this terminal.
#[derive(Parser)]
#[command(name = "scripts/vm", bin_name = "scripts/vm", after_help = AFTER_HELP)]
struct Args {
    /// Driver stack: rust (loaded after boot), c (the kernel's own, hv_utils loaded after boot), or none (the C bus is
    /// kept down and nothing is loaded).
    #[arg(long, value_enum, default_value_t = Drivers::Rust)]
    drivers: Drivers,
    /// Leave the modules of the driver stack to be loaded by hand.
    #[arg(long)]
    no_load: bool,
    /// Virtual CPUs.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    smp: u32,
    /// Memory in MiB.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(192..))]
    memory: u32,
    /// Newest VMBus version that the host accepts: 4.0, 4.1, 5.0, 5.1, 5.2, 5.3 or 6.0.
    #[arg(long, value_name = "X.Y", default_value = "6.0",
          value_parser = ["4.0", "4.1", "5.0", "5.1", "5.2", "5.3", "6.0"])]
    vmbus_version: String,
    /// A device for the host to offer, with arguments, such as timesync:max=3.0 (docs/vmbus-host.md); only those named
    /// are offered. Repeatable.
    #[arg(long, value_name = "NAME[:KEY=VALUE]")]
    device: Vec<String>,
    /// Kernel image of your own. Its modules are not in the guest. (--kernel VERSION, before the other options, chooses
    /// one of Debian's.)
    #[arg(long, value_name = "FILE")]
    kernel_image: Option<PathBuf>,
    /// More words for the kernel command line. Repeatable.
    #[arg(long, value_name = "WORDS")]
    append: Vec<String>,
    /// A disk. IMG is a raw image, `ram` (with size=), or `debian`: Debian on a copy of its image that lasts as long as
    /// the guest, and is booted. OPT: root (boot the system on it: ext4 without partitions), data (do not), ro,
    /// size=SIZE (extends an image), sector=4096, discard=off, lun=N, bus=scsi0…scsi9 or ide0…ide3 (default scsi0), virtio
    /// (QEMU's disk instead of Hyper-V's). Repeatable.
    #[arg(long, value_name = "IMG[,OPT]…")]
    disk: Vec<DiskArg>,
    /// A storage controller with arguments, such as scsi0:subchannels=0:fast=off (docs/vmbus-host.md). Repeatable.
    #[arg(long, value_name = "NAME:ARGS", value_parser = controller)]
    controller: Vec<(String, String)>,
    /// A network card. WIRE is what its wire leads to: user (this machine's network, by passt; the guest gets its address by
    /// DHCP, 10.0.2.2 is this machine's loopback), echo (answers ping to 10.0.0.1), sink, none, listen=PATH and connect=PATH (a
    /// socket: two guests linked), tap=INTERFACE. OPT: forward=PORTS (user: ports of this machine that are the guest's, such as
    /// 8022:22), and the host's own, such as mtu=9000, offload=none, subchannels=0 (docs/network-host.md). Repeatable.
    #[arg(long, value_name = "WIRE[,OPT]…")]
    net: Vec<NicArg>,
    /// A virtio network card with user-mode networking.
    #[arg(long)]
    network: bool,
    /// Count guest instructions per module and function.
    #[arg(long)]
    profile: bool,
    /// Plain QEMU, without the emulated host.
    #[arg(long)]
    plain: bool,
    /// More arguments for QEMU.
    #[arg(last = true, value_name = "QEMU-ARGS")]
    qemu_args: Vec<String>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("vm: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let env = Env::from_env()?;
    if let Some(file) = &args.kernel_image {
        std::fs::metadata(file).with_context(|| file.display().to_string())?;
    }
    let mut attached = Attached::default();
    for disk in &args.disk {
        attached.add(&env, disk)?;
    }
    if (args.plain || args.drivers == Drivers::None) && !attached.disks.is_empty() {
        bail!("without the emulated host or its drivers, disks need the option virtio");
    }
    let dir = TempDir::new()?;
    let cards = Cards::new(dir.path(), &args.net)?;
    if (args.plain || args.drivers == Drivers::None) && !cards.nics.is_empty() {
        bail!("without the emulated host or its drivers there is no --net; --network gives a virtio card");
    }
    let config = VmConfig {
        smp: args.smp,
        memory: args.memory,
        vmbus: Some(args.vmbus_version),
        devices: args.device,
        cmdline: args.append,
        virtio_disks: attached.virtio,
        storage: !attached.disks.is_empty() || !args.controller.is_empty(),
        disks: attached.disks,
        controllers: args.controller,
        nics: cards.nics.clone(),
        root: attached.root,
        network: args.network,
        profile: args.profile,
        kernel: args.kernel_image,
        plain: args.plain,
        interactive: true,
        qemu_args: args.qemu_args,
        ..VmConfig::new("vm", args.drivers)
    };
    guest_tests::interactive::run(&env, config, !args.no_load, &cards.by_dhcp)
}

/// The network cards of the command line.
struct Cards {
    nics: Vec<Nic>,
    // Those that get an address by DHCP.
    by_dhcp: Vec<String>,
    // One for each of those; they end with the guest.
    _passts: Vec<Passt>,
}

impl Cards {
    fn new(dir: &Path, args: &[NicArg]) -> Result<Self> {
        let mut cards = Self {
            nics: Vec::new(),
            by_dhcp: Vec::new(),
            _passts: Vec::new(),
        };
        for (number, arg) in args.iter().enumerate() {
            let backend = match &arg.kind {
                NicKind::Host(backend) => backend.clone(),
                NicKind::User => {
                    let name = format!("net{number}");
                    let passt = Passt::start_for_user(dir, &name, &arg.forward)?;
                    let backend = Backend::Connect(passt.socket().to_owned());
                    cards._passts.push(passt);
                    cards.by_dhcp.push(name);
                    backend
                }
            };
            cards.nics.push(Nic {
                backend,
                options: arg.options.clone(),
            });
        }
        Ok(cards)
    }
}

/// `NAME:ARGS`
fn controller(text: &str) -> Result<(String, String), String> {
    let (name, words) = text.split_once(':').unwrap_or((text, ""));
    if name.is_empty() {
        return Err("a controller's name is needed".into());
    }
    Ok((name.into(), words.into()))
}

/// Where the disks of the command line go.
#[derive(Default)]
struct Attached {
    disks: Vec<Disk>,
    virtio: Vec<PathBuf>,
    root: Option<String>,
    // Removed when the guest has ended.
    copies: Vec<Scratch>,
}

impl Attached {
    fn add(&mut self, env: &Env, arg: &DiskArg) -> Result<()> {
        let mut disk = arg.disk.clone();
        if let Source::File(path) = &mut disk.source {
            if path.as_os_str() == DEBIAN {
                sweep(&env.scratch());
                let copy = env.debian_copy()?;
                *path = copy.path().to_owned();
                self.copies.push(copy);
            }
            std::fs::metadata(&*path).with_context(|| path.display().to_string())?;
            if arg.root {
                ensure!(self.root.is_none(), "only one disk can be the root");
                self.root = Some(format!("UUID={}", ext4_uuid(path)?));
            }
            if arg.virtio {
                ensure!(disk.options.is_empty(), "a virtio disk takes no options");
                self.virtio.push(path.clone());
                return Ok(());
            }
        } else if arg.root || arg.virtio {
            bail!("a RAM disk is neither root nor virtio");
        }
        if !arg.fixed_lun {
            let mut taken = self
                .disks
                .iter()
                .filter(|d| d.controller == disk.controller);
            disk.lun = (0..)
                .find(|&lun| !taken.clone().any(|d| d.lun == lun))
                .unwrap_or(0);
            if disk.controller.starts_with("ide") && taken.next().is_some() {
                bail!("{} has its disk already", disk.controller);
            }
        }
        self.disks.push(disk);
        Ok(())
    }
}
