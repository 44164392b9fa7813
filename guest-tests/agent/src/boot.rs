// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! From the initramfs into a system on a disk: loads the drivers, waits for the disk, makes its file system the root and
//! becomes that system's init. The agent goes along as a service, without a trace on the disk.

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::{symlink, FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use rustix::mount::{mount, mount_move, unmount, MountFlags, UnmountFlags};

use crate::{log, uevent};

/// Where the overlay archive has the Rust modules.
const RUST_MODULES: &str = "/lib/modules-rs";

/// Stock modules without which no file system on a SCSI disk is mounted.
const ALWAYS: [&str; 2] = ["sd_mod", "ext4"];

/// For comparison with QEMU's own disks; a kernel may have them built in or not at all.
const IF_THERE: [&str; 2] = ["virtio_pci", "virtio_blk"];

/// The disk may be that late: the host may be busy, and scans of many controllers take time.
const DISK_LIMIT: Duration = Duration::from_secs(180);

/// What stays in memory for the system on the disk.
const KEPT: &str = "/run/hyperv-rs";

/// Units in /run, so that the disk stays as it is. The service starts with the first ones, to tell of a boot that does
/// not succeed, and ends with the last, to serve during shutdown.
const UNIT: &str = "\
[Unit]
Description=Agent of the test harness
DefaultDependencies=no
IgnoreOnIsolate=yes
[Service]
ExecStart=/run/hyperv-rs/guest-agent
Environment=HOME=/root
Restart=always
KillMode=process
OOMScoreAdjust=-1000
";

/// What the kernel command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Root {
    /// Such as `/dev/sda`, or `UUID=` and the hexadecimal digits of an ext4 file system's UUID (`hv.root=`).
    device: String,
    /// Modules to load before, in this order, by name (`hv.load=`, commas in between).
    modules: Vec<String>,
}

impl Root {
    /// None: no root was asked for, the guest stays in its initramfs.
    pub fn from_cmdline(cmdline: &str) -> Option<Self> {
        let value = |key: &str| {
            let mut words = cmdline.split_ascii_whitespace();
            words.find_map(|word| word.strip_prefix(key).map(str::to_owned))
        };
        let device = value("hv.root=")?;
        let modules = value("hv.load=").unwrap_or_default();
        let modules = modules.split(',').filter(|name| !name.is_empty());
        Some(Self {
            device,
            modules: modules.map(str::to_owned).collect(),
        })
    }
}

/// Never returns when all goes well.
pub fn switch(root: &Root) -> Result<Infallible> {
    let begin = Instant::now();
    let events = uevent::listen()?;
    for name in IF_THERE {
        let _ = load(name);
    }
    for name in ALWAYS
        .iter()
        .copied()
        .chain(root.modules.iter().map(String::as_str))
    {
        load(name)?;
    }
    let device = loop {
        // Listening began before the look, so that nothing falls in between.
        if let Some(device) = find(&root.device) {
            break device;
        }
        let left = DISK_LIMIT.saturating_sub(begin.elapsed());
        uevent::wait_for(&events, "SUBSYSTEM=block", left)
            .with_context(|| format!("the root disk {} did not come", root.device))?;
    };
    log::kernel(&format!(
        "init: the root disk {} is there after {} ms",
        device.display(),
        begin.elapsed().as_millis()
    ));
    keep().context(KEPT)?;
    let to = Path::new("/sysroot");
    fs::create_dir_all(to)?;
    // Read-only, as initramfs does it: the system checks it and then mounts it for writing.
    mount(&device, to, "ext4", MountFlags::RDONLY, None)
        .with_context(|| format!("mount {}", device.display()))?;
    let init = ["sbin/init", "lib/systemd/systemd"]
        .into_iter()
        .find(|path| to.join(path).exists());
    let Some(init) = init else {
        bail!("no /sbin/init on {}", device.display());
    };
    for dir in ["sys/kernel/debug", "dev/pts", "tmp"] {
        let _ = unmount(Path::new("/").join(dir), UnmountFlags::DETACH);
    }
    for dir in ["proc", "sys", "dev", "run"] {
        mount_move(Path::new("/").join(dir), to.join(dir))
            .with_context(|| format!("move /{dir}"))?;
    }
    free_initramfs(to)?;
    std::env::set_current_dir(to)?;
    mount_move(".", "/").context("move the root")?;
    rustix::process::chroot(".").context("chroot")?;
    std::env::set_current_dir("/")?;
    Err(Command::new(Path::new("/").join(init)).exec()).context("exec of init")
}

