// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What the host wants an interface to be, checked.

use std::net::{IpAddr, Ipv4Addr};

use super::SetError;
use crate::kvp::{entries, parse_addresses, IpInfo};

/// Addresses that one interface may get. A message holds fewer.
const MAX_ENTRIES: usize = 64;

/// A checked configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// IPv4 by DHCP.
    pub dhcp: bool,
    /// Addresses with their prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Default gateways, best first.
    pub gateways: Vec<IpAddr>,
    /// Name servers, best first.
    pub dns: Vec<IpAddr>,
}

impl Config {
    /// Checks what the host sent.
    ///
    /// # Errors
    ///
    /// [`SetError::Invalid`]: an entry that is no address, a mask with holes, addresses without masks.
    pub fn parse(info: &IpInfo) -> Result<Self, SetError> {
        let addresses = list("address", &info.addresses)?;
        let masks: Vec<&str> = entries(&info.subnets).collect();
        if masks.len() != addresses.len() {
            let text = format!("{} addresses, {} masks", addresses.len(), masks.len());
            return Err(SetError::Invalid(text));
        }
        let addresses = addresses
            .into_iter()
            .zip(masks)
            .map(|(address, mask)| match prefix(address, mask) {
                Some(prefix) => Ok((address, prefix)),
                None => Err(SetError::Invalid(format!("{mask}: no mask for {address}"))),
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            dhcp: info.dhcp,
            addresses,
            gateways: list("gateway", &info.gateways)?,
            dns: list("name server", &info.dns)?,
        })
    }

    /// Addresses of one family.
    pub fn addresses(&self, v6: bool) -> impl Iterator<Item = (IpAddr, u8)> + '_ {
        self.addresses
            .iter()
            .copied()
            .filter(move |(a, _)| a.is_ipv6() == v6)
    }

    /// Gateways of one family.
    pub fn gateways(&self, v6: bool) -> impl Iterator<Item = IpAddr> + '_ {
        self.gateways
            .iter()
            .copied()
            .filter(move |a| a.is_ipv6() == v6)
    }

    /// Name servers of one family.
    pub fn dns(&self, v6: bool) -> impl Iterator<Item = IpAddr> + '_ {
        self.dns.iter().copied().filter(move |a| a.is_ipv6() == v6)
    }
}

fn list(what: &str, text: &str) -> Result<Vec<IpAddr>, SetError> {
    let list = parse_addresses(text)
        .ok_or_else(|| SetError::Invalid(format!("{what} list '{text}': not an address")))?;
    match list.iter().find(|a| a.is_unspecified() || a.is_multicast()) {
        Some(bad) => Err(SetError::Invalid(format!("{what} {bad}: not of a host"))),
        None if list.len() > MAX_ENTRIES => Err(SetError::Invalid(format!(
            "{what} list of {} entries",
            list.len()
        ))),
        None => Ok(list),
    }
}

/// Prefix length of a mask: dotted for IPv4, else a number, with or without `/`.
fn prefix(address: IpAddr, mask: &str) -> Option<u8> {
    let max = if address.is_ipv4() { 32 } else { 128 };
    if let (IpAddr::V4(_), Ok(dotted)) = (address, mask.parse::<Ipv4Addr>()) {
        let ones = dotted.to_bits().leading_ones();
        let whole = ones == dotted.to_bits().count_ones() && ones != 0;
        return whole.then_some(u8::try_from(ones).ok()?);
    }
    let number: u8 = mask.strip_prefix('/').unwrap_or(mask).parse().ok()?;
    (1..=max).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(addresses: &str, subnets: &str) -> IpInfo {
        IpInfo {
            addresses: addresses.into(),
            subnets: subnets.into(),
            gateways: "10.0.0.1; fe80::1".into(),
            dns: "1.1.1.1".into(),
            ..IpInfo::default()
        }
    }

    #[test]
    fn masks_of_all_forms() {
        let config =
            Config::parse(&info("10.0.0.5; 10.1.0.5;fd00::5;", "255.255.255.0;/16;64")).unwrap();
        let prefixes: Vec<u8> = config.addresses.iter().map(|a| a.1).collect();
        assert_eq!(prefixes, [24, 16, 64]);
        assert_eq!(config.gateways(true).count(), 1);
    }

    #[test]
    fn nonsense_is_refused() {
        for (addresses, masks) in [
            ("10.0.0.5", ""),
            ("10.0.0.5", "255.0.255.0"),
            ("10.0.0.5", "0.0.0.0"),
            ("10.0.0.5", "/33"),
            ("fd00::5", "255.255.0.0"),
            ("fd00::5", "/129"),
            ("10.0.0.5\nup rm -rf /", "24"),
            ("0.0.0.0", "24"),
            ("239.1.1.1", "24"),
            ("10.0.0.256", "24"),
        ] {
            assert!(
                Config::parse(&info(addresses, masks)).is_err(),
                "{addresses} {masks}"
            );
        }
    }
}
