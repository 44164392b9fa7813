// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What the set-up in `scripts/` hands over, as environment variables.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{bail, Context, Result};

use crate::disks::Scratch;
use crate::patience;

/// How many times as long as the stock kernel one with the kernel's own checkers may take.
const CHECKED_PATIENCE: u32 = 5;

/// Paths to everything a guest is made of.
#[derive(Debug, Clone)]
pub struct Env {
    /// `HV_QEMU`: the QEMU program, version 11 or newer.
    pub qemu: PathBuf,
    /// `HV_KERNEL`: the kernel image.
    pub kernel: PathBuf,
    /// `HV_BASE_CPIO`: initramfs with busybox, the kernel's own modules and lsvmbus.
    pub base: PathBuf,
    /// `HV_AGENT`: the static agent.
    pub agent: PathBuf,
    /// `HV_PLUGIN`: the emulated host, `libhv_host_qemu.so`.
    pub plugin: PathBuf,
    /// `HV_SSDT`: ACPI table with the VMBus device, for `-acpitable`.
    pub ssdt: PathBuf,
    /// `HV_MODULES`: directory with the Rust modules.
    pub modules: PathBuf,
    /// `HV_LOGS`: where logs go.
    pub logs: PathBuf,
    /// `HV_STATE`: this checkout's place in the cache, seen alike from inside and outside of the build tree.
    pub state: PathBuf,
    /// `HV_DEBIAN`: Debian on a raw disk image; there when what was started asked for it.
    pub debian: Option<PathBuf>,
    /// `HV_POSTGRES`: a database server to lay over that; there when what was started asked for it.
    pub postgres: Option<PathBuf>,
    /// `HV_INSTALLED`: a directory with Debian on a disk image in which our packages are installed, and GRUB to boot it;
    /// there when what was started asked for it.
    pub installed: Option<PathBuf>,
    /// `HV_SOURCE`: the checkout (suite `unit`).
    pub source: PathBuf,
    /// `HV_CHECKED_KERNEL`: the kernel has the kernel's own checkers. They need memory.
    pub checked_kernel: bool,
}

impl Env {
    /// Reads the environment.
    ///
    /// # Errors
    /// One sentence that names the first variable that is missing or points to nothing.
    pub fn from_env() -> Result<Self> {
        let checked_kernel = checked_kernel();
        if checked_kernel {
            patience::set(CHECKED_PATIENCE);
        }
        Ok(Self {
            qemu: existing("HV_QEMU")?,
            kernel: existing("HV_KERNEL")?,
            base: existing("HV_BASE_CPIO")?,
            agent: existing("HV_AGENT")?,
            plugin: existing("HV_PLUGIN")?,
            ssdt: existing("HV_SSDT")?,
            modules: existing("HV_MODULES")?,
            logs: path("HV_LOGS")?,
            state: path("HV_STATE")?,
            debian: existing("HV_DEBIAN").ok(),
            postgres: existing("HV_POSTGRES").ok(),
            installed: existing("HV_INSTALLED").ok(),
            source: existing("HV_SOURCE")?,
            checked_kernel,
        })
    }

    /// Where disk images of running guests are.
    pub fn scratch(&self) -> PathBuf {
        self.state.join("disks")
    }

    /// A copy of the Debian image, removed on drop.
    ///
    /// # Errors
    /// When the set-up made none, or it cannot be copied.
    pub fn debian_copy(&self) -> Result<Scratch> {
        let image = self
            .debian
            .as_ref()
            .context("HV_DEBIAN is not set: the set-up made no Debian image")?;
        Scratch::copy(&self.scratch(), image)
    }
}

/// Whether the kernel that was set up has the kernel's own checkers.
pub fn checked_kernel() -> bool {
    std::env::var_os("HV_CHECKED_KERNEL").is_some()
}

fn path(name: &str) -> Result<PathBuf> {
    match std::env::var_os(name) {
        Some(value) if !value.is_empty() => Ok(value.into()),
        _ => {
            bail!("{name} is not set; start this through scripts/test, scripts/demo or scripts/vm")
        }
    }
}

fn existing(name: &str) -> Result<PathBuf> {
    let path = path(name)?;
    if !path.exists() {
        bail!("{name}: {} does not exist", path.display());
    }
    Ok(path)
}

/// A directory of our own under the system's place for temporary files, removed on drop. Sockets live
/// here, since their paths must stay below 108 bytes.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes a new one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let name = format!(
                "hv-{}-{}",
                std::process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            );
            let path = std::env::temp_dir().join(name);
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                // Left over from a process with the same id that was killed; the next number is free.
                Err(err) if err.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(err) => return Err(err).context(path.display().to_string()),
            }
        }
    }

    /// Makes or takes over the directory at `path`; for what has one place, and one user at a time.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn at(path: PathBuf) -> Result<Self> {
        match std::fs::remove_dir_all(&path) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                return Err(err).context(path.display().to_string())
            }
            _ => {}
        }
        std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
