// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The plugin's arguments: `-plugin libhv_host_qemu.so,control=PATH,vmbus=X.Y,devices=LIST,log=FILE,profile=on`.

use std::path::PathBuf;

use hv_vmbus_host::{DeviceConfig, HostConfig};

/// Parsed arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// Path of the control socket; none: no control socket.
    pub control: Option<PathBuf>,
    /// Highest VMBus version to accept, `major << 16 | minor`; none: the highest that is known.
    pub vmbus: Option<u32>,
    /// Log file; none: warnings on standard error.
    pub log: Option<PathBuf>,
    /// Count guest instructions.
    pub profile: bool,
    /// Devices to offer; none: heartbeat, shutdown, timesync.
    pub devices: Option<Vec<DeviceConfig>>,
}

impl Args {
    /// Parses `name=value` words.
    ///
    /// # Errors
    /// A sentence that names the word and what is expected.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut args = Self::default();
        for word in words {
            let (name, value) = word
                .split_once('=')
                .ok_or_else(|| format!("argument '{word}': expected name=value"))?;
            if value.is_empty() {
                return Err(format!("argument '{name}': value is empty"));
            }
            match name {
                "control" => args.control = Some(value.into()),
                "log" => args.log = Some(value.into()),
                "devices" => args.devices = Some(HostConfig::parse_devices(value)?),
                "vmbus" => args.vmbus = Some(HostConfig::parse_version(value)?),
                "profile" => {
                    args.profile = match value {
                        "on" | "true" | "yes" => true,
                        "off" | "false" | "no" => false,
                        _ => return Err(format!("profile={value}: expected on or off")),
                    }
                }
                _ => return Err(format!("unknown argument '{name}': expected control=PATH, vmbus=X.Y, devices=LIST, log=FILE or profile=on")),
            }
        }
        Ok(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_is_documented() {
        let args = Args::parse(["control=/tmp/c", "vmbus=5.3", "log=l", "profile=on"]).unwrap();
        assert_eq!(
            args,
            Args {
                control: Some("/tmp/c".into()),
                vmbus: Some((5 << 16) | 3),
                log: Some("l".into()),
                profile: true,
                devices: None
            }
        );
        let devices = Args::parse(["devices=heartbeat:max=1.0+timesync"])
            .unwrap()
            .devices
            .unwrap();
        assert_eq!(devices[0].args, [("max".to_owned(), "1.0".to_owned())]);
        assert_eq!(devices[1].name, "timesync");
        assert_eq!(Args::parse([]).unwrap(), Args::default());
    }

    #[test]
    fn errors_name_the_word() {
        for (word, part) in [
            ("contrl=/x", "unknown argument 'contrl'"),
            ("control", "expected name=value"),
            ("control=", "value is empty"),
            ("vmbus=3.0", "4.0"),
            ("vmbus=six", "six"),
            ("devices=heartbeat:max", "key=value"),
            ("profile=maybe", "expected on or off"),
        ] {
            let error = Args::parse([word]).unwrap_err();
            assert!(error.contains(part), "{word}: {error}");
        }
    }
}
