// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What the host's management shows of the guest: name, operating system, addresses (pool 2, "auto").
//!
//! Keys, their order and the form of the values are those of the C daemon (`tools/hv/hv_kvp_daemon.c`), which scripts on hosts know:
//! `OSMajorVersion` is all of os-release's `VERSION_ID`, `OSVersion` is the kernel's release up to the first `-`.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use dns_lookup::{AddrInfoHints, SockType};
use log::debug;
use rustix::system::uname;

use crate::net;

/// Keys of the auto pool, by index (Linux `include/uapi/linux/hyperv.h`, the table above `REG_SZ`).
pub const KEYS: [&str; 10] = [
    "FullyQualifiedDomainName",
    "IntegrationServicesVersion",
    "NetworkAddressIPv4",
    "NetworkAddressIPv6",
    "OSBuildNumber",
    "OSName",
    "OSMajorVersion",
    "OSMinorVersion",
    "OSVersion",
    "ProcessorArchitecture",
];

/// `AI_CANONNAME` of netdb.h.
const CANONICAL_NAME: i32 = 2;

/// How long a request waits for the name service before the short name has to do. Hosts ask every few seconds.
const NAME_PATIENCE: Duration = Duration::from_secs(2);

/// Facts about the system.
#[derive(Debug)]
pub struct System {
    root: PathBuf,
    /// Version text of the driver.
    pub driver_version: String,
    name: DomainName,
}

impl System {
    /// Facts about the system whose files are under `root`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            driver_version: "Unknown version".into(),
            name: DomainName::default(),
        }
    }

    /// Key and value at `index` of the auto pool.
    #[must_use]
    pub fn auto(&self, index: u32) -> Option<(&'static str, String)> {
        let key = *KEYS.get(usize::try_from(index).ok()?)?;
        Some((key, self.value(key)))
    }

    fn value(&self, key: &str) -> String {
        let uts = uname();
        let release = uts.release().to_string_lossy();
        match key {
            "FullyQualifiedDomainName" => self.name.get(&uts.nodename().to_string_lossy()),
            "IntegrationServicesVersion" => self.driver_version.clone(),
            "NetworkAddressIPv4" => net::all_addresses(net::Family::V4),
            "NetworkAddressIPv6" => net::all_addresses(net::Family::V6),
            "OSBuildNumber" => release.into_owned(),
            "OSVersion" => release.split('-').next().unwrap_or_default().to_owned(),
            "ProcessorArchitecture" => uts.machine().to_string_lossy().into_owned(),
            "OSName" => self
                .os_release("NAME")
                .unwrap_or_else(|| uts.sysname().to_string_lossy().into_owned()),
            "OSMajorVersion" => self.os_release("VERSION_ID").unwrap_or_default(),
            _ => String::new(),
        }
    }

    /// A field of os-release(5).
    fn os_release(&self, field: &str) -> Option<String> {
        let text = ["etc/os-release", "usr/lib/os-release"]
            .iter()
            .find_map(|file| fs::read(self.root.join(file)).ok())?;
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines()
            .filter_map(|line| line.trim().split_once('='))
            .filter(|(name, _)| *name == field)
            .map(|(_, value)| unquote(value))
            .last()
    }
}

/// The value of an assignment as a shell would read it: quotes gone, backslashes applied.
fn unquote(value: &str) -> String {
    let mut out = String::new();
    let mut chars = value.trim().chars();
    while let Some(c) = chars.next() {
        match c {
            '"' | '\'' => {}
            '\\' => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    out
}

/// The host's name with its domain. The name service may take its time, and a DHCP client may change the name: so it is
/// asked in a thread of its own, again whenever the host's name is another.
#[derive(Debug, Default)]
struct DomainName {
    shared: Arc<(Mutex<Names>, Condvar)>,
}

#[derive(Debug, Default)]
struct Names {
    /// The short name that was or is being looked up.
    asked: String,
    /// What came of it.
    found: Option<String>,
}

impl DomainName {
    fn get(&self, short: &str) -> String {
        let (names, changed) = &*self.shared;
        let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.asked != short {
            *names = Names {
                asked: short.to_owned(),
                found: None,
            };
            let (shared, short) = (self.shared.clone(), short.to_owned());
            let spawned = thread::Builder::new().spawn(move || {
                let name = canonical_name(&short);
                let (names, changed) = &*shared;
                let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
                if names.asked == short {
                    names.found = Some(name);
                }
                changed.notify_all();
            });
            if let Err(error) = spawned {
                debug!("no thread for the name service: {error}");
            }
        }
        let (names, _) = changed
            .wait_timeout_while(names, NAME_PATIENCE, |names| names.found.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        names.found.clone().unwrap_or_else(|| short.to_owned())
    }
}

fn canonical_name(short: &str) -> String {
    let hints = AddrInfoHints {
        flags: CANONICAL_NAME,
        socktype: SockType::Stream.into(),
        ..AddrInfoHints::default()
    };
    match dns_lookup::getaddrinfo(Some(short), None, Some(hints)) {
        Ok(found) => found
            .filter_map(Result::ok)
            .find_map(|info| info.canonname)
            .unwrap_or_else(|| short.to_owned()),
        Err(error) => {
            debug!("name service: {short}: {error:?}");
            short.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_os_release(text: &str) -> (tempfile::TempDir, System) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("usr/lib")).unwrap();
        fs::write(root.path().join("usr/lib/os-release"), text).unwrap();
        let system = System::new(root.path());
        (root, system)
    }

    #[test]
    fn os_release_is_read_as_a_shell_would() {
        let (_root, system) = with_os_release(
            "# c\nPRETTY_NAME=\"no\"\nNAME=\"Debian \\\"GNU\\\"/Linux\"\nVERSION_ID='13'\n",
        );
        assert_eq!(system.value("OSName"), "Debian \"GNU\"/Linux");
        assert_eq!(system.value("OSMajorVersion"), "13");
        assert_eq!(system.value("OSMinorVersion"), "");
    }

    #[test]
    fn all_keys_have_their_index() {
        let system = System::new("/nonexistent");
        for (index, key) in KEYS.iter().enumerate() {
            assert_eq!(system.auto(u32::try_from(index).unwrap()).unwrap().0, *key);
        }
        assert!(system.auto(10).is_none() && system.auto(u32::MAX).is_none());
        assert_eq!(system.value("OSName"), "Linux");
        assert!(!system.value("OSVersion").contains('-'));
        assert!(!system.value("FullyQualifiedDomainName").is_empty());
    }
}
