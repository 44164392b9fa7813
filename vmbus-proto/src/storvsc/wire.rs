// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Vstor packets and what they carry besides SCSI requests.

use core::fmt;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};
use zerocopy_derive::*;

use super::srb::{ScsiAddress, ScsiRequest, Transfer, CDB_SIZE};
use crate::guid::Guid;

/// Bytes of a vstor packet in versions 6.0 and 6.2 (`sizeof(struct vstor_packet)`). Before version 5.1 a
/// packet had 48 bytes; kernels before Linux 6.2 still send their first packets, up to the
/// agreement on a version, in that size, and hosts answer in the size of the request
/// (OpenVMM `storvsp`, `parse_packet`).
pub const VSTOR_PACKET_SIZE: usize = 64;

/// Bytes of a vstor packet's header.
pub const HEADER_SIZE: usize = 12;

/// Bytes of a vstor packet after its header.
pub const BODY_SIZE: usize = 52;

/// Seconds that a guest waits for each answer of the initialization and for a reset (storvsc_drv.c,
/// `storvsc_timeout`). Much less was too short on busy hosts.
pub const REPLY_TIMEOUT_SECS: u32 = 180;

open_enum! {
    /// What a vstor packet is (`enum vstor_packet_operation`).
    pub struct Operation(u32) {
        /// Host: the request with this transaction id is done.
        COMPLETE_IO = 1,
        /// Host: a device has gone; look which.
        REMOVE_DEVICE = 2,
        /// Guest: carry out a SCSI command.
        EXECUTE_SRB = 3,
        /// Guest: reset a logical unit.
        RESET_LUN = 4,
        /// Guest: reset the controller.
        RESET_ADAPTER = 5,
        /// Guest: reset a bus and flush what is in flight.
        RESET_BUS = 6,
        /// Guest: first packet.
        BEGIN_INITIALIZATION = 7,
        /// Guest: SCSI commands follow.
        END_INITIALIZATION = 8,
        /// Guest: is this version spoken?
        QUERY_PROTOCOL_VERSION = 9,
        /// Guest: what can the controller do?
        QUERY_PROPERTIES = 10,
        /// Host: devices have come or gone; look which.
        ENUMERATE_BUS = 11,
        /// Guest: what are the Fibre Channel names? Host: they have changed.
        FCHBA_DATA = 12,
        /// Guest: offer sub-channels.
        CREATE_SUB_CHANNELS = 13,
        /// Host: something happened to a device (OpenVMM `EVENT_NOTIFICATION`). Linux knows no such
        /// operation and ignores it.
        EVENT_NOTIFICATION = 14,
    }
}

wire_flags! {
    /// Flags of a vstor packet.
    pub struct VstorFlags(u32) {
        /// The sender wants a completion (`REQUEST_COMPLETION_FLAG`). Hosts go by the flag of the ring
        /// packet instead.
        const REQUEST_COMPLETION = 1;
    }
}

open_enum! {
    /// Windows' status of a request: 0 is success (OpenVMM `NtStatus`; names of `ntstatus.h`). A guest only
    /// looks whether it is 0, and only outside of SCSI commands.
    pub struct NtStatus(u32) {
        /// Done.
        SUCCESS = 0,
        /// The data were too many for the buffer.
        BUFFER_OVERFLOW = 0x8000_0005,
        /// The device is busy.
        DEVICE_BUSY = 0x8000_0011,
        /// Not done.
        UNSUCCESSFUL = 0xc000_0001,
        /// A parameter is wrong.
        INVALID_PARAMETER = 0xc000_000d,
        /// The device knows no such request.
        INVALID_DEVICE_REQUEST = 0xc000_0010,
        /// The version is not spoken.
        REVISION_MISMATCH = 0xc000_0059,
        /// The device does not answer.
        DEVICE_NOT_CONNECTED = 0xc000_009d,
        /// It took too long.
        IO_TIMEOUT = 0xc000_00b5,
        /// There is no such device.
        DEVICE_DOES_NOT_EXIST = 0xc000_00c0,
        /// Cancelled.
        CANCELLED = 0xc000_0120,
        /// Not now: wrong order.
        INVALID_DEVICE_STATE = 0xc000_0184,
        /// The device reported an error.
        IO_DEVICE_ERROR = 0xc000_0185,
    }
}

/// Start of a vstor packet.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct VstorHeader {
    /// What the packet is.
    pub operation: Operation,
    /// See [`VstorFlags`].
    pub flags: VstorFlags,
    /// Answers: how it went.
    pub status: NtStatus,
}

