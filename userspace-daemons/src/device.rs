// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The character devices of the utility driver: opening them, explaining why that fails, waiting for them to come back.
//!
//! The driver lets one process at a time open a device. A closed device is reset: a request that was under way is
//! answered with an error. So after any error the cure is the same, close and open again; it is what the driver
//! expects after hibernation, and what finds the new device after a reload of the module.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use log::{debug, info, warn};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::inotify;
use thiserror::Error;

use crate::program::Running;

/// See [`pause`].
const PAUSE: Duration = Duration::from_millis(500);

/// Why a device cannot be used. Each says what to do.
#[derive(Debug, Error)]
pub enum OpenError {
    /// No such node.
    #[error("{path} is absent: {why}")]
    Absent {
        /// The node.
        path: String,
        /// What is missing, and how to get it.
        why: String,
    },
    /// The driver lets one daemon in.
    #[error("{0} is in use: another daemon serves it (stop it first: `fuser -v {0}` names it)")]
    Busy(String),
    /// Not root.
    #[error("{0}: permission denied; run the daemon as root")]
    Denied(String),
    /// Anything else.
    #[error("cannot open {0}: {1}")]
    Other(String, io::Error),
}

impl OpenError {
    /// Whether waiting may help: the module is being loaded again, or the device is not free yet.
    #[must_use]
    pub fn passes(&self) -> bool {
        !matches!(self, Self::Denied(_))
    }
}

/// A device by its node.
#[derive(Clone, Debug)]
pub struct Node {
    path: PathBuf,
    service: &'static str,
    module: &'static str,
}

