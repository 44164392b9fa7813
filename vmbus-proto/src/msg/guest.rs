// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Messages that the guest sends to the host.

use super::{messages, GpadlId, Relid, USER_DATA_SIZE};
use crate::guid::Guid;
use crate::version::{FeatureFlags, VmbusVersion};
use zerocopy_derive::*;

/// VP index in OPEN_CHANNEL and MODIFY_CHANNEL that turns the channel's interrupts off
/// (OpenVMM `VP_INDEX_DISABLE_INTERRUPT`).
pub const VP_INDEX_DISABLE_INTERRUPT: u32 = u32::MAX;

messages! {
    /// Send the offers; allowed once per connection.
    RequestOffers = REQUEST_OFFERS, size 8 {}

    /// Open a channel (`struct vmbus_channel_open_channel`). With features of 6.0 an
    /// [`OpenChannelExtra`] follows.
    OpenChannel = OPEN_CHANNEL, size 148 {
        /// The channel.
        relid: Relid = 8,
        /// Returned in the result (`openid`).
        open_id: u32 = 12,
        /// GPADL that holds both rings, guest to host first.
        ring_gpadl: GpadlId = 16,
        /// VP to interrupt for the channel, or [`VP_INDEX_DISABLE_INTERRUPT`].
        target_vp: u32 = 20,
        /// Where in the GPADL the host-to-guest ring starts, in pages of 4 KiB.
        downstream_page_offset: u32 = 24,
        /// Data for the device.
        user_data: [u8; USER_DATA_SIZE] = 28,
    }

    /// Close a channel; not answered (`struct vmbus_channel_close_channel`).
    CloseChannel = CLOSE_CHANNEL, size 12 {
        /// The channel.
        relid: Relid = 8,
    }

    /// First part of a GPADL; range data of up to 220 bytes follows
    /// (`struct vmbus_channel_gpadl_header`).
    GpadlHeader = GPADL_HEADER, size 20 {
        /// The channel the GPADL belongs to.
        relid: Relid = 8,
        /// Handle, not in use for another GPADL.
        gpadl: GpadlId = 12,
        /// Bytes of range data in this and the following messages.
        range_buflen: u16 = 16,
        /// Ranges in the range data.
        range_count: u16 = 18,
    }

    /// Next part of a GPADL; range data of up to 224 bytes follows
    /// (`struct vmbus_channel_gpadl_body`).
    GpadlBody = GPADL_BODY, size 16 {
        /// Number of the message; neither Linux (which sends 0) nor the hosts use it.
        message_number: u32 = 8,
        /// The GPADL.
        gpadl: GpadlId = 12,
    }

    /// Give a GPADL back; answered by GPADL_TORNDOWN (`struct vmbus_channel_gpadl_teardown`).
    GpadlTeardown = GPADL_TEARDOWN, size 16 {
        /// The channel.
        relid: Relid = 8,
        /// The GPADL.
        gpadl: GpadlId = 12,
    }

    /// The guest is done with a rescinded channel (`struct vmbus_channel_relid_released`).
    RelidReleased = RELID_RELEASED, size 12 {
        /// The channel.
        relid: Relid = 8,
    }

    /// Connect (`struct vmbus_channel_initiate_contact`). With
    /// [`FeatureFlags::CLIENT_ID`] a GUID follows.
    InitiateContact = INITIATE_CONTACT, size 40 {
        /// The version offered.
        version: VmbusVersion = 8,
        /// VP index on which the guest receives messages.
        target_vp: u32 = 12,
        /// Before 5.0 the guest-physical address of the interrupt page, from 5.0 on a
        /// [`TargetInfo`]; see there.
        interrupt_page_or_target: u64 = 16,
        /// Guest-physical address of the host-to-guest monitor page, or 0.
        monitor_page1: u64 = 24,
        /// Guest-physical address of the guest-to-host monitor page, or 0.
        monitor_page2: u64 = 32,
    }

    /// Disconnect; answered by UNLOAD_RESPONSE, after which no message follows.
    Unload = UNLOAD, size 8 {}

    /// Open a channel that needs no offer (OpenVMM `OpenReservedChannel`).
    OpenReservedChannel = OPEN_RESERVED_CHANNEL, size 28 {
        /// The channel.
        relid: Relid = 8,
        /// VP to interrupt.
        target_vp: u32 = 12,
        /// SINT on which to interrupt.
        target_sint: u32 = 16,
        /// GPADL that holds both rings.
        ring_gpadl: GpadlId = 20,
        /// Where in the GPADL the host-to-guest ring starts, in pages.
        downstream_page_offset: u32 = 24,
    }

    /// Close such a channel (OpenVMM `CloseReservedChannel`).
    CloseReservedChannel = CLOSE_RESERVED_CHANNEL, size 20 {
        /// The channel.
        relid: Relid = 8,
        /// VP to send the response to.
        target_vp: u32 = 12,
        /// SINT to send the response to.
        target_sint: u32 = 16,
    }

    /// Connect an hv_sock to the host (`struct vmbus_channel_tl_connect_request`). From 5.2 on a
    /// silo GUID may follow.
    TlConnectRequest = TL_CONNECT_REQUEST, size 40 {
        /// Names the guest's end of the connection.
        endpoint_id: Guid = 8,
        /// Service of the host.
        service_id: Guid = 24,
    }

    /// Move a channel's interrupt (`struct vmbus_channel_modifychannel`).
    ModifyChannel = MODIFY_CHANNEL, size 16 {
        /// The channel.
        relid: Relid = 8,
        /// The new VP, or [`VP_INDEX_DISABLE_INTERRUPT`].
        target_vp: u32 = 12,
    }

    /// Change the monitor pages (OpenVMM `ModifyConnection`).
    ModifyConnection = MODIFY_CONNECTION, size 24 {
        /// Guest-physical address of the host-to-guest monitor page.
        monitor_page1: u64 = 8,
        /// Guest-physical address of the guest-to-host monitor page.
        monitor_page2: u64 = 16,
    }

    /// Send no further messages until RESUME (OpenVMM).
    Pause = PAUSE, size 8 {}

    /// Send messages again (OpenVMM).
    Resume = RESUME, size 8 {}
}

