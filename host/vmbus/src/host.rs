// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The threads around the server, and what the QEMU glue sees of this crate.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use hv_partition::{HypercallSink, Machine, Partition};
use vmbus_proto::VmbusVersion;

use crate::control::ControlServer;
use crate::device::Device;
use crate::devices;
use crate::engine::Engine;
use crate::inbox::Inbox;

/// Sets the level of the host's log (`error` … `trace`); an error is a sentence for the user.
pub type LogLevelSetter = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Makes the device model with this name and these arguments; `None` when it does not know the name, an error
/// when it does not like the arguments.
pub type DeviceMaker = fn(&DeviceConfig) -> Option<Result<Box<dyn Device>, String>>;

/// A device that the host offers, by name: `heartbeat`, `shutdown`, `timesync`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Name of the device model.
    pub name: String,
    /// Arguments of the device model, `key=value`.
    pub args: Vec<(String, String)>,
}

impl DeviceConfig {
    /// A device without arguments.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            args: Vec::new(),
        }
    }
}

/// How the host shall be.
pub struct HostConfig {
    /// Newest VMBus version that is accepted, `major << 16 | minor`: 4.0 to 6.0.
    pub max_version: u32,
    /// Where the control socket listens; `None`: no control socket.
    pub control: Option<PathBuf>,
    /// Devices to offer, in this order.
    pub devices: Vec<DeviceConfig>,
    /// Makes devices of other crates: asked in turn for a name that is not one of the integration services.
    pub makers: Vec<DeviceMaker>,
    /// Changes the log level on request.
    pub set_log_level: Option<LogLevelSetter>,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            max_version: 6 << 16,
            control: None,
            devices: ["heartbeat", "shutdown", "timesync"]
                .map(DeviceConfig::new)
                .into(),
            makers: Vec::new(),
            set_log_level: None,
        }
    }
}

impl HostConfig {
    /// Reads a version such as `5.3`.
    ///
    /// # Errors
    /// A sentence that lists the versions known.
    pub fn parse_version(text: &str) -> Result<u32, String> {
        match text.parse::<VmbusVersion>() {
            Ok(version) if version.is_supported() => Ok(version.0),
            _ => {
                let known: Vec<String> = VmbusVersion::SUPPORTED
                    .iter()
                    .map(ToString::to_string)
                    .collect();
                Err(format!(
                    "VMBus version {text:?} is not one of {}",
                    known.join(", ")
                ))
            }
        }
    }
}

impl HostConfig {
    /// Reads a list of devices: `NAME[:KEY=VALUE…]` joined by `+`, such as `heartbeat:max=1.0:monitor=on+timesync`.
    ///
    /// # Errors
    /// A sentence that names what cannot be read. Names and arguments are checked by [`Host::start`].
    pub fn parse_devices(text: &str) -> Result<Vec<DeviceConfig>, String> {
        text.split('+')
            .map(|device| {
                let mut words = device.split(':');
                let name = words
                    .next()
                    .filter(|n| !n.is_empty())
                    .ok_or("device without a name")?;
                let args = words.map(|word| {
                    let (key, value) = word
                        .split_once('=')
                        .ok_or_else(|| format!("device {name}: '{word}' is not key=value"))?;
                    Ok((key.to_owned(), value.to_owned()))
                });
                Ok(DeviceConfig {
                    name: name.into(),
                    args: args.collect::<Result<_, String>>()?,
                })
            })
            .collect()
    }
}

/// Why the host could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The control socket cannot be made.
    #[error("control socket {}: {source}", path.display())]
    Control {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No device model has this name.
    #[error("no device model {0:?}")]
    UnknownDevice(String),
    /// A device model does not know the argument or its value.
    #[error("device {0}: {1}")]
    DeviceArgument(String, String),
    /// A thread could not be started.
    #[error("thread: {0}")]
    Thread(std::io::Error),
}

/// The running VMBus half. Dropping it ends its threads and removes the control socket.
pub struct Host {
    inbox: Arc<Inbox>,
    worker: Option<JoinHandle<()>>,
    _control: Option<ControlServer>,
}

impl Host {
    /// Starts the threads. Guest memory is touched only after the guest made contact, so this may be called
    /// before the machine is complete. Threads started here inherit the signal mask of the caller:
    /// block QEMU's signals before.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(
        config: HostConfig,
        partition: Arc<dyn Partition>,
        machine: Arc<dyn Machine>,
    ) -> Result<Self, StartError> {
        let devices = config
            .devices
            .iter()
            .map(|device| devices::make(device, &config.makers))
            .collect::<Result<Vec<_>, _>>()?;
        for (at, device) in config.devices.iter().enumerate() {
            if config.devices[..at].iter().any(|d| d.name == device.name) {
                let text = "given twice".to_owned();
                return Err(StartError::DeviceArgument(device.name.clone(), text));
            }
        }
        let inbox = Arc::new(Inbox::new());
        let mut engine = Engine::new(
            VmbusVersion(config.max_version),
            partition,
            machine,
            inbox.clone(),
            config.set_log_level,
        );
        devices
            .into_iter()
            .for_each(|device| engine.add_device(device));
        let control = match &config.control {
            None => None,
            Some(path) => Some(ControlServer::start(path, inbox.clone()).map_err(|source| {
                StartError::Control {
                    path: path.clone(),
                    source,
                }
            })?),
        };
        let for_worker = inbox.clone();
        let worker = std::thread::Builder::new()
            .name("hv-vmbus".into())
            .spawn(move || work(engine, &for_worker))
            .map_err(StartError::Thread)?;
        Ok(Self {
            inbox,
            worker: Some(worker),
            _control: control,
        })
    }

    /// What the hypervisor half calls with the guest's messages and signals.
    pub fn sink(&self) -> Arc<dyn HypercallSink> {
        self.inbox.clone()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.inbox.stop();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

fn work(mut engine: Engine, inbox: &Inbox) {
    loop {
        let taken = inbox.take(engine.deadline(Instant::now()), engine.has_room());
        if taken.stop {
            return;
        }
        let now = Instant::now();
        for input in taken.inputs {
            engine.input(input, now);
        }
        for (relid, count) in taken.signals {
            engine.signal(relid, count, now);
        }
        engine.tick(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_devices_are_read_or_refused() {
        assert_eq!(HostConfig::parse_version("5.3"), Ok(0x5_0003));
        for bad in ["", "3.0", "7.0", "5", "six"] {
            assert!(
                HostConfig::parse_version(bad).unwrap_err().contains("4.0"),
                "{bad}"
            );
        }
        let devices = HostConfig::parse_devices("heartbeat:max=1.0:monitor=on+timesync").unwrap();
        assert_eq!(devices[0].name, "heartbeat");
        assert_eq!(
            devices[0].args,
            [
                ("max".into(), "1.0".into()),
                ("monitor".into(), "on".into())
            ]
        );
        assert_eq!(devices[1], DeviceConfig::new("timesync"));
        for bad in ["", "+", "heartbeat:", "heartbeat:max", ":max=1"] {
            assert!(HostConfig::parse_devices(bad).is_err(), "{bad}");
        }
    }
}
