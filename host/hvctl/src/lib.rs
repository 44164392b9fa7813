// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Client of the host control socket.
#![forbid(unsafe_code)]
