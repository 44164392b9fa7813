// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The agent proper: reads requests from the serial port, serves each on a thread of its own.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{anyhow, Context, Result};
use guest_agent::{Answer, Command, Hello, Request, Spawned, Stamps, MAX_REQUEST};
use rustix::termios::{isatty, tcgetattr, tcsetattr, OptionalActions};
use rustix::time::{
    clock_gettime, clock_gettime_dynamic, clock_settime, ClockId, DynamicClockId, Timespec,
};
use serde_json::{json, Value};

use crate::exec::{self, Running};
use crate::{files, log, uevent};

/// Programs started by `Spawn` and not yet collected.
type Programs = Mutex<HashMap<u64, Running>>;

/// What outlives a request.
#[derive(Default)]
struct Kept {
    programs: Programs,
    listeners: Mutex<HashMap<u64, Arc<OwnedFd>>>,
}

static NEXT_HANDLE: AtomicU64 = AtomicU64::new(1);

/// Serves `tty` until it is closed.
pub fn run(tty: &str) -> Result<()> {
    let port = OpenOptions::new()
        .read(true)
        .write(true)
        .open(tty)
        .with_context(|| tty.to_owned())?;
    if isatty(&port) {
        let mut attributes = tcgetattr(&port).context("tcgetattr")?;
        attributes.make_raw();
        tcsetattr(&port, OptionalActions::Now, &attributes).context("tcsetattr")?;
    }
    let writer = Arc::new(Mutex::new(port.try_clone()?));
    let kept = Arc::new(Kept::default());
    // The first newline ends whatever the harness may have read from the port before.
    send(
        &writer,
        &Answer {
            hello: Some(hello()),
            ..Answer::default()
        },
    );
    let mut reader = BufReader::new(port);
    while let Some(line) = read_line(&mut reader)? {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match serde_json::from_slice::<Request>(&line) {
            Ok(request) => {
                let (writer, kept) = (writer.clone(), kept.clone());
                thread::spawn(move || {
                    let mut answer = Answer {
                        id: Some(request.id),
                        ..Answer::default()
                    };
                    match serve(request.cmd, &kept) {
                        Ok(value) => answer.ok = Some(value),
                        Err(err) => answer.err = Some(format!("{err:#}")),
                    }
                    send(&writer, &answer);
                });
            }
            Err(err) => {
                let id = serde_json::from_slice::<Value>(&line)
                    .ok()
                    .and_then(|value| value.get("id").and_then(Value::as_u64));
                let err = Some(format!("not a request: {err}"));
                send(
                    &writer,
                    &Answer {
                        id,
                        err,
                        ..Answer::default()
                    },
                );
            }
        }
    }
    Ok(())
}

/// Reads a line without its newline. Longer ones than [`MAX_REQUEST`] come back cut, so that they fail to
/// parse; the rest is skipped. `None`: the port was closed.
fn read_line(reader: &mut impl BufRead) -> Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    loop {
        let part = match reader.fill_buf() {
            Ok([]) => return Ok((!line.is_empty()).then_some(line)),
            Ok(part) => part,
            Err(err) if err.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(err) => return Err(err.into()),
        };
        let newline = part.iter().position(|&byte| byte == b'\n');
        let text = &part[..newline.unwrap_or(part.len())];
        let room = MAX_REQUEST.saturating_sub(line.len());
        line.extend_from_slice(&text[..text.len().min(room)]);
        let used = newline.map_or(part.len(), |at| at + 1);
        reader.consume(used);
        if newline.is_some() {
            return Ok(Some(line));
        }
    }
}

fn send(writer: &Mutex<File>, answer: &Answer) {
    let Ok(mut line) = serde_json::to_vec(answer) else {
        return;
    };
    line.push(b'\n');
    let mut port = writer.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(err) = port.write_all(&line) {
        log::kernel(&format!("guest-agent: write: {err}"));
    }
}

