// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Files that are whole or absent, whenever the power goes.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Replaces `path` by `contents` with `mode`: written beside it, synced, renamed over it, the directory synced. A reader sees
/// the old file or the new one, and so does the next boot.
///
/// # Errors
///
/// Of the calls; the old file is then as it was.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut name = OsString::from(".");
    name.push(path.file_name().ok_or(io::ErrorKind::InvalidInput)?);
    name.push(".new");
    let temporary = directory.join(name);
    // Left by a crash, or a link laid by somebody: not written through.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().inspect_err(|_| _ = fs::remove_file(&temporary))?;
    sync_directory(directory)
}

/// Makes the names in a directory as durable as its files.
///
/// # Errors
///
/// Of open(2) and fsync(2).
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