assert_layout!(
    VstorHeader,
    size = HEADER_SIZE,
    operation = 0,
    flags = 4,
    status = 8
);

/// A vstor packet (`struct vstor_packet`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct VstorPacket {
    /// Operation, flags, status.
    pub header: VstorHeader,
    /// By operation; zero where that defines nothing.
    pub body: [u8; BODY_SIZE],
}

assert_layout!(
    VstorPacket,
    size = VSTOR_PACKET_SIZE,
    header = 0,
    body = HEADER_SIZE
);

impl VstorPacket {
    /// A guest's request without a body.
    #[must_use]
    pub const fn request(operation: Operation) -> Self {
        Self {
            header: VstorHeader {
                operation,
                flags: VstorFlags::REQUEST_COMPLETION,
                status: NtStatus::SUCCESS,
            },
            body: [0; BODY_SIZE],
        }
    }

    /// A host's answer without a body.
    #[must_use]
    pub const fn answer(status: NtStatus) -> Self {
        Self {
            header: VstorHeader {
                operation: Operation::COMPLETE_IO,
                flags: VstorFlags::empty(),
                status,
            },
            body: [0; BODY_SIZE],
        }
    }

    /// What a host sends on its own, as an in-band packet with transaction id 0: ENUMERATE_BUS or
    /// REMOVE_DEVICE.
    #[must_use]
    pub const fn notice(operation: Operation) -> Self {
        Self {
            header: VstorHeader {
                operation,
                flags: VstorFlags::empty(),
                status: NtStatus::SUCCESS,
            },
            body: [0; BODY_SIZE],
        }
    }

    /// The bytes of the packet.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> &[u8; VSTOR_PACKET_SIZE] {
        zerocopy::transmute_ref!(self)
    }

    /// The packet with `body` at the start of its body. What does not fit is left out: no type of this
    /// protocol is that large.
    #[must_use]
    pub fn with_body(mut self, body: &(impl IntoBytes + Immutable)) -> Self {
        for (to, from) in self.body.iter_mut().zip(body.as_bytes()) {
            *to = *from;
        }
        self
    }

    /// The start of the body as a `T`; zero beyond the body.
    #[must_use]
    pub fn body_as<T: FromBytes + IntoBytes + KnownLayout + Immutable>(&self) -> T {
        T::read_from_prefix(&self.body).map_or_else(|_| T::new_zeroed(), |(body, _)| body)
    }
}

/// A vstor packet with a SCSI request: EXECUTE_SRB, RESET_*, and the completion of EXECUTE_SRB. The
/// same bytes as [`VstorPacket`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct ScsiPacket {
    /// Operation, flags, status.
    pub header: VstorHeader,
    /// The request, or how it went.
    pub request: ScsiRequest,
}

assert_layout!(
    ScsiPacket,
    size = VSTOR_PACKET_SIZE,
    header = 0,
    request = HEADER_SIZE
);

impl ScsiPacket {
    /// Guest: carry out `request`.
    #[inline]
    #[must_use]
    pub const fn execute(request: ScsiRequest) -> Self {
        Self {
            header: VstorPacket::request(Operation::EXECUTE_SRB).header,
            request,
        }
    }

