// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Freezing and thawing as the host asks, and as time and accidents demand.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::{debug, error, info, warn};
use rustix::fs::{statx, AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use vmbus_proto::ic::vss::{DeviceMessage, Operation, REGISTERED};
use vmbus_proto::ic::Status;
use zerocopy::{FromBytes, IntoBytes};

use super::freeze::Freezer;
use super::hooks::Hooks;
use super::mounts::{select, Mount};
use super::watchdog::Watchdog;
use crate::device::{next_event, End, Event, Serve};
use crate::files;
use crate::logging::{self, Held};
use crate::program::Running;

/// How much later than the watchdog the daemon looks itself, in case that the watchdog is gone.
const LATER: Duration = Duration::from_secs(2);

/// How backups are done.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Programs to run before and after.
    pub hooks: Hooks,
    /// How long file systems may stay frozen.
    pub limit: Duration,
    /// Exists from before the hooks that precede a freeze until after those that follow the thaw; lists what is frozen.
    pub state: PathBuf,
    /// `/`, for `/dev` and `/sys`.
    pub root: PathBuf,
    /// `/proc/self/mountinfo`.
    pub mountinfo: PathBuf,
}

/// Starts a watchdog.
pub type StartWatchdog = Box<dyn FnMut() -> io::Result<Watchdog>>;

/// The service.
pub struct Daemon<F: Freezer> {
    settings: Settings,
    freezer: F,
    start: StartWatchdog,
    watchdog: Option<Watchdog>,
    state: State,
}

enum State {
    /// Nothing is frozen.
    Thawed,
    /// Frozen until the host says otherwise, or `deadline`.
    Frozen(Frozen),
    /// Thawed by ourselves since the freeze took too long: the host's copy may have changed under its hands, which it has to
    /// know.
    Expired,
}

struct Frozen {
    /// In the order of freezing.
    list: Vec<(PathBuf, OwnedFd)>,
    since: Instant,
    /// Last of all, so that lines are written after the thaw.
    held: Held,
}

impl<F: Freezer> Daemon<F> {
    /// A daemon that has not frozen anything. `start` is called now and whenever the watchdog is gone.
    ///
    /// # Errors
    ///
    /// Of starting the watchdog.
    pub fn new(settings: Settings, freezer: F, mut start: StartWatchdog) -> io::Result<Self> {
        Ok(Self {
            watchdog: Some(start()?),
            settings,
            freezer,
            start,
            state: State::Thawed,
        })
    }

    /// Registers and answers until something ends it. Nothing is frozen afterwards.
    ///
    /// # Errors
    ///
    /// Of the device: it has to be opened again.
    pub fn exchange(
        &mut self,
        mut device: impl Read + Write + AsFd,
        running: &mut Running,
    ) -> io::Result<End> {
        let end = self.answer_all(&mut device, running);
        // The host gave up, the driver goes, we are stopped: whatever it was.
        self.thaw_for("the connection ended");
        end
    }

    fn answer_all(
        &mut self,
        device: &mut (impl Read + Write + AsFd),
        running: &mut Running,
    ) -> io::Result<End> {
        send(device, &DeviceMessage::REGISTER)?;
        let mut buffer = [0; DeviceMessage::SIZE + 1];
        let mut registered = false;
        loop {
            let (watched, limit) = match &self.state {
                State::Frozen(frozen) => {
                    let end = frozen.since + self.settings.limit + LATER;
                    let left = end.saturating_duration_since(Instant::now());
                    (self.watchdog.as_ref().map(Watchdog::fd), Some(left))
                }
                _ => (None, None),
            };
            match next_event(device.as_fd(), running.signals.as_fd(), watched, limit)? {
                Event::Readable => {}
                Event::Stop => return Ok(End::Stop),
                Event::Gone => return Ok(End::Again("the device is gone".into())),
                Event::Timeout => {
                    self.expire();
                    continue;
                }
                Event::Other => {
                    match self.watchdog.as_mut().map(Watchdog::notice) {
                        Some(Ok(true)) => self.expire(),
                        Some(Ok(false)) => {}
                        // Our own clock still runs.
                        _ => self.watchdog = None,
                    }
                    continue;
                }
            }
            let length = device.read(&mut buffer)?;
            let received = buffer.get(..length).unwrap_or_default();
            if !registered && received == REGISTERED.to_le_bytes() {
                registered = true;
                info!("registered");
                running.ready("waiting for backups");
                continue;
            }
            let Ok(message) = DeviceMessage::read_from_bytes(received) else {
                return Ok(End::Again(format!("the driver sent {length} bytes")));
            };
            let operation = message.operation();
            let status = match operation {
                Operation::FREEZE => self.freeze(device.as_fd(), running),
                Operation::THAW => self.thaw(),
                Operation::HOT_BACKUP => {
                    info!("the host asks whether it can back up: yes");
                    Status::OK
                }
                other => {
                    warn!("the host asks for operation {}, which is unknown", other.0);
                    Status::NOT_SUPPORTED
                }
            };
            let sent = send(device, &message.answer(status));
            if operation == Operation::THAW {
                // After the answer: the host waits for that, and not for databases.
                self.after();
            }
            sent?;
        }
    }

