// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What the host can do about checksums and segments, and what the guest has turned on of it.

use vmbus_proto::net::nvsp::NdisVersion;
use vmbus_proto::net::offload::{
    ChecksumFlags, ChecksumOffload, ChecksumSetting, LargeSendOffload, ObjectHeader, ObjectType,
    Offload, OffloadParameters, ENCAPSULATION_802_3,
};

/// Bytes of a packet to be segmented at most: Linux takes 64 KiB and less (`rndis_filter.c`,
/// `rndis_netdev_set_hwcaps`); what OpenVMM says (`netvsp`, `LSO_MAX_OFFLOAD_SIZE`).
pub(crate) const LSO_MAX_SIZE: u32 = 65535;
/// Segments at least.
const LSO_MIN_SEGMENTS: u32 = 2;

/// What the host offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// Checksum of the header of IPv4.
    pub ip4: bool,
    /// TCP over IPv4.
    pub tcp4: bool,
    /// UDP over IPv4.
    pub udp4: bool,
    /// TCP over IPv6.
    pub tcp6: bool,
    /// UDP over IPv6.
    pub udp6: bool,
    /// Large send, IPv4.
    pub lso4: bool,
    /// Large send, IPv6.
    pub lso6: bool,
    /// Coalescing of received segments.
    pub rsc: bool,
    /// VLAN tags as per-packet information.
    pub vlan: bool,
}

impl Offloads {
    /// Everything.
    pub const ALL: Self = Self {
        ip4: true,
        tcp4: true,
        udp4: true,
        tcp6: true,
        udp6: true,
        lso4: true,
        lso6: true,
        rsc: true,
        vlan: true,
    };

    const NONE: Self = Self {
        ip4: false,
        tcp4: false,
        udp4: false,
        tcp6: false,
        udp6: false,
        lso4: false,
        lso6: false,
        rsc: false,
        vlan: false,
    };

    fn field(&mut self, name: &str) -> Option<&mut bool> {
        Some(match name {
            "ip4" => &mut self.ip4,
            "tcp4" => &mut self.tcp4,
            "udp4" => &mut self.udp4,
            "tcp6" => &mut self.tcp6,
            "udp6" => &mut self.udp6,
            "lso4" => &mut self.lso4,
            "lso6" => &mut self.lso6,
            "rsc" => &mut self.rsc,
            "vlan" => &mut self.vlan,
            _ => return None,
        })
    }

    /// Reads `all`, `none`, or names joined by `;`, of which `-NAME` takes one away from all.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut list = match text {
            "all" => return Ok(Self::ALL),
            "none" => return Ok(Self::NONE),
            other if other.starts_with('-') => Self::ALL,
            _ => Self::NONE,
        };
        for word in text.split(';') {
            let (name, on) = match word.strip_prefix('-') {
                Some(name) => (name, false),
                None => (word, true),
            };
            *list.field(name).ok_or_else(|| {
                format!("'{name}' is not one of ip4, tcp4, udp4, tcp6, udp6, lso4, lso6, rsc, vlan")
            })? = on;
        }
        Ok(list)
    }

    /// Names of what is on.
    pub(crate) fn names(mut self) -> Vec<String> {
        [
            "ip4", "tcp4", "udp4", "tcp6", "udp6", "lso4", "lso6", "rsc", "vlan",
        ]
        .into_iter()
        .filter(|name| self.field(name).is_some_and(|on| *on))
        .map(str::to_owned)
        .collect()
    }
}

/// Whether to fill in, and to check, a checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TxRx {
    pub(crate) tx: bool,
    pub(crate) rx: bool,
}

impl TxRx {
    fn set(&mut self, setting: ChecksumSetting, offered: bool) {
        if let Some((tx, rx)) = setting.tx_rx() {
            *self = Self {
                tx: tx && offered,
                rx: rx && offered,
            };
        }
    }
}

/// What the guest has turned on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Enabled {
    pub(crate) ip4: TxRx,
    pub(crate) tcp4: TxRx,
    pub(crate) udp4: TxRx,
    pub(crate) tcp6: TxRx,
    pub(crate) udp6: TxRx,
    pub(crate) lso4: bool,
    pub(crate) lso6: bool,
    pub(crate) rsc4: bool,
    pub(crate) rsc6: bool,
}

impl Enabled {
    /// At the start everything but coalescing is on, as with OpenVMM (`netvsp`, `PrimaryChannelState::new`); a guest
    /// that does not know of coalescing must not see its packets.
    pub(crate) fn new(offered: &Offloads) -> Self {
        let both = |on| TxRx { tx: on, rx: on };
        Self {
            ip4: both(offered.ip4),
            tcp4: both(offered.tcp4),
            udp4: both(offered.udp4),
            tcp6: both(offered.tcp6),
            udp6: both(offered.udp6),
            lso4: offered.lso4,
            lso6: offered.lso6,
            rsc4: false,
            rsc6: false,
        }
    }