    /// The bytes of [`execute`](Self::execute) of [`ScsiRequest::command`], as words: what is sent for each
    /// disk request, made without a detour through memory. `cdb`: the command, padded with zeroes, in words. `cdb_length` is passed
    /// on as it is: the host refuses what is 0 or above [`CDB_SIZE`].
    #[inline]
    #[must_use]
    pub fn execute_words(
        address: ScsiAddress,
        cdb: [u32; CDB_SIZE / 4],
        cdb_length: u8,
        transfer: Transfer,
        tagged: bool,
    ) -> [u64; VSTOR_PACKET_SIZE / 8] {
        use super::srb::{
            DataIn, SrbFlags, SENSE_SIZE, SP_UNTAGGED, SRB_SIMPLE_TAG_REQUEST, SRB_TIMEOUT_SECS,
        };
        const fn pair(low: u32, high: u32) -> u64 {
            low as u64 | ((high as u64) << 32)
        }
        let ScsiAddress {
            port,
            path,
            target,
            lun,
        } = address;
        let [cdb0, cdb1, cdb2, cdb3] = cdb.map(u32::from_le);
        let (data_in, mut flags) = match transfer {
            Transfer::None => (DataIn::UNKNOWN, SrbFlags::empty()),
            Transfer::FromDevice(_) => (DataIn::READ, SrbFlags::DATA_IN),
            Transfer::ToDevice(_) => (DataIn::WRITE, SrbFlags::DATA_OUT),
        };
        flags = flags.union(SrbFlags::DISABLE_SYNCH_TRANSFER);
        let mut queue = 0;
        if tagged {
            flags = flags
                .union(SrbFlags::QUEUE_ACTION_ENABLE)
                .union(SrbFlags::NO_QUEUE_FREEZE);
            queue = u32::from_le_bytes([0, 0, SP_UNTAGGED, SRB_SIMPLE_TAG_REQUEST]);
        }
        let lengths = u32::from_le_bytes([cdb_length, SENSE_SIZE as u8, data_in.0, 0]);
        [
            pair(
                Operation::EXECUTE_SRB.0,
                VstorFlags::REQUEST_COMPLETION.bits(),
            ),
            pair(NtStatus::SUCCESS.0, BODY_SIZE as u32),
            pair(u32::from_le_bytes([port, path, target, lun]), lengths),
            pair(transfer.len(), cdb0),
            pair(cdb1, cdb2),
            pair(cdb3, 0),
            pair(queue, flags.bits()),
            pair(SRB_TIMEOUT_SECS, 0),
        ]
    }

    /// Guest: reset what `address` names, as `operation` says. Linux uses RESET_BUS alone.
    #[must_use]
    pub fn reset(operation: Operation, address: ScsiAddress) -> Self {
        let mut request = ScsiRequest::new_zeroed();
        request.address = address;
        Self {
            header: VstorPacket::request(operation).header,
            request,
        }
    }

    /// The bytes of the packet.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> &[u8; VSTOR_PACKET_SIZE] {
        zerocopy::transmute_ref!(self)
    }

    /// Host: the completion of a command. `status` follows from the request's SRB status
    /// ([`super::srb::SrbCode::nt_status`]).
    #[must_use]
    pub const fn complete(request: ScsiRequest) -> Self {
        Self {
            header: VstorPacket::answer(request.srb_status.code().nt_status()).header,
            request,
        }
    }
}

/// A protocol version, major byte above minor byte (`VMSTOR_PROTO_VERSION`).
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
)]
#[repr(transparent)]
pub struct StorVersion(pub u16);

impl StorVersion {
    /// 2.0, Windows Server 2008. Not spoken here.
    pub const V2_0: Self = Self(0x0200);
    /// 4.2, Windows 7. Not spoken here.
    pub const V4_2: Self = Self(0x0402);
    /// 5.1, Windows 8. Not spoken here.
    pub const V5_1: Self = Self(0x0501);
    /// 6.0, Windows 8.1; also what Azure's paravisor speaks (storvsc_drv.c, "Version history").
    pub const V6_0: Self = Self(0x0600);
    /// 6.2, Windows 10 and Server 2016.
    pub const V6_2: Self = Self(0x0602);

    /// The versions spoken here, best first (storvsc_drv.c, `protocol_version`).
    pub const SPOKEN: [Self; 2] = [Self::V6_2, Self::V6_0];

    /// Before the dot.
    #[must_use]
    pub const fn major(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// After the dot.
    #[must_use]
    pub const fn minor(self) -> u8 {
        self.0 as u8
    }
}

impl fmt::Display for StorVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.minor())
    }
}

impl fmt::Debug for StorVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Body of QUERY_PROTOCOL_VERSION and of its answer (`struct vmstorage_protocol_version`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct VersionBody {
    /// The version.
    pub version: StorVersion,
    /// Used by Windows alone; 0.
    pub revision: u16,
}

assert_layout!(VersionBody, size = 4, version = 0, revision = 2);

wire_flags! {
    /// Flags of [`ChannelProperties`].
    pub struct PropertyFlags(u32) {
        /// CREATE_SUB_CHANNELS is understood (`STORAGE_CHANNEL_SUPPORTS_MULTI_CHANNEL`). In the user data of an
        /// IDE disk's offer the bit means "removable" (`STORAGE_CHANNEL_REMOVABLE_FLAG`).
        const MULTI_CHANNEL = 1;
        /// In the user data of an offer: an IDE disk (`STORAGE_CHANNEL_EMULATED_IDE_FLAG`).
        const IDE_DEVICE = 2;
    }
}

/// Body of the answer to QUERY_PROPERTIES (`struct vmstorage_channel_properties`). The user data of
/// OPENCHANNEL have the same form and are all zero.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct ChannelProperties {
    /// Zero.
    pub reserved: u32,
    /// Sub-channels that the host will create at most, the primary channel not counted (OpenVMM
    /// `maximum_sub_channel_count`; storvsc_drv.c calls it `max_channel_cnt` and uses it so).
    pub max_sub_channels: u16,
    /// Zero.
    pub reserved1: u16,
    /// See [`PropertyFlags`].
    pub flags: PropertyFlags,
    /// Bytes that one SCSI command may transfer at most.
    pub max_transfer_bytes: u32,
    /// Zero. Two words rather than one of 64 bits, as the struct is packed to four bytes.
    pub reserved2: [u32; 2],
}

