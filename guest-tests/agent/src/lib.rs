// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The protocol between the test harness and the agent in the test guest.
//!
//! JSON lines over the guest's second serial port (ttyS1), in both directions. A request is
//! `{"id": N, "cmd": "NAME", …}`, its answer `{"id": N, "ok": {…}}` or `{"id": N, "err": "sentence"}`.
//! Requests are served concurrently: answers come in the order in which the work ends, and are
//! matched by `id`. The agent speaks first, with [`Hello`] as `{"hello": {…}}`, each time it starts.
//! A line that cannot be parsed is answered with `"id": null`.
#![forbid(unsafe_code)]

mod bytes;

pub use bytes::Bytes;

use serde::{Deserialize, Serialize};

/// Longest line the agent accepts, in bytes. Longer ones are skipped up to their newline.
pub const MAX_REQUEST: usize = 256 * 1024;

/// Most bytes of one output stream or file that an answer carries; the rest is cut and marked.
pub const MAX_DATA: usize = 2 * 1024 * 1024;

/// A request, as a line.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the harness; repeated in the answer.
    pub id: u64,
    /// What to do.
    #[serde(flatten)]
    pub cmd: Command,
}

/// An answer, as a line. Exactly one of `ok` and `err` is present.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// The request's id; null when the request could not be parsed.
    pub id: Option<u64>,
    /// Result, shaped by the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ok: Option<serde_json::Value>,
    /// Why it failed, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub err: Option<String>,
    /// Set only in the first line after a start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hello: Option<Hello>,
}

/// First words of the agent.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Hello {
    /// `uname -r` of the guest.
    pub kernel: String,
    /// Online CPUs.
    pub cpus: u32,
    /// The agent's process id.
    pub pid: u32,
    /// Time since the kernel started, in milliseconds (CLOCK_BOOTTIME).
    pub uptime_ms: u64,
}

/// What the agent can do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case")]
pub enum Command {
    /// Answers with [`Hello`].
    Ping,
    /// Answers with [`Stamps`].
    Time,
    /// Sets CLOCK_REALTIME. Answers with [`Stamps`] taken after it.
    SetTime {
        /// Nanoseconds since 1970-01-01 00:00:00 UTC.
        realtime_ns: u64,
    },
    /// Runs a program to its end and answers with [`Output`].
    Exec {
        /// Program and arguments. `["sh", "-c", …]` gives a shell.
        argv: Vec<String>,
        /// The program and its process group are killed after this many milliseconds.
        timeout_ms: u64,
    },
    /// Starts a program and answers at once with [`Spawned`]. Its output is kept for `Collect`.
    Spawn {
        /// As for `Exec`.
        argv: Vec<String>,
        /// As for `Exec`.
        timeout_ms: u64,
    },
    /// Waits for a spawned program and answers with [`Output`]; the handle is gone afterwards.
    Collect {
        /// From [`Spawned`].
        handle: u64,
        /// Kill it first instead of waiting for its own end.
        kill: bool,
    },
    /// Reads a file and answers with [`Bytes`], at most [`MAX_DATA`] of them: an answer that is shorter is at the end.
    Read {
        /// Absolute path.
        path: String,
        /// Where to begin.
        #[serde(default)]
        offset: u64,
    },
    /// Writes a file in one `write` call (as sysfs wants it). Answers with null.
    Write {
        /// Absolute path; created with mode 644 when it does not exist.
        path: String,
        /// Content.
        data: Bytes,
        /// Add to the end of the file instead of replacing its content.
        #[serde(default)]
        append: bool,
    },
    /// Lists a directory tree with the files' contents; answers with a list of [`Entry`], sorted by
    /// path. Symbolic links are not followed, except `path` itself.
    Tree {
        /// Absolute path.
        path: String,
        /// How many levels down (1: the directory's own entries).
        depth: u32,
    },
    /// Waits for a kernel log record that contains `text`; answers with its [`LogLine`]. Records from
    /// before the request count as well, from sequence number `since` on.
    Log {
        /// Plain text, not a pattern.
        text: String,
        /// First sequence number that counts (0: all that the kernel still holds).
        since: u64,
        /// Gives up after this many milliseconds.
        timeout_ms: u64,
    },
    /// The sequence number that the next kernel log record will have at least.
    LogMark,
    /// Answers with the list of [`LogLine`]s from sequence number `since` on.
    LogRead {
        /// As for `Log`.
        since: u64,
    },
    /// Starts to keep the kernel's uevents; answers with a handle for `Uevent`.
    UeventListen,
    /// Waits for an uevent of which one line is `line`; answers with its lines, such as `EVENT=hibernate`. Those before it
    /// are dropped.
    Uevent {
        /// From `UeventListen`.
        handle: u64,
        /// The whole line.
        line: String,
        /// Gives up after this many milliseconds.
        timeout_ms: u64,
    },
    /// Reads a PTP hardware clock; answers with nanoseconds since 1970.
    PtpTime {
        /// Such as `/dev/ptp0`.
        path: String,
    },
}