/// Where the host sends messages and events, and features asked for: the third field of
/// INITIATE_CONTACT from 5.0 on (`hyperv.h`, `msg_sint` ff.).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct TargetInfo {
    /// SINT for messages and events.
    pub sint: u8,
    /// Virtual trust level of the guest.
    pub vtl: u8,
    /// Unused.
    pub reserved: [u8; 2],
    /// From 6.0 on: the features the client knows.
    pub features: FeatureFlags,
}

assert_layout!(
    TargetInfo,
    size = 8,
    sint = 0,
    vtl = 1,
    reserved = 2,
    features = 4
);

impl TargetInfo {
    /// As the field of the message.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        (self.sint as u64) | ((self.vtl as u64) << 8) | ((self.features.bits() as u64) << 32)
    }

    /// From the field of the message. Reserved bytes are dropped.
    #[must_use]
    pub const fn from_u64(value: u64) -> Self {
        Self {
            sint: value as u8,
            vtl: (value >> 8) as u8,
            reserved: [0; 2],
            features: FeatureFlags::from_bits_retain((value >> 32) as u32),
        }
    }
}

impl InitiateContact {
    /// Where to send messages: the field's meaning depends on the version. `None` before 5.0,
    /// when messages go to [`super::VMBUS_SINT`] of VTL 0.
    #[must_use]
    pub fn target_info(&self) -> Option<TargetInfo> {
        self.version
            .has_message_connection_id()
            .then(|| TargetInfo::from_u64(self.interrupt_page_or_target))
    }

    /// Guest-physical address of the interrupt page, before 5.0.
    #[must_use]
    pub fn interrupt_page(&self) -> Option<u64> {
        (!self.version.has_message_connection_id()).then_some(self.interrupt_page_or_target)
    }

    /// The features asked for; none before 6.0.
    #[must_use]
    pub fn features(&self) -> FeatureFlags {
        match self.target_info() {
            Some(info) if self.version.has_feature_flags() => info.features,
            _ => FeatureFlags::empty(),
        }
    }
}

wire_flags! {
    /// Flags of [`OpenChannelExtra`] (OpenVMM `OpenChannelFlags`).
    pub struct OpenChannelFlags(u16) {
        /// Send the channel's interrupt to the redirected VTL and SINT.
        const REDIRECT_INTERRUPT = 1;
    }
}

/// Tail of OPEN_CHANNEL with features of 6.0 (OpenVMM `OpenChannel2`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct OpenChannelExtra {
    /// Connection id for signalling the host; valid with
    /// [`FeatureFlags::GUEST_SPECIFIED_SIGNAL_PARAMETERS`].
    pub connection_id: u32,
    /// Event flag for signalling the guest; valid likewise.
    pub event_flag: u16,
    /// Valid with [`FeatureFlags::CHANNEL_INTERRUPT_REDIRECTION`].
    pub flags: OpenChannelFlags,
}

assert_layout!(
    OpenChannelExtra,
    size = 8,
    connection_id = 0,
    event_flag = 4,
    flags = 6
);
