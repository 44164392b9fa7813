// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! One test guest: QEMU, the emulated host in it, the agent in the guest.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{anyhow, bail, Context, Result};
use guest_agent::{Bytes, Command as Ask, Entry, Hello, LogLine, Output, MAX_DATA};
use hvctl::{Client, HeartbeatStatus, Until};

use crate::agent::Agent;
use crate::console::Console;
use crate::disks::Disk;
use crate::env::TempDir;
use crate::launch::{qemu_args, quote, shared_dir, write_initrd, Fifo, Listener};
use crate::net::Nic;
use crate::patience;
use crate::qmp::Qmp;
use crate::Env;

mod measure;

pub use measure::ClockOffset;

/// From QEMU's start to the agent's greeting, at most. A boot takes about 4 s on an idle machine.
pub const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// The same for a Debian system, to its multi-user.target.
pub const SYSTEM_LIMIT: Duration = Duration::from_secs(300);

/// For a command in the guest, at most, unless a test says otherwise.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// For something that takes milliseconds on an idle machine.
pub const SOON: Duration = Duration::from_secs(30);

/// Which driver stack serves the VMBus in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Drivers {
    /// The modules of this project; the built-in C bus is kept down.
    Rust,
    /// The kernel's own.
    C,
    /// None: the built-in C bus is kept down and nothing is loaded.
    None,
}

impl Drivers {
    /// The modules of the utilities, in the order in which they are loaded.
    pub fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Rust => &["hv_vmbus_rs", "hv_utils_rs"],
            Self::C => &["hv_utils"],
            Self::None => &[],
        }
    }

    /// The modules of the SCSI controller, loaded after those of [`Drivers::modules`].
    pub fn storage_modules(self) -> &'static [&'static str] {
        match self {
            Self::Rust => &["hv_storvsc_rs"],
            Self::C => &["hv_storvsc"],
            Self::None => &[],
        }
    }

    /// The modules of the network card, loaded after those of [`Drivers::storage_modules`].
    pub fn network_modules(self) -> &'static [&'static str] {
        match self {
            Self::Rust => &["hv_netvsc_rs"],
            Self::C => &["hv_netvsc"],
            Self::None => &[],
        }
    }

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::C => "c",
            Self::None => "none",
        }
    }
}

/// What a guest is started with.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// Names the log directory.
    pub name: String,
    /// Driver stack.
    pub drivers: Drivers,
    /// Virtual CPUs.
    pub smp: u32,
    /// Memory in MiB.
    pub memory: u32,
    /// Newest VMBus version that the host accepts, such as `5.2`; the host's own newest by default.
    pub vmbus: Option<String>,
    /// Devices that the host offers, with arguments, such as `timesync:max=3.0`; the host's own choice when empty.
    pub devices: Vec<String>,
    /// More words for the kernel command line.
    pub cmdline: Vec<String>,
    /// Disk images for virtio disks; those of the emulated host are among the `devices`.
    pub virtio_disks: Vec<PathBuf>,
    /// Disks that the emulated host offers from the start.
    pub disks: Vec<Disk>,
    /// Arguments of storage controllers: name, words. A controller may be without disks.
    pub controllers: Vec<(String, String)>,
    /// Load the drivers of the SCSI controller, too.
    pub storage: bool,
    /// Parameters for the module of the SCSI controller, such as `storvsc_vcpus_per_sub_channel=1`.
    pub storage_parameters: String,
    /// Network cards that the emulated host offers from the start: `net0`, `net1`, …
    pub nics: Vec<Nic>,
    /// Parameters for the module of the network card, such as `ring_size=256`.
    pub network_parameters: String,
    /// Boot the system on this disk of the guest (`/dev/sda`, or `UUID=` and that of its ext4 file system): the
    /// initramfs loads the drivers and hands over.
    pub root: Option<String>,
    /// Boot as a real machine does: the firmware starts GRUB from this image, and GRUB the system on the first of the
    /// `disks`, which the firmware sees through a controller that Debian's cloud kernels have no driver for.
    pub loader: Option<PathBuf>,
    /// Attach the Debian image read-only as a virtio disk: [`Vm::tools`] makes its programs usable.
    pub tools: bool,
    /// Puts the daemons into the guest's initramfs, below `/hv`.
    pub daemons: bool,
    /// A user-mode network card (virtio).
    pub network: bool,
    /// Counts guest instructions.
    pub profile: bool,
    /// Kernel image instead of the environment's.
    pub kernel: Option<PathBuf>,
    /// Starts the guest without the emulated host: plain QEMU.
    pub plain: bool,
    /// Puts the Rust modules into the guest even when it runs the C stack.
    pub both_stacks: bool,
    /// Offers ACPI S4 to the guest.
    pub s4: bool,
    /// A kernel and an initramfs in `/boot` of the guest, to be started by kexec.
    pub next_kernel: bool,
    /// The console is this process's terminal, and a shell waits there.
    pub interactive: bool,
    /// More arguments for QEMU.
    pub qemu_args: Vec<String>,
}

