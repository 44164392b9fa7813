// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! `/dev/vmbus/hv_fcopy`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use log::{info, warn};
use vmbus_proto::ic::fcopy::{parse_device, DEVICE_VERSION, MAX_BODY};
use vmbus_proto::ic::Status;

use super::receiver::Receiver;
use crate::device::{next_event, End, Event, Serve};
use crate::program::Running;

/// The service on the device.
#[derive(Debug)]
pub struct Daemon(pub Receiver);

impl Serve for Daemon {
    fn serve(&mut self, device: File, running: &mut Running) -> End {
        let end = self.exchange(device, running);
        self.0.reset();
        end.unwrap_or_else(|error| End::Again(error.to_string()))
    }
}

impl Daemon {
    /// Registers and answers until something ends it.
    ///
    /// # Errors
    ///
    /// Of the device: it has to be opened again.
    pub fn exchange(
        &mut self,
        mut device: impl Read + Write + AsFd,
        running: &mut Running,
    ) -> io::Result<End> {
        send(&mut device, DEVICE_VERSION)?;
        // One byte more than a message, so that a longer one is noticed.
        let mut buffer = vec![0; MAX_BODY + 1];
        let mut registered = false;
        loop {
            match next_event(device.as_fd(), running.signals.as_fd(), None, None)? {
                Event::Readable => {}
                Event::Stop => return Ok(End::Stop),
                _ => return Ok(End::Again("the device is gone".into())),
            }
            let length = device.read(&mut buffer)?;
            let message = buffer.get(..length).unwrap_or_default();
            if !registered {
                let Ok(version) = <[u8; 4]>::try_from(message) else {
                    return Ok(End::Again(format!(
                        "registration answered by {length} bytes"
                    )));
                };
                registered = true;
                info!("registered; driver version {}", u32::from_le_bytes(version));
                running.ready("waiting for files");
                continue;
            }
            let status = match parse_device(message) {
                Ok(request) => self.0.handle(&request),
                Err(error) => {
                    warn!("request refused: {error}");
                    Status::INVALID_ARGUMENT
                }
            };
            send(&mut device, status.get())?;
        }
    }
}

fn send(device: &mut impl Write, word: u32) -> io::Result<()> {
    match device.write(&word.to_le_bytes())? {
        4 => Ok(()),
        written => Err(io::Error::other(format!("the driver took {written} bytes"))),
    }
}
