// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The C daemon's scripts (`hv_get_dns_info`, `hv_get_dhcp_info`, `hv_set_ifconfig`), for systems whose administrators or
//! distributions have written their own. Where one is there and executable, it has the say; unless others than root can write it.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::warn;
use rustix::fs::{access, Access};

use super::{Config, Interface, SetError};
use crate::commands::{self, trusted, Outcome};
use crate::files;

/// Where the C daemon looks (`KVP_SCRIPTS_PATH`).
pub const DIRECTORY: &str = "/usr/libexec/hypervkvpd";
/// How long a question may take; the driver gives a request 30 s, and there are two questions in one.
const GET_LIMIT: Duration = Duration::from_secs(8);
/// How long setting may take.
const SET_LIMIT: Duration = Duration::from_secs(25);

/// The scripts of a directory.
#[derive(Clone, Debug)]
pub struct Hooks {
    directory: PathBuf,
    /// Where the files for `hv_set_ifconfig` are written.
    state: PathBuf,
}

impl Hooks {
    /// The scripts in `directory`; files for them are written to `state`.
    pub fn new(directory: impl Into<PathBuf>, state: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            state: state.into(),
        }
    }

    /// Where they are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Name servers of an interface, one a line. None: no such script, or it failed.
    #[must_use]
    pub fn dns(&self, interface: &str) -> Option<Vec<String>> {
        let lines = self.ask("hv_get_dns_info", interface)?;
        let addresses = lines.iter().filter_map(|l| l.trim().parse::<IpAddr>().ok());
        Some(addresses.map(|a| a.to_string()).collect())
    }

    /// Whether an interface uses DHCP: the script's first line starts with `Enabled`.
    #[must_use]
    pub fn dhcp(&self, interface: &str) -> Option<bool> {
        let lines = self.ask("hv_get_dhcp_info", interface)?;
        Some(lines.first()?.starts_with("Enabled"))
    }

    /// Whether addresses are set by a script.
    #[must_use]
    pub fn can_set(&self) -> bool {
        self.script("hv_set_ifconfig").is_some()
    }

    /// Writes the two files that the script takes (ifcfg and NetworkManager's keyfile), and runs it.
    ///
    /// # Errors
    ///
    /// [`SetError::File`], [`SetError::Command`].
    pub fn set(&self, interface: &Interface, config: &Config) -> Result<(), SetError> {
        let name = &interface.name;
        let ifcfg = self.state.join(format!("ifcfg-{name}"));
        let keyfile = self.state.join(format!("{name}.nmconnection"));
        let write = |path: &Path, text: String| {
            files::replace(path, text.as_bytes(), 0o644)
                .map_err(|error| SetError::File(path.to_owned(), error))
        };
        write(&ifcfg, ifcfg_text(interface, config))?;
        write(&keyfile, keyfile_text(interface, config))?;
        let script = self
            .script("hv_set_ifconfig")
            .ok_or_else(|| SetError::Unmanaged("there is no hv_set_ifconfig to run".into()))?;
        let failed = |why: String| SetError::Command(script.display().to_string(), why);
        let arguments = [ifcfg.display().to_string(), keyfile.display().to_string()];
        let done = commands::run(&script, &arguments, &[], SET_LIMIT, None)
            .map_err(|error| failed(error.to_string()))?;
        match done.outcome {
            Outcome::Exited(0) => Ok(()),
            outcome => Err(failed(format!("{outcome}: {}", done.last_line()))),
        }
    }

    fn script(&self, name: &str) -> Option<PathBuf> {
        let path = self.directory.join(name);
        let runs = path.is_file() && access(&path, Access::EXEC_OK).is_ok();
        (runs && trusted(&self.directory) && trusted(&path)).then_some(path)
    }

    fn ask(&self, name: &str, interface: &str) -> Option<Vec<String>> {
        let script = self.script(name)?;
        let done = commands::run(&script, &[interface.to_owned()], &[], GET_LIMIT, None);
        match done {
            Ok(done) if done.outcome == Outcome::Exited(0) => {
                Some(done.output.lines().map(str::to_owned).collect())
            }
            Ok(done) => {
                warn!(
                    "{}: {}: {}",
                    script.display(),
                    done.outcome,
                    done.last_line()
                );
                None
            }
            Err(error) => {
                warn!("{}: {error}", script.display());
                None
            }
        }
    }
}

/// An address as the C daemon writes it to ifcfg files: those of IPv6 in full (`expand_ipv6`).
fn spelled(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => v6.segments().map(|part| format!("{part:04x}")).join(":"),
    }
}

/// Lines of ifcfg form; names of the C daemon (`process_ip_string`): the first address of IPv4 is `IPADDR0`, its gateway
/// `GATEWAY`, the first of IPv6 `IPV6ADDR`.
fn ifcfg_text(interface: &Interface, config: &Config) -> String {
    let mut text = format!("HWADDR={}\nDEVICE={}\n", interface.mac, interface.name);
    let protocol = if config.dhcp { "dhcp" } else { "none" };
    let _ = writeln!(text, "BOOTPROTO={protocol}");
    let later = |i: usize| match i {
        0 => String::new(),
        i => format!("_{i}"),
    };
    for (i, (address, _)) in config.addresses(false).enumerate() {
        let _ = writeln!(text, "IPADDR{i}={address}");
    }
    for (i, (address, _)) in config.addresses(true).enumerate() {
        let _ = writeln!(text, "IPV6ADDR{}={}", later(i), spelled(address));
    }
    for (i, (ip, prefix)) in config.addresses(false).enumerate() {
        let _ = writeln!(
            text,
            "NETMASK{i}={}",
            super::query::Address { ip, prefix }.mask()
        );
    }
    for (i, (_, prefix)) in config.addresses(true).enumerate() {
        let _ = writeln!(text, "IPV6NETMASK{}={prefix}", later(i));
    }
    for (i, gateway) in config.gateways(false).enumerate() {
        let number = if i == 0 { String::new() } else { i.to_string() };
        let _ = writeln!(text, "GATEWAY{number}={gateway}");
    }
    for (i, gateway) in config.gateways(true).enumerate() {
        let _ = writeln!(text, "IPV6_DEFAULTGW{}={}", later(i), spelled(gateway));
    }
    for (i, dns) in config.dns.iter().enumerate() {
        let _ = writeln!(text, "DNS{}={}", i + 1, spelled(*dns));
    }
    text
}

