// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What QEMU is started with: its arguments, the initramfs, and the sockets it connects to.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use rustix::fs::{fcntl_getfl, fcntl_setfl, mknodat, FileType, Mode, OFlags, CWD};

use crate::cpio::{self, Archive};
use crate::env::TempDir;
use crate::vm::{IC_DEVICES, RUST_MODULES, SOON};
use crate::{disks, net, Drivers, Env, VmConfig};

/// A socket that QEMU connects to when it starts.
pub struct Listener {
    path: PathBuf,
    accepted: Receiver<std::io::Result<UnixStream>>,
}

impl Listener {
    pub fn new(path: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
        let (tx, accepted) = mpsc::channel();
        thread::spawn(move || tx.send(listener.accept().map(|(stream, _)| stream)));
        Ok(Self {
            path: path.to_owned(),
            accepted,
        })
    }

    pub fn accept(self, child: &mut Child) -> Result<UnixStream> {
        let end = Instant::now() + SOON;
        loop {
            // QEMU either connects within milliseconds or ends with a message; its end is no event of
            // this channel, so it is looked at now and then.
            match self.accepted.recv_timeout(Duration::from_millis(100)) {
                Ok(stream) => return stream.context("accept"),
                Err(_) => {
                    if let Some(status) = child.try_wait()? {
                        bail!("QEMU ended with {status}");
                    }
                    if Instant::now() > end {
                        bail!("QEMU did not connect to {}", self.path.display());
                    }
                }
            }
        }
    }
}

/// A directory for sockets that is seen from outside of the build tree as well, so that hvctl reaches the host from
/// another terminal.
pub fn shared_dir(env: &Env) -> Result<TempDir> {
    let free = (1..)
        .map(|number| env.state.join(format!("vm{number}")))
        // A socket file outlives its QEMU when that was killed; nobody answers then.
        .find(|dir| UnixStream::connect(dir.join("control.sock")).is_err());
    let dir = free.context("no name for a directory left")?;
    // sun_path of struct sockaddr_un, with its terminating zero.
    const LONGEST: usize = 107;
    if dir.join("console.sock").as_os_str().len() > LONGEST {
        bail!(
            "{} is too long for a socket; use a shorter XDG_CACHE_HOME",
            dir.display()
        );
    }
    TempDir::at(dir)
}

/// The console's way out of QEMU. A named pipe, because it takes a million bytes before it is full: the guest's console
/// driver waits 10 ms for a serial port that does not take more, and then drops what it has to say.
pub struct Fifo(fs::File);

impl Fifo {
    pub fn new(path: &Path) -> Result<Self> {
        let context = || path.display().to_string();
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).with_context(context)?;
        // Opens at once although nobody writes yet, and lets QEMU open it for writing at once.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file =
            fs::File::from(rustix::fs::open(path, flags, Mode::empty()).with_context(context)?);
        // The most that is allowed without privileges by default (/proc/sys/fs/pipe-max-size).
        rustix::pipe::fcntl_setpipe_size(&file, 1 << 20).with_context(context)?;
        Ok(Self(file))
    }

    /// For reading with waiting. Only when there is a writer, else the first read ends it.
    pub fn into_reader(self) -> Result<fs::File> {
        let flags = fcntl_getfl(&self.0)?;
        fcntl_setfl(&self.0, flags - OFlags::NONBLOCK)?;
        Ok(self.0)
    }
}