impl VmConfig {
    /// One CPU, 512 MiB, nothing special.
    pub fn new(name: &str, drivers: Drivers) -> Self {
        Self {
            name: name.into(),
            drivers,
            smp: 1,
            memory: 512,
            vmbus: None,
            devices: Vec::new(),
            cmdline: Vec::new(),
            virtio_disks: Vec::new(),
            disks: Vec::new(),
            controllers: Vec::new(),
            storage: false,
            storage_parameters: String::new(),
            nics: Vec::new(),
            network_parameters: String::new(),
            root: None,
            loader: None,
            tools: false,
            daemons: false,
            network: false,
            profile: false,
            kernel: None,
            plain: false,
            s4: false,
            both_stacks: false,
            next_kernel: false,
            interactive: false,
            qemu_args: Vec::new(),
        }
    }

    /// Number of virtual CPUs.
    #[must_use]
    pub fn smp(mut self, cpus: u32) -> Self {
        self.smp = cpus;
        self
    }

    /// Newest VMBus version that the host accepts.
    #[must_use]
    pub fn vmbus(mut self, version: &str) -> Self {
        self.vmbus = Some(version.into());
        self
    }

    /// A device that the host offers, with arguments, such as `timesync:max=3.0`; only those named are offered.
    #[must_use]
    pub fn device(mut self, device: &str) -> Self {
        self.devices.push(device.into());
        self
    }

    /// One more word on the kernel command line.
    #[must_use]
    pub fn cmdline(mut self, word: &str) -> Self {
        self.cmdline.push(word.into());
        self
    }

    /// Memory in MiB.
    #[must_use]
    pub fn memory(mut self, mib: u32) -> Self {
        self.memory = mib;
        self
    }

    /// A disk of the emulated host.
    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// A storage controller with arguments, such as `subchannels=0`.
    #[must_use]
    pub fn controller(mut self, name: &str, words: &str) -> Self {
        self.controllers.push((name.into(), words.into()));
        self
    }

    /// A network card of the emulated host, with its driver.
    #[must_use]
    pub fn nic(mut self, nic: Nic) -> Self {
        self.nics.push(nic);
        self
    }

    /// With the drivers of the SCSI controller, and the programs of the Debian image.
    #[must_use]
    pub fn storage(mut self) -> Self {
        self.storage = true;
        self.tools = true;
        self
    }

    /// With the daemons below `/hv` in the initramfs.
    #[must_use]
    pub fn daemons(mut self) -> Self {
        self.daemons = true;
        self
    }

    /// Boots the system on this disk of the guest instead of staying in the initramfs.
    #[must_use]
    pub fn root(mut self, device: &str) -> Self {
        self.storage = true;
        self.tools = false;
        self.root = Some(device.into());
        self
    }

