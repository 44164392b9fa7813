// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Messages that the host sends to the guest.

use super::{messages, GpadlId, Relid, Status, USER_DATA_SIZE};
use crate::guid::Guid;
use crate::version::FeatureFlags;
use zerocopy_derive::*;

wire_flags! {
    /// Properties of a channel on offer (`hyperv.h`, "Server Flags"; OpenVMM `OfferFlags`).
    pub struct OfferFlags(u16) {
        /// The class GUID is a device interface that Windows enumerates.
        const ENUMERATE_DEVICE_INTERFACE = 0x0001;
        /// Offered by the paravisor: the rings are in encrypted memory.
        const CONFIDENTIAL_RING_BUFFER = 0x0002;
        /// Offered by the paravisor: GPADLs and GPA-direct ranges are in encrypted memory.
        const CONFIDENTIAL_EXTERNAL_MEMORY = 0x0004;
        /// GPADLs and GPA-direct ranges must be in pinned memory (OpenVMM).
        const REQUIRE_PINNED_EXTERNAL_MEMORY = 0x0008;
        /// The channel is a pipe: [`OfferChannel::user_data`] starts with a [`PipeMode`].
        const NAMED_PIPE_MODE = 0x0010;
        /// Offered by the guest itself.
        const LOOPBACK_OFFER = 0x0100;
        /// Offered by the parent partition.
        const PARENT_OFFER = 0x0200;
        /// The sender wants monitored notification.
        const REQUEST_MONITORED_NOTIFICATION = 0x0400;
        /// An hv_sock connection; the class GUID is the service (`VMBUS_CHANNEL_TLNPI_PROVIDER_OFFER`).
        const TLNPI_PROVIDER = 0x2000;
    }
}

open_enum! {
    /// Kind of a pipe, in the first four bytes of an offer's user data (`VMBUS_PIPE_TYPE_*`).
    pub struct PipeMode(u32) {
        /// A stream of bytes.
        BYTE = 0,
        /// Messages with boundaries.
        MESSAGE = 4,
    }
}

open_enum! {
    /// Whether an accepted version led to a connection (OpenVMM `ConnectionState`).
    pub struct ConnectionState(u8) {
        /// Connected.
        SUCCESSFUL = 0,
        /// The host has no resources for the connection.
        FAILED_LOW_RESOURCES = 1,
        /// Failed for another reason.
        FAILED_UNKNOWN = 2,
    }
}

