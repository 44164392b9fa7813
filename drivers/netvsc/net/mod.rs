// SPDX-License-Identifier: GPL-2.0

//! Network devices: what a driver is to the kernel's network stack, safe to use.
//!
//! ```text
//! NetDevice::new ──> register ──> Registration ── NetDriver's methods are called ── drop: nobody uses the device any more
//!                        Napi::new ──> enable ──> Poller::poll ── disable
//! ```
//!
//! | module | holds |
//! | --- | --- |
//! | [`device`] | the device, its registration, the [`NetDriver`] trait, RTNL |
//! | [`queue`] | transmit queues: lock, stop and wake, byte queue limits |
//! | [`packet`] | packets to send and received; who owns them |
//! | [`in_flight`] | packets that the device has, by the ids that it completes them with |
//! | [`napi`] | polling |
//! | [`xdp`] | programs that see a frame before the stack does |
//! | [`ethtool`] | what ethtool shows and changes |
//!
//! Two things of VMBus are known here: frames are copied from and to its shared buffers ([`packet`], [`xdp`]), and [`packet`] tells where
//! memory is in the form of its ranges. No device, channel or ring. The C files hold what cannot be called from Rust: inline functions and
//! tables of callbacks. With those in `kernel::bindings` and a trait in place of the buffers, the layer could move into the kernel.

pub(crate) mod device;
pub(crate) mod ethtool;
mod ffi;
pub(crate) mod in_flight;
pub(crate) mod napi;
pub(crate) mod packet;
pub(crate) mod queue;
pub(crate) mod xdp;

pub(crate) use device::{Feature, Features, NetDevice, NetDriver, Registration, Rtnl, Stats};
pub(crate) use napi::{Napi, Poll, Poller};
pub(crate) use packet::{RxInfo, TxFlags, TxPacket};
pub(crate) use queue::{TxHeld, TxQueue};
