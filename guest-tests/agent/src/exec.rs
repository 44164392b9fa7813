// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Running programs with a time limit.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use guest_agent::{Bytes, Output, MAX_DATA};
use rustix::process::{kill_process_group, Pid, Signal};

/// After the program's end, how long its pipes may stay open (a child of its own may hold them).
const DRAIN: Duration = Duration::from_secs(1);

/// A program on its way.
pub struct Running {
    pub pid: u32,
    events: Sender<Event>,
    done: Receiver<Result<Output>>,
}

/// What the supervisor of a program waits for, besides the time limit.
enum Event {
    Ended(std::io::Result<ExitStatus>),
    Kill,
}

impl Running {
    /// Waits for the end, at the latest when the time limit of [`start`] has passed.
    pub fn wait(self) -> Result<Output> {
        self.done
            .recv()
            .context("the watcher of the program died")?
    }

    /// Kills it now and collects what it wrote.
    pub fn kill(self) -> Result<Output> {
        let _ = self.events.send(Event::Kill);
        self.wait()
    }
}

/// Starts `argv` in a process group of its own, with an empty standard input.
pub fn start(argv: &[String], timeout: Duration) -> Result<Running> {
    let Some((program, args)) = argv.split_first() else {
        bail!("empty argv");
    };
    let begin = Instant::now();
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| program.clone())?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let pid = child.id();
    let (events, inbox) = mpsc::channel();
    let (done_tx, done) = mpsc::channel();
    let ended = events.clone();
    thread::spawn(move || {
        let _ = done_tx.send(supervise(
            child, ended, &inbox, begin, timeout, stdout, stderr,
        ));
    });
    Ok(Running { pid, events, done })
}

/// Waits for the child, kills its group when the time is up or when told so.
fn supervise(
    mut child: Child,
    ended: Sender<Event>,
    inbox: &Receiver<Event>,
    begin: Instant,
    timeout: Duration,
    stdout: Receiver<Vec<u8>>,
    stderr: Receiver<Vec<u8>>,
) -> Result<Output> {
    let group = Pid::from_child(&child);
    thread::spawn(move || {
        let _ = ended.send(Event::Ended(child.wait()));
    });
    let mut killed = false;
    let status = loop {
        let event = if killed {
            inbox.recv().context("the waiter of the program died")?
        } else {
            let left = timeout.saturating_sub(begin.elapsed());
            // The only error is that the time is up: this thread's caller holds a sender.
            inbox.recv_timeout(left).unwrap_or(Event::Kill)
        };
        match event {
            Event::Ended(status) => break status.context("wait")?,
            Event::Kill => {
                killed = true;
                let _ = kill_process_group(group, Signal::KILL);
            }
        }
    };
    let elapsed_us = begin.elapsed().as_micros() as u64;
    let mut truncated = false;
    let mut take = |pipe: Receiver<Vec<u8>>| {
        let end = Instant::now() + DRAIN;
        let mut all = Vec::new();
        while let Ok(part) = pipe.recv_timeout(end.saturating_duration_since(Instant::now())) {
            all.extend_from_slice(&part);
        }
        truncated |= all.len() > MAX_DATA;
        all.truncate(MAX_DATA);
        Bytes(all)
    };
    let (stdout, stderr) = (take(stdout), take(stderr));
    Ok(Output {
        rc: status.code(),
        signal: status.signal(),
        killed,
        stdout,
        stderr,
        truncated,
        elapsed_us,
    })
}

/// Reads a pipe to its end on a thread of its own. What exceeds the limit by more than a buffer is
/// read and dropped, so that the program does not block.
fn drain(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (tx, rx) = mpsc::channel();
    thread::spawn(move || {
        let Some(mut pipe) = pipe else { return };
        let mut buffer = [0; 4096];
        let mut kept = 0;
        while let Ok(n @ 1..) = pipe.read(&mut buffer) {
            if kept <= MAX_DATA {
                kept += n;
                let _ = tx.send(buffer[..n].to_vec());
            }
        }
    });
    rx
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, timeout: Duration) -> Output {
        start(&["sh".into(), "-c".into(), script.into()], timeout)
            .unwrap()
            .wait()
            .unwrap()
    }

    #[test]
    fn output_and_status() {
        let out = sh("echo a; echo b >&2; exit 3", Duration::from_secs(10));
        assert_eq!((out.rc, out.killed), (Some(3), false));
        assert_eq!(
            (out.stdout.text(), out.stderr.text()),
            ("a\n".into(), "b\n".into())
        );
    }

    #[test]
    fn the_group_dies_when_time_is_up() {
        let begin = Instant::now();
        let out = sh("sleep 60 & echo started; wait", Duration::from_millis(300));
        assert!(out.killed && out.signal.is_some());
        assert_eq!(out.stdout.text(), "started\n");
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn endless_output_is_cut() {
        let out = sh("head -c 3000000 /dev/zero", Duration::from_secs(20));
        assert!(out.truncated && !out.killed);
        assert_eq!(out.stdout.0.len(), MAX_DATA);
    }

    #[test]
    fn missing_program_is_an_error() {
        assert!(start(&["/no/such/program".into()], Duration::from_secs(1)).is_err());
        assert!(start(&[], Duration::from_secs(1)).is_err());
    }
}
