// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! iperf3 on this machine's loopback, for the guest's clients.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::{bail, Context, Result};
use serde::Deserialize;

use crate::vm::SOON;

/// An iperf3 server. It serves one client at a time, and is killed when this is dropped.
pub struct IperfServer {
    child: Child,
    port: u16,
}

impl IperfServer {
    /// Starts it on a free port and waits until it listens.
    ///
    /// # Errors
    /// iperf3's own words.
    pub fn start() -> Result<Self> {
        // A port that is free may be taken by someone else before iperf3 has it.
        const TRIES: u32 = 5;
        let mut last = String::new();
        for _ in 0..TRIES {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
                .local_addr()?
                .port();
            let mut child = Command::new("setpriv")
                // It must not survive a test program that was killed.
                .args([
                    "--pdeathsig",
                    "KILL",
                    "--",
                    "iperf3",
                    "--server",
                    "--forceflush",
                ])
                .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .context("cannot start setpriv (package util-linux)")?;
            let output = child.stdout.take().context("iperf3's output")?;
            let (tx, rx) = mpsc::channel();
            thread::spawn(move || {
                // Read to its end, so that it never waits for somebody to read.
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let _ = tx.send(line);
                }
            });
            loop {
                match rx.recv_timeout(SOON) {
                    Ok(line) if line.contains("Server listening on") => {
                        return Ok(Self { child, port });
                    }
                    Ok(line) => last = line,
                    Err(_) => break,
                }
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        bail!("iperf3 does not listen: {last}")
    }

    /// Where it listens on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for IperfServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `iperf3 --json` says at its end, as far as it is of interest here.
#[derive(Debug, Default, Deserialize)]
pub struct IperfReport {
    /// Sums over all streams.
    #[serde(default)]
    pub end: IperfEnd,
    /// Why it ended early.
    pub error: Option<String>,
}

/// The last part of [`IperfReport`].
#[derive(Debug, Default, Deserialize)]
pub struct IperfEnd {
    /// TCP, as the sender counted.
    pub sum_sent: Option<IperfSum>,
    /// TCP, as the receiver counted.
    pub sum_received: Option<IperfSum>,
    /// UDP.
    pub sum: Option<IperfSum>,
}

/// One sum of [`IperfEnd`].
#[derive(Debug, Default, Clone, Copy, Deserialize)]
pub struct IperfSum {
    /// Data of all streams.
    pub bytes: u64,
    /// By the time.
    pub bits_per_second: f64,
    /// UDP: datagrams that were sent.
    #[serde(default)]
    pub packets: u64,
    /// UDP: those that did not arrive.
    #[serde(default)]
    pub lost_packets: u64,
}

impl IperfReport {
    /// Reads it.
    ///
    /// # Errors
    /// When the text is none, or it tells of an error.
    pub fn parse(text: &str) -> Result<Self> {
        let report: Self =
            serde_json::from_str(text).with_context(|| format!("iperf3: {}", text.trim()))?;
        if let Some(error) = &report.error {
            bail!("iperf3: {error}");
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports() {
        let text = r#"{"start":{},"end":{"sum_sent":{"bytes":10,"bits_per_second":80.0,"retransmits":0},
            "sum_received":{"bytes":8,"bits_per_second":64.5}}}"#;
        let report = IperfReport::parse(text).unwrap();
        assert_eq!(report.end.sum_received.unwrap().bytes, 8);
        assert!(IperfReport::parse(r#"{"start":{},"end":{},"error":"no route"}"#).is_err());
        assert!(IperfReport::parse("iperf3: error").is_err());
    }
}