    fn freeze(&mut self, device: BorrowedFd<'_>, running: &Running) -> Status {
        if let State::Frozen(_) = self.state {
            debug!("freeze again: still frozen");
            return Status::OK;
        }
        self.state = State::Thawed;
        info!("backup: freezing file systems");
        let start = Instant::now();
        match self.try_freeze(device, running) {
            Ok(frozen) => {
                info!(
                    "froze {} file systems in {:?}",
                    frozen.list.len(),
                    start.elapsed()
                );
                self.state = State::Frozen(frozen);
                Status::OK
            }
            Err(error) => {
                error!("backup refused: {error}");
                self.after();
                Status::FAIL
            }
        }
    }

    fn try_freeze(&mut self, device: BorrowedFd<'_>, running: &Running) -> Result<Frozen, String> {
        files::replace(&self.settings.state, b"", 0o600)
            .map_err(|error| format!("{}: {error}", self.settings.state.display()))?;
        // While a request is under way the driver sends nothing, so that what wakes us is the end of it.
        if let Err(error) = self.hooks_before(device, running) {
            // Those that ran have been told to thaw: not once more.
            let _ = claim(&self.settings.state);
            return Err(error);
        }
        if self.watchdog.is_none() {
            let watchdog = (self.start)().map_err(|error| format!("no watchdog: {error}"))?;
            self.watchdog = Some(watchdog);
        }
        let mountinfo = fs::read(&self.settings.mountinfo)
            .map_err(|error| format!("{}: {error}", self.settings.mountinfo.display()))?;
        let selection = select(&String::from_utf8_lossy(&mountinfo), &self.settings.root);
        for (point, reason) in &selection.skipped {
            warn!("{} is not frozen: {reason}", point.display());
        }
        let mut opened = Vec::new();
        for mounts in &selection.freeze {
            opened.push(open(mounts)?);
        }
        // Most of what is dirty is written before anybody has to wait for it; freezing tells of errors.
        for (_, fd) in &opened {
            let _ = rustix::fs::syncfs(fd);
        }
        let mut list: Vec<u8> = Vec::new();
        for (point, _) in &opened {
            list.extend_from_slice(point.as_os_str().as_bytes());
            list.push(0);
        }
        files::replace(&self.settings.state, &list, 0o600).map_err(|error| error.to_string())?;
        let frozen = self.freeze_all(opened);
        if frozen.is_err() {
            // Everything is thawed; a dead one is replaced at the next backup.
            if self.watchdog.as_mut().is_some_and(|w| w.disarm().is_err()) {
                self.watchdog = None;
            }
        }
        frozen
    }

    /// Runs the hooks, which end when the device or a signal ends the backup.
    fn hooks_before(&self, device: BorrowedFd<'_>, running: &Running) -> Result<(), String> {
        let ends = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC)
            .and_then(|ends| {
                use rustix::event::epoll::{add, EventData, EventFlags};
                add(
                    &ends,
                    device,
                    EventData::new_u64(0),
                    EventFlags::HUP | EventFlags::IN,
                )?;
                add(
                    &ends,
                    running.signals.as_fd(),
                    EventData::new_u64(1),
                    EventFlags::IN,
                )?;
                Ok(ends)
            });
        match ends {
            Ok(ends) => self.settings.hooks.before(Some(ends.as_fd())),
            // A test's device that is no device.
            Err(_) => self.settings.hooks.before(None),
        }
    }

    /// Freezes all or nothing.
    fn freeze_all(&mut self, opened: Vec<(PathBuf, OwnedFd)>) -> Result<Frozen, String> {
        let watchdog = self.watchdog.as_mut().ok_or("no watchdog")?;
        let lost = |error: io::Error| format!("the watchdog does not answer: {error}");
        for (_, fd) in &opened {
            watchdog.arm(fd.as_fd()).map_err(lost)?;
        }
        watchdog.limit(self.settings.limit).map_err(lost)?;
        let mut frozen = Frozen {
            list: Vec::with_capacity(opened.len()),
            since: Instant::now(),
            held: logging::hold(),
        };
        for (index, (point, fd)) in opened.into_iter().enumerate() {
            match self.freezer.freeze(fd.as_fd()) {
                Ok(()) => frozen.list.push((point, fd)),
                Err(Errno::BUSY) => {
                    warn!(
                        "{} was frozen already, by somebody else; left so",
                        point.display()
                    );
                    watchdog.spare(index).map_err(lost)?;
                }
                Err(Errno::OPNOTSUPP | Errno::NOTTY) => {
                    warn!("{} is not frozen: its type cannot be", point.display());
                }
                Err(error) => {
                    // The lines that tell so come out after the thaw, with `held`.
                    thaw_all(&self.freezer, &frozen.list);
                    return Err(format!("freezing {}: {error}", point.display()));
                }
            }
        }
        if self.settings.limit <= frozen.since.elapsed() {
            thaw_all(&self.freezer, &frozen.list);
            return Err(format!(
                "freezing took {:?}, more than allowed",
                frozen.since.elapsed()
            ));
        }
        Ok(frozen)
    }

    fn thaw(&mut self) -> Status {
        match std::mem::replace(&mut self.state, State::Thawed) {
            State::Frozen(frozen) => self.release(frozen, "as the host asked"),
            State::Expired => Status::FAIL,
            // Also after a freeze that failed, and before hibernation.
            State::Thawed => Status::OK,
        }
    }

    fn release(&mut self, frozen: Frozen, why: &str) -> Status {
        thaw_all(&self.freezer, &frozen.list);
        let Frozen { list, since, held } = frozen;
        // Only now may anything be logged, or waited for.
        drop(held);
        let expired = match self.watchdog.as_mut().map(Watchdog::disarm) {
            Some(Ok(fired)) => fired,
            _ => {
                self.watchdog = None;
                false
            }
        };
        info!(
            "thawed {} file systems after {:?}, {why}",
            list.len(),
            since.elapsed()
        );
        if expired {
            error!(
                "they had been thawed before, at the limit: the host's copy may not be consistent"
            );
            return Status::FAIL;
        }
        Status::OK
    }

    /// The limit has passed.
    fn expire(&mut self) {
        if let State::Frozen(frozen) = std::mem::replace(&mut self.state, State::Thawed) {
            self.release(frozen, "since the host did not");
            self.state = State::Expired;
            error!(
                "the backup took more than {:?}: file systems are thawed without the host's word",
                self.settings.limit
            );
            self.after();
        }
    }

    fn thaw_for(&mut self, why: &str) {
        if let State::Frozen(frozen) = std::mem::replace(&mut self.state, State::Thawed) {
            self.release(frozen, why);
        }
        self.after();
    }

    /// Runs the hooks after a thaw, unless that has been done.
    fn after(&self) {
        if !matches!(self.state, State::Frozen(_)) && claim(&self.settings.state).is_some() {
            self.settings.hooks.after();
        }
    }
}