    /// The modules that make this guest's drivers, in the order in which they are loaded.
    pub fn modules(&self) -> Vec<&'static str> {
        let storage = if self.storage {
            self.drivers.storage_modules()
        } else {
            &[]
        };
        let network = if self.nics.is_empty() {
            &[]
        } else {
            self.drivers.network_modules()
        };
        [self.drivers.modules(), storage, network].concat()
    }

    /// Without the emulated host.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.plain = true;
        self
    }
}

/// A running guest. QEMU is killed when this is dropped.
pub struct Vm {
    /// What it was started with.
    pub config: VmConfig,
    /// Console of the guest. None when interactive.
    pub console: Option<Console>,
    /// Agent in the guest.
    pub agent: Agent,
    /// QEMU's own control.
    pub qmp: Qmp,
    /// Where its logs are.
    pub logs: PathBuf,
    /// From QEMU's start to the agent's greeting.
    pub boot_time: Duration,
    host: Option<Mutex<Client>>,
    child: Mutex<Child>,
    // Holds the sockets; goes last.
    dir: TempDir,
}

impl Vm {
    /// Starts a guest and waits until its agent is up. No driver is loaded yet.
    ///
    /// # Errors
    /// A sentence with the last lines of the console and the path of the logs.
    pub fn boot(env: &Env, config: VmConfig) -> Result<Self> {
        let logs = env.logs.join(&config.name);
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let dir = if config.interactive {
            shared_dir(env)?
        } else {
            TempDir::new()?
        };
        let initrd = dir.path().join("initrd");
        if config.loader.is_none() {
            write_initrd(env, &config, &initrd)?;
        }

        let listen = |name: &str| Listener::new(&dir.path().join(name));
        let agent = listen("agent.sock")?;
        let qmp = listen("qmp.sock")?;
        let console = if config.interactive {
            None
        } else {
            Some(Fifo::new(&dir.path().join("console"))?)
        };
        let control = dir.path().join("control.sock");

        let args = qemu_args(env, &config, dir.path(), &logs)?;
        let begin = Instant::now();
        let qemu_log = logs.join("qemu.log");
        let output = fs::File::create(&qemu_log).with_context(|| qemu_log.display().to_string())?;
        let mut command_line = fs::File::create(logs.join("command"))?;
        writeln!(command_line, "{} {}", env.qemu.display(), quote(&args))?;
        // setpriv: QEMU must not survive a test program that was killed.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&env.qemu)
            .args(&args)
            .stderr(output.try_clone()?);
        if config.interactive {
            command.stdin(Stdio::inherit()).stdout(Stdio::inherit());
        } else {
            command.stdin(Stdio::null()).stdout(output);
        }
        let mut child = command
            .spawn()
            .context("cannot start setpriv (package util-linux)")?;

        let started = (|| -> Result<_> {
            let mut accept = |listener: Listener| listener.accept(&mut child);
            let agent = Agent::new(accept(agent)?)?;
            let qmp = Qmp::new(accept(qmp)?)?;
            // QEMU opens its backends in the order of the command line: it has the console by now.
            let console = match console {
                Some(fifo) => Some(Console::new(
                    fifo.into_reader()?,
                    &logs.join("console.log"),
                )?),
                None => None,
            };
            Ok((agent, console, qmp))
        })();
        let (agent, console, qmp) = match started {
            Ok(all) => all,
            Err(err) => {
                let _ = child.kill();
                let _ = child.wait();
                let text = fs::read_to_string(&qemu_log).unwrap_or_default();
                return Err(err.context(format!(
                    "QEMU did not start; {}:\n{text}",
                    qemu_log.display()
                )));
            }
        };
        let mut vm = Self {
            config,
            console,
            agent,
            qmp,
            logs,
            boot_time: Duration::ZERO,
            host: None,
            child: Mutex::new(child),
            dir,
        };
        if !vm.config.plain {
            let mut client =
                Client::connect_within(&control, SOON).map_err(|err| vm.explain(err.into()))?;
            client.set_patience(patience::times());
            vm.host = Some(Mutex::new(client));
        }
        vm.agent
            .hello(
                1,
                if vm.config.root.is_some() {
                    SYSTEM_LIMIT
                } else {
                    BOOT_LIMIT
                },
            )
            .map_err(|err| vm.explain(err))?;
        vm.boot_time = begin.elapsed();
        Ok(vm)
    }

