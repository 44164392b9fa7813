// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! passt, which connects a guest to the outside without privileges.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

/// Starts passt with these arguments on one end of a socket, and returns the other.
///
/// # Errors
/// There is no such program, or none can be started.
pub fn spawn(arguments: &[String]) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let child = Command::new("passt")
        .args(["--foreground", "--quiet", "--fd", "0"])
        .args(arguments)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()?;
    Ok((child, ours))
}
