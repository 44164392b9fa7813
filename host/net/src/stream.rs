// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Frames over a stream socket, each behind its length in four bytes, big-endian: what passt, QEMU's `-netdev stream` and two
//! of these back ends say to each other.
//!
//! The host's worker reads and writes the socket, which never blocks. A thread, the keeper, makes the connection, makes it
//! again when it ends, and calls the waker when the kernel says that the socket can be read or written.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{epoll, eventfd, EventfdFlags, Timespec};
use rustix::net::{RecvFlags, SendFlags};

use crate::passt;
use crate::{Backend, BackendInfo, Sent, Waker};

/// Longest frame in bytes: an MTU of 65535, Ethernet header, VLAN tag.
pub const MAX_FRAME: usize = 65535 + 14 + 4;
/// Shortest frame in bytes: an Ethernet header.
const MIN_FRAME: usize = 14;
/// Bytes of the length.
const LENGTH: usize = 4;
/// Bytes read at once.
const READ: usize = 256 << 10;
/// Bytes that wait to be written at most; then the guest has to wait.
const MAX_WAITING: usize = 1 << 20;
/// Bytes that wait to be written before the end of a batch.
const WRITE: usize = 64 << 10;
/// Between two attempts.
const RETRY: Duration = Duration::from_millis(250);

/// Where connections come from.
#[derive(Clone, Debug)]
pub enum Peer {
    /// Listens at this path: us who connect.
    Connect(PathBuf),
    /// Connects to this path: us who listen. One at a time.
    Listen(PathBuf),
    /// passt, started by us with these arguments.
    Passt(Vec<String>),
}

/// What worker and keeper share.
struct Shared {
    /// A new connection and its number, until the worker takes it.
    fresh: Mutex<Option<(u64, UnixStream)>>,
    /// There is a connection as far as the keeper knows.
    link: AtomicBool,
    /// Number of the connection that the worker gave up last.
    given_up: AtomicU64,
    stopping: AtomicBool,
    /// The worker has given up the connection, or the back end is dropped.
    kick: OwnedFd,
}

impl Shared {
    fn kick(&self) {
        // It fails when 2^64 kicks have not been looked at.
        let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
    }