impl<F: Freezer> Serve for Daemon<F> {
    fn serve(&mut self, device: File, running: &mut Running) -> End {
        self.exchange(device, running)
            .unwrap_or_else(|error| End::Again(error.to_string()))
    }
}

impl<F: Freezer> Drop for Daemon<F> {
    fn drop(&mut self) {
        self.thaw_for("since the daemon ends");
    }
}

/// Cleans up behind a daemon that died: thaws what it had frozen, and runs the hooks.
pub fn recover(settings: &Settings, freezer: &impl Freezer) {
    let Some(list) = claim(&settings.state) else {
        return;
    };
    let mut thawed = 0;
    for point in list.split(|&b| b == 0).filter(|p| !p.is_empty()).rev() {
        let point = PathBuf::from(std::ffi::OsString::from_vec(point.to_vec()));
        if let Ok(fd) = rustix::fs::open(&point, FLAGS, Mode::empty()) {
            thawed += usize::from(freezer.thaw(fd.as_fd()).is_ok());
        }
    }
    warn!("a backup was cut short; {thawed} file systems were still frozen");
    settings.hooks.after();
}

/// Takes the file that says that a backup is under way: of several who want to clean up, one gets it.
fn claim(state: &Path) -> Option<Vec<u8>> {
    let list = fs::read(state).ok()?;
    fs::remove_file(state).ok()?;
    Some(list)
}

/// No delay on a device, no terminal, no symbolic link at the end.
const FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::NOFOLLOW);

/// Opens a file system by the first of its mounts that is not covered by another.
fn open(mounts: &[Mount]) -> Result<(PathBuf, OwnedFd), String> {
    let mut last = String::from("it is covered by other mounts");
    for mount in mounts {
        let fd = match rustix::fs::open(&mount.point, FLAGS, Mode::empty()) {
            Ok(fd) => fd,
            Err(error) => {
                last = error.to_string();
                continue;
            }
        };
        match statx(&fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID) {
            Ok(found) if found.stx_mnt_id == mount.id => return Ok((mount.point.clone(), fd)),
            Ok(_) => {}
            Err(error) => last = error.to_string(),
        }
    }
    let point = mounts.first().map(|m| m.point.display().to_string());
    Err(format!("cannot open {}: {last}", point.unwrap_or_default()))
}

/// Thaws in the opposite order. Errors are told later: lines are held.
fn thaw_all(freezer: &impl Freezer, list: &[(PathBuf, OwnedFd)]) {
    for (point, fd) in list.iter().rev() {
        match freezer.thaw(fd.as_fd()) {
            // Not frozen: the watchdog or an administrator was first.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => error!("cannot thaw {}: {error}", point.display()),
        }
    }
}

/// The driver takes a message whole or not at all.
fn send(device: &mut impl Write, message: &DeviceMessage) -> io::Result<()> {
    match device.write(message.as_bytes())? {
        DeviceMessage::SIZE => Ok(()),
        written => Err(io::Error::other(format!("the driver took {written} bytes"))),
    }
}
