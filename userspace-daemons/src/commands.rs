// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Running other programs with a time limit: network managers and hooks.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use log::warn;
use nix::sys::signal::SigSet;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::pipe::{pipe_with, PipeFlags};
use rustix::process::{kill_process_group, pidfd_open, Pid, PidfdFlags, Signal};

/// Output that is kept, in bytes; the rest is read and thrown away.
const MAX_OUTPUT: usize = 16 * 1024;
/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this code.
    Exited(i32),
    /// By a signal that was not ours.
    Killed(i32),
    /// It took too long, and was killed with all that it had started and kept in its process group.
    TimedOut,
    /// It was killed since it is no longer of use.
    Aborted,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Killed(signal) => write!(f, "killed by signal {signal}"),
            Self::TimedOut => f.write_str("took too long and was killed"),
            Self::Aborted => f.write_str("was killed: no longer wanted"),
        }
    }
}

/// What a program did.
#[derive(Clone, Debug)]
pub struct Done {
    /// How it ended.
    pub outcome: Outcome,
    /// The start of what it wrote to stdout and stderr.
    pub output: String,
}

impl Done {
    /// The last line of the output, where programs say what went wrong.
    #[must_use]
    pub fn last_line(&self) -> &str {
        self.output.lines().last().unwrap_or_default()
    }
}

/// Whether nobody but root (and we, where we are not root) can have written this file or directory: programs that others can write are
/// not run. What is not there is not worth a word in the log.
#[must_use]
pub fn trusted(path: &Path) -> bool {
    let Ok(metadata) = fs::metadata(path) else {
        return false;
    };
    let mine = rustix::process::geteuid().as_raw();
    let safe = (metadata.uid() == 0 || metadata.uid() == mine) && metadata.mode() & 0o022 == 0;
    if !safe {
        warn!(
            "{} is ignored: others than root can write to it",
            path.display()
        );
    }
    safe
}

/// Runs `program`, in a process group of its own, for at most `limit`; ends it when `abort` becomes readable.
///
/// # Errors
///
/// Of starting it.
pub fn run(
    program: &Path,
    arguments: &[impl AsRef<OsStr>],
    environment: &[(&str, &str)],
    limit: Duration,
    abort: Option<BorrowedFd<'_>>,
) -> io::Result<Done> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(write.try_clone()?)
        .stderr(write)
        .process_group(0);
    unblock_signals(&mut command);
    let mut child = command.spawn()?;
    // The command holds the pipe's write end, which would keep its read end from ever ending.
    drop(command);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
    // The child is not reaped yet, so that the number is still its own.
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let mut text = Vec::new();

    let mut verdict = None;
    let mut deadline = Instant::now() + limit;
    // Until its end nobody has to look at the pipe any more.
    let mut open = true;
    loop {
        let output = open.then(|| read.as_fd());
        match wait(
            &pidfd,
            output,
            abort.filter(|_| verdict.is_none()),
            deadline,
        ) {
            Waited::Exited => break,
            Waited::Output => {
                open = drain(&read, &mut text);
                continue;
            }
            Waited::Timeout if verdict.is_some() => {
                let _ = kill_process_group(pid, Signal::KILL);
                deadline = Instant::now() + GRACE;
                continue;
            }
            Waited::Timeout => verdict = Some(Outcome::TimedOut),
            Waited::Abort => verdict = Some(Outcome::Aborted),
        }
        let _ = kill_process_group(pid, Signal::TERM);
        deadline = Instant::now() + GRACE;
    }
    // Its own children do not outlive a program that was killed.
    if verdict.is_some() {
        let _ = kill_process_group(pid, Signal::KILL);
    }
    let status = child.wait()?;
    drain(&read, &mut text);
    Ok(Done {
        outcome: verdict.unwrap_or_else(|| outcome(status)),
        output: String::from_utf8_lossy(&text).trim_end().to_owned(),
    })
}

fn outcome(status: ExitStatus) -> Outcome {
    match status.code() {
        Some(code) => Outcome::Exited(code),
        None => Outcome::Killed(status.signal().unwrap_or_default()),
    }
}

enum Waited {
    Exited,
    Output,
    Abort,
    Timeout,
}

