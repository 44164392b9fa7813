// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A process that thaws when the daemon cannot.
//!
//! It is started with the daemon (not when it is needed: by then the program's own file system may be frozen) and holds the other
//! end of a socket. Before a freeze it gets a descriptor for each file system, so that nothing has to be looked up or
//! opened in need. When the socket ends (the daemon died, of whatever cause), or the time limit passes, it thaws.
//!
//! | daemon says | with | watchdog | answers |
//! | --- | --- | --- | --- |
//! | [`ARM`] | a descriptor | keeps it | `ARM` |
//! | [`LIMIT`] | milliseconds | starts the time limit | `LIMIT` |
//! | [`SPARE`] | number of a descriptor, counted from 0 | lets it go: somebody else froze it, and may thaw it | `SPARE` |
//! | [`DISARM`] | – | lets all go, ends the limit | `DISARM` |
//!
//! On its own it says [`FIRED`] after it has thawed because of the limit.

use std::env;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use log::{info, warn};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    recvmsg, sendmsg, socketpair, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage,
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::freeze::Freezer;

/// See the table above.
pub const ARM: u8 = b'A';
/// See the table above.
pub const LIMIT: u8 = b'L';
/// See the table above.
pub const SPARE: u8 = b'S';
/// See the table above.
pub const DISARM: u8 = b'D';
/// See the table above.
pub const FIRED: u8 = b'F';

/// How long the daemon waits for an answer before it takes the watchdog for dead.
const PATIENCE: Duration = Duration::from_secs(5);

/// The daemon's end.
#[derive(Debug)]
pub struct Watchdog {
    socket: OwnedFd,
    child: Option<Child>,
    fired: bool,
}

impl Watchdog {
    /// Starts the watchdog: this program with `arguments`.
    ///
    /// # Errors
    ///
    /// Of starting it.
    pub fn start(arguments: &[&str]) -> io::Result<Self> {
        Self::start_program(&env::current_exe()?, arguments)
    }

