// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The device models, by name: those of this crate, and those of others.

mod exchange;
mod fcopy;
mod heartbeat;
mod ic;
mod kvp;
mod shutdown;
mod timesync;
mod vss;

#[cfg(test)]
mod exchange_tests;
#[cfg(test)]
mod tests;

use crate::device::Device;
use crate::{DeviceConfig, DeviceMaker, StartError};

/// Makes the device model that `config` names.
///
/// # Errors
/// [`StartError::UnknownDevice`], [`StartError::DeviceArgument`].
pub(crate) fn make(
    config: &DeviceConfig,
    makers: &[DeviceMaker],
) -> Result<Box<dyn Device>, StartError> {
    let bad = |text: String| StartError::DeviceArgument(config.name.clone(), text);
    Ok(match config.name.as_str() {
        "heartbeat" => Box::new(heartbeat::Heartbeat::new(&config.args).map_err(bad)?),
        "shutdown" => Box::new(shutdown::Shutdown::new(&config.args).map_err(bad)?),
        "timesync" => Box::new(timesync::Timesync::new(&config.args).map_err(bad)?),
        "kvp" => Box::new(kvp::Kvp::new(&config.args).map_err(bad)?),
        "vss" => Box::new(vss::Vss::new(&config.args).map_err(bad)?),
        "fcopy" => Box::new(fcopy::Fcopy::new(&config.args).map_err(bad)?),
        _ => makers
            .iter()
            .find_map(|make| make(config))
            .ok_or_else(|| StartError::UnknownDevice(config.name.clone()))?
            .map_err(bad)?,
    })
}