fn wait(
    pidfd: &OwnedFd,
    output: Option<BorrowedFd<'_>>,
    abort: Option<BorrowedFd<'_>>,
    deadline: Instant,
) -> Waited {
    // A negative descriptor would do for those that are not wanted, but is not to be had safely.
    let mut fds = vec![(Waited::Exited, PollFd::new(pidfd, PollFlags::IN))];
    let more = [(Waited::Abort, abort), (Waited::Output, output)];
    fds.extend(
        more.into_iter()
            .filter_map(|(what, fd)| Some((what, PollFd::from_borrowed_fd(fd?, PollFlags::IN)))),
    );
    let (whats, mut fds): (Vec<Waited>, Vec<PollFd<'_>>) = fds.into_iter().unzip();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
            Err(Errno::INTR) => {}
            Ok(0) | Err(_) => return Waited::Timeout,
            Ok(_) => break,
        }
    }
    let seen = fds.iter().map(|fd| !fd.revents().is_empty());
    let first = whats.into_iter().zip(seen).find(|(_, seen)| *seen);
    first.map_or(Waited::Timeout, |(what, _)| what)
}

/// Reads what is there. False: the end was reached.
fn drain(pipe: &OwnedFd, output: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(pipe.as_fd(), &mut buffer) {
            Ok(0) => return false,
            Ok(n) => {
                let room = MAX_OUTPUT.saturating_sub(output.len());
                output.extend_from_slice(&buffer[..n.min(room)]);
            }
            Err(Errno::INTR) => {}
            Err(_) => return true,
        }
    }
}

/// Has the command begin with no signal blocked. The daemons have SIGTERM blocked for their signalfd(2), and a child inherits that:
/// it could not be asked to end, nor could a service that it starts. In the child alone: a signal that waits for the daemon must
/// not end it here, before what it still has to run.
#[allow(unsafe_code)]
fn unblock_signals(command: &mut Command) {
    // SAFETY: sigprocmask(2) may be called between fork and exec, and nothing is allocated.
    unsafe { command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit_ms: u64) -> Done {
        let limit = Duration::from_millis(limit_ms);
        run(
            Path::new("/bin/sh"),
            &["-c", script],
            &[("X", "y")],
            limit,
            None,
        )
        .unwrap()
    }

    #[test]
    fn output_and_code() {
        let done = sh("echo $X; echo err >&2; exit 3", 20_000);
        assert_eq!(
            (done.outcome, done.output.as_str()),
            (Outcome::Exited(3), "y\nerr")
        );
        assert_eq!(done.last_line(), "err");
        assert_eq!(sh("kill -9 $$", 20_000).outcome, Outcome::Killed(9));
        assert!(run(Path::new("/nonexistent"), &[""; 0], &[], GRACE, None).is_err());
    }

    #[test]
    fn children_can_be_asked_to_end() {
        use nix::sys::signal::Signal::SIGTERM;
        let mut blocked = SigSet::empty();
        blocked.add(SIGTERM);
        blocked.thread_block().unwrap();
        let begin = Instant::now();
        let done = sh("exec sleep 100", 100);
        assert_eq!(done.outcome, Outcome::TimedOut);
        assert!(begin.elapsed() < GRACE, "it had to be killed");
        assert!(SigSet::thread_get_mask().unwrap().contains(SIGTERM));
    }

    #[test]
    fn a_signal_that_waits_does_not_end_the_daemon() {
        use nix::sys::signal::{raise, Signal::SIGTERM};
        let mut blocked = SigSet::empty();
        blocked.add(SIGTERM);
        blocked.thread_block().unwrap();
        raise(SIGTERM).unwrap();
        let done = sh("echo thawed", 20_000);
        assert_eq!(done.output.trim(), "thawed");
        assert_eq!(blocked.wait(), Ok(SIGTERM));
    }

    #[test]
    fn a_flood_of_output_is_bounded() {
        let done = sh("head -c 1000000 /dev/zero | tr '\\0' x", 20_000);
        assert_eq!(done.outcome, Outcome::Exited(0));
        assert_eq!(done.output.len(), MAX_OUTPUT);
    }

    #[test]
    fn what_hangs_is_killed() {
        let start = Instant::now();
        assert_eq!(sh("sleep 100", 100).outcome, Outcome::TimedOut);
        // Deaf to SIGTERM, with its output closed.
        let deaf = sh(
            "trap '' TERM; exec >&- 2>&-; while :; do sleep 0.1; done",
            100,
        );
        assert_eq!(deaf.outcome, Outcome::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn what_goes_on_in_the_background_is_not_waited_for() {
        let start = Instant::now();
        assert_eq!(sh("sleep 30 & echo x", 20_000).outcome, Outcome::Exited(0));
        assert!(start.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn an_abort_ends_it() {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(write);
        let limit = Duration::from_secs(60);
        let done = run(
            Path::new("/bin/sleep"),
            &["60"],
            &[],
            limit,
            Some(read.as_fd()),
        )
        .unwrap();
        assert_eq!(done.outcome, Outcome::Aborted);
    }
}