    /// Carries out OID_TCP_OFFLOAD_PARAMETERS. What is not offered stays off.
    pub(crate) fn set(&mut self, wanted: &OffloadParameters, offered: &Offloads) {
        self.ip4.set(wanted.ipv4, offered.ip4);
        self.tcp4.set(wanted.tcp_ipv4, offered.tcp4);
        self.udp4.set(wanted.udp_ipv4, offered.udp4);
        self.tcp6.set(wanted.tcp_ipv6, offered.tcp6);
        self.udp6.set(wanted.udp_ipv6, offered.udp6);
        for (field, setting, can) in [
            (&mut self.lso4, wanted.lso_v2_ipv4, offered.lso4),
            (&mut self.lso6, wanted.lso_v2_ipv6, offered.lso6),
            (&mut self.rsc4, wanted.rsc_ipv4, offered.rsc),
            (&mut self.rsc6, wanted.rsc_ipv6, offered.rsc),
        ] {
            if let Some(on) = setting.is_on() {
                *field = on && can;
            }
        }
    }

    /// Names of what is on.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for (name, TxRx { tx, rx }) in [
            ("ip4", self.ip4),
            ("tcp4", self.tcp4),
            ("udp4", self.udp4),
            ("tcp6", self.tcp6),
            ("udp6", self.udp6),
        ] {
            if tx {
                names.push(format!("{name}-tx"));
            }
            if rx {
                names.push(format!("{name}-rx"));
            }
        }
        for (name, on) in [
            ("lso4", self.lso4),
            ("lso6", self.lso6),
            ("rsc4", self.rsc4),
            ("rsc6", self.rsc6),
        ] {
            if on {
                names.push(name.to_owned());
            }
        }
        names
    }

    /// As NDIS describes it, in the revision of the guest's NDIS version.
    pub(crate) fn describe(&self, ndis: NdisVersion) -> Offload {
        let (revision, size) = match (ndis.major, ndis.minor) {
            (6, 30..) | (7.., _) => (3, size_of::<Offload>()),
            (6, 1..) => (2, Offload::SIZE_REVISION_2),
            _ => (1, Offload::SIZE_REVISION_1),
        };
        let flags = |ip: bool, tcp: bool, udp: bool| {
            let mut flags = ChecksumFlags::empty();
            if ip {
                flags |= ChecksumFlags::IP | ChecksumFlags::IP_OPTIONS;
            }
            if tcp {
                flags |=
                    ChecksumFlags::TCP | ChecksumFlags::TCP_OPTIONS | ChecksumFlags::IP_OPTIONS;
            }
            if udp {
                flags |= ChecksumFlags::UDP | ChecksumFlags::IP_OPTIONS;
            }
            flags
        };
        let mut lso = LargeSendOffload::default();
        if self.lso4 {
            lso.ipv4_encapsulation = ENCAPSULATION_802_3;
            lso.ipv4_max_size = LSO_MAX_SIZE;
            lso.ipv4_min_segments = LSO_MIN_SEGMENTS;
        }
        if self.lso6 {
            lso.ipv6_encapsulation = ENCAPSULATION_802_3;
            lso.ipv6_max_size = LSO_MAX_SIZE;
            lso.ipv6_min_segments = LSO_MIN_SEGMENTS;
            lso.ipv6_options = ChecksumFlags::IP_OPTIONS | ChecksumFlags::TCP_OPTIONS;
        }
        Offload {
            header: ObjectHeader {
                object_type: ObjectType::OFFLOAD,
                revision,
                size: size as u16,
            },
            checksum: ChecksumOffload {
                ipv4_tx_encapsulation: ENCAPSULATION_802_3,
                ipv4_tx: flags(self.ip4.tx, self.tcp4.tx, self.udp4.tx),
                ipv4_rx_encapsulation: ENCAPSULATION_802_3,
                ipv4_rx: flags(self.ip4.rx, self.tcp4.rx, self.udp4.rx),
                ipv6_tx_encapsulation: ENCAPSULATION_802_3,
                ipv6_tx: flags(false, self.tcp6.tx, self.udp6.tx),
                ipv6_rx_encapsulation: ENCAPSULATION_802_3,
                ipv6_rx: flags(false, self.tcp6.rx, self.udp6.rx),
            },
            lso_v2: lso,
            rsc_ipv4: u8::from(self.rsc4),
            rsc_ipv6: u8::from(self.rsc6),
            ..Offload::default()
        }
    }

    /// What can be turned on.
    pub(crate) fn capabilities(offered: &Offloads, rsc: bool) -> Self {
        let mut all = Self::new(offered);
        all.rsc4 = offered.rsc && rsc;
        all.rsc6 = offered.rsc && rsc;
        all
    }
}
