// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The kernel's uevents, as udev gets them.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::netlink::{SocketAddrNetlink, KOBJECT_UEVENT};
use rustix::net::{bind, recv, socket_with, AddressFamily, RecvFlags, SocketFlags, SocketType};

/// A socket on which the kernel queues uevents from now on.
pub fn listen() -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        flags,
        Some(KOBJECT_UEVENT),
    )
    .context("netlink")?;
    // Group 1 holds the kernel's own messages (lib/kobject_uevent.c).
    bind(&socket, &SocketAddrNetlink::new(0, 1)).context("bind to uevents")?;
    Ok(socket)
}

/// Waits for an uevent that has `line`.
pub fn wait_for(socket: &OwnedFd, line: &str, timeout: Duration) -> Result<Vec<String>> {
    let end = Instant::now() + timeout;
    // The kernel's limit is UEVENT_BUFFER_SIZE, 2048, and a header.
    let mut buffer = [0; 8192];
    loop {
        match recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((n, _)) => {
                let lines = parse(&buffer[..n.min(buffer.len())]);
                if lines.iter().any(|l| l == line) {
                    return Ok(lines);
                }
                continue;
            }
            Err(Errno::AGAIN) => {}
            Err(Errno::INTR) => continue,
            Err(err) => return Err(err).context("uevents"),
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("no uevent with {line:?} within {} ms", timeout.as_millis());
        }
        let left = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&left));
    }
}

/// `action@path`, then `KEY=value` lines, each ended by a zero byte.
fn parse(message: &[u8]) -> Vec<String> {
    message
        .split(|&byte| byte == 0)
        .filter(|line| !line.is_empty())
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn lines_end_with_zero_bytes() {
        assert_eq!(
            parse(b"change@/devices/x\0ACTION=change\0EVENT=hibernate\0")[2],
            "EVENT=hibernate"
        );
        assert!(parse(b"\0\0").is_empty());
    }
}