/// Base archive and overlay, one after the other; the kernel unpacks both.
pub fn write_initrd(env: &Env, config: &VmConfig, to: &Path) -> Result<()> {
    let mut bytes = read(&env.base)?;
    cpio::pad(&mut bytes);
    let mut overlay = Archive::default();
    overlay.file("/init", 0o755, &read(&env.agent)?);
    for name in ["poweroff", "reboot", "halt"] {
        overlay.link(&format!("/sbin/{name}"), "/init");
    }
    overlay.link("/bin/hv-io", "/init");
    overlay.link("/bin/hv-net", "/init");
    if config.drivers != Drivers::C || config.both_stacks || config.interactive {
        overlay.dir(RUST_MODULES);
        for item in fs::read_dir(&env.modules).with_context(|| env.modules.display().to_string())? {
            let path = item?.path();
            if path.extension().is_some_and(|ext| ext == "ko") {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                overlay.file(&format!("{RUST_MODULES}/{name}"), 0o644, &read(&path)?);
            }
        }
    }
    if !config.nics.is_empty() {
        add_program(&mut overlay, Path::new("/usr/bin/iperf3"))?;
    }
    if config.daemons {
        // They are built with the rest of the workspace, and lie beside the plugin.
        let dir = env.plugin.parent().unwrap_or(Path::new("."));
        overlay.dir("/hv");
        for service in ["kvp", "vss", "fcopy"] {
            let name = format!("hv-{service}-daemon");
            overlay.file(&format!("/hv/{name}"), 0o755, &read(&dir.join(&name))?);
        }
    }
    if config.next_kernel {
        // It boots into the same system, without a third one in it.
        let next = VmConfig {
            next_kernel: false,
            ..config.clone()
        };
        let initrd = to.with_extension("next");
        write_initrd(env, &next, &initrd)?;
        let kernel = config.kernel.as_ref().unwrap_or(&env.kernel);
        overlay.dir("/boot");
        overlay.file("/boot/vmlinuz", 0o644, &read(kernel)?);
        overlay.file("/boot/initrd", 0o644, &read(&initrd)?);
        fs::remove_file(&initrd).with_context(|| initrd.display().to_string())?;
    }
    bytes.extend_from_slice(&overlay.finish());
    fs::write(to, bytes).with_context(|| to.display().to_string())
}

