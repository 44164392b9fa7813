// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Network: the protocol of the synthetic network adapter, NVSP versions 1 to 6.1 with RNDIS inside.
//!
//! Ring packets carry *NVSP messages* of up to 40 bytes ([`nvsp`]). They set up two buffers, which the
//! guest shares by GPADL and the host cuts into sections: the receive buffer, in whose sections the host
//! leaves *RNDIS messages*, and the send buffer, in whose sections the guest does. One NVSP message,
//! SEND_RNDIS_PKT, names such a message in either direction: to the guest as a transfer-page packet, each
//! of whose ranges is one RNDIS message in the receive buffer; to the host with the index of a send
//! section, or with the message in the ranges of a GPA-direct packet, or the message's start in a section
//! and the rest in ranges.
//!
//! ```text
//!  guest                                                 host
//!  INIT 6.1, then 6.0, 5, 4, 2, 1           ──────────>  INIT_COMPLETE: success, or next
//!  SEND_NDIS_CONFIG (from 2), SEND_NDIS_VER ──────────>
//!  SEND_RECV_BUF gpadl                      ──────────>  SEND_RECV_BUF_COMPLETE: sections
//!  SEND_SEND_BUF gpadl                      ──────────>  SEND_SEND_BUF_COMPLETE: section size
//!  RNDIS INITIALIZE, QUERY …, SET …         ──────────>  RNDIS *_COMPLETE, as a message of its own
//!  SUBCHANNEL n (from 5)                    ──────────>  SUBCHANNEL: n; n offers follow
//!                                           <──────────  SEND_INDIRECTION_TABLE, SEND_VF_ASSOCIATION
//!  SEND_RNDIS_PKT, data                     <─────────>  SEND_RNDIS_PKT_COMPLETE
//! ```
//!
//! | module | holds |
//! | --- | --- |
//! | [`nvsp`] | NVSP messages, versions, send-indirection table |
//! | [`packet`] | the RNDIS message that carries a frame, per-packet information; the hot path |
//! | [`rndis`] | the other RNDIS messages, OIDs, status codes |
//! | [`offload`] | what OIDs about checksum, LSO and RSC carry |
//! | [`rss`] | receive-side scaling: parameters, Toeplitz hash |
//! | [`client`], [`setup`] | the guest's side: NVSP, then RNDIS |
//! | [`share`] | the guest's side: messages about more packets than it takes at a time |
//!
//! Source: Linux `drivers/net/hyperv/hyperv_net.h` ("hyperv_net.h" below; `netvsc.c`, `rndis_filter.c` and
//! `netvsc_drv.c` beside it), `include/linux/rndis.h`, OpenVMM `netvsp` (`protocol.rs`, `rndisprot.rs`),
//! Microsoft's \[MS-RNDIS\] and the NDIS reference (`ntddndis.h`). Microsoft publishes no text about NVSP.

pub mod client;
pub mod nvsp;
pub mod offload;
pub mod packet;
pub mod rndis;
pub mod rss;
pub mod server;
pub mod setup;
pub mod share;

#[cfg(test)]
mod tests;

pub use nvsp::{NvspMessage, NvspStatus, NvspVersion};
pub use packet::{PacketHeader, PacketInfo, ReceivedPacket};
pub use rndis::{Oid, RndisStatus};

/// An Ethernet address.
pub type MacAddress = [u8; 6];
