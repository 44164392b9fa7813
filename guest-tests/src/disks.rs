// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Disks of a guest: image files, and how they are named to the emulated host (docs/vmbus-host.md).

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{bail, ensure, Context, Result};
use rustix::fs::{flock, FlockOperation};

/// Word for the Debian image of the set-up instead of a file name.
pub const DEBIAN: &str = "debian";

/// What a disk's content is kept in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A raw image.
    File(PathBuf),
    /// The host's memory; gone with the guest.
    Ram,
}

/// A disk that the emulated host offers from the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its content.
    pub source: Source,
    /// Controller: `scsi0` … `scsi9`, or `ide0` … `ide3` with one disk each.
    pub controller: String,
    /// LUN on a SCSI controller.
    pub lun: u32,
    /// Options as the host knows them: `ro`, `size=256M`, `sector=4096`, `discard=off`, `cache=volatile`.
    pub options: Vec<String>,
}

impl Disk {
    /// An image file on `scsi0`.
    pub fn file(path: &Path, lun: u32) -> Self {
        Self {
            source: Source::File(path.to_owned()),
            controller: "scsi0".into(),
            lun,
            options: Vec::new(),
        }
    }

    /// A RAM disk on `scsi0`; size as `64M`.
    pub fn ram(size: &str, lun: u32) -> Self {
        Self {
            source: Source::Ram,
            controller: "scsi0".into(),
            lun,
            options: vec![format!("size={size}")],
        }
    }

    /// On another controller.
    #[must_use]
    pub fn on(mut self, controller: &str) -> Self {
        self.controller = controller.into();
        self
    }

    /// With one more option.
    #[must_use]
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.into());
        self
    }
}

/// `IMG[,OPTION…]` of `scripts/vm --disk`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskArg {
    /// The disk.
    pub disk: Disk,
    /// `virtio`: a virtio disk instead of one of the emulated host.
    pub virtio: bool,
    /// `root`: boot the system on it.
    pub root: bool,
    /// The LUN was named.
    pub fixed_lun: bool,
}

impl FromStr for DiskArg {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.split(',');
        let image = words.next().unwrap_or_default();
        ensure!(
            !image.is_empty(),
            "an image file, `{DEBIAN}` or `ram` is needed"
        );
        let mut arg = Self {
            disk: match image {
                "ram" => Disk {
                    source: Source::Ram,
                    options: Vec::new(),
                    ..Disk::file(Path::new(""), 0)
                },
                path => Disk::file(Path::new(path), 0),
            },
            virtio: false,
            // What else would one do with it.
            root: image == DEBIAN,
            fixed_lun: false,
        };
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match (key, value) {
                ("root", "") => arg.root = true,
                ("data", "") => arg.root = false,
                ("virtio", "") => arg.virtio = true,
                ("ro", "") => arg.disk.options.push(word.into()),
                ("size" | "sector" | "discard" | "cache", value) if !value.is_empty() => {
                    arg.disk.options.push(word.into());
                }
                ("lun", value) => {
                    arg.disk.lun = value.parse().context("lun=")?;
                    arg.fixed_lun = true;
                }
                ("bus", value) if is_controller(value) => arg.disk.controller = value.into(),
                _ => bail!(
                    "unknown option {word:?}; there are root, data, ro, size=SIZE, sector=4096, discard=off, cache=volatile, lun=N, \
                     bus=scsi0…scsi9, bus=ide0…ide3, virtio"
                ),
            }
        }
        Ok(arg)
    }
}

fn is_controller(name: &str) -> bool {
    let number = |prefix: &str| name.strip_prefix(prefix)?.parse::<u8>().ok();
    matches!(number("scsi"), Some(0..=9)) || matches!(number("ide"), Some(0..=3))
}

/// The host's `devices` that make these disks, with more arguments for some controllers. Image files get a name in
/// `dir`, as their own may hold characters that separate.
pub fn devices(
    disks: &[Disk],
    controllers: &[(String, String)],
    dir: &Path,
) -> Result<Vec<String>> {
    let mut devices: Vec<(String, String)> = Vec::new();
    let mut add = |controller: &str, words: &str| {
        let at = devices.iter().position(|(name, _)| name == controller);
        let at = at.unwrap_or_else(|| {
            devices.push((controller.into(), String::new()));
            devices.len() - 1
        });
        if !words.is_empty() {
            devices[at].1.push(':');
            devices[at].1.push_str(words);
        }
    };
    for (name, words) in controllers {
        add(name, words);
    }
    for (number, disk) in disks.iter().enumerate() {
        let source = match &disk.source {
            Source::Ram => "ram".to_owned(),
            Source::File(path) => {
                let link = dir.join(format!("disk{number}"));
                let path = std::path::absolute(path).with_context(|| path.display().to_string())?;
                symlink(&path, &link).with_context(|| link.display().to_string())?;
                link.display().to_string()
            }
        };
        let value = [vec![source], disk.options.clone()].concat().join(";");
        let key = if disk.controller.starts_with("ide") {
            "disk".to_owned()
        } else {
            format!("lun{}", disk.lun)
        };
        add(&disk.controller, &format!("{key}={value}"));
    }
    Ok(devices
        .into_iter()
        .map(|(name, words)| name + &words)
        .collect())
}

