// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Files and directory trees of the guest.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{bail, Context, Result};
use guest_agent::{Bytes, Entry, MAX_DATA};

/// Largest file that a tree carries, in bytes.
const MAX_IN_TREE: u64 = 64 * 1024;

/// Most entries of a tree.
const MAX_ENTRIES: usize = 20_000;

/// Reads a file; files of procfs and sysfs tell no size, so it is read to the end or the limit.
pub fn read(path: &str, offset: u64) -> Result<Bytes> {
    read_up_to(Path::new(path), offset, MAX_DATA as u64).with_context(|| path.to_owned())
}

fn read_up_to(path: &Path, offset: u64, limit: u64) -> std::io::Result<Bytes> {
    let mut file = fs::File::open(path)?;
    // Not all files of sysfs can seek; none needs to for its beginning.
    if offset > 0 {
        file.seek(SeekFrom::Start(offset))?;
    }
    let mut data = Vec::new();
    file.take(limit).read_to_end(&mut data)?;
    Ok(Bytes(data))
}

/// Writes a file in one call.
pub fn write(path: &str, data: &Bytes, append: bool) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(!append)
        .append(append)
        .open(path)
        .with_context(|| path.to_owned())?;
    let n = file.write(&data.0).with_context(|| path.to_owned())?;
    if n != data.0.len() {
        bail!("{path}: {n} of {} bytes written", data.0.len());
    }
    Ok(())
}

/// Lists a tree, sorted by path.
pub fn tree(path: &str, depth: u32) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    walk(Path::new(path), "", depth, &mut entries).with_context(|| path.to_owned())?;
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

fn walk(dir: &Path, prefix: &str, depth: u32, entries: &mut Vec<Entry>) -> Result<()> {
    for item in fs::read_dir(dir)? {
        let item = item?;
        if entries.len() >= MAX_ENTRIES {
            bail!("more than {MAX_ENTRIES} entries");
        }
        let name = item.file_name().to_string_lossy().into_owned();
        let path = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}/{name}")
        };
        let meta = item.metadata()?;
        let mut entry = Entry {
            path: path.clone(),
            kind: String::new(),
            mode: meta.permissions().mode() & 0o7777,
            data: None,
            err: None,
        };
        if meta.is_dir() {
            entry.kind = "dir".into();
        } else if meta.is_symlink() {
            entry.kind = "link".into();
            entry.data = fs::read_link(item.path())
                .ok()
                .map(|target| Bytes::from(target.to_string_lossy().as_ref()));
        } else if meta.is_file() {
            entry.kind = "file".into();
            if entry.mode & 0o444 != 0 {
                match read_up_to(&item.path(), 0, MAX_IN_TREE) {
                    Ok(data) => entry.data = Some(data),
                    Err(err) => entry.err = Some(err.to_string()),
                }
            }
        } else {
            entry.kind = "other".into();
        }
        entries.push(entry);
        if meta.is_dir() && depth > 1 {
            // A directory that vanished meanwhile (a device was rescinded) is no error.
            match walk(&item.path(), &path, depth - 1, entries) {
                Err(err) if is_not_found(&err) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

fn is_not_found(err: &anyhow::Error) -> bool {
    err.downcast_ref::<std::io::Error>()
        .is_some_and(|err| err.kind() == std::io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tree_lists_files_links_and_directories() {
        let dir = std::env::temp_dir().join(format!("guest-agent-tree-{}", std::process::id()));
        fs::create_dir_all(dir.join("channels/7")).unwrap();
        let root = dir.to_str().unwrap();
        write(&format!("{root}/id"), &Bytes::from("7\n"), false).unwrap();
        write(
            &format!("{root}/channels/7/cpu"),
            &Bytes::from("0\n"),
            false,
        )
        .unwrap();
        std::os::unix::fs::symlink("id", dir.join("alias")).unwrap();
        let all = tree(root, 3).unwrap();
        let flat: Vec<_> = all
            .iter()
            .map(|e| (e.path.as_str(), e.kind.as_str()))
            .collect();
        assert_eq!(
            flat,
            [
                ("alias", "link"),
                ("channels", "dir"),
                ("channels/7", "dir"),
                ("channels/7/cpu", "file"),
                ("id", "file")
            ]
        );
        assert_eq!(all[4].data, Some(Bytes::from("7\n")));
        assert_eq!(tree(root, 1).unwrap().len(), 3);
        assert!(tree("/no/such/dir", 1).is_err());
        assert_eq!(read(&format!("{root}/id"), 1).unwrap(), Bytes::from("\n"));
        fs::remove_dir_all(dir).unwrap();
    }
}
