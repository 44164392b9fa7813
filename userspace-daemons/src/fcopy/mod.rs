// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! `hv-fcopy-daemon`: files that the host copies into the guest (`Copy-VMFile`).
//!
//! Two ways lead to the host. Our driver has a device, `/dev/vmbus/hv_fcopy`, as Linux' had up to 6.9: the driver checks messages and
//! converts names, and no process sees the channel's rings. Linux since 6.10 gives the rings themselves to user space, through
//! `uio_hv_generic`. The daemon takes the device where there is one, else UIO.

mod device;
mod receiver;
mod uio;

use std::path::Path;

use log::{info, warn};

use crate::device::{pause, run as run_device, End, Node, OpenError};
use crate::program::Running;

pub use device::Daemon;
pub use receiver::{Receiver, Rules};
pub use uio::Uio;

/// Receives files until a signal: by `node`, or where that is absent by the UIO device below `root`.
///
/// # Errors
///
/// [`OpenError`]: neither is there.
pub fn run(
    node: &Node,
    root: &Path,
    running: &mut Running,
    receiver: Receiver,
) -> Result<(), OpenError> {
    let mut uio = match (node.path().exists(), Uio::find(root)) {
        (false, Some(uio)) => uio,
        _ => return run_device(node, running, &mut Daemon(receiver)),
    };
    let mut receiver = receiver;
    loop {
        match uio.serve(&mut receiver, running) {
            Ok(End::Stop) => break,
            Ok(End::Again(why)) => info!("opening {} again: {why}", uio.path().display()),
            Err(error) => warn!("{}: {error}; trying again", uio.path().display()),
        }
        // sysfs tells nobody when a device comes.
        uio = loop {
            if pause(running) {
                info!("stopping");
                return Ok(());
            }
            if let Some(uio) = Uio::find(root) {
                break uio;
            }
        };
    }
    info!("stopping");
    Ok(())
}
