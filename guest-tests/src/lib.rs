// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Tests that boot a guest.
#![forbid(unsafe_code)]