/// A program of the tree and the libraries that it needs. Those of the C library are in the base archive.
fn add_program(overlay: &mut Archive, program: &Path) -> Result<()> {
    overlay.file(&program.to_string_lossy(), 0o755, &read(program)?);
    let out = Command::new("ldd").arg(program).output().context("ldd")?;
    for library in String::from_utf8_lossy(&out.stdout)
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.contains("/ld-linux"))
        .filter(|word| !word.ends_with("/libc.so.6"))
    {
        overlay.file(library, 0o755, &read(Path::new(library))?);
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

/// A path as the value of a QEMU option, where a comma separates and is doubled to stand for itself.
fn option(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

pub fn qemu_args(env: &Env, config: &VmConfig, dir: &Path, logs: &Path) -> Result<Vec<String>> {
    let mut args: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| args.extend(words.iter().map(|&word| word.to_owned()));
    let socket = |name: &str| {
        format!(
            "socket,id={name},path={}",
            option(&dir.join(format!("{name}.sock")))
        )
    };
    let kernel = config.kernel.as_ref().unwrap_or(&env.kernel);

    let mut cmdline = vec!["console=ttyS0", "panic=0", "ignore_loglevel"];
    if config.drivers != Drivers::C {
        cmdline.push("initcall_blacklist=hv_acpi_init");
    }
    if config.interactive {
        cmdline.push("hv.shell");
    }
    let root = config
        .root
        .as_ref()
        .map(|device| format!("hv.root={device} hv.load={}", config.modules().join(",")));
    cmdline.extend(root.as_deref());
    if env.checked_kernel {
        // KASAN finds what the allocator's own checks find, and is faster.
        cmdline.extend(["slab_debug=-", "kmemleak=off"]);
    }
    cmdline.extend(config.cmdline.iter().map(String::as_str));

    // Shadow memory, red zones, and the names of locks.
    let memory = config.memory * if env.checked_kernel { 3 } else { 1 };
    add(&["-nodefaults", "-no-user-config", "-display", "none"]);
    add(&[
        "-machine",
        "pc",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max,la57=off",
    ]);
    // As on a Hyper-V machine that does not offer hibernation (the default there).
    if !config.s4 {
        add(&["-global", "PIIX4_PM.disable_s4=1"]);
    }
    add(&[
        // Below two, QEMU compiles no guest atomics; the host needs them.
        "-smp",
        &format!("{},maxcpus={}", config.smp, config.smp.max(2)),
        "-m",
        &memory.to_string(),
    ]);
    if let Some(loader) = &config.loader {
        add(&["-device", "lsi53c895a,id=firmware"]);
        let root = match config.disks.first().map(|disk| &disk.source) {
            Some(disks::Source::File(path)) => path,
            _ => bail!("GRUB needs an image file as the first disk"),
        };
        // QEMU and the emulated host have the same image open; its locks are QEMU's own.
        for (number, image) in [loader, root].into_iter().enumerate() {
            let file = option(image);
            add(&[
                "-drive",
                &format!("file={file},if=none,id=firmware{number},format=raw,file.locking=off"),
            ]);
            add(&[
                "-device",
                &format!("scsi-hd,drive=firmware{number},bus=firmware.0,scsi-id={number},bootindex={number}"),
            ]);
        }
    } else {
        add(&["-kernel", &kernel.display().to_string()]);
        add(&["-initrd", &dir.join("initrd").display().to_string()]);
        add(&["-append", &cmdline.join(" ")]);
    }
    if config.interactive {
        // Ctrl-C belongs to the guest.
        let log = option(&logs.join("console.log"));
        add(&[
            "-chardev",
            &format!("stdio,id=console,signal=off,logfile={log}"),
        ]);
    } else {
        add(&[
            "-chardev",
            &format!("file,id=console,path={}", option(&dir.join("console"))),
        ]);
        // A guest that powered off or died stays to be looked at; the harness ends QEMU.
        add(&["-action", "shutdown=pause"]);
    }
    add(&["-serial", "chardev:console"]);
    add(&["-chardev", &socket("agent"), "-serial", "chardev:agent"]);
    add(&[
        "-chardev",
        &socket("qmp"),
        "-mon",
        "chardev=qmp,mode=control",
    ]);
    if let (true, Some(debian)) = (config.tools, &env.debian) {
        // The first: /dev/vda.
        let drive = format!("file={},if=virtio,format=raw,readonly=on", option(debian));
        add(&["-drive", &drive]);
    }
    for disk in &config.virtio_disks {
        add(&[
            "-drive",
            &format!("file={},if=virtio,format=raw", option(disk)),
        ]);
    }
    if config.network {
        add(&["-nic", "user,model=virtio-net-pci"]);
    }
    if !config.plain {
        add(&["-acpitable", &format!("file={}", option(&env.ssdt))]);
        let mut plugin = format!(
            "{},control={},log={}",
            option(&env.plugin),
            option(&dir.join("control.sock")),
            option(&logs.join("host.log"))
        );
        if let Some(version) = &config.vmbus {
            plugin.push_str(&format!(",vmbus={version}"));
        }
        let mut devices = config.devices.clone();
        let disks = disks::devices(&config.disks, &config.controllers, dir)?;
        let nics = net::devices(&config.nics);
        if devices.is_empty() && !(disks.is_empty() && nics.is_empty()) {
            devices.extend(IC_DEVICES.map(str::to_owned));
        }
        devices.extend(disks);
        devices.extend(nics);
        if !devices.is_empty() {
            let list = devices.join("+").replace(',', ",,");
            plugin.push_str(&format!(",devices={list}"));
        }
        if config.profile {
            plugin.push_str(",profile=on");
        }
        add(&["-plugin", &plugin]);
    }
    args.extend(config.qemu_args.iter().cloned());
    Ok(args)
}

/// A command line that can be pasted into a shell.
pub fn quote(args: &[String]) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+".contains(c);
    let one = |arg: &String| {
        if !arg.is_empty() && arg.chars().all(safe) {
            arg.clone()
        } else {
            format!("'{}'", arg.replace('\'', r"'\''"))
        }
    };
    args.iter().map(one).collect::<Vec<_>>().join(" ")
}
