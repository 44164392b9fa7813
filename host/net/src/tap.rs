// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A TAP device: the guest as a machine on an interface of this one.
//!
//! Needs CAP_NET_ADMIN, or a device made before for this user (`ip tuntap add dev NAME mode tap user USER`). Its address, and
//! whether it is up, are the user's business.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{epoll, eventfd, EventfdFlags};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::stream::MAX_FRAME;
use crate::{Backend, BackendInfo, Sent, Waker};

/// What worker and watcher share.
struct Shared {
    device: SyncDevice,
    /// Written to when the back end is dropped.
    stop: OwnedFd,
    stopping: AtomicBool,
    /// The device is still there.
    link: AtomicBool,
}

/// See the module.
pub struct Tap {
    name: String,
    shared: Option<Arc<Shared>>,
    watcher: Option<JoinHandle<()>>,
    buffer: Vec<u8>,
    sent: u64,
    received: u64,
    dropped: u64,
}

impl Tap {
    /// The interface `name`, which is made when there is none.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            shared: None,
            watcher: None,
            buffer: vec![0; MAX_FRAME],
            sent: 0,
            received: 0,
            dropped: 0,
        }
    }

    fn open(&self) -> io::Result<Arc<Shared>> {
        let device = DeviceBuilder::new()
            .name(&self.name)
            .layer(Layer::L2)
            // Up or down as it was.
            .inherit_enable_state()
            .build_sync()?;
        device.set_nonblocking(true)?;
        Ok(Arc::new(Shared {
            device,
            stop: eventfd(0, EventfdFlags::CLOEXEC)?,
            stopping: AtomicBool::new(false),
            link: AtomicBool::new(true),
        }))
    }
}

impl Shared {
    /// Calls the waker each time that the kernel has something new to say of the device.
    fn watch(&self, waker: &Waker) -> io::Result<()> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&epoll, self.device.as_fd(), data, flags)?;
        epoll::add(&epoll, &self.stop, data, epoll::EventFlags::IN)?;
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data,
        }; 2];
        loop {
            match epoll::wait(&epoll, &mut events[..], None) {
                Ok(_) if self.stopping.load(Ordering::Acquire) => return Ok(()),
                Ok(count) => {
                    let gone = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
                    if events.iter().take(count).any(|event| {
                        let flags = event.flags;
                        flags.intersects(gone)
                    }) {
                        // The interface was removed.
                        self.link.store(false, Ordering::Release);
                        waker();
                        return Ok(());
                    }
                    waker();
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Backend for Tap {
    fn start(&mut self, waker: Waker) -> Result<(), String> {
        let fail = |e: io::Error| format!("TAP device '{}': {e}", self.name);
        let shared = self.open().map_err(fail)?;
        let watched = shared.clone();
        let watcher = std::thread::Builder::new()
            .name("hv-net-tap".into())
            .spawn(move || {
                if let Err(error) = watched.watch(&waker) {
                    tracing::warn!(%error, "TAP device");
                }
            })
            .map_err(fail)?;
        (self.shared, self.watcher) = (Some(shared), Some(watcher));
        Ok(())
    }

    fn send(&mut self, frame: &[u8]) -> Sent {
        let Some(shared) = &self.shared else {
            return Sent::Dropped;
        };
        match shared.device.send(frame) {
            Ok(_) => {
                self.sent += 1;
                Sent::Taken
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Sent::Full,
            // The interface is down, or gone.
            Err(_) => {
                self.dropped += 1;
                Sent::Dropped
            }
        }
    }

    fn receive(&mut self, frame: &mut Vec<u8>) -> bool {
        frame.clear();
        let Some(shared) = &self.shared else {
            return false;
        };
        let Ok(len) = shared.device.recv(&mut self.buffer) else {
            return false;
        };
        frame.extend_from_slice(self.buffer.get(..len).unwrap_or(&[]));
        self.received += 1;
        true
    }

    fn link(&self) -> bool {
        self.shared
            .as_ref()
            .is_some_and(|shared| shared.link.load(Ordering::Acquire))
    }

    fn info(&self) -> BackendInfo {
        BackendInfo {
            kind: format!("tap;{}", self.name),
            counters: vec![
                ("sent", self.sent),
                ("received", self.received),
                ("dropped", self.dropped),
            ],
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.stopping.store(true, Ordering::Release);
            // It fails when 2^64 have not been looked at.
            let _ = rustix::io::write(&shared.stop, &1u64.to_ne_bytes());
        }
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::sync::mpsc;
    use std::time::Duration;

    const INSIDE: &str = "HV_NET_TAP_INSIDE";

    /// In a network of its own, where this needs no privileges.
    #[test]
    fn frames_in_and_out() {
        if std::env::var_os(INSIDE).is_none() {
            let test = std::env::current_exe().expect("this program");
            let status = Command::new("unshare")
                .args(["--user", "--map-root-user", "--net", "--"])
                .arg(test)
                .arg("frames_in_and_out")
                .env(INSIDE, "1")
                .status();
            assert!(status.expect("unshare runs").success());
            return;
        }
        let (sender, wakes) = mpsc::channel();
        let mut tap = Tap::new("hvt0");
        let waker = move || {
            let _ = sender.send(());
        };
        tap.start(Arc::new(waker)).expect("a device");
        let shared = tap.shared.clone().expect("a device");
        shared.device.enabled(true).expect("up");
        assert!(tap.link());
        // The interface says of its own that it has an IPv6 address.
        let mut frame = Vec::new();
        while !(tap.receive(&mut frame) && frame[12..14] == [0x86, 0xdd]) {
            if frame.is_empty() {
                let timeout = Duration::from_secs(20);
                wakes.recv_timeout(timeout).expect("a wake");
            }
        }
        // Bytes and packets received, as the kernel counts them for the interface.
        let counted = || {
            let text = std::fs::read_to_string("/proc/self/net/dev").expect("counters");
            let line = text
                .lines()
                .find_map(|line| line.trim().strip_prefix("hvt0:"));
            let line = line.expect("the interface").to_owned();
            line.split_whitespace()
                .take(2)
                .map(|word| word.parse::<u64>().expect("a number"))
                .collect::<Vec<_>>()
        };
        let before = counted();
        assert_eq!(tap.send(&[2; 100]), Sent::Taken);
        // The kernel takes it in the call.
        assert_eq!(counted()[1], before[1] + 1);
        shared.device.enabled(false).expect("down");
        assert_eq!(tap.send(&[2; 100]), Sent::Dropped);
    }
}
