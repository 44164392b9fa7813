// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The network half of the emulated Hyper-V host ("netvsp").
#![forbid(unsafe_code)]