    /// Boots, loads the drivers and waits until the guest has its offers.
    ///
    /// # Errors
    /// See [`Vm::boot`].
    pub fn connected(env: &Env, config: VmConfig) -> Result<Self> {
        let vm = Self::boot(env, config)?;
        vm.load_drivers().map_err(|err| vm.explain(err))?;
        Ok(vm)
    }

    /// Loads the drivers and waits until the guest has its offers and the integration services have agreed
    /// on their versions.
    ///
    /// # Errors
    /// The module loader's words, or the name of what did not happen in time.
    pub fn load_drivers(&self) -> Result<()> {
        // A guest that boots from a disk has them already.
        if self.config.root.is_none() {
            for module in self.config.modules() {
                let parameters = if self.config.drivers.storage_modules().contains(&module) {
                    &self.config.storage_parameters
                } else if self.config.drivers.network_modules().contains(&module) {
                    &self.config.network_parameters
                } else {
                    ""
                };
                self.load_with(module, parameters)?;
            }
        }
        if self.config.drivers != Drivers::None {
            self.host()
                .wait_connected(SOON)
                .context("the guest did not connect")?;
            for device in IC_DEVICES {
                self.host()
                    .wait_negotiated(device, SOON)
                    .with_context(|| format!("{device} did not negotiate"))?;
            }
        }
        Ok(())
    }

    /// Loads one module, from the Rust modules if it is one of them.
    ///
    /// # Errors
    /// The module loader's words and the last lines of the kernel log.
    pub fn load(&self, module: &str) -> Result<()> {
        self.load_with(module, "")
    }

    /// Loads one module with parameters.
    ///
    /// # Errors
    /// See [`Vm::load`].
    pub fn load_with(&self, module: &str, parameters: &str) -> Result<()> {
        let command = if module.ends_with("_rs") {
            // Their dependencies within the kernel's own modules (ptp where it is one) come first.
            format!(
                "for m in $(modinfo -F depends {RUST_MODULES}/{module}.ko | tr , ' '); do case $m in *_rs) ;; *) modprobe $m ;; esac; done; insmod {RUST_MODULES}/{module}.ko {parameters}"
            )
        } else {
            format!("modprobe {module} {parameters}")
        };
        self.sh(&command).map(drop)
    }

    /// Unloads one module.
    ///
    /// # Errors
    /// The module loader's words.
    pub fn unload(&self, module: &str) -> Result<()> {
        self.sh(&format!("rmmod {module}")).map(drop)
    }

    /// Unloads the drivers of [`VmConfig::modules`], last one first.
    ///
    /// # Errors
    /// See [`Vm::unload`].
    pub fn unload_drivers(&self) -> Result<()> {
        self.config
            .modules()
            .iter()
            .rev()
            .try_for_each(|module| self.unload(module))
    }

    /// Makes the programs of the Debian image usable: `chroot /debian fio …`. They come from a virtio disk, so that
    /// they work whatever becomes of the controller under test.
    ///
    /// # Errors
    /// The guest's error.
    pub fn tools(&self) -> Result<()> {
        self.sh(
            "modprobe virtio_pci; modprobe virtio_blk; modprobe ext4; mkdir -p /debian \
             && mount -t ext4 -o ro,noload /dev/vda /debian \
             && for d in proc sys dev run tmp; do mount --rbind /$d /debian/$d; done",
        )
        .map(drop)
    }

