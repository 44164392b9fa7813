// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Resets, with disks that do nothing more.

use std::path::PathBuf;

use parking_lot::{Condvar, Mutex};

use super::*;
use crate::request::Request;

/// Images whose commands do not end.
static HELD: (Mutex<Vec<PathBuf>>, Condvar) = (Mutex::new(Vec::new()), Condvar::new());

/// Stands for a system call that does not return.
pub(crate) fn wait_while_held(request: &Request) {
    let Some(path) = request.disk.as_ref().and_then(|d| d.0.disk.store().path()) else {
        return;
    };
    let mut held = HELD.0.lock();
    HELD.1
        .wait_while(&mut held, |held| held.iter().any(|p| p == path));
}

/// An image whose commands do not end.
struct Held {
    image: PathBuf,
    _dir: tempfile::TempDir,
}

impl Held {
    fn release(&self) {
        HELD.0.lock().retain(|path| *path != self.image);
        HELD.1.notify_all();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

/// A controller of two disks, of which LUN 1 does nothing until it is released.
fn pair() -> (Guest, Held) {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("stuck.img");
    let spec = format!("{};size=1M", image.display());
    let args = [("lun0", "ram;size=1M"), ("lun1", &spec), ("fast", "off")];
    let guest = Guest::new(&[config("scsi0", &args)]);
    HELD.0.lock().push(image.clone());
    (guest, Held { image, _dir: dir })
}

fn reset(guest: &mut Guest, operation: Operation, at: ScsiAddress) -> u64 {
    guest.next_id += 1;
    let reset = ScsiPacket::reset(operation, at);
    guest
        .bench
        .transmit_request(&mut guest.primary, guest.next_id, reset.as_bytes());
    guest.next_id
}

fn ended(got: (u64, Vec<u8>)) -> (u64, SrbCode) {
    let (id, payload) = got;
    (id, completion(&payload).request.srb_status.code())
}

#[test]
fn a_lun_is_reset_while_another_does_nothing() {
    // Let go of in the opposite order.
    let (mut guest, stuck) = pair();
    let read = rw(op::READ_10, 0, 1);
    let late = guest.send_to(address(0, 1), &read, Transfer::FromDevice(512));
    let id = reset(&mut guest, Operation::RESET_LUN, address(0, 0));
    let (got, payload) = guest.receive().expect("at once");
    let status = completion(&payload).header.status;
    assert_eq!((got, status), (id, NtStatus::SUCCESS));
    // Nor does it end the command of the other one.
    guest.bench.pass(60_000, false);
    assert!(guest.receive().is_none());
    stuck.release();
    assert_eq!(ended(guest.wait()), (late, SrbCode::SUCCESS));
    assert_eq!(guest.violations(), 0);
}

#[test]
fn a_reset_ends_what_does_not_end() {
    let (mut guest, stuck) = pair();
    let at = address(0, 1);
    guest.set_data(&[0x11; 512]);
    let old = guest.send_to(at, &rw(op::WRITE_10, 0, 1), Transfer::ToDevice(512));
    let read = guest.send_to(at, &rw(op::READ_10, 8, 1), Transfer::FromDevice(512));
    let id = reset(&mut guest, Operation::RESET_BUS, address(0, 0));
    guest.bench.pass(4_900, false);
    assert!(
        guest.receive().is_none(),
        "they may still end by themselves"
    );
    guest.bench.pass(200, false);
    for id in [old, read] {
        let got = guest.receive().expect("a command");
        assert_eq!(ended(got), (id, SrbCode::BUS_RESET));
    }
    assert_eq!(guest.receive().expect("the answer").0, id);
    // The other disk is at work, this one is not: what it is to do now it does after what it has still to do.
    let other = guest.run(&rw(op::READ_10, 0, 1), Transfer::FromDevice(512));
    assert_eq!(other.srb_status.code(), SrbCode::SUCCESS);
    guest.set_data(&[0x22; 512]);
    let new = guest.send_to(at, &rw(op::WRITE_10, 0, 1), Transfer::ToDevice(512));
    assert!(guest.receive().is_none());
    // Until the next reset, which has nothing to wait for.
    let id = reset(&mut guest, Operation::RESET_LUN, at);
    let got = guest.receive().expect("at once");
    assert_eq!(ended(got), (new, SrbCode::BUS_RESET));
    assert_eq!(guest.receive().expect("the answer").0, id);
    let new = guest.send_to(at, &rw(op::WRITE_10, 0, 1), Transfer::ToDevice(512));
    stuck.release();
    assert_eq!(ended(guest.wait()), (new, SrbCode::SUCCESS));
    let bytes = std::fs::read(&stuck.image).expect("the image");
    assert_eq!(bytes[..512], [0x22; 512]);
    assert_eq!(guest.data(512), [0x22; 512], "nothing was read into it");
    assert!(guest.receive().is_none(), "no command ends twice");
    assert_eq!(guest.disks()[1].counters.in_flight, 0);
    assert_eq!(guest.violations(), 0);
}

#[test]
fn a_reset_waits_for_commands_that_end() {
    // Let go of in the opposite order.
    let (mut guest, stuck) = pair();
    let read = rw(op::READ_10, 0, 1);
    let late = guest.send_to(address(0, 1), &read, Transfer::FromDevice(512));
    let id = reset(&mut guest, Operation::RESET_BUS, address(0, 0));
    guest.bench.pass(1_000, false);
    assert!(guest.receive().is_none());
    stuck.release();
    assert_eq!(ended(guest.wait()), (late, SrbCode::SUCCESS));
    assert_eq!(guest.wait().0, id);
}