/// The UUID of the ext4 file system that fills an image (struct ext4_super_block in the kernel's fs/ext4/ext4.h).
///
/// # Errors
/// When there is none.
pub fn ext4_uuid(image: &Path) -> Result<String> {
    let context = || image.display().to_string();
    let mut block = [0; 1024];
    let mut file = std::fs::File::open(image).with_context(context)?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(1024)).with_context(context)?;
    std::io::Read::read_exact(&mut file, &mut block).with_context(context)?;
    // s_magic, s_uuid
    if block[0x38..0x3a] != [0x53, 0xef] {
        bail!(
            "{}: no ext4 file system without partitions",
            image.display()
        );
    }
    let hex: Vec<String> = block[0x68..0x78]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    Ok(hex.concat())
}

/// An image that is removed on drop. While it is there, a file beside it is locked (the host locks the image itself):
/// [`sweep`] removes the images of programs that were killed.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    lock: std::fs::File,
}

/// Names of the lock that belongs to an image.
fn lock_of(image: &Path) -> PathBuf {
    image.with_extension("lock")
}

/// Removes the images in `dir` that nobody has any more.
pub fn sweep(dir: &Path) {
    for item in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = item.path();
        if path.extension().is_some_and(|ext| ext == "lock") {
            let free = std::fs::File::open(&path)
                .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok());
            if free {
                let _ = std::fs::remove_file(path.with_extension("img"));
                let _ = std::fs::remove_file(&path);
            }
        }
    }
}

impl Scratch {
    /// A new, empty, sparse image of `bytes` in `dir`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn blank(dir: &Path, bytes: u64) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let scratch = loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = dir.join(format!("{}-{number}.img", std::process::id()));
            match std::fs::File::create_new(lock_of(&path)) {
                Ok(lock) => break Self { path, lock },
                // Process ids repeat: each run has a namespace of its own.
                Err(err) if err.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(err) => return Err(err).context(path.display().to_string()),
            }
        };
        flock(&scratch.lock, FlockOperation::LockExclusive).context("flock")?;
        ensure!(
            lock_of(&scratch.path).exists(),
            "{}: swept by another run a moment ago",
            scratch.path.display()
        );
        std::fs::File::create(&scratch.path)
            .and_then(|file| file.set_len(bytes))
            .with_context(|| scratch.path.display().to_string())?;
        Ok(scratch)
    }

    /// A copy of `from` in `dir`, holes included.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn copy(dir: &Path, from: &Path) -> Result<Self> {
        let copy = Self::blank(dir, 0)?;
        let out = Command::new("cp")
            .args(["--sparse=always", "--reflink=auto", "--"])
            .arg(from)
            .arg(&copy.path)
            .output()
            .context("cp")?;
        ensure!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
        Ok(copy)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_file(lock_of(&self.path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_a_disk() {
        let arg: DiskArg = "a b.img,ro,lun=3,bus=scsi2,root".parse().unwrap();
        let wanted = Disk::file(Path::new("a b.img"), 3).on("scsi2").option("ro");
        assert_eq!((arg.disk, arg.root, arg.virtio), (wanted, true, false));
        let arg: DiskArg = "debian,virtio".parse().unwrap();
        assert!(arg.root && arg.virtio);
        let arg: DiskArg = "ram,size=1G".parse().unwrap();
        assert_eq!(arg.disk, Disk::ram("1G", 0));
        for wrong in ["", ",ro", "x,bus=scsi10", "x,ide", "x,lun=a", "x,size="] {
            assert!(wrong.parse::<DiskArg>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn scratch_files_are_swept_when_nobody_has_them() {
        let dir = crate::env::TempDir::new().unwrap();
        let kept = Scratch::blank(dir.path(), 4096).unwrap();
        let stale = dir.path().join("7-7.img");
        std::fs::write(&stale, "x").unwrap();
        std::fs::write(lock_of(&stale), "").unwrap();
        sweep(dir.path());
        assert!(kept.path().exists() && !stale.exists());
        let path = kept.path().to_owned();
        drop(kept);
        assert!(!path.exists());
    }

    #[test]
    fn words_for_the_host() {
        let dir = crate::env::TempDir::new().unwrap();
        let disks = [
            Disk::file(Path::new("/x,y.img"), 0).option("ro"),
            Disk::ram("64M", 2),
            Disk::file(Path::new("/z"), 0).on("ide1"),
        ];
        let controllers = [("scsi0".to_owned(), "subchannels=0".to_owned())];
        let at = dir.path().display();
        assert_eq!(
            devices(&disks, &controllers, dir.path()).unwrap(),
            [
                format!("scsi0:subchannels=0:lun0={at}/disk0;ro:lun2=ram;size=64M"),
                format!("ide1:disk={at}/disk2")
            ]
        );
        let link = std::fs::read_link(dir.path().join("disk0")).unwrap();
        assert_eq!(link, Path::new("/x,y.img"));
    }
}
