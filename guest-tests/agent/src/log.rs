// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The kernel log: writing to it, and waiting for a record.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use guest_agent::LogLine;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;

/// Writes a line to the kernel log, so that it stands among the kernel's own; errors are ignored, for
/// there is nowhere to report them.
pub fn kernel(line: &str) {
    if let Ok(mut kmsg) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = kmsg.write_all(format!("<6>{line}\n").as_bytes());
    }
}

fn open() -> Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open("/dev/kmsg")
        .context("/dev/kmsg")
}

/// Reads the next record. `None`: none is there now.
fn next(kmsg: &mut File) -> Result<Option<LogLine>> {
    // One read gives one record; the kernel's limit is PRINTK_MESSAGE_MAX, 2048 bytes.
    let mut buffer = [0; 8192];
    loop {
        return match kmsg.read(&mut buffer) {
            Ok(n) => Ok(parse(&String::from_utf8_lossy(&buffer[..n]))),
            Err(err) if err.kind() == ErrorKind::WouldBlock => Ok(None),
            // EPIPE: records were overwritten before they were read; the next read goes on.
            Err(err) if err.kind() == ErrorKind::BrokenPipe => continue,
            Err(err) => Err(err.into()),
        };
    }
}

/// Parses `prio,seq,us,flags[,…];text` (Documentation/ABI/testing/dev-kmsg).
fn parse(record: &str) -> Option<LogLine> {
    let (head, rest) = record.split_once(';')?;
    let mut fields = head.split(',').skip(1);
    let seq = fields.next()?.parse().ok()?;
    let us = fields.next()?.parse().ok()?;
    // Lines after the first are key=value properties.
    let text = rest.lines().next().unwrap_or_default().to_owned();
    Some(LogLine { seq, us, text })
}

/// The sequence number after that of the last record.
pub fn mark() -> Result<u64> {
    Ok(since(0)?.last().map_or(0, |line| line.seq + 1))
}

/// All records from `first` on.
pub fn since(first: u64) -> Result<Vec<LogLine>> {
    let mut kmsg = open()?;
    let mut lines = Vec::new();
    while let Some(line) = next(&mut kmsg)? {
        if line.seq >= first {
            lines.push(line);
        }
    }
    Ok(lines)
}

/// Waits for a record from `since` on that contains `text`.
pub fn wait_for(text: &str, since: u64, timeout: Duration) -> Result<LogLine> {
    let end = Instant::now() + timeout;
    let mut kmsg = open()?;
    loop {
        while let Some(line) = next(&mut kmsg)? {
            if line.seq >= since && line.text.contains(text) {
                return Ok(line);
            }
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!(
                "no kernel log line with {text:?} within {} ms",
                timeout.as_millis()
            );
        }
        let left = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let _ = poll(&mut [PollFd::new(&kmsg, PollFlags::IN)], Some(&left));
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn record() {
        let line =
            parse("6,339,5140900,-,x=1;hv_vmbus: Vmbus version:6.0\n SUBSYSTEM=x\n").unwrap();
        assert_eq!((line.seq, line.us), (339, 5_140_900));
        assert_eq!(line.text, "hv_vmbus: Vmbus version:6.0");
    }

    #[test]
    fn broken_records_are_skipped() {
        for record in ["", ";", "6;x", "6,a,b;x", "6,1;x"] {
            assert!(parse(record).is_none(), "{record:?}");
        }
    }
}