    /// Starts `program` as the watchdog, the socket its stdin.
    ///
    /// # Errors
    ///
    /// Of starting it.
    pub fn start_program(program: &Path, arguments: &[&str]) -> io::Result<Self> {
        let (mine, its) = pair()?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::from(its))
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self::with(mine, Some(child)))
    }

    fn with(socket: OwnedFd, child: Option<Child>) -> Self {
        Self {
            socket,
            child,
            fired: false,
        }
    }

    /// Gives it a file system.
    ///
    /// # Errors
    ///
    /// The watchdog is gone.
    pub fn arm(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [fd];
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        self.ask(ARM, 0, &mut ancillary)
    }

    /// Starts the time limit.
    ///
    /// # Errors
    ///
    /// The watchdog is gone.
    pub fn limit(&mut self, limit: Duration) -> io::Result<()> {
        let ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        self.ask(LIMIT, ms, &mut SendAncillaryBuffer::default())
    }

    /// Makes it let go of the file system that was given as number `index`.
    ///
    /// # Errors
    ///
    /// The watchdog is gone.
    pub fn spare(&mut self, index: usize) -> io::Result<()> {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        self.ask(SPARE, index, &mut SendAncillaryBuffer::default())
    }

    /// Ends its task, and says whether it had thawed by itself.
    ///
    /// # Errors
    ///
    /// The watchdog is gone.
    pub fn disarm(&mut self) -> io::Result<bool> {
        self.ask(DISARM, 0, &mut SendAncillaryBuffer::default())?;
        Ok(std::mem::take(&mut self.fired))
    }

    /// Readable when it fired, or died.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes what [`fd`](Self::fd) announced; whether it fired.
    ///
    /// # Errors
    ///
    /// The watchdog is gone.
    pub fn notice(&mut self) -> io::Result<bool> {
        if receive_byte(&self.socket)? == FIRED {
            self.fired = true;
        }
        Ok(self.fired)
    }

    fn ask(
        &mut self,
        what: u8,
        value: u32,
        more: &mut SendAncillaryBuffer<'_, '_, '_>,
    ) -> io::Result<()> {
        let mut text = [what, 0, 0, 0, 0];
        text[1..].copy_from_slice(&value.to_le_bytes());
        sendmsg(
            &self.socket,
            &[IoSlice::new(&text)],
            more,
            SendFlags::NOSIGNAL,
        )?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if !readable(self.socket.as_fd(), Some(deadline))? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match receive_byte(&self.socket)? {
                FIRED => self.fired = true,
                answer if answer == what => return Ok(()),
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // The end of the socket ends it; its thawing what it still holds is wanted.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }
}

/// The watchdog itself: serves `socket` until its end. Whether it had something to thaw then.
pub fn watch(socket: BorrowedFd<'_>, freezer: &impl Freezer) -> bool {
    let mut held: Vec<Option<OwnedFd>> = Vec::new();
    let mut deadline = None;
    loop {
        match readable(socket, deadline) {
            Ok(true) => {}
            Ok(false) => {
                thaw(&mut held, freezer);
                deadline = None;
                // Told after the fact: the daemon, if it lives, must not wait for a word that comes before.
                if answer(socket, FIRED).is_err() {
                    return true;
                }
                continue;
            }
            Err(_) => break,
        }
        let Ok((what, value, fd)) = receive(socket) else {
            break;
        };
        match what {
            ARM => held.push(fd),
            LIMIT => deadline = Some(Instant::now() + Duration::from_millis(value.into())),
            SPARE => {
                let index = usize::try_from(value).unwrap_or(usize::MAX);
                held.get_mut(index).map(Option::take);
            }
            DISARM => {
                held.clear();
                deadline = None;
            }
            _ => {}
        }
        if answer(socket, what).is_err() {
            break;
        }
    }
    let some = !held.is_empty();
    thaw(&mut held, freezer);
    some
}

/// Thaws in the opposite order of freezing. What is not frozen says so, and does no harm.
fn thaw(held: &mut Vec<Option<OwnedFd>>, freezer: &impl Freezer) {
    for fd in held.drain(..).rev().flatten() {
        let _ = freezer.thaw(fd.as_fd());
    }
}

/// The process `hv-vss-daemon watchdog`. Whether it thawed since the daemon is gone; `clean_up` is then to do the rest.
pub fn main(freezer: &impl Freezer, clean_up: impl FnOnce()) {
    // Whoever ends the daemon, ends us by that; a signal to us both must not end us first.
    let mut signals = nix::sys::signal::SigSet::all();
    signals.remove(nix::sys::signal::Signal::SIGCHLD);
    let _ = signals.thread_block();
    let _ = rustix::process::setsid();
    lock_memory();
    if watch(rustix::stdio::stdin(), freezer) {
        warn!("the daemon ended while file systems were frozen; thawed them");
        clean_up();
    }
}

/// Keeps this process out of swap, which may be a file on what is frozen.
pub fn lock_memory() {
    use rustix::mm::{mlockall, MlockAllFlags};
    if let Err(error) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
        info!("cannot lock memory: {error}");
    }
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

fn answer(socket: BorrowedFd<'_>, what: u8) -> io::Result<()> {
    rustix::net::send(socket, &[what], SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive_byte(socket: &OwnedFd) -> io::Result<u8> {
    let mut byte = [0];
    match rustix::net::recv(socket, &mut byte, RecvFlags::empty())? {
        (_, 0) => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(byte[0]),
    }
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<(u8, u32, Option<OwnedFd>)> {
    let mut text = [0; 5];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut text)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes < text.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let [what, value @ ..] = text;
    Ok((what, u32::from_le_bytes(value), fd))
}

/// Waits until there is something to read; false: the deadline came first.
fn readable(socket: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    loop {
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, left.as_ref()) {
            Ok(count) => return Ok(count != 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::fs::File;
    use std::sync::mpsc::{channel, Receiver, Sender};
    use std::sync::Mutex;
    use std::thread::{self, JoinHandle};

    /// Tells which descriptors are thawed, by inode.
    pub struct Teller(pub Mutex<Sender<u64>>);

    impl Freezer for Teller {
        fn freeze(&self, _: BorrowedFd<'_>) -> Result<(), Errno> {
            Ok(())
        }

        fn thaw(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
            let inode = rustix::fs::fstat(fd)?.st_ino;
            self.0.lock().unwrap().send(inode).unwrap();
            Ok(())
        }
    }

    /// A watchdog that is a thread.
    pub fn thread() -> (Watchdog, Receiver<u64>, JoinHandle<bool>) {
        let (mine, its) = pair().unwrap();
        let (sender, receiver) = channel();
        let handle = thread::spawn(move || watch(its.as_fd(), &Teller(Mutex::new(sender))));
        (Watchdog::with(mine, None), receiver, handle)
    }

    fn files() -> (Vec<File>, Vec<u64>) {
        let files: Vec<File> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
        let inodes = files.iter().map(|f| rustix::fs::fstat(f).unwrap().st_ino);
        let inodes = inodes.collect();
        (files, inodes)
    }

    #[test]
    fn it_thaws_when_the_daemon_is_gone() {
        let (mut watchdog, thawed, handle) = thread();
        let (files, inodes) = files();
        for file in &files {
            watchdog.arm(file.as_fd()).unwrap();
        }
        watchdog.spare(1).unwrap();
        watchdog.limit(Duration::from_secs(60)).unwrap();
        assert!(thawed.try_recv().is_err());
        drop((watchdog, files));
        assert!(handle.join().unwrap());
        assert_eq!(thawed.iter().collect::<Vec<_>>(), [inodes[2], inodes[0]]);
    }

    #[test]
    fn it_thaws_when_the_limit_passes() {
        let (mut watchdog, thawed, handle) = thread();
        let (files, inodes) = files();
        watchdog.arm(files[0].as_fd()).unwrap();
        watchdog.limit(Duration::from_millis(50)).unwrap();
        assert!(readable(watchdog.fd(), Some(Instant::now() + PATIENCE)).unwrap());
        assert!(watchdog.notice().unwrap());
        assert_eq!(thawed.recv().unwrap(), inodes[0]);
        assert!(watchdog.disarm().unwrap());
        assert!(!watchdog.disarm().unwrap());
        drop(watchdog);
        assert!(!handle.join().unwrap());
    }

    #[test]
    fn disarmed_it_does_nothing() {
        let (mut watchdog, thawed, handle) = thread();
        let (files, _) = files();
        watchdog.arm(files[0].as_fd()).unwrap();
        watchdog.limit(Duration::from_secs(60)).unwrap();
        assert!(!watchdog.disarm().unwrap());
        drop(watchdog);
        assert!(!handle.join().unwrap());
        assert!(thawed.recv().is_err());
    }

    #[test]
    fn a_dead_watchdog_is_noticed() {
        let (mine, its) = pair().unwrap();
        drop(its);
        let mut watchdog = Watchdog::with(mine, None);
        assert!(watchdog.limit(PATIENCE).is_err());
    }
}
