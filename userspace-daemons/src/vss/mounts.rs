// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Which file systems to freeze, and in which order.
//!
//! The unit is the superblock, not the mount: bind mounts and btrfs' subvolumes are one file system. `/proc/self/mountinfo` tells
//! them apart by device number, and says read-only of the superblock apart from read-only of a mount.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Major and minor number of a device.
pub type Device = (u32, u32);

/// Types on block devices that cannot be frozen, so that it is not tried: FAT has no journal to make stand still, the
/// others are read-only by nature or live in a process that might want to write.
const CANNOT_FREEZE: &[&str] = &[
    "vfat", "msdos", "exfat", "iso9660", "udf", "squashfs", "erofs", "cramfs", "romfs", "ntfs",
    "ntfs3", "hfs", "hfsplus", "fuseblk",
];

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The mount's number.
    pub id: u64,
    /// The superblock's device number; a block device's, or an anonymous one (btrfs).
    pub device: Device,
    /// Directory of the file system that is mounted.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// Type.
    pub fstype: String,
    /// Source, a block device's node for those that we care about.
    pub source: PathBuf,
    /// The superblock is read-only.
    pub read_only: bool,
}

impl Mount {
    /// Parses a line (proc_pid_mountinfo(5)).
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let dash = fields.iter().position(|f| *f == "-").filter(|i| *i >= 6)?;
        let (major, minor) = fields[2].split_once(':')?;
        Some(Self {
            id: fields[0].parse().ok()?,
            device: (major.parse().ok()?, minor.parse().ok()?),
            root: unescape(fields[3]),
            point: unescape(fields[4]),
            fstype: (*fields.get(dash + 1)?).to_owned(),
            source: unescape(fields.get(dash + 2)?),
            read_only: fields.get(dash + 3)?.split(',').any(|o| o == "ro"),
        })
    }

    fn depth(&self) -> usize {
        self.point.components().count()
    }
}

/// Undoes the kernel's octal escapes.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let code = bytes.get(i + 1..i + 4).filter(|_| bytes[i] == b'\\');
        let code = code.and_then(|c| u8::from_str_radix(std::str::from_utf8(c).ok()?, 8).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                i += 4;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    OsString::from_vec(out).into()
}

/// What to freeze and what not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// File systems in freezing order, each with its mounts, the best way to it first.
    pub freeze: Vec<Vec<Mount>>,
    /// File systems on disks that are left out, by the mount point, with the reason. Not those that are read-only, which
    /// need no freezing.
    pub skipped: Vec<(PathBuf, &'static str)>,
}

/// Chooses from the text of mountinfo. `root` is where `/dev` and `/sys` are looked up.
#[must_use]
pub fn select(mountinfo: &str, root: &Path) -> Selection {
    let mut groups: Vec<Vec<Mount>> = Vec::new();
    for mount in mountinfo.lines().filter_map(Mount::parse) {
        match groups.iter_mut().find(|g| g[0].device == mount.device) {
            Some(group) => group.push(mount),
            None => groups.push(vec![mount]),
        }
    }
    let mut selection = Selection::default();
    for mut group in groups {
        // The whole file system rather than a part, and near the root: the mount that the others hang below.
        group.sort_by_key(|m| {
            (
                m.point != Path::new("/"),
                m.depth(),
                m.root.components().count(),
                m.id,
            )
        });
        let first = &group[0];
        let Some(disk) = disk(first, root) else {
            continue;
        };
        if first.read_only {
            continue;
        }
        let point = first.point.clone();
        if CANNOT_FREEZE.contains(&first.fstype.as_str()) || first.fstype.starts_with("fuse") {
            selection.skipped.push((point, "its type cannot be frozen"));
        } else if is_loop(disk, root, 0) {
            // Frozen after the file system its file is on, it would wait for ever; before, its file may still be dirty there.
            selection.skipped.push((point, "it is on a loop device"));
        } else {
            selection.freeze.push(group);
        }
    }
    selection
        .freeze
        .sort_by_key(|g| std::cmp::Reverse(g[0].depth()));
    selection
}

/// The block device under a mount. None: it has none.
fn disk(mount: &Mount, root: &Path) -> Option<Device> {
    let source = mount.source.strip_prefix("/").unwrap_or(&mount.source);
    let node = fs::metadata(root.join(source)).ok();
    let node = node.filter(|m| mount.source.is_absolute() && m.file_type().is_block_device());
    // "/dev/root" need not exist.
    match node {
        Some(node) => Some(numbers(node.rdev())),
        None if mount.device.0 != 0 => Some(mount.device),
        None => None,
    }
}

fn numbers(device: u64) -> Device {
    (rustix::fs::major(device), rustix::fs::minor(device))
}

/// Whether a block device is a loop device or stands on one (device mapper, MD).
fn is_loop(device: Device, root: &Path, level: usize) -> bool {
    let directory = root.join(format!("sys/dev/block/{}:{}", device.0, device.1));
    is_loop_directory(&directory, level)
}

