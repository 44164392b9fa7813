// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Protocol versions, what each of them can do, and the feature flags of 6.0.

use core::fmt;
use core::str::FromStr;
use zerocopy_derive::*;

/// A VMBus protocol version: major in the upper, minor in the lower 16 bits
/// (`hyperv.h`, `VMBUS_MAKE_VERSION`). Ordered by age.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
)]
#[repr(transparent)]
pub struct VmbusVersion(pub u32);

impl VmbusVersion {
    /// Windows Server 2008; not supported by Linux any more.
    pub const V0_13: Self = Self::new(0, 13);
    /// Windows 7; not supported by Linux any more.
    pub const V1_1: Self = Self::new(1, 1);
    /// Windows 8; not supported by Linux any more.
    pub const V2_4: Self = Self::new(2, 4);
    /// Windows 8.1; not supported by Linux any more.
    pub const V3_0: Self = Self::new(3, 0);
    /// Windows 10, Server 2016.
    pub const V4_0: Self = Self::new(4, 0);
    /// Windows 10 RS3.
    pub const V4_1: Self = Self::new(4, 1);
    /// Windows 10 RS3, later.
    pub const V5_0: Self = Self::new(5, 0);
    /// Windows 10 RS4.
    pub const V5_1: Self = Self::new(5, 1);
    /// Windows Server 2019 (RS5).
    pub const V5_2: Self = Self::new(5, 2);
    /// Windows Server 2022 (OpenVMM: "Iron").
    pub const V5_3: Self = Self::new(5, 3);
    /// Later Windows and Azure hosts (OpenVMM: "Copper").
    pub const V6_0: Self = Self::new(6, 0);

    /// The versions this crate speaks, newest first: the order in which a client offers them
    /// (Linux `connection.c`, `vmbus_versions`).
    pub const SUPPORTED: [Self; 7] = [
        Self::V6_0,
        Self::V5_3,
        Self::V5_2,
        Self::V5_1,
        Self::V5_0,
        Self::V4_1,
        Self::V4_0,
    ];

    /// A version from its two halves.
    #[must_use]
    pub const fn new(major: u16, minor: u16) -> Self {
        Self(((major as u32) << 16) | minor as u32)
    }

    /// The major half.
    #[must_use]
    pub const fn major(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The minor half.
    #[must_use]
    pub const fn minor(self) -> u16 {
        self.0 as u16
    }

    /// Whether this crate speaks the version.
    #[must_use]
    pub fn is_supported(self) -> bool {
        Self::SUPPORTED.contains(&self)
    }

    /// MODIFYCHANNEL (move a channel's interrupt to another VP) exists (from 4.1;
    /// `vmbus_drv.c`, `target_cpu_store`).
    #[must_use]
    pub fn has_modify_channel(self) -> bool {
        self >= Self::V4_1
    }

    /// The host answers MODIFYCHANNEL with a response (from 5.3; `channel.c`,
    /// `vmbus_send_modifychannel`).
    #[must_use]
    pub fn has_modify_channel_response(self) -> bool {
        self >= Self::V5_3
    }

    /// INITIATE_CONTACT is posted to connection 4, names the guest's SINT and VTL instead of an
    /// interrupt page, and the version response names the connection id for all later messages
    /// (from 5.0; `connection.c`, `vmbus_try_connection_id`).
    #[must_use]
    pub fn has_message_connection_id(self) -> bool {
        self >= Self::V5_0
    }

    /// The TL_CONNECT_RESULT message exists (from 4.1; OpenVMM `vmbus_core`).
    #[must_use]
    pub fn has_tl_connect_result(self) -> bool {
        self >= Self::V4_1
    }

    /// TL_CONNECT_REQUEST may carry a silo id (from 5.2; OpenVMM `vmbus_core`).
    #[must_use]
    pub fn has_tl_connect_silo(self) -> bool {
        self >= Self::V5_2
    }

    /// hv_sock rings may be larger than six pages (from 5.0; Linux `hyperv_transport.c`).
    #[must_use]
    pub fn has_large_hvsock_rings(self) -> bool {
        self >= Self::V5_0
    }

    /// An isolated guest may use the version (from 5.2; `connection.c`, `vmbus_connect`).
    #[must_use]
    pub fn allowed_in_isolated(self) -> bool {
        self >= Self::V5_2
    }

    /// Feature flags are negotiated (from 6.0; see [`FeatureFlags`]).
    #[must_use]
    pub fn has_feature_flags(self) -> bool {
        self >= Self::V6_0
    }
}

/// `major.minor`.
impl fmt::Display for VmbusVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.minor())
    }
}

