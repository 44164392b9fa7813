// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The threads around the server, and what the QEMU glue sees of this crate.

use std::path::PathBuf;
use std::sync::Arc;

use hv_partition::{HvStatus, HypercallSink, Machine, Partition, VpIndex};

/// Sets the level of the host's log (`error` … `trace`); an error is a sentence for the user.
pub type LogLevelSetter = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

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
        Self { name: name.into(), args: Vec::new() }
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
    /// Changes the log level on request.
    pub set_log_level: Option<LogLevelSetter>,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            max_version: 6 << 16,
            control: None,
            devices: ["heartbeat", "shutdown", "timesync"].map(DeviceConfig::new).into(),
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
        match text {
            "4.0" => Ok(4 << 16),
            "4.1" => Ok(4 << 16 | 1),
            "5.0" => Ok(5 << 16),
            "5.1" => Ok(5 << 16 | 1),
            "5.2" => Ok(5 << 16 | 2),
            "5.3" => Ok(5 << 16 | 3),
            "6.0" => Ok(6 << 16),
            _ => Err(format!("VMBus version {text:?} is not one of 4.0 4.1 5.0 5.1 5.2 5.3 6.0")),
        }
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
    sink: Arc<Sink>,
}

struct Sink;

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
        let _ = (config, partition, machine);
        Ok(Self { sink: Arc::new(Sink) })
    }

    /// What the hypervisor half calls with the guest's messages and signals.
    pub fn sink(&self) -> Arc<dyn HypercallSink> {
        self.sink.clone()
    }
}

/// TLFS 7.8.1: HV_STATUS_INVALID_CONNECTION_ID.
const INVALID_CONNECTION_ID: HvStatus = 0x12;

impl HypercallSink for Sink {
    fn post_message(&self, _vp: VpIndex, _connection_id: u32, _msg_type: u32, _payload: &[u8]) -> HvStatus {
        INVALID_CONNECTION_ID
    }

    fn signal_event(&self, _vp: VpIndex, _connection_id: u32, _flag: u16) -> HvStatus {
        INVALID_CONNECTION_ID
    }

    fn reset(&self) {}
}
