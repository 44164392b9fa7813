// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What the programs have in common: options, going to the background, signals, telling systemd.

use std::env;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use log::info;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::logging::{self, Target};

/// Options of all daemons.
#[derive(clap::Args, Clone, Debug)]
pub struct Common {
    /// Stay in the foreground and log to stderr (as systemd wants it)
    #[arg(short = 'n', long, visible_alias = "no-daemon", global = true)]
    pub foreground: bool,
    /// Log each request
    #[arg(short, long, global = true)]
    pub debug: bool,
}

/// Set in the environment of the process that goes on in the background.
const BACKGROUND: &str = "HV_DAEMON_BACKGROUND";
/// What it writes to its stdout when it is ready.
const READY: &[u8] = b"ready";

/// A daemon that runs: dropped, or [`ready`](Self::ready) called, it lets the starter go.
#[derive(Debug)]
pub struct Running {
    /// Readable when the daemon is to end (SIGTERM, SIGINT).
    pub signals: SignalFd,
    /// A process waits until we are ready; how to log from then on.
    starter: Option<(&'static str, bool)>,
}

/// Starts a daemon: to the background unless told otherwise, logging, signals.
///
/// # Errors
///
/// The exit code with which the process has to end at once: in the starter, that of the daemon, as far as it came.
pub fn start(tag: &'static str, common: &Common) -> Result<Running, ExitCode> {
    let child = env::var_os(BACKGROUND).is_some();
    if !common.foreground && !child {
        return Err(background().unwrap_or_else(|error| {
            eprintln!("{tag}: cannot go to the background: {error}");
            ExitCode::FAILURE
        }));
    }
    if child {
        // A session of its own. It fails only for a leader of one, which has what it wants.
        let _ = rustix::process::setsid();
        // Nobody else's child shall believe that it is the daemon.
        env::remove_var(BACKGROUND);
    }
    let target = if child {
        Target::Syslog
    } else {
        Target::Stderr
    };
    logging::init(tag, target, common.debug);
    let signals = signals().map_err(|error| {
        eprintln!("{tag}: cannot take signals: {error}");
        ExitCode::FAILURE
    })?;
    info!("{tag} {} starting", env!("CARGO_PKG_VERSION"));
    Ok(Running {
        signals,
        starter: child.then_some((tag, common.debug)),
    })
}

impl Running {
    /// A daemon that no signal ends and nobody waits for: for tests, and for a service inside of another program.
    ///
    /// # Errors
    ///
    /// Of signalfd(2).
    pub fn embedded() -> io::Result<Self> {
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self {
            signals: SignalFd::with_flags(&SigSet::empty(), flags)?,
            starter: None,
        })
    }

    /// Tells the starter and systemd that the daemon serves.
    pub fn ready(&mut self, status: &str) {
        notify(&format!("READY=1\nSTATUS={status}"));
        if let Some((tag, debug)) = self.starter.take() {
            logging::init(tag, Target::Syslog, debug);
            let _ = rustix::io::write(rustix::stdio::stdout(), READY);
            detach_output();
        }
    }

    /// Whether a signal asks us to end.
    #[must_use]
    pub fn stop_asked(&self) -> bool {
        matches!(self.signals.read_signal(), Ok(Some(_)))
    }
}

/// Lets go of the terminal, or whatever stdout and stderr are.
pub fn detach_output() {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    if let Ok(null) = rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty()) {
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

/// Tells systemd about the daemon's state, if it wants to know (sd_notify(3)).
pub fn notify(state: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let bytes = path.as_bytes();
    let address = match bytes.first() {
        Some(b'@') => SocketAddr::from_abstract_name(&bytes[1..]),
        _ => SocketAddr::from_pathname(&path),
    };
    if let (Ok(address), Ok(socket)) = (address, UnixDatagram::unbound()) {
        let _ = socket.send_to_addr(state.as_bytes(), &address);
    }
}

/// Runs this program again as the daemon and waits until it is ready or has given up.
fn background() -> io::Result<ExitCode> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let mut child = Command::new("/proc/self/exe")
        .arg0(env::args_os().next().unwrap_or_default())
        .args(arguments)
        .env(BACKGROUND, "1")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(64).read_to_end(&mut said)?;
    }
    if said == READY {
        return Ok(ExitCode::SUCCESS);
    }
    let code = child.wait()?.code().unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// SIGTERM and SIGINT as a file descriptor. Programs that are run get an empty mask: `commands` sees to that.
fn signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.thread_block()?;
    Ok(SignalFd::with_flags(
        &set,
        SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
    )?)
}
