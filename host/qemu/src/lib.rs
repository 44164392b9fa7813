// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Glue between QEMU and the host: the only unsafe code of the host.
