// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A file as it comes in, piece by piece.
//!
//! Nothing shows under the file's name until it is whole and on the disk: it grows without a name (`O_TMPFILE`), gets one when the
//! host says that it is complete, and is gone when anything ends the transfer before.
//!
//! Names come from the host, which is trusted to write files, but to no other place than it says: `..` is refused, and links are followed
//! as in a chroot of the allowed directory.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use log::{debug, error, info, warn};
use rustix::fs::{
    fallocate, fchmod, fstatvfs, fsync, linkat, mkdirat, open, openat, openat2, renameat, statat,
    unlinkat, AtFlags, FallocateFlags, FileType, Mode, OFlags, ResolveFlags, CWD,
};
use rustix::io::Errno;
use vmbus_proto::ic::fcopy::{CopyFlags, Request};
use vmbus_proto::ic::Status;

/// What may be written.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Files go below this directory; the host's paths are taken as below it.
    pub root: PathBuf,
    /// Largest file in bytes.
    pub max_size: u64,
    /// Permissions of files.
    pub mode: u32,
}

/// Receives files, one at a time.
#[derive(Debug)]
pub struct Receiver {
    rules: Rules,
    root: OwnedFd,
    current: Option<Transfer>,
}

/// A file that is not complete yet.
#[derive(Debug)]
struct Transfer {
    /// For the log.
    path: PathBuf,
    directory: OwnedFd,
    name: CString,
    file: File,
    /// The name that the file has meanwhile, on a file system that needs one.
    temporary: Option<CString>,
    size: u64,
    received: u64,
    overwrite: bool,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let Some(name) = self.temporary.take() {
            let _ = unlinkat(&self.directory, &name, AtFlags::empty());
        }
    }
}

impl Receiver {
    /// A receiver that keeps to `rules`.
    ///
    /// # Errors
    ///
    /// The directory cannot be opened.
    pub fn new(rules: Rules) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            root: open(&rules.root, flags, Mode::empty())?,
            rules,
            current: None,
        })
    }

    /// Does what the host asks.
    pub fn handle(&mut self, request: &Request<'_>) -> Status {
        match *request {
            Request::Start {
                file,
                directory,
                flags,
                size,
            } => self.start(file, directory, flags, size),
            Request::Write { offset, data } => self.write(offset, data),
            Request::Complete => self.complete(),
            Request::Cancel => {
                if let Some(transfer) = self.current.take() {
                    info!("{}: the host cancels", transfer.path.display());
                }
                Status::OK
            }
        }
    }

    /// Forgets a file that is not complete: the host is gone.
    pub fn reset(&mut self) {
        if let Some(transfer) = self.current.take() {
            warn!("{}: cut short, dropped", transfer.path.display());
        }
    }

    fn start(&mut self, file: &str, directory: &str, flags: CopyFlags, size: u64) -> Status {
        self.reset();
        match self.try_start(file, directory, flags, size) {
            Ok(transfer) => {
                info!("{}: receiving {size} bytes", transfer.path.display());
                self.current = Some(transfer);
                Status::OK
            }
            Err(Refused(status, why)) => {
                error!("{directory}/{file}: refused: {why}");
                status
            }
        }
    }

    fn try_start(
        &self,
        file: &str,
        directory: &str,
        flags: CopyFlags,
        size: u64,
    ) -> Result<Transfer, Refused> {
        let name = file_name(file)?;
        let parts = parts(directory)?;
        if size > self.rules.max_size {
            return Err(Refused(
                Status::DISK_FULL,
                format!("{size} bytes are more than allowed"),
            ));
        }
        let directory = self.directory(&parts, flags.contains(CopyFlags::CREATE_PATH))?;
        let overwrite = flags.contains(CopyFlags::OVERWRITE);
        match statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => {
                let is_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
                if is_directory || !overwrite {
                    let what = if is_directory {
                        "it is a directory"
                    } else {
                        "it exists"
                    };
                    return Err(Refused(Status::ALREADY_EXISTS, what.into()));
                }
            }
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let (file, temporary) = create(&directory)?;
        let transfer = Transfer {
            path: self.rules.root.join(parts.join("/")).join(file_text(&name)),
            directory,
            name,
            file,
            temporary,
            size,
            received: 0,
            overwrite,
        };
        transfer.reserve()?;
        Ok(transfer)
    }

    /// Opens the directory, and makes what is missing of it if that is wanted.
    fn directory(&self, parts: &[&str], create: bool) -> Result<OwnedFd, Refused> {
        let whole = if parts.is_empty() {
            ".".to_owned()
        } else {
            parts.join("/")
        };
        match self.enter(&whole) {
            Err(Errno::NOENT) if create => {}
            other => return Ok(other?),
        }
        let mut parent = self.enter(".")?;
        for (i, part) in parts.iter().enumerate() {
            let path = parts[..=i].join("/");
            let next = match self.enter(&path) {
                Err(Errno::NOENT) => {
                    debug!("making {path}");
                    match mkdirat(&parent, *part, Mode::from_raw_mode(0o755)) {
                        Ok(()) => fsync(&parent).or_else(|_| sync_path(&parent))?,
                        Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                    self.enter(&path)?
                }
                other => other?,
            };
            parent = next;
        }
        Ok(parent)
    }

    fn enter(&self, path: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            // AGAIN: something was renamed meanwhile, and the kernel cannot tell whether it stayed inside.
            match openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Status {
        let Some(transfer) = &mut self.current else {
            error!("a piece of a file that was not started");
            return Status::FAIL;
        };
        let end = offset.checked_add(data.len() as u64);
        let result = match end {
            Some(end) if end <= transfer.size => transfer.file.write_all_at(data, offset),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} bytes at {offset}: beyond its end", data.len()),
            )),
        };
        match result {
            Ok(()) => {
                transfer.received += data.len() as u64;
                Status::OK
            }
            Err(error) => {
                error!("{}: {error}", transfer.path.display());
                self.current = None;
                status_of(&error)
            }
        }
    }

    fn complete(&mut self) -> Status {
        let Some(mut transfer) = self.current.take() else {
            error!("the end of a file that was not started");
            return Status::FAIL;
        };
        match transfer.finish(self.rules.mode) {
            Ok(()) => {
                info!("{}: complete", transfer.path.display());
                Status::OK
            }
            Err(Refused(status, why)) => {
                error!("{}: dropped: {why}", transfer.path.display());
                status
            }
        }
    }
}

