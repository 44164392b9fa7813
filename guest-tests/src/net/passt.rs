// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! passt, which joins a guest's frames with this machine's sockets. It answers DHCP, DHCPv6 and router solicitation, needs no
//! privilege, and makes no interface.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};

use crate::vm::SOON;

/// The address that passt gives to the guest by DHCP.
pub const GUEST: &str = "10.0.2.15";

/// The guest's router. A connection to it is one to this machine's loopback.
pub const GATEWAY: &str = "10.0.2.2";

/// What the guest's addresses by SLAAC begin with.
pub const PREFIX6: &str = "fd00:2::";

/// The router's address in IPv6; this machine's loopback as well.
pub const GATEWAY6: &str = "fd00:2::2";

/// A passt process. It is killed when this is dropped.
pub struct Passt {
    child: Child,
    socket: PathBuf,
}

impl Passt {
    /// Starts it with its socket and its log in `dir`, for tests: the guest gets no name servers.
    ///
    /// # Errors
    /// passt's own words.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, "passt", &["--dns", "none", "--search", "none"])
    }

    /// Starts it with its socket and its log in `dir` under `name`, and waits until the socket is there. `forward` are ports of
    /// this machine's loopback that are the guest's, such as `8022:22`. The guest gets this machine's name servers.
    ///
    /// # Errors
    /// passt's own words.
    pub fn start_for_user(dir: &Path, name: &str, forward: &[String]) -> Result<Self> {
        let ports: Vec<String> = forward
            .iter()
            .map(|ports| format!("127.0.0.1/{ports}"))
            .collect();
        let mut more = Vec::new();
        for ports in &ports {
            more.extend(["--tcp-ports", ports.as_str()]);
        }
        Self::start_with(dir, name, &more)
    }

    fn start_with(dir: &Path, name: &str, more: &[&str]) -> Result<Self> {
        let socket = dir.join(format!("{name}.sock"));
        let log = dir.join(format!("{name}.log"));
        let output = fs::File::create(&log).with_context(|| log.display().to_string())?;
        let mut command = Command::new("setpriv");
        command
            // It must not survive a test program that was killed.
            .args(["--pdeathsig", "KILL", "--", "passt", "--foreground"])
            .arg("--socket")
            .arg(&socket)
            .args(["--address", GUEST, "--netmask", "24", "--gateway", GATEWAY])
            .args(["--map-host-loopback", GATEWAY])
            .args(["--address", &format!("{PREFIX6}15"), "--gateway", GATEWAY6])
            .args(["--map-host-loopback", GATEWAY6])
            .args(["--mac-addr", "52:55:0a:00:02:02"])
            .args(more);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("cannot start setpriv (package util-linux)")?;
        let end = Instant::now() + SOON;
        while !socket.exists() {
            if let Some(status) = child.try_wait()? {
                bail!(
                    "passt ended ({}): {}",
                    status.code().map_or_else(
                        || format!("signal {:?}", status.signal()),
                        |rc| rc.to_string()
                    ),
                    fs::read_to_string(&log).unwrap_or_default().trim()
                );
            }
            ensure!(Instant::now() < end, "passt made no socket");
            // Its socket is no event of this process.
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { child, socket })
    }

    /// Where the host connects to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