assert_layout!(
    ChannelProperties,
    size = 24,
    max_sub_channels = 4,
    flags = 8,
    max_transfer_bytes = 12,
    reserved2 = 16
);

/// User data of an IDE disk's offer (OpenVMM `OfferProperties`). Linux goes by the instance GUID
/// instead, see [`IdeAddress`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct IdeOfferProperties {
    /// Zero.
    pub reserved: u16,
    /// IDE channel: 0 or 1.
    pub path_id: u8,
    /// Device on the channel: 0 or 1.
    pub target_id: u8,
    /// Zero.
    pub reserved2: u32,
    /// [`PropertyFlags::IDE_DEVICE`].
    pub flags: PropertyFlags,
    /// Zero.
    pub reserved3: [u32; 3],
}

assert_layout!(
    IdeOfferProperties,
    size = 24,
    path_id = 2,
    target_id = 3,
    flags = 8
);

/// Where an accelerated IDE disk sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdeAddress {
    /// IDE channel.
    pub path: u32,
    /// Device on the channel.
    pub target: u16,
}

impl IdeAddress {
    /// What the instance GUID says: path in bytes 0 to 3, target in bytes 4 and 5 (storvsc_drv.c,
    /// `storvsc_get_ide_info`).
    #[must_use]
    pub const fn from_instance(instance: &Guid) -> Self {
        let [p0, p1, p2, p3, t0, t1, ..] = instance.0;
        Self {
            path: u32::from_le_bytes([p0, p1, p2, p3]),
            target: u16::from_le_bytes([t0, t1]),
        }
    }

    /// The instance GUID that hosts give to an IDE disk: path, target, 8899, zero (OpenVMM `storvsp`,
    /// `build_ide`).
    #[must_use]
    pub const fn to_instance(self) -> Guid {
        Guid::new(self.path, self.target, 0x8899, [0; 8])
    }
}

/// Body of FCHBA_DATA from the host: names of a Fibre Channel adapter (`struct hv_fc_wwn_packet`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct FcHbaData {
    /// Not zero: the primary names hold, else the secondary ones.
    pub primary_active: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Name of the primary port, big-endian as all world-wide names.
    pub primary_port_wwn: [u8; 8],
    /// Name of the primary node.
    pub primary_node_wwn: [u8; 8],
    /// Name of the secondary port.
    pub secondary_port_wwn: [u8; 8],
    /// Name of the secondary node.
    pub secondary_node_wwn: [u8; 8],
}

assert_layout!(
    FcHbaData,
    size = 36,
    primary_port_wwn = 4,
    primary_node_wwn = 12,
    secondary_port_wwn = 20,
    secondary_node_wwn = 28
);

/// The names of a Fibre Channel adapter that hold at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FcNames {
    /// World-wide name of the node.
    pub node: u64,
    /// World-wide name of the port.
    pub port: u64,
}

impl FcHbaData {
    /// The names that hold (storvsc_drv.c, `cache_wwn`).
    #[must_use]
    pub const fn active(&self) -> FcNames {
        let (node, port) = if self.primary_active != 0 {
            (self.primary_node_wwn, self.primary_port_wwn)
        } else {
            (self.secondary_node_wwn, self.secondary_port_wwn)
        };
        FcNames {
            node: u64::from_be_bytes(node),
            port: u64::from_be_bytes(port),
        }
    }
}

/// Body of CREATE_SUB_CHANNELS.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct SubChannelCount {
    /// Sub-channels wanted, at most [`ChannelProperties::max_sub_channels`].
    pub count: u16,
}

assert_layout!(SubChannelCount, size = 2, count = 0);