fn serve(command: Command, kept: &Kept) -> Result<Value> {
    let listeners = &kept.listeners;
    let lock = || kept.programs.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(match command {
        Command::Ping => json!(hello()),
        Command::Time => json!(stamps()),
        Command::SetTime { realtime_ns } => {
            let time = Timespec {
                tv_sec: (realtime_ns / 1_000_000_000) as i64,
                tv_nsec: (realtime_ns % 1_000_000_000) as i64,
            };
            clock_settime(ClockId::Realtime, time).context("clock_settime")?;
            json!(stamps())
        }
        Command::Exec { argv, timeout_ms } => {
            json!(exec::start(&argv, Duration::from_millis(timeout_ms))?.wait()?)
        }
        Command::Spawn { argv, timeout_ms } => {
            let running = exec::start(&argv, Duration::from_millis(timeout_ms))?;
            let handle = NEXT_HANDLE.fetch_add(1, Ordering::Relaxed);
            let pid = running.pid;
            lock().insert(handle, running);
            json!(Spawned { handle, pid })
        }
        Command::Collect { handle, kill } => {
            let running = lock()
                .remove(&handle)
                .ok_or_else(|| anyhow!("no program {handle}"))?;
            json!(if kill { running.kill() } else { running.wait() }?)
        }
        Command::Read { path, offset } => json!(files::read(&path, offset)?),
        Command::Write { path, data, append } => {
            files::write(&path, &data, append)?;
            Value::Null
        }
        Command::Tree { path, depth } => json!(files::tree(&path, depth)?),
        Command::Log {
            text,
            since,
            timeout_ms,
        } => {
            json!(log::wait_for(
                &text,
                since,
                Duration::from_millis(timeout_ms)
            )?)
        }
        Command::LogMark => json!(log::mark()?),
        Command::LogRead { since } => json!(log::since(since)?),
        Command::UeventListen => {
            let handle = NEXT_HANDLE.fetch_add(1, Ordering::Relaxed);
            listeners
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(handle, Arc::new(uevent::listen()?));
            json!(handle)
        }
        Command::Uevent {
            handle,
            line,
            timeout_ms,
        } => {
            let listener = listeners
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(&handle)
                .cloned();
            let listener = listener.ok_or_else(|| anyhow!("no listener {handle}"))?;
            json!(uevent::wait_for(
                &listener,
                &line,
                Duration::from_millis(timeout_ms)
            )?)
        }
        Command::PtpTime { path } => {
            let clock = File::open(&path).with_context(|| path.clone())?;
            let time =
                clock_gettime_dynamic(DynamicClockId::Dynamic(clock.as_fd())).context(path)?;
            json!((time.tv_sec as u64)
                .wrapping_mul(1_000_000_000)
                .wrapping_add(time.tv_nsec as u64))
        }
    })
}

fn hello() -> Hello {
    Hello {
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        cpus: thread::available_parallelism().map_or(1, |n| n.get() as u32),
        pid: std::process::id(),
        uptime_ms: nanoseconds(ClockId::Boottime) / 1_000_000,
    }
}

fn stamps() -> Stamps {
    Stamps {
        realtime_ns: nanoseconds(ClockId::Realtime),
        monotonic_ns: nanoseconds(ClockId::Monotonic),
        boottime_ns: nanoseconds(ClockId::Boottime),
    }
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    (time.tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_any_length() {
        let mut text = vec![b'x'; MAX_REQUEST + 5];
        text.extend_from_slice(b"\n{}\nlast");
        let mut reader = BufReader::with_capacity(100, &text[..]);
        assert_eq!(read_line(&mut reader).unwrap().unwrap().len(), MAX_REQUEST);
        assert_eq!(read_line(&mut reader).unwrap().unwrap(), b"{}");
        assert_eq!(read_line(&mut reader).unwrap().unwrap(), b"last");
        assert!(read_line(&mut reader).unwrap().is_none());
    }

    #[test]
    fn requests_parse() {
        let line = br#"{"id":3,"cmd":"exec","argv":["true"],"timeout_ms":5}"#;
        let request: Request = serde_json::from_slice(line).unwrap();
        assert!(matches!(request.cmd, Command::Exec { .. }));
        assert!(serde_json::from_slice::<Request>(br#"{"id":3,"cmd":"format_disk"}"#).is_err());
    }

    #[test]
    fn spawned_programs_are_collected_once() {
        let kept = Kept::default();
        let argv = vec!["sleep".to_owned(), "60".to_owned()];
        let value = serve(
            Command::Spawn {
                argv,
                timeout_ms: 60_000,
            },
            &kept,
        )
        .unwrap();
        let handle = value["handle"].as_u64().unwrap();
        let value = serve(Command::Collect { handle, kill: true }, &kept).unwrap();
        assert_eq!(value["killed"], true);
        assert!(serve(
            Command::Collect {
                handle,
                kill: false
            },
            &kept
        )
        .is_err());
    }
}