/// The device node, if it is there.
fn find(wanted: &str) -> Option<PathBuf> {
    let Some(uuid) = wanted.strip_prefix("UUID=") else {
        return Some(PathBuf::from(wanted)).filter(|path| path.exists());
    };
    // One that cannot be read is not it; its uevent comes when it can.
    fs::read_dir("/sys/block").ok()?.flatten().find_map(|item| {
        let path = Path::new("/dev").join(item.file_name());
        (ext4_uuid(&path).ok()?.as_deref() == Some(uuid)).then_some(path)
    })
}

/// The UUID of the ext4 file system on a device, if there is one (struct ext4_super_block in the kernel's fs/ext4/ext4.h).
fn ext4_uuid(device: &Path) -> std::io::Result<Option<String>> {
    let mut block = [0; 1024];
    fs::File::open(device)?.read_exact_at(&mut block, 1024)?;
    // s_magic, s_uuid
    let hex: Vec<String> = block[0x68..0x78]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    Ok((block[0x38..0x3a] == [0x53, 0xef]).then(|| hex.concat()))
}

/// Loads a module; a Rust module's dependencies within the kernel's own come first.
fn load(name: &str) -> Result<()> {
    if !name.ends_with("_rs") {
        return run("modprobe", &[name]);
    }
    let file = format!("{RUST_MODULES}/{name}.ko");
    let out = Command::new("modinfo")
        .args(["-F", "depends", &file])
        .output()
        .context("modinfo")?;
    for module in String::from_utf8_lossy(&out.stdout)
        .trim()
        .split(',')
        .filter(|module| !module.is_empty() && !module.ends_with("_rs"))
    {
        run("modprobe", &[module])?;
    }
    run("insmod", &[&file])
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let out = Command::new(program)
        .args(args)
        .output()
        .with_context(|| program.to_owned())?;
    ensure!(
        out.status.success(),
        "{program} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(())
}

/// Puts the agent, its unit and the Rust modules into /run.
fn keep() -> Result<()> {
    let modules = format!("{KEPT}/modules");
    fs::create_dir_all(&modules)?;
    let agent = format!("{KEPT}/guest-agent");
    fs::copy("/init", &agent)?;
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755))?;
    if let Ok(items) = fs::read_dir(RUST_MODULES) {
        for item in items {
            let item = item?;
            fs::copy(item.path(), Path::new(&modules).join(item.file_name()))?;
        }
    }
    // The daemons, where the guest has them.
    for item in fs::read_dir("/hv").into_iter().flatten() {
        let item = item?;
        fs::copy(item.path(), Path::new(KEPT).join(item.file_name()))?;
    }
    let units = Path::new("/run/systemd/system");
    let wants = units.join("sysinit.target.wants");
    fs::create_dir_all(&wants)?;
    fs::write(units.join("guest-agent.service"), UNIT)?;
    symlink("../guest-agent.service", wants.join("guest-agent.service"))?;
    Ok(())
}

/// Removes the files of the initramfs, which nobody can reach any more, and keeps off other file systems.
fn free_initramfs(except: &Path) -> Result<()> {
    let device = fs::metadata("/")?.dev();
    for item in fs::read_dir("/")? {
        let path = item?.path();
        let meta = fs::symlink_metadata(&path)?;
        if path == except || meta.dev() != device {
            continue;
        }
        // What stays costs memory and nothing else.
        let _ = if meta.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Root;

    #[test]
    fn words_of_the_command_line() {
        let root = Root::from_cmdline(
            "console=ttyS0 hv.root=/dev/sda hv.load=hv_vmbus_rs,hv_storvsc_rs\n",
        );
        let modules = ["hv_vmbus_rs", "hv_storvsc_rs"].map(String::from).to_vec();
        assert_eq!(
            root,
            Some(Root {
                device: "/dev/sda".into(),
                modules
            })
        );
        assert_eq!(Root::from_cmdline("root=/dev/sda hv.load=x"), None);
        assert_eq!(
            Root::from_cmdline("hv.root=/dev/vda").unwrap().modules,
            Vec::<String>::new()
        );
    }
}
