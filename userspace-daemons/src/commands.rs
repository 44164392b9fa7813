// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Running other programs with a time limit: network managers and hooks.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
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

/// Links that are followed on the way to one program (Linux: `MAXSYMLINKS`).
const MAX_LINKS: usize = 40;
/// Programs that were warned of are kept in mind up to so many.
const MAX_WARNED: usize = 64;

/// Programs that are ignored, and that a warning has said so of.
static WARNED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Whether nobody but root (and we, where we are not root) can have written this file or directory: programs that others can write are
/// not run. Of a link, that goes for what it leads to and for every directory and further link on the way. What is not there is not
/// worth a word in the log; what is refused is worth one until it is mended.
#[must_use]
pub fn trusted(path: &Path) -> bool {
    let verdict = safe(path);
    let mut warned = WARNED.lock().unwrap_or_else(PoisonError::into_inner);
    match verdict {
        Ok(()) => {
            warned.remove(path);
            true
        }
        Err(culprit) => {
            if let Some(culprit) = culprit {
                if warned.len() < MAX_WARNED && warned.insert(path.to_owned()) {
                    warn!(
                        "{} is ignored: others than root can write to {}",
                        path.display(),
                        culprit.display()
                    );
                }
            }
            false
        }
    }
}

/// What is not ours: somebody else's, or writable for others.
fn exposed(metadata: &Metadata, mine: u32) -> bool {
    let owned = metadata.uid() == 0 || metadata.uid() == mine;
    // A link's mode means nothing; in a directory with the sticky bit only the owner can replace a file.
    let sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
    let writable = !metadata.is_symlink() && metadata.mode() & 0o022 != 0;
    !owned || writable && !sticky
}

/// As [`trusted`]. The error names what others can write to; `None`: there is no such file.
fn safe(path: &Path) -> Result<(), Option<PathBuf>> {
    let mine = rustix::process::geteuid().as_raw();
    let look = |path: &Path| fs::symlink_metadata(path).map_err(|_| None);
    let metadata = look(path)?;
    if !metadata.is_symlink() {
        // A sticky bit does not keep others from adding to a directory of programs.
        let open = metadata.mode() & 0o022 != 0;
        return match open || exposed(&metadata, mine) {
            true => Err(Some(path.to_owned())),
            false => Ok(()),
        };
    }
    // Step by step, as the kernel will: no step can then lead elsewhere later.
    let mut links = 0;
    let mut left: Vec<OsString> = Vec::new();
    let put = |left: &mut Vec<OsString>, path: &Path| {
        let parts: Vec<_> = path
            .components()
            .map(|c| c.as_os_str().to_owned())
            .collect();
        left.extend(parts.into_iter().rev());
    };
    put(&mut left, &std::path::absolute(path).map_err(|_| None)?);
    let mut at = PathBuf::new();
    while let Some(part) = left.pop() {
        match part.as_bytes() {
            b"." => continue,
            b".." => {
                at.pop();
                continue;
            }
            _ => {}
        }
        let next = at.join(&part);
        let metadata = look(&next)?;
        let last = left.is_empty() && !metadata.is_symlink();
        if exposed(&metadata, mine) || last && metadata.mode() & 0o022 != 0 {
            return Err(Some(next));
        }
        if metadata.is_symlink() {
            links += 1;
            if links > MAX_LINKS {
                return Err(None);
            }
            let target = fs::read_link(&next).map_err(|_| None)?;
            put(&mut left, &target);
        } else {
            at = next;
        }
    }
    Ok(())
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

    mod trust {
        use super::*;
        use std::os::unix::fs::{symlink, PermissionsExt};

        fn place() -> tempfile::TempDir {
            let place = tempfile::tempdir().unwrap();
            for (name, mode) in [("ours", 0o755), ("open", 0o777)] {
                fs::create_dir(place.path().join(name)).unwrap();
                let program = place.path().join(name).join("program");
                fs::write(&program, "").unwrap();
                chmod(&program, 0o755);
                chmod(&place.path().join(name), mode);
            }
            place
        }

        fn chmod(path: &Path, mode: u32) {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }

        #[test]
        fn links_lead_to_what_only_root_can_write() {
            let place = place();
            let at = |name: &str| place.path().join(name);
            symlink("ours/program", at("good")).unwrap();
            symlink(at("ours").join("program"), at("good-too")).unwrap();
            assert!(trusted(&at("good")) && trusted(&at("good-too")));
            // The file is root's; its directory is everybody's, who can put another file there.
            assert!(
                trusted(&at("open/program")),
                "its directory is another question"
            );
            symlink("open/program", at("bad")).unwrap();
            assert!(!trusted(&at("bad")));
            // A link to a link, which stands where others can change it.
            symlink("../ours/program", at("open/link")).unwrap();
            symlink("open/link", at("worse")).unwrap();
            assert!(!trusted(&at("worse")));
            // By way of a directory that is one.
            symlink("open", at("way")).unwrap();
            symlink("way/program", at("long")).unwrap();
            assert!(!trusted(&at("long")));
            symlink("loop", at("loop")).unwrap();
            assert!(!trusted(&at("loop")));
            chmod(&at("ours/program"), 0o775);
            assert!(!trusted(&at("good")));
        }

        #[test]
        fn a_warning_is_given_once_until_it_is_mended() {
            let place = place();
            let program = place.path().join("ours/program");
            let warned = || WARNED.lock().unwrap().contains(&program);
            assert!(trusted(&program) && !warned());
            chmod(&program, 0o777);
            for _ in 0..3 {
                assert!(!trusted(&program) && warned());
            }
            chmod(&program, 0o755);
            assert!(trusted(&program) && !warned());
            assert!(!trusted(Path::new("/nonexistent/program")));
        }
    }
}
