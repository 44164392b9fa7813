// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A driver at the other end of a socket that keeps messages apart, as the device does.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};

/// The daemon's end, and the driver's.
pub fn device() -> (File, Driver) {
    let flags = SocketFlags::CLOEXEC;
    let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    (a.into(), Driver(b.into()))
}

/// What the driver does.
pub struct Driver(File);

impl Driver {
    /// Hands a message to the daemon.
    pub fn send(&mut self, message: &[u8]) {
        assert_eq!(self.0.write(message).unwrap(), message.len());
    }

    /// The daemon's next message; none within some seconds is a failure.
    pub fn receive(&mut self) -> Vec<u8> {
        assert!(
            self.waiting(Duration::from_secs(30)),
            "the daemon is silent"
        );
        let mut buffer = vec![0; 20_000];
        let length = self.0.read(&mut buffer).unwrap();
        buffer.truncate(length);
        buffer
    }

    /// Whether there is a message within `limit`.
    pub fn waiting(&self, limit: Duration) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN)];
        let limit = Timespec::try_from(limit).unwrap();
        poll(&mut fds, Some(&limit)).unwrap() != 0
    }

    /// Sends a request and waits for the answer.
    pub fn ask(&mut self, message: &[u8]) -> Vec<u8> {
        self.send(message);
        self.receive()
    }
}
