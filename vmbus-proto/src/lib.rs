// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The wire formats and the I/O-free decisions of VMBus, shared by guest, host and daemons.
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]

pub mod ic;
