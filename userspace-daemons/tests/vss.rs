// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The VSS daemon as the driver sees it, with file systems that only pretend to freeze, and the real watchdog process.

mod common;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::{device, Driver};
use hv_daemons::device::End;
use hv_daemons::program::Running;
use hv_daemons::vss::watchdog::Watchdog;
use hv_daemons::vss::{Daemon, Freezer, Hooks, Settings};
use rustix::fs::{statx, AtFlags, StatxFlags};
use rustix::io::Errno;
use vmbus_proto::ic::vss::{DeviceMessage, Operation, REGISTERED};
use vmbus_proto::ic::Status;
use zerocopy::{FromBytes, IntoBytes};

/// Writes down what is frozen and thawed.
#[derive(Clone, Default)]
struct Pretence {
    calls: Arc<Mutex<Vec<String>>>,
    names: Arc<Mutex<HashMap<u64, String>>>,
    errors: Arc<Mutex<HashMap<String, Errno>>>,
}

impl Pretence {
    fn note(&self, what: &str, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let inode = rustix::fs::fstat(fd)?.st_ino;
        let name = self.names.lock().unwrap()[&inode].clone();
        let error = self.errors.lock().unwrap().get(&name).copied();
        self.calls.lock().unwrap().push(format!("{what} {name}"));
        match error {
            Some(error) if what == "freeze" => Err(error),
            _ => Ok(()),
        }
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

impl Freezer for Pretence {
    fn freeze(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        self.note("freeze", fd)
    }

    fn thaw(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        self.note("thaw", fd)
    }
}

struct Guest {
    root: tempfile::TempDir,
    pretence: Pretence,
    driver: Driver,
    daemon: JoinHandle<End>,
}

/// The watchdog is the real process: our program's. It thaws by real calls, which the scratch directories refuse.
fn watchdog() -> io::Result<Watchdog> {
    Watchdog::start_program(
        Path::new(env!("CARGO_BIN_EXE_hv-vss-daemon")),
        &["watchdog"],
    )
}

fn start(limit: Duration, hook: Option<&str>) -> Guest {
    let root = tempfile::tempdir().unwrap();
    let pretence = Pretence::default();
    let mut mountinfo = String::new();
    for (i, name) in ["srv", "srv/data", "home"].iter().enumerate() {
        let path = root.path().join(name);
        fs::create_dir_all(&path).unwrap();
        let inode = rustix::fs::stat(&path).unwrap().st_ino;
        pretence.names.lock().unwrap().insert(inode, (*name).into());
        let fd = fs::File::open(&path).unwrap();
        let id = statx(fd.as_fd(), "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
            .unwrap()
            .stx_mnt_id;
        mountinfo += &format!(
            "{id} 1 8:{i} / {} rw - ext4 /dev/none{i} rw\n",
            path.display()
        );
    }
    fs::write(root.path().join("mountinfo"), mountinfo).unwrap();
    fs::create_dir(root.path().join("hooks")).unwrap();
    if let Some(script) = hook {
        let path = root.path().join("hooks/10-hook");
        fs::write(
            &path,
            format!(
                "#!/bin/sh\necho $1 >>{}\n{script}\n",
                hooked(root.path()).display()
            ),
        )
        .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let settings = Settings {
        hooks: Hooks {
            directory: root.path().join("hooks"),
            limit: Duration::from_secs(2),
        },
        limit,
        state: root.path().join("state"),
        root: root.path().into(),
        mountinfo: root.path().join("mountinfo"),
    };
    let (end, mut driver) = device();
    let freezer = pretence.clone();
    let daemon = thread::spawn(move || {
        let mut running = Running::embedded().unwrap();
        let mut daemon = Daemon::new(settings, freezer, Box::new(watchdog)).unwrap();
        daemon
            .exchange(end, &mut running)
            .unwrap_or_else(|error| End::Again(error.to_string()))
    });
    assert_eq!(driver.receive(), DeviceMessage::REGISTER.as_bytes());
    driver.send(&REGISTERED.to_le_bytes());
    Guest {
        root,
        pretence,
        driver,
        daemon,
    }
}

fn hooked(root: &Path) -> PathBuf {
    root.join("hooked")
}

impl Guest {
    fn ask(&mut self, operation: Operation) -> Status {
        let answer = self
            .driver
            .ask(DeviceMessage::request(operation).as_bytes());
        DeviceMessage::read_from_bytes(&answer).unwrap().status()
    }

    fn hooks(&self) -> Vec<String> {
        let text = fs::read_to_string(hooked(self.root.path())).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Ends the connection and waits for the daemon.
    fn end(self) -> (tempfile::TempDir, Vec<String>) {
        drop(self.driver);
        assert!(matches!(self.daemon.join().unwrap(), End::Again(_)));
        assert!(!self.root.path().join("state").exists());
        (self.root, self.pretence.calls())
    }
}

const LONG: Duration = Duration::from_secs(60);
const FROZEN: [&str; 3] = ["freeze srv/data", "freeze srv", "freeze home"];
const THAWED: [&str; 3] = ["thaw home", "thaw srv", "thaw srv/data"];

#[test]
fn freeze_and_thaw() {
    let mut guest = start(LONG, Some(""));
    for round in 1..=3 {
        assert_eq!(guest.ask(Operation::HOT_BACKUP), Status::OK);
        assert_eq!(guest.ask(Operation::FREEZE), Status::OK);
        assert_eq!(guest.pretence.calls(), FROZEN);
        assert_eq!(guest.ask(Operation::FREEZE), Status::OK);
        assert_eq!(guest.pretence.calls(), [""; 0]);
        assert_eq!(guest.ask(Operation::THAW), Status::OK);
        assert_eq!(guest.pretence.calls(), THAWED);
        // Its answer comes after the hooks of the thaw before it.
        assert_eq!(guest.ask(Operation::HOT_BACKUP), Status::OK);
        assert_eq!(guest.hooks().len(), 2 * round);
    }
    assert_eq!(guest.ask(Operation::THAW), Status::OK);
    guest.end();
}

#[test]
fn the_host_goes_away() {
    let mut guest = start(LONG, Some(""));
    assert_eq!(guest.ask(Operation::FREEZE), Status::OK);
    guest.pretence.calls();
    let (root, calls) = guest.end();
    assert_eq!(calls, THAWED);
    assert_eq!(
        fs::read_to_string(hooked(root.path())).unwrap(),
        "freeze\nthaw\n"
    );
}

#[test]
fn the_limit_passes() {
    let mut guest = start(Duration::from_secs(1), None);
    assert_eq!(guest.ask(Operation::FREEZE), Status::OK);
    assert_eq!(guest.pretence.calls(), FROZEN);
    assert!(!guest.driver.waiting(Duration::from_secs(3)));
    assert_eq!(guest.pretence.calls(), THAWED);
    // The host has to know that its copy changed under its hands; once.
    assert_eq!(guest.ask(Operation::THAW), Status::FAIL);
    assert_eq!(guest.ask(Operation::FREEZE), Status::OK);
    assert_eq!(guest.ask(Operation::THAW), Status::OK);
    guest.end();
}

#[test]
fn one_cannot_be_frozen() {
    let mut guest = start(LONG, Some(""));
    let error = |guest: &Guest, error| {
        guest
            .pretence
            .errors
            .lock()
            .unwrap()
            .insert("srv".into(), error);
    };
    // An I/O error: nothing stays frozen.
    error(&guest, Errno::IO);
    assert_eq!(guest.ask(Operation::FREEZE), Status::FAIL);
    assert_eq!(
        guest.pretence.calls(),
        ["freeze srv/data", "freeze srv", "thaw srv/data"]
    );
    assert_eq!(guest.hooks(), ["freeze", "thaw"]);
    // Not a kind that freezes: the others do.
    error(&guest, Errno::OPNOTSUPP);
    assert_eq!(guest.ask(Operation::FREEZE), Status::OK);
    assert_eq!(guest.ask(Operation::THAW), Status::OK);
    assert_eq!(guest.pretence.calls()[3..], ["thaw home", "thaw srv/data"]);
    // Frozen by an administrator, who will thaw it.
    error(&guest, Errno::BUSY);
    assert_eq!(guest.ask(Operation::FREEZE), Status::OK);
    assert_eq!(guest.ask(Operation::THAW), Status::OK);
    assert_eq!(guest.pretence.calls()[3..], ["thaw home", "thaw srv/data"]);
    guest.end();
}

#[test]
fn a_hook_fails_or_hangs() {
    for script in ["[ $1 = thaw ]", "[ $1 = thaw ] || sleep 100"] {
        let mut guest = start(LONG, Some(script));
        assert_eq!(guest.ask(Operation::FREEZE), Status::FAIL);
        assert_eq!(guest.pretence.calls(), [""; 0]);
        assert_eq!(guest.hooks(), ["freeze", "thaw"]);
        guest.end();
    }
}

#[test]
fn the_host_goes_away_during_a_hook() {
    let mut guest = start(LONG, Some("[ $1 = thaw ] || sleep 100"));
    guest
        .driver
        .send(DeviceMessage::request(Operation::FREEZE).as_bytes());
    let (_root, calls) = guest.end();
    assert_eq!(calls, [""; 0]);
}

#[test]
fn nonsense_is_answered_or_resets_the_connection() {
    let mut guest = start(LONG, None);
    for operation in [0, 1, 3, 4, 7, 8, 100, 128, 129, 255] {
        assert_eq!(guest.ask(Operation(operation)), Status::NOT_SUPPORTED);
    }
    assert_eq!(guest.ask(Operation::FREEZE), Status::OK);
    guest.driver.send(&[1; 5]);
    assert_eq!(guest.end().1[3..], THAWED);
}