impl Node {
    /// The device at `path`, which `service` (as Hyper-V Manager names it) stands behind. With Linux' own drivers `module`
    /// serves it.
    pub fn new(path: impl Into<PathBuf>, service: &'static str, module: &'static str) -> Self {
        Self {
            path: path.into(),
            service,
            module,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the device.
    ///
    /// # Errors
    ///
    /// [`OpenError`], ready to be shown.
    pub fn open(&self) -> Result<File, OpenError> {
        let path = self.path.display().to_string();
        match OpenOptions::new().read(true).write(true).open(&self.path) {
            Ok(file) => Ok(file),
            Err(error) => Err(match error.kind() {
                ErrorKind::NotFound => OpenError::Absent {
                    why: self.why_absent(Path::new("/")),
                    path,
                },
                ErrorKind::PermissionDenied => OpenError::Denied(path),
                _ if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {
                    OpenError::Busy(path)
                }
                _ => OpenError::Other(path, error),
            }),
        }
    }

    /// What to do about a missing node, from what the system has.
    fn why_absent(&self, root: &Path) -> String {
        if !root.join("sys/bus/vmbus").exists() {
            return "no VMBus here; this is not a Hyper-V guest, or its VMBus driver is not loaded \
                    (`modprobe hv_vmbus_rs` or `hv_vmbus`)"
                .into();
        }
        let utils = [self.module, "hv_utils_rs"]
            .iter()
            .any(|name| root.join("sys/module").join(name).exists());
        if utils {
            format!(
                "the driver is loaded but has no such device; enable the integration service \"{}\" for this VM on the host",
                self.service
            )
        } else {
            format!(
                "the driver is not loaded (`modprobe hv_utils_rs` or `{}`)",
                self.module
            )
        }
    }

    /// Opens the device, now or when it is there again.
    ///
    /// # Errors
    ///
    /// What waiting does not cure. `Ok(None)`: we are to stop.
    pub fn reopen(&self, running: &Running) -> Result<Option<File>, OpenError> {
        let mut told = false;
        loop {
            if wait(running.signals.as_fd(), None, PAUSE) || running.stop_asked() {
                return Ok(None);
            }
            // Watch first, look then: a node that appears in between is not missed.
            let watch = self.watch();
            match self.open() {
                Ok(file) => return Ok(Some(file)),
                Err(error) if error.passes() => {
                    if !std::mem::replace(&mut told, true) {
                        warn!("{error}; waiting for it");
                    }
                }
                Err(error) => return Err(error),
            }
            match &watch {
                Ok(watch) => _ = wait(running.signals.as_fd(), Some(watch.as_fd()), 4 * PAUSE),
                Err(error) => debug!("no inotify ({error}), looking again and again"),
            }
        }
    }

    /// A descriptor that becomes readable when something happens in the node's directory, or in `/dev` as long as that
    /// does not exist.
    fn watch(&self) -> io::Result<std::os::fd::OwnedFd> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let flags = inotify::WatchFlags::CREATE | inotify::WatchFlags::ATTRIB;
        for directory in self.path.ancestors().skip(1) {
            match inotify::add_watch(&fd, directory, flags) {
                Ok(_) => break,
                Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(fd)
    }
}

/// Waits a moment, so that a device that fails every time does not keep a CPU busy. True: we are to stop.
#[must_use]
pub fn pause(running: &Running) -> bool {
    wait(running.signals.as_fd(), None, PAUSE)
}

/// Waits for `signals` or `other` to become readable. True: it was `signals`.
fn wait(signals: BorrowedFd<'_>, other: Option<BorrowedFd<'_>>, limit: Duration) -> bool {
    let mut fds = vec![PollFd::from_borrowed_fd(signals, PollFlags::IN)];
    fds.extend(other.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    let limit = Timespec::try_from(limit).ok();
    match poll(&mut fds, limit.as_ref()) {
        Ok(_) => !fds[0].revents().is_empty(),
        Err(_) => {
            // Interrupted, or out of memory: either way no reason to spin.
            thread::sleep(Duration::from_millis(10));
            false
        }
    }
}

/// What ended a connection.
#[derive(Debug)]
pub enum End {
    /// A signal asks us to stop.
    Stop,
    /// The device has to be opened again; why.
    Again(String),
}

/// A service on a device.
pub trait Serve {
    /// Registers with the driver and serves until something ends it. `ready` is called when requests will be answered.
    fn serve(&mut self, device: File, running: &mut Running) -> End;
}

/// Serves `node` until a signal or an error that does not pass. The first opening must succeed: a machine without
/// the device has no use for the daemon.
///
/// # Errors
///
/// [`OpenError`].
pub fn run(node: &Node, running: &mut Running, service: &mut impl Serve) -> Result<(), OpenError> {
    let mut device = node.open()?;
    loop {
        match service.serve(device, running) {
            End::Stop => {
                info!("stopping");
                return Ok(());
            }
            End::Again(why) => info!("opening {} again: {why}", node.path().display()),
        }
        match node.reopen(running)? {
            Some(file) => device = file,
            None => {
                info!("stopping");
                return Ok(());
            }
        }
    }
}

/// What a wait for a device brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message can be read.
    Readable,
    /// The device is gone.
    Gone,
    /// A signal asks us to stop.
    Stop,
    /// `other` is readable.
    Other,
    /// The time is over.
    Timeout,
}

/// Waits for a message, a signal, or `other`.
///
/// # Errors
///
/// Of poll(2).
pub fn next_event(
    device: BorrowedFd<'_>,
    signals: BorrowedFd<'_>,
    other: Option<BorrowedFd<'_>>,
    limit: Option<Duration>,
) -> io::Result<Event> {
    let mut fds = vec![
        PollFd::from_borrowed_fd(signals, PollFlags::IN),
        PollFd::from_borrowed_fd(device, PollFlags::IN),
    ];
    fds.extend(other.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    loop {
        match poll(&mut fds, limit.as_ref()) {
            Ok(0) => return Ok(Event::Timeout),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let seen = |i: usize| fds.get(i).map_or(PollFlags::empty(), |fd| fd.revents());
        return Ok(if !seen(0).is_empty() {
            Event::Stop
        } else if !seen(2).is_empty() {
            Event::Other
        } else if seen(1).intersects(PollFlags::IN) {
            Event::Readable
        } else {
            Event::Gone
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn an_absent_node_is_explained() {
        let root = tempfile::tempdir().unwrap();
        let node = Node::new("/nonexistent/hv_kvp", "Data Exchange", "hv_utils");
        assert!(node.why_absent(root.path()).contains("no VMBus"));
        fs::create_dir_all(root.path().join("sys/bus/vmbus")).unwrap();
        assert!(node.why_absent(root.path()).contains("modprobe hv_utils"));
        fs::create_dir_all(root.path().join("sys/module/hv_utils_rs")).unwrap();
        assert!(node.why_absent(root.path()).contains("Data Exchange"));
        let text = node.open().unwrap_err().to_string();
        assert!(text.starts_with("/nonexistent/hv_kvp is absent:") && !text.contains('\n'));
    }
}