    fn fresh(&self) -> Option<(u64, UnixStream)> {
        self.fresh
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

#[derive(Debug, Default)]
struct Counters {
    connections: u64,
    sent: u64,
    received: u64,
    dropped: u64,
    malformed: u64,
}

/// See the module.
pub struct Stream {
    peer: Peer,
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
    socket: Option<UnixStream>,
    /// Its number.
    number: u64,
    /// What was read and not looked at: `input[start..end]`.
    input: Vec<u8>,
    start: usize,
    end: usize,
    /// What waits to be written: `output[written..]`.
    output: Vec<u8>,
    written: usize,
    counters: Counters,
}

impl Stream {
    /// A back end that is not started.
    ///
    /// # Errors
    /// The kernel has no more file descriptors.
    pub fn new(peer: Peer) -> io::Result<Self> {
        let shared = Shared {
            fresh: Mutex::new(None),
            link: AtomicBool::new(false),
            given_up: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            kick: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        };
        Ok(Self {
            peer,
            shared: Arc::new(shared),
            keeper: None,
            socket: None,
            number: 0,
            input: vec![0; READ],
            start: 0,
            end: 0,
            output: Vec::new(),
            written: 0,
            counters: Counters::default(),
        })
    }

    /// Gives the connection up: it ended, or the peer talks nonsense. What was under way is lost.
    fn hang_up(&mut self) {
        self.socket = None;
        (self.start, self.end) = (0, 0);
        self.output.clear();
        self.written = 0;
        self.shared.given_up.store(self.number, Ordering::Release);
        self.shared.kick();
    }

    /// Whether there is a connection; takes the new one if the old one has ended.
    fn connected(&mut self) -> bool {
        if self.socket.is_none() {
            if let Some((number, socket)) = self.shared.fresh() {
                (self.number, self.socket) = (number, Some(socket));
                self.counters.connections += 1;
            }
        }
        self.socket.is_some()
    }

    /// Writes what waits, as far as the socket takes it.
    fn write(&mut self) {
        while self.written < self.output.len() {
            let Some(socket) = &self.socket else { return };
            let waiting = &self.output[self.written..];
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(socket, waiting, flags) {
                Ok(count) => self.written += count,
                Err(rustix::io::Errno::INTR) => {}
                // The keeper calls the waker when there is room.
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => return self.hang_up(),
            }
        }
        self.output.clear();
        self.written = 0;
    }

    /// Reads more. `false`: there is nothing now.
    fn read(&mut self) -> bool {
        if self.start > 0 {
            self.input.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        loop {
            let Some(socket) = &self.socket else {
                return false;
            };
            let room = &mut self.input[self.end..];
            match rustix::net::recv(socket, room, RecvFlags::DONTWAIT) {
                Ok((0, _)) => {
                    self.hang_up();
                    return false;
                }
                Ok((count, _)) => {
                    self.end += count;
                    return true;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return false,
                Err(_) => {
                    self.hang_up();
                    return false;
                }
            }
        }
    }

    /// The next whole frame read, as a range of `input`. An error when the peer talks nonsense.
    fn next_frame(&mut self) -> Result<Option<(usize, usize)>, ()> {
        let read = &self.input[self.start..self.end];
        let Some((length, rest)) = read.split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if !(MIN_FRAME..=MAX_FRAME).contains(&length) {
            return Err(());
        }
        if rest.len() < length {
            return Ok(None);
        }
        let at = self.start + LENGTH;
        self.start = at + length;
        Ok(Some((at, length)))
    }
}

impl Backend for Stream {
    fn start(&mut self, waker: Waker) -> Result<(), String> {
        let (peer, shared) = (self.peer.clone(), self.shared.clone());
        let keeper = Keeper::new(peer, shared, waker).map_err(|e| e.to_string())?;
        let thread = std::thread::Builder::new()
            .name("hv-net-stream".into())
            .spawn(move || keeper.run())
            .map_err(|e| e.to_string())?;
        self.keeper = Some(thread);
        Ok(())
    }

    fn send(&mut self, frame: &[u8]) -> Sent {
        if !self.connected() || !(MIN_FRAME..=MAX_FRAME).contains(&frame.len()) {
            self.counters.dropped += 1;
            return Sent::Dropped;
        }
        if self.output.len() - self.written + LENGTH + frame.len() > MAX_WAITING {
            self.write();
            if self.output.len() - self.written + LENGTH + frame.len() > MAX_WAITING {
                return Sent::Full;
            }
        }
        if self.written > MAX_WAITING {
            self.output.drain(..self.written);
            self.written = 0;
        }
        self.output
            .extend_from_slice(&(frame.len() as u32).to_be_bytes());
        self.output.extend_from_slice(frame);
        self.counters.sent += 1;
        if self.output.len() - self.written >= WRITE {
            self.write();
        }
        Sent::Taken
    }

    fn flush(&mut self) {
        if !self.output.is_empty() {
            self.write();
        }
    }

    fn receive(&mut self, frame: &mut Vec<u8>) -> bool {
        frame.clear();
        // Woken because there is room again, perhaps.
        self.flush();
        loop {
            match self.next_frame() {
                Ok(Some((at, length))) => {
                    frame.extend_from_slice(&self.input[at..at + length]);
                    self.counters.received += 1;
                    return true;
                }
                Ok(None) => {}
                Err(()) => {
                    self.counters.malformed += 1;
                    self.hang_up();
                }
            }
            // A connection may have ended and the next one come: then read that.
            let had = self.connected();
            if !self.read() && (!had || self.socket.is_some() || !self.connected()) {
                return false;
            }
        }
    }

    fn link(&self) -> bool {
        self.shared.link.load(Ordering::Acquire)
    }

    fn info(&self) -> BackendInfo {
        let kind = match &self.peer {
            Peer::Connect(path) => format!("connect;{}", path.display()),
            Peer::Listen(path) => format!("listen;{}", path.display()),
            Peer::Passt(arguments) => format!("passt;{}", arguments.join(" ")),
        };
        let counters = &self.counters;
        BackendInfo {
            kind,
            counters: vec![
                ("connections", counters.connections),
                ("sent", counters.sent),
                ("received", counters.received),
                ("dropped", counters.dropped),
                ("malformed", counters.malformed),
            ],
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.kick();
        if let Some(keeper) = self.keeper.take() {
            // It has nothing to say.
            let _ = keeper.join();
        }
    }
}

/// Socket and kick, as epoll tells them apart.
const SOCKET: u64 = 0;
const KICK: u64 = 1;

/// The thread that makes connections and watches them.
struct Keeper {
    peer: Peer,
    shared: Arc<Shared>,
    waker: Waker,
    epoll: OwnedFd,
    listener: Option<UnixListener>,
    child: Option<Child>,
    /// Number of the connection made last.
    number: u64,
}

impl Keeper {
    fn new(peer: Peer, shared: Arc<Shared>, waker: Waker) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            &shared.kick,
            epoll::EventData::new_u64(KICK),
            epoll::EventFlags::IN,
        )?;
        // Who listens does so before anything else: who connects may be started at once.
        let listener = match &peer {
            Peer::Listen(path) => Some(listen(path)?),
            _ => None,
        };
        Ok(Self {
            peer,
            shared,
            waker,
            epoll,
            listener,
            child: None,
            number: 0,
        })
    }

    fn stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::Acquire)
    }

    fn run(mut self) {
        let mut told = false;
        while !self.stopping() {
            match self.connect() {
                Ok(Some(socket)) => {
                    told = false;
                    let since = Instant::now();
                    if let Err(error) = self.watch(socket) {
                        tracing::warn!(?self.peer, %error, "network connection");
                    }
                    self.shared.link.store(false, Ordering::Release);
                    (self.waker)();
                    // A peer that ends each connection at once is not to keep a processor busy.
                    if since.elapsed() < RETRY {
                        self.pause();
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    // Once is enough for a peer that is not there yet.
                    if !told {
                        tracing::info!(?self.peer, %error, "network peer");
                        told = true;
                    }
                    self.pause();
                }
            }
            self.end_child();
        }
        if let Peer::Listen(path) = &self.peer {
            // Somebody else may have taken it away.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Waits a while, or until kicked.
    fn pause(&self) {
        // When there is nothing to wait with, there will be no connection either.
        let _ = self.wait(Some(RETRY));
    }

    /// The next connection; `None` when kicked instead.
    fn connect(&mut self) -> io::Result<Option<UnixStream>> {
        let socket = match &self.peer {
            Peer::Connect(path) => UnixStream::connect(path)?,
            Peer::Listen(_) => match self.accept()? {
                Some(socket) => socket,
                None => return Ok(None),
            },
            Peer::Passt(arguments) => {
                let (child, socket) = passt::spawn(arguments)?;
                self.child = Some(child);
                socket
            }
        };
        socket.set_nonblocking(true)?;
        Ok(Some(socket))
    }

    fn accept(&mut self) -> io::Result<Option<UnixStream>> {
        let Some(listener) = &self.listener else {
            return Ok(None);
        };
        epoll::add(
            &self.epoll,
            listener,
            epoll::EventData::new_u64(SOCKET),
            epoll::EventFlags::IN,
        )?;
        let ready = self.wait(None);
        epoll::delete(&self.epoll, listener)?;
        if ready? & SOCKET_READY == 0 || self.stopping() {
            return Ok(None);
        }
        Ok(Some(listener.accept()?.0))
    }

    /// Hands the connection to the worker and calls the waker for it until it ends.
    fn watch(&mut self, socket: UnixStream) -> io::Result<()> {
        // Edge-triggered: once each time that something new can be done.
        epoll::add(
            &self.epoll,
            &socket,
            epoll::EventData::new_u64(SOCKET),
            epoll::EventFlags::IN
                | epoll::EventFlags::OUT
                | epoll::EventFlags::RDHUP
                | epoll::EventFlags::ET,
        )?;
        let result = self.watch_until_end(&socket);
        epoll::delete(&self.epoll, &socket)?;
        result
    }

    fn watch_until_end(&mut self, socket: &UnixStream) -> io::Result<()> {
        let fresh = socket.try_clone()?;
        self.number += 1;
        *self
            .shared
            .fresh
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some((self.number, fresh));
        self.shared.link.store(true, Ordering::Release);
        (self.waker)();
        loop {
            let ready = self.wait(None)?;
            if ready & SOCKET_READY != 0 {
                (self.waker)();
            }
            // A kick may have been for the connection before.
            let given_up = self.shared.given_up.load(Ordering::Acquire) == self.number;
            if ready & SOCKET_ENDED != 0 || given_up || self.stopping() {
                return Ok(());
            }
        }
    }

    /// Waits for any event, which is told by flags.
    fn wait(&self, timeout: Option<Duration>) -> io::Result<u32> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let mut events: [epoll::Event; 2] = [NO_EVENT; 2];
        let count = loop {
            match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
                Ok(count) => break count,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        };
        let mut flags = 0;
        for event in events.iter().take(count) {
            let what = event.flags;
            if event.data.u64() == KICK {
                let mut kicks = [0; 8];
                let _ = rustix::io::read(&self.shared.kick, &mut kicks);
            } else {
                flags |= SOCKET_READY;
                if what.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                    flags |= SOCKET_ENDED;
                }
            }
        }
        Ok(flags)
    }

    fn end_child(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It ends by itself when the connection does, unless it hangs.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

const SOCKET_READY: u32 = 1;
const SOCKET_ENDED: u32 = 2;
const NO_EVENT: epoll::Event = epoll::Event {
    flags: epoll::EventFlags::empty(),
    data: epoll::EventData::new_u64(0),
};

/// Listens at `path`. A socket that nobody listens at any more is replaced.
fn listen(path: &PathBuf) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse && UnixStream::connect(path).is_err() => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::sync::mpsc::{self, Receiver};

    /// A back end and its wakes.
    struct End {
        stream: Stream,
        wakes: Receiver<()>,
    }

    impl End {
        fn new(peer: Peer) -> Self {
            let (sender, wakes) = mpsc::channel();
            let mut stream = Stream::new(peer).expect("file descriptors");
            let waker = move || {
                // The receiver goes first.
                let _ = sender.send(());
            };
            stream.start(Arc::new(waker)).expect("starts");
            Self { stream, wakes }
        }

        /// Waits for a wake until `done`.
        fn until(&mut self, mut done: impl FnMut(&mut Stream) -> bool) {
            while !done(&mut self.stream) {
                let timeout = Duration::from_secs(20);
                self.wakes.recv_timeout(timeout).expect("a wake");
            }
        }

        fn next(&mut self) -> Vec<u8> {
            let mut frame = Vec::new();
            self.until(|stream| stream.receive(&mut frame));
            frame
        }
    }

    #[test]
    fn frames_of_all_sizes_in_order_both_ways() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        let mut a = End::new(Peer::Connect(path.clone()));
        let mut b = End::new(Peer::Listen(path.clone()));
        a.until(|stream| stream.link());
        b.until(|stream| stream.link());
        let sizes = [14, 15, 60, 1514, 9014, MAX_FRAME];
        for (n, size) in sizes.into_iter().cycle().take(60).enumerate() {
            let frame = vec![n as u8; size];
            assert_eq!(a.stream.send(&frame), Sent::Taken);
            a.stream.flush();
            let got = b.next();
            assert!(got == frame, "frame {n}");
            assert_eq!(b.stream.send(&got), Sent::Taken);
            b.stream.flush();
            assert!(a.next() == frame, "frame {n}, back");
        }
        assert_eq!(a.stream.send(&[0; 13]), Sent::Dropped);
        assert_eq!(a.stream.send(&[0; MAX_FRAME + 1]), Sent::Dropped);
        drop(b);
        assert!(!path.exists(), "the socket went with who listened");
        a.until(|stream| !stream.link());
    }

    #[test]
    fn a_peer_that_goes_and_comes_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        let mut a = End::new(Peer::Connect(path.clone()));
        assert!(!a.stream.link());
        assert_eq!(a.stream.send(&[0; 60]), Sent::Dropped);
        for n in 0..3 {
            let mut b = End::new(Peer::Listen(path.clone()));
            a.until(|stream| stream.link());
            b.until(|stream| stream.link());
            a.until(|stream| stream.send(&[n; 60]) == Sent::Taken);
            a.stream.flush();
            assert_eq!(b.next(), [n; 60]);
            drop(b);
            // Its end is seen when reading.
            a.until(|stream| !stream.receive(&mut Vec::new()) && !stream.link());
        }
        let info = a.stream.info();
        assert!(info.counters.contains(&("connections", 3)), "{info:?}");
    }

    #[test]
    fn a_stale_socket_is_replaced_a_used_one_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).expect("listens"));
        let first = End::new(Peer::Listen(path.clone()));
        let mut second = Stream::new(Peer::Listen(path.clone())).expect("made");
        assert!(second.start(Arc::new(|| {})).is_err());
        drop(first);
    }

    #[test]
    fn attack_lengths() {
        for length in [0u32, 13, MAX_FRAME as u32 + 1, u32::MAX] {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("socket");
            let mut a = End::new(Peer::Listen(path.clone()));
            let mut peer = UnixStream::connect(&path).expect("connects");
            // A good frame, cut into pieces, then a bad length.
            let mut bytes = vec![0, 0, 0, 14];
            bytes.extend([7; 14]);
            bytes.extend(length.to_be_bytes());
            for piece in bytes.chunks(5) {
                peer.write_all(piece).expect("written");
            }
            assert_eq!(a.next(), [7; 14]);
            a.until(|stream| !stream.receive(&mut Vec::new()) && !stream.link());
            assert_eq!(peer.read(&mut [0]).expect("read"), 0, "hung up");
            let info = a.stream.info();
            assert!(info.counters.contains(&("malformed", 1)), "{info:?}");
            // The next one is served.
            let mut peer = UnixStream::connect(&path).expect("connects");
            peer.write_all(&bytes[..18]).expect("written");
            assert_eq!(a.next(), [7; 14]);
        }
    }

    #[test]
    fn a_peer_that_does_not_read_blocks_nobody() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        let mut a = End::new(Peer::Listen(path.clone()));
        let mut peer = UnixStream::connect(&path).expect("connects");
        a.until(|stream| stream.link());
        let frame = [9; 60_000];
        let mut sent = 0u64;
        while a.stream.send(&frame) == Sent::Taken {
            sent += 1;
        }
        assert_eq!(a.stream.send(&frame), Sent::Full);
        // It reads again: then there is room, and nothing is lost.
        let reader = std::thread::spawn(move || {
            let mut count = 0u64;
            let mut length = [0; LENGTH];
            while peer.read_exact(&mut length).is_ok() {
                assert_eq!(u32::from_be_bytes(length), 60_000);
                let mut got = [0; 60_000];
                peer.read_exact(&mut got).expect("a whole frame");
                assert!(got == frame);
                count += 1;
            }
            count
        });
        a.until(|stream| {
            stream.flush();
            stream.output.is_empty()
        });
        assert_eq!(a.stream.send(&frame), Sent::Taken);
        a.stream.flush();
        a.until(|stream| {
            stream.flush();
            stream.output.is_empty()
        });
        drop(a);
        assert_eq!(reader.join().expect("reads"), sent + 1);
    }
}