impl Command {
    /// The time after which it gives up, where it has one.
    pub fn timeout_ms(&mut self) -> Option<&mut u64> {
        match self {
            Self::Exec { timeout_ms, .. }
            | Self::Spawn { timeout_ms, .. }
            | Self::Log { timeout_ms, .. }
            | Self::Uevent { timeout_ms, .. } => Some(timeout_ms),
            _ => None,
        }
    }
}

/// Clocks of the guest, read one after another in the order of the fields.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Stamps {
    /// CLOCK_REALTIME in nanoseconds.
    pub realtime_ns: u64,
    /// CLOCK_MONOTONIC in nanoseconds.
    pub monotonic_ns: u64,
    /// CLOCK_BOOTTIME in nanoseconds.
    pub boottime_ns: u64,
}

/// How a program ended and what it wrote.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Output {
    /// Exit status; absent when a signal ended it.
    pub rc: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// It was killed because its time was up (or by `Collect` with `kill`).
    pub killed: bool,
    /// Standard output, cut at [`MAX_DATA`].
    pub stdout: Bytes,
    /// Standard error, cut at [`MAX_DATA`].
    pub stderr: Bytes,
    /// Something was cut.
    pub truncated: bool,
    /// From start to end, in microseconds.
    pub elapsed_us: u64,
}

/// Answer to `Spawn`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Spawned {
    /// For `Collect`.
    pub handle: u64,
    /// Process id in the guest.
    pub pid: u32,
}

/// One entry of a directory tree.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the listed directory.
    pub path: String,
    /// `file`, `dir`, `link` or `other`.
    pub kind: String,
    /// Permission bits (octal 0o644 and so on).
    pub mode: u32,
    /// A file's content, or a link's target. Absent for directories, for files that cannot be
    /// read, and beyond 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Bytes>,
    /// Why a file could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub err: Option<String>,
}

/// One record of the kernel log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogLine {
    /// Sequence number of the record.
    pub seq: u64,
    /// Time of the record on the kernel's clock since boot, in microseconds.
    pub us: u64,
    /// The text.
    pub text: String,
}

/// Arguments of the agent under its name `hv-io`, which prints an [`IoResult`].
pub const IO_USAGE: &str = "hv-io DEVICE read|write random|sequential BLOCK COUNT DEPTH";

/// Arguments of the agent under its name `hv-net`, which prints an [`IoResult`] too.
pub const NET_USAGE: &str =
    "hv-net udp-send|udp-receive|udp-echo|tcp-send|tcp-receive ADDRESS SIZE COUNT";

/// Datagrams that `hv-net` sends or receives before it waits for the other side.
pub const NET_BURST: u64 = 64;

/// Ports of the peer of `hv-net`, for UDP and TCP.
pub mod net_port {
    /// Sends datagrams back.
    pub const ECHO: u16 = 7;
    /// Takes; answers the last datagram of each burst with its first eight bytes, and the end of a connection with the
    /// number of bytes that came.
    pub const SINK: u16 = 9;
    /// Gives: a burst of datagrams of the size asked for, or as many bytes as asked for.
    pub const SOURCE: u16 = 19;
}

/// What a run of `hv-io` or `hv-net` did.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
pub struct IoResult {
    /// Requests made, each of one block.
    pub ios: u64,
    /// Bytes in all of them.
    pub bytes: u64,
    /// From the first request to the end of the last, in nanoseconds of the guest's clock.
    pub elapsed_ns: u64,
    /// The longest that a request took; of several threads the one that waited longest.
    #[serde(default)]
    pub longest_ns: u64,
}
