// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Settings of an adapter as they go through the device: lists of text.

use std::net::IpAddr;

use vmbus_proto::ic::kvp::{AddressFamily, DeviceMessage, IpConfig};

/// Longest list in bytes: the driver makes UTF-16 of it, in a field of twice the size with a NUL at the end.
const MAX_LIST: usize = vmbus_proto::ic::kvp::ADDRESSES_SIZE / 2 - 1;
/// The same of gateways.
const MAX_GATEWAYS: usize = vmbus_proto::ic::kvp::GATEWAYS_SIZE / 2 - 1;

/// Addresses as the host asks for them or sets them ([`IpConfig`] with text of its own).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpInfo {
    /// MAC address or GUID, as the host writes it.
    pub adapter: String,
    /// Bits of [`AddressFamily`].
    pub family: u8,
    /// IPv4 is configured by DHCP.
    pub dhcp: bool,
    /// Addresses, separated by `;`.
    pub addresses: String,
    /// Masks or prefix lengths, in the order of the addresses.
    pub subnets: String,
    /// Default gateways.
    pub gateways: String,
    /// Name servers.
    pub dns: String,
}

impl IpInfo {
    /// A copy of what a message holds.
    #[must_use]
    pub fn of(config: &IpConfig<'_>) -> Self {
        Self {
            adapter: config.adapter.into(),
            family: config.family.0,
            dhcp: config.dhcp,
            addresses: config.addresses.into(),
            subnets: config.subnets.into(),
            gateways: config.gateways.into(),
            dns: config.dns.into(),
        }
    }

    /// Makes `message` the answer that tells all this. Lists are cut between two entries if they do not fit.
    ///
    /// # Errors
    ///
    /// For text that is none.
    pub fn answer(
        &self,
        message: &mut DeviceMessage,
    ) -> Result<(), vmbus_proto::ic::text::TextError> {
        message.answer_ip(&IpConfig {
            adapter: &self.adapter,
            family: AddressFamily(self.family),
            dhcp: self.dhcp,
            addresses: cut(&self.addresses, MAX_LIST),
            subnets: cut(&self.subnets, MAX_LIST),
            gateways: cut(&self.gateways, MAX_GATEWAYS),
            dns: cut(&self.dns, MAX_LIST),
        })
    }
}

/// `list` without the last entries, as many as are too many.
fn cut(list: &str, max: usize) -> &str {
    let mut list = list;
    while list.len() > max {
        list = list.rfind(';').map_or("", |end| &list[..end]);
    }
    list
}

/// Addresses of a list as hosts write it: separated by `;`, blanks and empty entries allowed. None: one of them is no
/// address.
#[must_use]
pub fn parse_addresses(list: &str) -> Option<Vec<IpAddr>> {
    entries(list).map(|entry| entry.parse().ok()).collect()
}

/// Entries of a list separated by `;`.
pub fn entries(list: &str) -> impl Iterator<Item = &str> {
    list.split(';').map(str::trim).filter(|s| !s.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_cut_between_entries() {
        let list = ["10.0.0.1"; 200].join(";");
        let short = cut(&list, MAX_LIST);
        assert!(short.len() <= MAX_LIST && short.len() > MAX_LIST - 9);
        assert!(short.ends_with("10.0.0.1"));
        assert_eq!(cut("abcdef", 3), "");
        assert_eq!(cut("ab;c", 4), "ab;c");
    }

    #[test]
    fn lists_of_hosts() {
        assert_eq!(parse_addresses(" 10.0.0.1; ;fe80::1;").unwrap().len(), 2);
        assert_eq!(parse_addresses("").unwrap().len(), 0);
        assert!(parse_addresses("10.0.0.1;x").is_none());
    }
}