impl Transfer {
    /// Makes sure of the space, so that a full disk is told at the start.
    fn reserve(&self) -> Result<(), Refused> {
        if self.size == 0 {
            return Ok(());
        }
        match fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, self.size) {
            Err(Errno::OPNOTSUPP | Errno::INTR) => {
                let room = fstatvfs(&self.directory)?;
                if room.f_bavail.saturating_mul(room.f_frsize) < self.size {
                    return Err(Errno::NOSPC.into());
                }
                Ok(())
            }
            other => Ok(other?),
        }
    }

    fn finish(&mut self, mode: u32) -> Result<(), Refused> {
        if self.received != self.size {
            let why = format!("{} of {} bytes came", self.received, self.size);
            return Err(Refused(Status::FAIL, why));
        }
        fchmod(&self.file, Mode::from_raw_mode(mode))?;
        self.file.sync_all()?;
        match (&self.temporary, self.overwrite) {
            (None, false) => self.link(&self.name)?,
            (Some(temporary), false) => {
                // A link does not replace; the temporary name goes with the drop.
                linkat(
                    &self.directory,
                    temporary,
                    &self.directory,
                    &self.name,
                    AtFlags::empty(),
                )?;
            }
            (_, true) => {
                let temporary = temporary_name();
                if self.temporary.is_none() {
                    self.link(&temporary)?;
                    self.temporary = Some(temporary.clone());
                }
                renameat(&self.directory, &temporary, &self.directory, &self.name)?;
                self.temporary = None;
            }
        }
        fsync(&self.directory)?;
        Ok(())
    }

    /// Gives the nameless file a name, which must be free.
    fn link(&self, name: &CString) -> Result<(), Errno> {
        let path = format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&self.file)
        );
        let flags = AtFlags::SYMLINK_FOLLOW;
        linkat(CWD, Path::new(&path), &self.directory, name, flags)
    }
}

/// A new file in a directory, without a name where that can be.
fn create(directory: &OwnedFd) -> Result<(File, Option<CString>), Refused> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let private = Mode::from_raw_mode(0o600);
    match openat(directory, ".", flags | OFlags::TMPFILE, private) {
        Ok(file) => return Ok((file.into(), None)),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let name = temporary_name();
    // Left by a crash.
    match unlinkat(directory, &name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let file = openat(directory, &name, flags, private)?;
    Ok((file.into(), Some(name)))
}

/// There is one transfer at a time, and so one name.
fn temporary_name() -> CString {
    c".hv-fcopy-daemon.part".to_owned()
}

fn sync_path(directory: &impl AsFd) -> Result<(), Errno> {
    // A descriptor for paths only cannot be synced.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fsync(openat(directory, ".", flags, Mode::empty())?)
}

/// Why a file is refused: for the host, and for the log.
struct Refused(Status, String);

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self(status_of(&error), error.to_string())
    }
}