/// NetworkManager's keyfile as the C daemon writes it for the script.
fn keyfile_text(interface: &Interface, config: &Config) -> String {
    let mut text = format!(
        "\n[connection]\ninterface-name={}\n\n[ethernet]\nmac-address={}\n",
        interface.name, interface.mac
    );
    for v6 in [false, true] {
        let _ = writeln!(text, "\n[{}]", if v6 { "ipv6" } else { "ipv4" });
        for (i, (address, prefix)) in config.addresses(v6).enumerate() {
            let _ = writeln!(text, "address{}={address}/{prefix}", i + 1);
        }
        let method = match (v6, config.addresses(v6).next().is_some()) {
            (false, _) if config.dhcp => "auto",
            (_, true) => "manual",
            (false, false) => "disabled",
            (true, false) => "auto",
        };
        let _ = writeln!(text, "method={method}");
        for (key, list) in [
            ("gateway", config.gateways(v6).collect::<Vec<_>>()),
            ("dns", config.dns(v6).collect()),
        ] {
            let list: Vec<String> = list.iter().map(ToString::to_string).collect();
            if !list.is_empty() {
                let _ = writeln!(text, "{key}={}", list.join(","));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::managers::tests::eth0;
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn script(directory: &Path, name: &str, text: &str) {
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn scripts_have_the_say() {
        let directory = tempfile::tempdir().unwrap();
        let hooks = Hooks::new(directory.path(), directory.path());
        assert_eq!(hooks.dns("eth0"), None);
        assert!(!hooks.can_set());
        script(
            directory.path(),
            "hv_get_dns_info",
            "echo 192.0.2.1; echo junk; echo $1 >&2; echo ::1",
        );
        assert_eq!(hooks.dns("eth0").unwrap(), ["192.0.2.1", "::1"]);
        script(directory.path(), "hv_get_dhcp_info", "echo Enabled");
        assert_eq!(hooks.dhcp("eth0"), Some(true));
        script(directory.path(), "hv_get_dhcp_info", "echo Enabled; exit 3");
        assert_eq!(hooks.dhcp("eth0"), None);
    }

    #[test]
    fn what_others_can_write_is_not_run() {
        let directory = tempfile::tempdir().unwrap();
        let hooks = Hooks::new(directory.path(), directory.path());
        let chmod = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        script(directory.path(), "hv_get_dns_info", "echo 192.0.2.1");
        script(directory.path(), "hv_set_ifconfig", "");
        let set = directory.path().join("hv_set_ifconfig");
        for mode in [0o775, 0o757] {
            chmod(&set, mode);
            assert!(!hooks.can_set(), "{mode:o}");
            assert!(hooks.set(&eth0(), &Config::default()).is_err());
        }
        chmod(&set, 0o755);
        assert!(hooks.can_set());
        // Whoever can write the directory can put another script there.
        chmod(directory.path(), 0o777);
        assert!(!hooks.can_set());
        assert_eq!(hooks.dns("eth0"), None);
        chmod(directory.path(), 0o700);
        assert_eq!(hooks.dns("eth0").unwrap(), ["192.0.2.1"]);
        // Somebody else's.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&set, Some(65534), None).unwrap();
            assert!(!hooks.can_set());
        }
    }

    #[test]
    fn hv_set_ifconfig_gets_both_files() {
        let directory = tempfile::tempdir().unwrap();
        let hooks = Hooks::new(directory.path(), directory.path());
        let seen = directory.path().join("seen");
        script(
            directory.path(),
            "hv_set_ifconfig",
            &format!("cat \"$1\" \"$2\" >{}", seen.display()),
        );
        let config = Config {
            dhcp: false,
            addresses: vec![
                ("10.0.0.5".parse().unwrap(), 24),
                ("fd00::5".parse().unwrap(), 64),
            ],
            gateways: vec!["10.0.0.1".parse().unwrap()],
            dns: vec!["1.1.1.1".parse().unwrap()],
        };
        hooks.set(&eth0(), &config).unwrap();
        assert_eq!(
            fs::read_to_string(seen).unwrap(),
            "HWADDR=00:15:5D:00:00:0A\nDEVICE=eth0\nBOOTPROTO=none\nIPADDR0=10.0.0.5\nIPV6ADDR=fd00:0000:0000:0000:0000:0000:0000:0005\n\
             NETMASK0=255.255.255.0\nIPV6NETMASK=64\nGATEWAY=10.0.0.1\nDNS1=1.1.1.1\n\
             \n[connection]\ninterface-name=eth0\n\n[ethernet]\nmac-address=00:15:5D:00:00:0A\n\
             \n[ipv4]\naddress1=10.0.0.5/24\nmethod=manual\ngateway=10.0.0.1\ndns=1.1.1.1\n\
             \n[ipv6]\naddress1=fd00::5/64\nmethod=manual\n"
        );
        script(directory.path(), "hv_set_ifconfig", "exit 1");
        assert!(hooks.set(&eth0(), &config).is_err());
    }
}
