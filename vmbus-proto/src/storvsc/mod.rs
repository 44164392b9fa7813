// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Storage: the protocol of the synthetic SCSI controller, the accelerated IDE disk and the
//! synthetic Fibre Channel adapter, versions 6.0 and 6.2.
//!
//! Each ring packet carries one *vstor packet* of [`VSTOR_PACKET_SIZE`] bytes: a header of 12 bytes
//! (operation, flags, status) and 52 bytes by operation. The guest sends requests, each with a
//! transaction id that is not 0; the host answers each by a completion packet with that id and the
//! operation COMPLETE_IO. What the host sends on its own has id 0. The data of a SCSI command are in
//! guest memory: one range of a GPA-direct packet.
//!
//! ```text
//!  guest                                              host
//!  OPENCHANNEL (user data: 24 zero bytes)  ─────────>
//!  BEGIN_INITIALIZATION                    ─────────>  status 0
//!  QUERY_PROTOCOL_VERSION 6.2, then 6.0    ─────────>  status 0, or REVISION_MISMATCH: next
//!  QUERY_PROPERTIES                        ─────────>  sub-channels, largest transfer
//!  FCHBA_DATA (Fibre Channel only)         ─────────>  port and node names
//!  END_INITIALIZATION                      ─────────>  status 0
//!  CREATE_SUB_CHANNELS n                   ─────────>  status 0; n offers follow
//!  EXECUTE_SRB …                           ─────────>  COMPLETE_IO with SRB and SCSI status
//!                                          <─────────  ENUMERATE_BUS, REMOVE_DEVICE (id 0)
//! ```
//!
//! | module | holds |
//! | --- | --- |
//! | [`wire`] | vstor packets, versions, properties |
//! | [`srb`] | SCSI requests, SRB flags and status |
//! | [`client`] | the guest's side of the initialization |
//! | [`server`] | the host's checks: order, version, length, data |
//! | [`completion`] | what the guest makes of a packet from the host |
//!
//! Source: Linux `drivers/scsi/storvsc_drv.c` ("storvsc_drv.c" below) and OpenVMM `storvsp_protocol`
//! and `storvsp`. Microsoft publishes no text about this protocol.

pub mod client;
pub mod completion;
pub mod server;
pub mod srb;
pub mod wire;

#[cfg(test)]
mod tests;

pub use srb::{ScsiRequest, SrbCode, SrbFlags, SrbStatus, CDB_SIZE, SENSE_SIZE};
pub use wire::{
    ChannelProperties, NtStatus, Operation, ScsiPacket, StorVersion, VstorPacket, VSTOR_PACKET_SIZE,
};
