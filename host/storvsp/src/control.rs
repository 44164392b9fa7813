// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Control commands: disks come and go, change their size, and misbehave.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use hv_vmbus_host::device::{Control, DeviceIo};
use hvctl::{Command, DiskCounters, DiskFault, DiskInfo, DiskNotice, DiskSpec};
use vmbus_proto::storvsc::Operation;
use vmbus_proto::Guid;

use crate::args::Kind;
use crate::backend::Backend;
use crate::controller::Controller;
use crate::faults::Armed;
use crate::request::Slot;
use crate::scsi::inquiry::{serial, DiskId};
use crate::scsi::{Disk, DiskConfig};

/// Largest disk: what the lengths of the system's calls can say.
const MAX_BYTES: u64 = i64::MAX as u64;

/// Sixteen bytes that tell disks apart: the same for the same place and image each time the host is started,
/// so that links by id stay. FNV-1a, spread over 128 bits, in the form of a random GUID as Hyper-V has it.
fn disk_id(device: &str, target: u8, lun: u8, file: Option<&str>) -> DiskId {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    let text = format!("{device}/{target}/{lun}/{}", file.unwrap_or("ram"));
    for byte in text.bytes() {
        hash = (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    let mut id = hash.to_be_bytes();
    id[6] = (id[6] & 0x0f) | 0x40;
    id[8] = (id[8] & 0x3f) | 0x80;
    id
}

/// Makes a disk.
///
/// # Errors
/// A sentence.
pub(crate) fn make_disk(
    device: &str,
    target: u8,
    lun: u8,
    spec: &DiskSpec,
) -> Result<Disk, String> {
    let shift = match spec.sector {
        512 => 9,
        4096 => 12,
        other => return Err(format!("block size {other}: expected 512 or 4096")),
    };
    if spec.size.is_some_and(|size| size > MAX_BYTES) {
        return Err("disk is too large".into());
    }
    let store = match (&spec.file, spec.ram) {
        (Some(path), false) => Backend::open(Path::new(path), spec.size, spec.read_only),
        (None, true) => {
            let size = spec.size.ok_or("a RAM disk needs a size")?;
            Backend::ram(size, spec.read_only)
        }
        _ => return Err("expected either a file or a RAM disk".into()),
    };
    let mut store = store.map_err(|e| e.to_string())?;
    if spec.volatile {
        store = store.with_cache();
    }
    let config = DiskConfig {
        shift,
        discard: spec.discard && !spec.read_only,
        id: disk_id(device, target, lun, spec.file.as_deref()),
    };
    Disk::new(store, config).ok_or_else(|| {
        format!(
            "{}: smaller than a block; give it a size",
            spec.file.as_deref().unwrap_or("RAM disk")
        )
    })
}

/// A disk for people.
pub(crate) fn info(device: &str, target: u8, lun: u8, slot: &Slot) -> DiskInfo {
    let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let (disk, counters) = (&slot.disk, slot.disk.counters());
    let store = disk.store();
    DiskInfo {
        device: device.into(),
        target,
        lun,
        file: store.path().map(|p| p.display().to_string()),
        size: store.size(),
        allocated: store.allocated(),
        unflushed: store.unflushed(),
        sector: 1 << disk.config().shift,
        read_only: store.is_read_only(),
        discard: disk.config().discard,
        serial: serial(&disk.config().id),
        counters: DiskCounters {
            commands: load(&counters.commands),
            reads: load(&counters.reads),
            writes: load(&counters.writes),
            bytes_read: load(&counters.bytes_read),
            bytes_written: load(&counters.bytes_written),
            flushes: load(&counters.flushes),
            discards: load(&counters.discards),
            bytes_discarded: load(&counters.bytes_discarded),
            errors: load(&counters.errors),
            injected: load(&slot.injected),
            in_flight: load(&slot.in_flight),
            max_in_flight: load(&slot.max_in_flight),
        },
    }
}

/// Counts from zero again.
pub(crate) fn reset_counters(slot: &Slot) {
    slot.disk.counters().reset();
    slot.injected.store(0, Ordering::Relaxed);
    slot.max_in_flight
        .store(slot.in_flight.load(Ordering::Relaxed), Ordering::Relaxed);
}

fn done(result: Result<serde_json::Value, String>) -> Control {
    match result {
        Ok(value) => Control::Done(value),
        Err(text) => Control::Failed(text),
    }
}

impl Controller {
    fn is_called(&self, name: &str) -> bool {
        name == self.info.name || Guid::parse(name).is_ok_and(|guid| guid == self.info.instance)
    }

    pub(crate) fn on_control(&mut self, io: &mut DeviceIo<'_>, cmd: &Command) -> Control {
        match cmd {
            Command::DiskAdd { device, .. }
            | Command::DiskRemove { device, .. }
            | Command::DiskResize { device, .. }
            | Command::DiskCut { device, .. }
            | Command::DiskNotify { device, .. }
            | Command::DiskFault { device, .. }
                if self.is_called(device) => {}
            _ => return Control::NotMine,
        }
        done(self.carry_out(io, cmd))
    }

    fn slot(&self, target: u8, lun: u8) -> Result<&Slot, String> {
        self.slots
            .get(&(target, lun))
            .map(AsRef::as_ref)
            .ok_or_else(|| format!("{}: no disk at target {target}, lun {lun}", self.info.name))
    }

    fn carry_out(
        &mut self,
        io: &mut DeviceIo<'_>,
        cmd: &Command,
    ) -> Result<serde_json::Value, String> {
        match cmd {
            Command::DiskAdd {
                lun,
                target,
                disk,
                notify,
                ..
            } => {
                let place = (*target, *lun);
                if self.is_ide_and_not(place) {
                    return Err(format!(
                        "{}: takes one disk, at its own place",
                        self.info.name
                    ));
                }
                if self.slots.contains_key(&place) {
                    return Err(format!("{}: lun {lun} is taken", self.info.name));
                }
                let slot = Slot::new(make_disk(&self.info.name, *target, *lun, disk)?);
                let answer = serde_json::to_value(info(&self.info.name, *target, *lun, &slot));
                self.slots.insert(place, slot);
                if *notify {
                    self.notify(io, Operation::ENUMERATE_BUS);
                }
                answer.map_err(|e| e.to_string())
            }
            Command::DiskRemove {
                lun,
                target,
                notify,
                ..
            } => {
                self.slot(*target, *lun)?;
                // Commands that it is at work on keep it alive until they end.
                if let Some(slot) = self.slots.remove(&(*target, *lun)) {
                    slot.disk.store().give_up();
                }
                if *notify {
                    self.notify(io, Operation::REMOVE_DEVICE);
                }
                Ok(serde_json::Value::Null)
            }
            Command::DiskResize {
                lun,
                target,
                size,
                notify,
                ..
            } => {
                if *size > MAX_BYTES {
                    return Err("disk is too large".into());
                }
                self.slot(*target, *lun)?
                    .disk
                    .resize(*size)
                    .map_err(|e| format!("cannot be resized to {size} bytes: {e}"))?;
                if *notify {
                    self.notify(io, Operation::ENUMERATE_BUS);
                }
                Ok(serde_json::Value::Null)
            }
            Command::DiskCut {
                lun, target, seed, ..
            } => {
                let cut = self.slot(*target, *lun)?.disk.store().cut_power(*seed);
                let (kept, lost) = cut
                    .map_err(|e| e.to_string())?
                    .ok_or("the disk has no volatile cache (cache=volatile)")?;
                serde_json::to_value(hvctl::DiskCutAnswer { kept, lost }).map_err(|e| e.to_string())
            }
            Command::DiskNotify { what, .. } => {
                let operation = match what {
                    DiskNotice::Enumerate => Operation::ENUMERATE_BUS,
                    DiskNotice::Remove => Operation::REMOVE_DEVICE,
                };
                if self.notify(io, operation) {
                    Ok(serde_json::Value::Null)
                } else {
                    Err(format!("{}: no driver is ready", self.info.name))
                }
            }
            Command::DiskFault {
                lun,
                opcode,
                count,
                skip,
                fault,
                ..
            } => {
                let now = io.now();
                let armed = self.faults.arm(*lun, *opcode, *count, *skip, fault, now);
                match (armed, fault) {
                    (Armed::Release, DiskFault::Clear) => self.release_all(io),
                    (Armed::Release, _) => self.release(io),
                    (Armed::Later, _) => {}
                }
                Ok(serde_json::Value::Null)
            }
            _ => Err("not a storage command".into()),
        }
    }

    fn is_ide_and_not(&self, place: (u8, u8)) -> bool {
        match self.kind() {
            Kind::Scsi => false,
            Kind::Ide(at) => place != (at.target as u8, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_and_differ() {
        let id = disk_id("scsi0", 0, 1, Some("/x"));
        assert_eq!(id, disk_id("scsi0", 0, 1, Some("/x")));
        for other in [
            disk_id("scsi1", 0, 1, Some("/x")),
            disk_id("scsi0", 1, 1, Some("/x")),
            disk_id("scsi0", 0, 2, Some("/x")),
            disk_id("scsi0", 0, 1, None),
        ] {
            assert_ne!(id[..6], other[..6], "VPD page 83 shows the ends of the id");
        }
    }
}