impl From<Errno> for Refused {
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

fn status_of(error: &io::Error) -> Status {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => Status::DISK_FULL,
        Some(Errno::EXIST) => Status::ALREADY_EXISTS,
        Some(Errno::INVAL | Errno::NAMETOOLONG | Errno::LOOP | Errno::XDEV) => {
            Status::INVALID_ARGUMENT
        }
        _ if error.kind() == io::ErrorKind::InvalidInput => Status::INVALID_ARGUMENT,
        _ => Status::FAIL,
    }
}

/// One part of a path.
fn file_name(name: &str) -> Result<CString, Refused> {
    let bad = name.is_empty() || name == "." || name == ".." || name.contains('/');
    match CString::new(name) {
        Ok(text) if !bad => Ok(text),
        _ => Err(Refused(
            Status::INVALID_ARGUMENT,
            "not the name of a file".into(),
        )),
    }
}

fn file_text(name: &CString) -> PathBuf {
    PathBuf::from(name.to_string_lossy().into_owned())
}

/// The parts of an absolute path.
fn parts(directory: &str) -> Result<Vec<&str>, Refused> {
    let refuse = |why: &str| Err(Refused(Status::INVALID_ARGUMENT, why.into()));
    if !directory.starts_with('/') {
        return refuse("the directory is not absolute");
    }
    let parts: Vec<&str> = directory
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    if parts.contains(&"..") || directory.contains('\0') {
        return refuse("the directory has '..' in it");
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::os::unix::fs::{symlink, PermissionsExt};

    struct Place {
        directory: tempfile::TempDir,
        receiver: Receiver,
    }

    fn place() -> Place {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("root")).unwrap();
        let receiver = Receiver::new(Rules {
            root: directory.path().join("root"),
            max_size: 1 << 30,
            mode: 0o644,
        })
        .unwrap();
        Place {
            directory,
            receiver,
        }
    }

    impl Place {
        fn path(&self, path: &str) -> PathBuf {
            self.directory.path().join("root").join(path)
        }

        fn start(&mut self, directory: &str, file: &str, flags: CopyFlags, size: u64) -> Status {
            self.receiver.handle(&Request::Start {
                file,
                directory,
                flags,
                size,
            })
        }

        fn write(&mut self, offset: u64, data: &[u8]) -> Status {
            self.receiver.handle(&Request::Write { offset, data })
        }

        fn complete(&mut self) -> Status {
            self.receiver.handle(&Request::Complete)
        }

        fn copy(&mut self, directory: &str, file: &str, flags: CopyFlags, data: &[u8]) -> Status {
            let started = self.start(directory, file, flags, data.len() as u64);
            if started != Status::OK {
                return started;
            }
            assert_eq!(self.write(0, data), Status::OK);
            self.complete()
        }

        fn names(&self, path: &str) -> Vec<String> {
            let entries = fs::read_dir(self.path(path)).unwrap();
            entries
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect()
        }
    }

    const NONE: CopyFlags = CopyFlags::empty();

    #[test]
    fn a_file_appears_whole() {
        let mut place = place();
        assert_eq!(place.start("/", "new", NONE, 6), Status::OK);
        assert_eq!(place.write(3, b"def"), Status::OK);
        assert_eq!(place.write(0, b"abc"), Status::OK);
        assert_eq!(place.names(""), [""; 0]);
        assert_eq!(place.complete(), Status::OK);
        assert_eq!(fs::read(place.path("new")).unwrap(), b"abcdef");
        let mode = fs::metadata(place.path("new"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o644);
        assert_eq!(place.names(""), ["new"]);
        assert_eq!(place.copy("//./", "empty", NONE, b""), Status::OK);
    }

    #[test]
    fn overwriting_needs_its_flag() {
        let mut place = place();
        fs::write(place.path("f"), "old").unwrap();
        assert_eq!(place.copy("/", "f", NONE, b"new"), Status::ALREADY_EXISTS);
        assert_eq!(fs::read(place.path("f")).unwrap(), b"old");
        assert_eq!(
            place.copy("/", "f", CopyFlags::OVERWRITE, b"new"),
            Status::OK
        );
        assert_eq!(fs::read(place.path("f")).unwrap(), b"new");
        fs::create_dir(place.path("d")).unwrap();
        assert_eq!(
            place.copy("/", "d", CopyFlags::OVERWRITE, b"x"),
            Status::ALREADY_EXISTS
        );
        // It appeared while we received.
        assert_eq!(place.start("/", "late", NONE, 0), Status::OK);
        fs::write(place.path("late"), "theirs").unwrap();
        assert_eq!(place.complete(), Status::ALREADY_EXISTS);
        assert_eq!(fs::read(place.path("late")).unwrap(), b"theirs");
    }

    #[test]
    fn directories_are_made_if_wanted() {
        let mut place = place();
        assert_eq!(place.copy("/a/b", "f", NONE, b"1"), Status::FAIL);
        assert_eq!(place.names(""), [""; 0]);
        assert_eq!(
            place.copy("/a/b/", "f", CopyFlags::CREATE_PATH, b"1"),
            Status::OK
        );
        assert_eq!(fs::read(place.path("a/b/f")).unwrap(), b"1");
        fs::write(place.path("file"), "").unwrap();
        assert_eq!(
            place.copy("/file/x", "f", CopyFlags::CREATE_PATH, b"1"),
            Status::FAIL
        );
    }

    #[test]
    fn no_way_out() {
        let mut place = place();
        let outside = place.directory.path().join("outside");
        fs::create_dir(&outside).unwrap();
        symlink(&outside, place.path("absolute")).unwrap();
        symlink("../outside", place.path("relative")).unwrap();
        let create = CopyFlags::CREATE_PATH | CopyFlags::OVERWRITE;
        for (directory, file) in [
            ("/..", "f"),
            ("/../outside", "f"),
            ("/a/../../outside", "f"),
            ("relative", "f"),
            ("", "f"),
            ("/", "../outside/f"),
            ("/", ".."),
            ("/", "a/b"),
            ("/", ""),
        ] {
            let status = place.copy(directory, file, create, b"x");
            assert_eq!(status, Status::INVALID_ARGUMENT, "{directory} {file}");
        }
        for directory in ["/absolute", "/relative"] {
            let _ = place.copy(directory, "f", create, b"x");
        }
        // A link in the file's own place is replaced, not followed.
        symlink(outside.join("victim"), place.path("link")).unwrap();
        assert_eq!(place.copy("/", "link", create, b"x"), Status::OK);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert!(fs::symlink_metadata(place.path("link")).unwrap().is_file());
    }

    #[test]
    fn what_is_cut_short_leaves_nothing() {
        let mut place = place();
        assert_eq!(place.start("/", "f", NONE, 10), Status::OK);
        assert_eq!(place.write(0, b"abc"), Status::OK);
        assert_eq!(place.complete(), Status::FAIL);
        assert_eq!(place.complete(), Status::FAIL);
        assert_eq!(place.write(0, b"abc"), Status::FAIL);
        assert_eq!(place.start("/", "f", NONE, 10), Status::OK);
        assert_eq!(place.receiver.handle(&Request::Cancel), Status::OK);
        assert_eq!(place.start("/", "f", NONE, 10), Status::OK);
        assert_eq!(place.write(8, b"abc"), Status::INVALID_ARGUMENT);
        assert_eq!(place.complete(), Status::FAIL);
        assert_eq!(place.start("/", "f", NONE, 10), Status::OK);
        place.receiver.reset();
        assert_eq!(place.names(""), [""; 0]);
    }

    #[test]
    fn a_full_disk_is_told_at_the_start() {
        let mut place = place();
        assert_eq!(
            place.start("/", "f", NONE, (1 << 30) + 1),
            Status::DISK_FULL
        );
        place.receiver.rules.max_size = u64::MAX;
        assert_eq!(place.start("/", "f", NONE, 1 << 62), Status::DISK_FULL);
        assert_eq!(place.names(""), [""; 0]);
    }

    proptest! {
        #[test]
        fn any_name_stays_inside(directory in "[/.a]{0,12}", file in "[/.a]{0,6}") {
            let mut place = place();
            let flags = CopyFlags::CREATE_PATH | CopyFlags::OVERWRITE;
            let _ = place.copy(&directory, &file, flags, b"x");
            prop_assert_eq!(fs::read_dir(place.directory.path()).unwrap().count(), 1);
        }
    }
}