impl fmt::Debug for VmbusVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not `major.minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionParseError;

impl fmt::Display for VersionParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a VMBus version: expected MAJOR.MINOR, such as 5.3")
    }
}

impl core::error::Error for VersionParseError {}

impl FromStr for VmbusVersion {
    type Err = VersionParseError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (major, minor) = s.split_once('.').ok_or(VersionParseError)?;
        Ok(Self::new(
            major.parse().map_err(|_| VersionParseError)?,
            minor.parse().map_err(|_| VersionParseError)?,
        ))
    }
}

wire_flags! {
    /// Features negotiated by version 6.0: the client names those it knows in INITIATE_CONTACT, the
    /// server answers with those it grants (OpenVMM `vmbus_core`, `FeatureFlags`).
    pub struct FeatureFlags(u32) {
        /// The client may choose the event flag and connection id when it opens a channel.
        const GUEST_SPECIFIED_SIGNAL_PARAMETERS = 0x1;
        /// The interrupt redirection flag of OPENCHANNEL is known.
        const CHANNEL_INTERRUPT_REDIRECTION = 0x2;
        /// MODIFY_CONNECTION and its response are known.
        const MODIFY_CONNECTION = 0x4;
        /// INITIATE_CONTACT carries a GUID that identifies the client.
        const CLIENT_ID = 0x8;
        /// Offers may carry the confidential ring and memory flags
        /// (`hyperv.h`, `VMBUS_FEATURE_FLAG_CONFIDENTIAL_CHANNELS`).
        const CONFIDENTIAL_CHANNELS = 0x10;
        /// PAUSE and RESUME are known.
        const PAUSE_RESUME = 0x20;
        /// The server provides the monitor pages; their addresses are in the version response.
        const SERVER_SPECIFIED_MONITOR_PAGES = 0x40;
        /// Offers may require pinned memory.
        const GPA_PINNING = 0x80;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn supported_versions_are_newest_first_and_complete() {
        let mut sorted = VmbusVersion::SUPPORTED;
        sorted.sort();
        sorted.reverse();
        assert_eq!(sorted, VmbusVersion::SUPPORTED);
        assert!(!VmbusVersion::V3_0.is_supported());
    }

    /// What changes at which version, one row per version.
    #[test]
    fn capabilities_by_version() {
        let row = |v: VmbusVersion| {
            (
                v.to_string(),
                v.has_modify_channel(),
                v.has_message_connection_id(),
                v.allowed_in_isolated(),
                v.has_modify_channel_response(),
                v.has_feature_flags(),
            )
        };
        let table = VmbusVersion::SUPPORTED.map(row);
        let expect = [
            ("6.0", true, true, true, true, true),
            ("5.3", true, true, true, true, false),
            ("5.2", true, true, true, false, false),
            ("5.1", true, true, false, false, false),
            ("5.0", true, true, false, false, false),
            ("4.1", true, false, false, false, false),
            ("4.0", false, false, false, false, false),
        ]
        .map(|(v, a, b, c, d, e)| (v.to_string(), a, b, c, d, e));
        assert_eq!(table, expect);
    }

    #[test]
    fn text() {
        assert_eq!("5.3".parse(), Ok(VmbusVersion::V5_3));
        for bad in ["", "5", "5.", ".3", "5.3.1", "5.-1", "65536.0", "v5.3"] {
            assert_eq!(
                bad.parse::<VmbusVersion>(),
                Err(VersionParseError),
                "{bad:?}"
            );
        }
        assert_eq!(VmbusVersion::V5_3.0, 0x0005_0003);
    }
}