fn is_loop_directory(directory: &Path, level: usize) -> bool {
    // A partition's disk is the directory above it.
    let on = |d: &Path| d.join("loop").exists();
    if on(directory) || directory.join("partition").exists() && on(&directory.join("..")) {
        return true;
    }
    // More levels than anyone stacks: no endless search.
    level < 16
        && fs::read_dir(directory.join("slaves"))
            .into_iter()
            .flatten()
            .flatten()
            .any(|slave| is_loop_directory(&slave.path(), level + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A machine like many: btrfs with subvolumes, a read-only disk, an EFI partition, LVM, bind mounts, a loop device.
    const MACHINE: &str = "\
22 1 0:21 / /proc rw,nosuid - proc proc rw
23 1 0:22 / /sys rw - sysfs sysfs rw
29 1 8:2 / / rw,relatime shared:1 - ext4 /dev/root rw,errors=remount-ro
30 29 8:1 / /boot/efi rw - vfat /dev/sda1 rw
31 29 8:3 / /srv rw,relatime - xfs /dev/sda3 rw
32 31 253:0 / /srv/data\\040base/pg rw - ext4 /dev/mapper/vg-pg rw
33 29 0:40 /@home /home rw - btrfs /dev/sdb rw,subvol=/@home
34 29 0:40 /@var /var rw - btrfs /dev/sdb rw,subvol=/@var
35 29 8:3 /x /srv/bind ro,relatime - xfs /dev/sda3 rw
36 29 8:4 / /media rw - ext4 /dev/sda4 ro
37 29 7:0 / /mnt/image rw - ext4 /dev/loop0 rw
38 29 253:1 / /mnt/crypt rw - ext4 /dev/mapper/onloop rw
39 29 0:50 / /net rw - autofs systemd-1 rw,fd=30
40 29 0:51 / /nfs rw - nfs4 server:/ rw
41 29 8:5 / /win rw - fuseblk /dev/sda5 rw
42 29 0:60 / /run rw - tmpfs tmpfs rw
43 29 8:2 /srv2 /a/deep/bind/of/root rw - ext4 /dev/root rw";

    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let block = root.path().join("sys/dev/block");
        fs::create_dir_all(block.join("7:0/loop")).unwrap();
        fs::create_dir_all(block.join("253:0/slaves/sda6")).unwrap();
        fs::create_dir_all(block.join("253:1/slaves/dm-3/slaves/loop1/loop")).unwrap();
        root
    }

    fn points(selection: &Selection) -> Vec<String> {
        let first = selection
            .freeze
            .iter()
            .map(|g| g[0].point.display().to_string());
        first.collect()
    }

    #[test]
    fn deepest_first_root_last_each_once() {
        let root = machine();
        let selection = select(MACHINE, root.path());
        // /home and /var are btrfs without a device node here; see below.
        assert_eq!(points(&selection), ["/srv/data base/pg", "/srv", "/"]);
        let skipped: Vec<&str> = selection
            .skipped
            .iter()
            .map(|s| s.0.to_str().unwrap())
            .collect();
        assert_eq!(skipped, ["/boot/efi", "/mnt/image", "/mnt/crypt", "/win"]);
        assert_eq!(
            selection.freeze[1].len(),
            2,
            "the bind mount is another way to /srv"
        );
    }

    #[test]
    fn a_mount_that_is_read_only_does_not_make_the_file_system_so() {
        let root = machine();
        let text = "50 1 8:9 / /only-view ro,relatime - ext4 /dev/sda9 rw\n";
        assert_eq!(points(&select(text, root.path())), ["/only-view"]);
    }

    #[test]
    fn btrfs_is_one_file_system() {
        // A block device that exists wherever this runs is not to be had; a node with another number will do.
        let mounts: Vec<Mount> = MACHINE.lines().filter_map(Mount::parse).collect();
        let subvolumes: Vec<_> = mounts.iter().filter(|m| m.device == (0, 40)).collect();
        assert_eq!(subvolumes.len(), 2);
        assert_eq!(subvolumes[0].root, Path::new("/@home"));
    }

    proptest! {
        #[test]
        fn any_text(text in "[ -~\n]{0,300}") {
            let _ = select(&text, Path::new("/nonexistent"));
        }

        #[test]
        fn parents_are_frozen_after_children(depths in prop::collection::vec(1usize..6, 1..8)) {
            let mut text = String::from("1 0 9:1 / / rw - ext4 /dev/a rw\n");
            for (i, depth) in depths.iter().enumerate() {
                let point = "/d".repeat(*depth);
                text += &format!("{} 1 9:{} / {point} rw - ext4 /dev/b{i} rw\n", i + 2, i + 2);
            }
            let selection = select(&text, Path::new("/nonexistent"));
            let depths: Vec<usize> = selection.freeze.iter().map(|g| g[0].depth()).collect();
            prop_assert!(depths.windows(2).all(|w| w[0] >= w[1]));
            prop_assert_eq!(&selection.freeze.last().unwrap()[0].point, Path::new("/"));
        }
    }
}