messages! {
    /// A channel is on offer (`struct vmbus_channel_offer_channel`).
    OfferChannel = OFFER_CHANNEL, size 196 {
        /// Class of the device (`if_type`); for hv_sock the service.
        class_id: Guid = 8,
        /// Instance of the device (`if_instance`), the same for a device's subchannels.
        instance_id: Guid = 24,
        /// Unused.
        reserved: [u32; 4] = 40,
        /// Properties of the channel (`chn_flags`).
        flags: OfferFlags = 56,
        /// MMIO space the device needs, in MiB.
        mmio_megabytes: u16 = 58,
        /// Data of the offering device; for pipes a [`PipeMode`] and 116 bytes.
        user_data: [u8; USER_DATA_SIZE] = 60,
        /// Zero for a primary channel, else the number of the subchannel.
        subchannel_index: u16 = 180,
        /// Further MMIO space the device can use, in MiB (OpenVMM; C: `reserved3`).
        mmio_megabytes_optional: u16 = 182,
        /// Name of the channel in later messages.
        relid: Relid = 184,
        /// Bit in the monitor page, valid when `monitor_allocated` says so.
        monitor_id: u8 = 188,
        /// Bit 0: `monitor_id` is valid. Others reserved.
        monitor_allocated: u8 = 189,
        /// Bit 0: the channel has its own interrupt; the guest must not set its bit in the
        /// interrupt page. Others reserved. Set from 4.0 on.
        is_dedicated: u16 = 190,
        /// Connection id for signalling the host (HvCallSignalEvent).
        connection_id: u32 = 192,
    }

    /// The offer is taken back; the guest lets go and answers with RELID_RELEASED
    /// (`struct vmbus_channel_rescind_offer`).
    RescindChannelOffer = RESCIND_CHANNEL_OFFER, size 12 {
        /// The channel.
        relid: Relid = 8,
    }

    /// All offers present when they were requested have been sent.
    AllOffersDelivered = ALL_OFFERS_DELIVERED, size 8 {}

    /// Outcome of OPEN_CHANNEL (`struct vmbus_channel_open_result`).
    OpenChannelResult = OPEN_CHANNEL_RESULT, size 20 {
        /// The channel.
        relid: Relid = 8,
        /// The request's `open_id`.
        open_id: u32 = 12,
        /// Success, or why the channel stays closed.
        status: Status = 16,
    }

    /// Outcome of a GPADL's creation (`struct vmbus_channel_gpadl_created`).
    GpadlCreated = GPADL_CREATED, size 20 {
        /// The channel.
        relid: Relid = 8,
        /// The GPADL.
        gpadl: GpadlId = 12,
        /// Success, or why the GPADL does not exist.
        status: Status = 16,
    }

    /// The host does not use the GPADL any more (`struct vmbus_channel_gpadl_torndown`).
    GpadlTorndown = GPADL_TORNDOWN, size 12 {
        /// The GPADL.
        gpadl: GpadlId = 8,
    }

    /// Answer to INITIATE_CONTACT (`struct vmbus_channel_version_response`). A server of 6.0 may
    /// append [`VersionResponseFeatures`] and [`VersionResponseMonitor`].
    VersionResponse = VERSION_RESPONSE, size 16 {
        /// Not zero: the version was accepted.
        version_supported: u8 = 8,
        /// Valid when accepted: whether the connection exists.
        connection_state: ConnectionState = 9,
        /// Unused.
        padding: u16 = 10,
        /// From 5.0 on: connection id for all later messages. Earlier: the version selected.
        connection_id: u32 = 12,
    }

    /// Disconnected: the host uses no memory of the guest any more.
    UnloadResponse = UNLOAD_RESPONSE, size 8 {}

    /// A channel without an offer is closed (OpenVMM `CloseReservedChannelResponse`).
    CloseReservedResponse = CLOSE_RESERVED_RESPONSE, size 12 {
        /// The channel.
        relid: Relid = 8,
    }

    /// Outcome of TL_CONNECT_REQUEST when no offer came of it (OpenVMM `TlConnectResult`).
    TlConnectResult = TL_CONNECT_RESULT, size 44 {
        /// As in the request.
        endpoint_id: Guid = 8,
        /// As in the request.
        service_id: Guid = 24,
        /// Why there is no connection.
        status: Status = 40,
    }

    /// Outcome of MODIFY_CHANNEL (`struct vmbus_channel_modifychannel_response`).
    ModifyChannelResponse = MODIFY_CHANNEL_RESPONSE, size 16 {
        /// The channel.
        relid: Relid = 8,
        /// Success: the old VP will not be interrupted for the channel any more.
        status: Status = 12,
    }

    /// Outcome of MODIFY_CONNECTION (OpenVMM `ModifyConnectionResponse`).
    ModifyConnectionResponse = MODIFY_CONNECTION_RESPONSE, size 12 {
        /// Whether the change was made.
        connection_state: ConnectionState = 8,
        /// Makes the struct a multiple of four bytes; the wire form may end before it.
        padding: [u8; 3] = 9,
    }

    /// The last message before a pause (OpenVMM).
    PauseResponse = PAUSE_RESPONSE, size 8 {}
}

impl OfferChannel {
    /// Whether this is a subchannel of a device offered before.
    #[must_use]
    pub const fn is_subchannel(&self) -> bool {
        self.subchannel_index != 0
    }

    /// Whether the channel is an hv_sock connection.
    #[must_use]
    pub const fn is_hvsock(&self) -> bool {
        self.flags.contains(OfferFlags::TLNPI_PROVIDER)
    }

    /// Whether the channel has its own interrupt (see [`OfferChannel::is_dedicated`]).
    #[must_use]
    pub const fn has_dedicated_interrupt(&self) -> bool {
        self.is_dedicated & 1 != 0
    }

    /// The channel's bit in the monitor page, 0 to 127, if it has one.
    #[must_use]
    pub const fn monitor_id(&self) -> Option<u8> {
        if self.monitor_allocated & 1 != 0 && self.monitor_id < 128 {
            Some(self.monitor_id)
        } else {
            None
        }
    }

    /// The kind of pipe, for pipes.
    #[must_use]
    pub fn pipe_mode(&self) -> Option<PipeMode> {
        if !self.flags.contains(OfferFlags::NAMED_PIPE_MODE) {
            return None;
        }
        let (mode, _) = self.user_data.split_first_chunk::<4>()?;
        Some(PipeMode(u32::from_le_bytes(*mode)))
    }
}

/// First tail of a version response of 6.0, after [`VersionResponse`] (OpenVMM `VersionResponse2`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct VersionResponseFeatures {
    /// The features of the client that the server grants.
    pub features: FeatureFlags,
}

assert_layout!(VersionResponseFeatures, size = 4, features = 0);

/// Second tail of a version response of 6.0, after [`VersionResponseFeatures`]; valid with
/// [`FeatureFlags::SERVER_SPECIFIED_MONITOR_PAGES`] (OpenVMM `VersionResponse3`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct VersionResponseMonitor {
    /// Unused.
    pub padding: u32,
    /// Guest-physical address of the host-to-guest monitor page as two 32-bit halves, low first;
    /// may be zero. (Halves, since the tail starts at an offset that is no multiple of 8.)
    pub parent_to_child: [u32; 2],
    /// Likewise for guest to host; not zero.
    pub child_to_parent: [u32; 2],
}

assert_layout!(
    VersionResponseMonitor,
    size = 20,
    padding = 0,
    parent_to_child = 4,
    child_to_parent = 12
);
