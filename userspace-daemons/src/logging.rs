// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The `log` facade's back end: the journal, a terminal, or syslog.
//!
//! - Started by systemd (`JOURNAL_STREAM` is set): lines on stderr with the priority in front (`<4>`, sd-daemon(3)).
//! - In the foreground: plain lines on stderr.
//! - In the background: datagrams to `/dev/log`.
//!
//! While file systems are frozen nothing may be logged: the log's reader may wait for a frozen disk, and its full
//! socket would then make us wait for it. [`hold`] keeps lines in memory until its guard is dropped.

use std::collections::VecDeque;
use std::env;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::process;
use std::sync::{Mutex, MutexGuard, PoisonError};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Lines kept while the log is held; older ones are dropped and counted.
const HELD_LINES: usize = 500;

/// Longest line, in bytes, so that nonsense from a peer cannot fill the log.
const MAX_LINE: usize = 1024;

/// Where lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// stderr, with sd-daemon priorities if it is the journal's.
    Stderr,
    /// syslog's socket, under the program's name.
    Syslog,
}

struct State {
    out: Out,
    holds: usize,
    held: VecDeque<(Level, String)>,
    dropped: usize,
}

enum Out {
    Plain,
    Journal,
    Syslog {
        tag: &'static str,
        socket: Option<UnixDatagram>,
    },
}

static STATE: Mutex<State> = Mutex::new(State {
    out: Out::Plain,
    holds: 0,
    held: VecDeque::new(),
    dropped: 0,
});

struct Sink;

/// Starts logging. Called again, it only changes target and level.
pub fn init(tag: &'static str, target: Target, debug: bool) {
    state().out = match target {
        Target::Stderr if env::var_os("JOURNAL_STREAM").is_some() => Out::Journal,
        Target::Stderr => Out::Plain,
        Target::Syslog => Out::Syslog { tag, socket: None },
    };
    let _ = log::set_logger(&Sink);
    log::set_max_level(if debug {
        LevelFilter::Debug
    } else {
        LevelFilter::Info
    });
}

/// Keeps lines in memory until the guard is dropped. May be nested.
#[must_use]
pub fn hold() -> Held {
    state().holds += 1;
    Held(())
}

/// Guard of [`hold`]; dropping the last one writes the lines.
#[derive(Debug)]
pub struct Held(());

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = state();
        state.holds -= 1;
        if state.holds == 0 {
            let dropped = std::mem::take(&mut state.dropped);
            for (level, line) in std::mem::take(&mut state.held) {
                state.out.write(level, &line);
            }
            if dropped != 0 {
                let line = format!("{dropped} lines were not kept while logging was held");
                state.out.write(Level::Warn, &line);
            }
        }
    }
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log for Sink {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = clean(&record.args().to_string());
        let mut state = state();
        if state.holds == 0 {
            state.out.write(record.level(), &line);
        } else {
            if state.held.len() == HELD_LINES {
                state.held.pop_front();
                state.dropped += 1;
            }
            state.held.push_back((record.level(), line));
        }
    }

    fn flush(&self) {}
}

impl Out {
    /// Writes a line. A log that cannot be written to is no reason to stop serving.
    fn write(&mut self, level: Level, line: &str) {
        let priority = priority(level);
        match self {
            Self::Plain => drop(writeln!(io::stderr(), "{line}")),
            Self::Journal => drop(writeln!(io::stderr(), "<{priority}>{line}")),
            Self::Syslog { tag, socket } => {
                // Facility 3, daemon. The local form of RFC 3164 leaves time and host to syslogd.
                let text = format!("<{}>{tag}[{}]: {line}", 3 * 8 + priority, process::id());
                if socket
                    .as_ref()
                    .is_none_or(|s| s.send(text.as_bytes()).is_err())
                {
                    *socket = connect();
                    if let Some(socket) = socket {
                        let _ = socket.send(text.as_bytes());
                    }
                }
            }
        }
    }
}

fn connect() -> Option<UnixDatagram> {
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect("/dev/log").ok()?;
    // A syslogd that is stuck must not make us stuck.
    socket.set_nonblocking(true).ok()?;
    Some(socket)
}

/// syslog's number for a level.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// One line without control characters: hosts put names of files and keys into what we log.
fn clean(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(MAX_LINE));
    for c in text.chars() {
        if line.len() >= MAX_LINE {
            line.push('…');
            break;
        }
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_one_line_and_bounded() {
        assert_eq!(clean("a\nb\x1b[2J"), "a\\nb\\u{1b}[2J");
        assert!(clean(&"é".repeat(5000)).len() < MAX_LINE + 8);
    }

    #[test]
    fn held_lines_are_bounded_and_written_last() {
        init("test", Target::Syslog, false);
        let outer = hold();
        let inner = hold();
        for i in 0..HELD_LINES + 7 {
            Sink.log(
                &Record::builder()
                    .args(format_args!("line {i}"))
                    .level(Level::Debug)
                    .build(),
            );
        }
        assert!(state().held.len() == HELD_LINES && state().dropped >= 7);
        drop(inner);
        assert!(!state().held.is_empty());
        drop(outer);
        assert!(state().held.is_empty());
    }
}