    /// Waits until the Debian system that booted from a disk has reached its target. Its state: `running`, or `degraded`
    /// when a unit failed.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn wait_system(&self) -> Result<String> {
        let out = self.run("systemctl is-system-running --wait", SYSTEM_LIMIT)?;
        if out.killed {
            bail!("multi-user.target was not reached: {}", describe(&out));
        }
        Ok(out.stdout.text().trim().to_owned())
    }

    /// The host's control connection of this VM. Hold it for one call at a time.
    ///
    /// # Panics
    /// When the VM was started without the emulated host: an error of the test.
    pub fn host(&self) -> MutexGuard<'_, Client> {
        let host = self
            .host
            .as_ref()
            .expect("this VM runs without the emulated host");
        host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A second control connection, to do something while the first waits.
    ///
    /// # Errors
    /// When the VM has ended.
    pub fn second_host(&self) -> Result<Client> {
        let mut client = Client::connect(self.control())?;
        client.set_patience(patience::times());
        Ok(client)
    }

    /// Path of the control socket.
    pub fn control(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    /// Runs a shell command in the guest and gives its standard output. Fails when it fails.
    ///
    /// # Errors
    /// The command's status and standard error.
    pub fn sh(&self, script: &str) -> Result<String> {
        let out = self.run(script, COMMAND_LIMIT)?;
        if out.rc != Some(0) {
            bail!("in the guest: {script}: {}", describe(&out));
        }
        Ok(out.stdout.text())
    }

    /// Runs a shell command in the guest, whatever becomes of it.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn run(&self, script: &str, timeout: Duration) -> Result<Output> {
        let argv = ["sh", "-c", script].map(String::from).to_vec();
        let ask = Ask::Exec {
            argv,
            timeout_ms: timeout.as_millis() as u64,
        };
        self.agent.call(ask, timeout + SOON)
    }

    /// Reads a file in the guest, without the white space at its ends.
    ///
    /// # Errors
    /// The guest's error, with the path.
    pub fn read(&self, path: &str) -> Result<String> {
        let data: Bytes = self.agent.call(read_from(path, 0), SOON)?;
        Ok(data.text().trim().to_owned())
    }

    /// Reads a file of any size in the guest.
    ///
    /// # Errors
    /// The guest's error, with the path.
    pub fn read_all(&self, path: &str) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let part: Bytes = self
                .agent
                .call(read_from(path, all.len() as u64), COMMAND_LIMIT)?;
            all.extend_from_slice(&part.0);
            if part.0.len() < MAX_DATA {
                return Ok(all);
            }
        }
    }

    /// Writes a file in the guest.
    ///
    /// # Errors
    /// The guest's error, with the path.
    pub fn write(&self, path: &str, data: &(impl AsRef<[u8]> + ?Sized)) -> Result<()> {
        self.agent.call(
            Ask::Write {
                path: path.into(),
                data: Bytes(data.as_ref().to_vec()),
                append: false,
            },
            SOON,
        )
    }

    /// Lists a directory tree in the guest with contents.
    ///
    /// # Errors
    /// The guest's error, with the path.
    pub fn tree(&self, path: &str, depth: u32) -> Result<Vec<Entry>> {
        self.agent.call(
            Ask::Tree {
                path: path.into(),
                depth,
            },
            COMMAND_LIMIT,
        )
    }

    /// Waits for a line in the guest's kernel log, from the given mark on.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn log(&self, text: &str, since: u64, timeout: Duration) -> Result<LogLine> {
        let ask = Ask::Log {
            text: text.into(),
            since,
            timeout_ms: timeout.as_millis() as u64,
        };
        self.agent.call(ask, timeout + SOON)
    }

    /// A mark in the guest's kernel log, for [`Vm::log`].
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn log_mark(&self) -> Result<u64> {
        self.agent.call(Ask::LogMark, SOON)
    }

    /// All lines of the guest's kernel log from a mark on.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn log_since(&self, since: u64) -> Result<Vec<LogLine>> {
        self.agent.call(Ask::LogRead { since }, SOON)
    }

    /// Waits for the greeting of the agent after the `resets`-th reset of the guest.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn wait_boot(&self, resets: usize) -> Result<Hello> {
        self.agent.hello(resets + 1, BOOT_LIMIT)
    }

    /// Sends `count` heartbeats, each as soon as the one before was answered, and waits for the last answer.
    ///
    /// # Errors
    /// When not all are answered within a minute, or one is missed.
    pub fn beats(&self, count: u32) -> Result<HeartbeatStatus> {
        self.paced_beats(count, 0)
    }

    /// As [`Vm::beats`], one each `every_ms` milliseconds: the guest has time to go to sleep in between, so that each takes
    /// an interrupt.
    ///
    /// # Errors
    /// See [`Vm::beats`].
    pub fn paced_beats(&self, count: u32, every_ms: u64) -> Result<HeartbeatStatus> {
        let mut host = self.host();
        let before = host.heartbeat()?;
        host.heartbeat_burst(count, every_ms)?;
        let wanted = before.answered + u64::from(count);
        host.wait(Until::Beats { count: wanted }, COMMAND_LIMIT)
            .context("heartbeats were not answered")?;
        let after = host.heartbeat()?;
        if after.missed > before.missed {
            bail!(
                "{} of {count} heartbeats missed",
                after.missed - before.missed
            );
        }
        Ok(after)
    }

    /// Counts from zero at the host, after a look at the violations so far, which would be forgotten.
    ///
    /// # Errors
    /// See [`Vm::check`].
    pub fn reset_counters(&self) -> Result<()> {
        self.check()?;
        Ok(self.host().reset_counters()?)
    }

    /// Looks at what must hold at the end of every test: no protocol violation counted by the host, no trouble on
    /// the guest's console. Resets both, so that it can be called in between.
    ///
    /// # Errors
    /// The violations or the lines of the console.
    pub fn check(&self) -> Result<()> {
        if self.host.is_some() {
            let violations = self.host().violations()?;
            if violations.count > 0 {
                bail!(
                    "{} protocol violations: {}",
                    violations.count,
                    violations.texts.join("; ")
                );
            }
        }
        self.check_console()
    }

    /// The console's half of [`Vm::check`].
    ///
    /// # Errors
    /// The lines.
    pub fn check_console(&self) -> Result<()> {
        let Some(console) = &self.console else {
            return Ok(());
        };
        let trouble = console.take_trouble();
        if !trouble.is_empty() {
            bail!("trouble in the guest's kernel: {}", trouble.join(" | "));
        }
        Ok(())
    }

    /// Waits for QEMU's end (interactive use).
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn wait_end(&self) -> Result<()> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.wait().map(drop).context("wait for QEMU")
    }

    /// Adds the last lines of the console and the place of the logs to an error.
    pub fn explain(&self, err: anyhow::Error) -> anyhow::Error {
        let mut text = format!("{err:#}");
        if let Some(console) = &self.console {
            text.push_str("\nlast lines of the console:");
            for line in console.tail(25) {
                text.push_str("\n    ");
                text.push_str(&line);
            }
        }
        text.push_str(&format!("\nlogs: {}", self.logs.display()));
        anyhow!(text)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The integration services that the host offers and `hv_utils` serves.
pub const IC_DEVICES: [&str; 3] = ["heartbeat", "shutdown", "timesync"];

/// Where the overlay puts the Rust modules.
pub const RUST_MODULES: &str = "/lib/modules-rs";

/// This machine's clock since 1970.
pub fn unix_now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn read_from(path: &str, offset: u64) -> Ask {
    Ask::Read {
        path: path.into(),
        offset,
    }
}

/// How a program ended, in words.
pub fn describe(out: &Output) -> String {
    let how = match (out.killed, out.rc, out.signal) {
        (true, ..) => "time was up".to_owned(),
        (_, Some(rc), _) => format!("status {rc}"),
        (_, None, signal) => format!("signal {}", signal.unwrap_or_default()),
    };
    let text = [out.stderr.text(), out.stdout.text()].concat();
    format!("{how}: {}", text.trim())
}
