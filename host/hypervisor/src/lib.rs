// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The hypervisor half of the emulated Hyper-V host.
#![forbid(unsafe_code)]
