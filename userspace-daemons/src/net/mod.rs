// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Addresses of the guest: what they are ([`query`](self::query)), and setting them when the host says so ([`plan`](self::plan)).

mod config;
mod hooks;
mod ifupdown;
mod managers;
mod networkd;
mod networkmanager;
mod plan;
mod query;

use std::path::PathBuf;

use log::{info, warn};
use thiserror::Error;

pub use config::Config;
pub use hooks::{Hooks, DIRECTORY as HOOKS_DIRECTORY};
pub use managers::Manager;
pub use plan::{Change, Plan};
pub use query::{all_addresses, Family, Interface};

use crate::kvp::IpInfo;
use vmbus_proto::ic::Status;

/// Why addresses were not set.
#[derive(Debug, Error)]
pub enum SetError {
    /// No interface belongs to the adapter.
    #[error("no interface belongs to adapter {0}")]
    NoInterface(String),
    /// The host's lists make no sense.
    #[error("{0}")]
    Invalid(String),
    /// Nothing that we know manages the interface.
    #[error("{0}")]
    Unmanaged(String),
    /// A file could not be written.
    #[error("{0}: {1}")]
    File(PathBuf, std::io::Error),
    /// A program failed.
    #[error("`{0}` failed: {1}")]
    Command(String, String),
    /// Asked not to.
    #[error("--dry-run: nothing was changed")]
    DryRun,
}

impl SetError {
    /// What the host gets to know.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::NoInterface(_) => Status::GUID_NOT_FOUND,
            Self::Invalid(_) => Status::INVALID_ARGUMENT,
            _ => Status::FAIL,
        }
    }
}

/// The guest's network as the daemon sees and sets it.
#[derive(Clone, Debug)]
pub struct Network {
    /// `/`, or a scratch directory in tests.
    pub root: PathBuf,
    /// Scripts in the manner of the C daemon.
    pub hooks: Hooks,
    /// Only tell what would change.
    pub dry_run: bool,
}

impl Network {
    /// All interfaces but the loopback.
    #[must_use]
    pub fn interfaces(&self) -> Vec<Interface> {
        let mut list = query::interfaces(&self.root);
        list.retain(|i| i.name != "lo");
        list
    }

    /// The interface with `name`.
    #[must_use]
    pub fn interface(&self, name: &str) -> Option<Interface> {
        query::interface(&self.root, name)
    }

    /// What the host asks for about the adapter with MAC address or GUID `adapter`. None: no interface has it.
    ///
    /// A virtual function of the NIC has the same MAC address; the interface with addresses wins.
    #[must_use]
    pub fn ip_info(&self, adapter: &str) -> Option<IpInfo> {
        let mut found = None;
        for interface in query::by_adapter(&self.root, adapter) {
            let info = self.describe(&interface, adapter);
            if !info.addresses.is_empty() {
                return Some(info);
            }
            found.get_or_insert(info);
        }
        found
    }

    /// All there is to say about one interface.
    #[must_use]
    pub fn describe(&self, interface: &Interface, adapter: &str) -> IpInfo {
        let addresses = query::addresses(Some(&interface.name));
        let join = |list: Vec<String>| list.join(";");
        let dns = self
            .hooks
            .dns(&interface.name)
            .unwrap_or_else(|| query::name_servers(&self.root));
        let dhcp = self
            .hooks
            .dhcp(&interface.name)
            .unwrap_or_else(|| managers::uses_dhcp(&self.root, interface));
        IpInfo {
            adapter: adapter.to_owned(),
            family: addresses.iter().fold(0, |bits, a| bits | a.family()),
            dhcp,
            addresses: join(addresses.iter().map(|a| a.ip.to_string()).collect()),
            subnets: join(addresses.iter().map(query::Address::mask).collect()),
            gateways: join(query::gateways(&self.root, &interface.name)),
            dns: join(dns),
        }
    }

    /// Sets the addresses of an adapter as the host wants them, for now and for the next boot.
    ///
    /// # Errors
    ///
    /// [`SetError`]; files are then as they were.
    pub fn set(&self, info: &IpInfo) -> Result<(), SetError> {
        let interface = query::by_adapter(&self.root, &info.adapter)
            .into_iter()
            .next()
            .ok_or_else(|| SetError::NoInterface(info.adapter.clone()))?;
        let config = Config::parse(info)?;
        if self.hooks.can_set() && !self.dry_run {
            info!("{}: handing addresses to hv_set_ifconfig", interface.name);
            return self.hooks.set(&interface, &config);
        }
        let plan = self.plan(&interface, &config)?;
        for line in plan.to_string().lines() {
            info!("{}: {line}", interface.name);
        }
        for warning in &plan.warnings {
            warn!("{}: {warning}", interface.name);
        }
        if self.dry_run {
            return Err(SetError::DryRun);
        }
        plan.apply(&self.root)
    }

    /// What setting would change.
    ///
    /// # Errors
    ///
    /// [`SetError::Unmanaged`].
    pub fn plan(&self, interface: &Interface, config: &Config) -> Result<Plan, SetError> {
        let manager = managers::of(&self.root, interface).ok_or_else(|| {
            SetError::Unmanaged(format!(
                "neither NetworkManager, systemd-networkd nor ifupdown is in use for {}; install one, or a script {}",
                interface.name,
                self.hooks.directory().join("hv_set_ifconfig").display()
            ))
        })?;
        let plan = match manager {
            Manager::NetworkManager => networkmanager::plan(interface, config),
            Manager::Networkd => networkd::plan(&self.root, interface, config),
            Manager::Ifupdown => ifupdown::plan(&self.root, interface, config)?,
        };
        Ok(plan)
    }
}
