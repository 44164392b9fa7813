// SPDX-License-Identifier: GPL-2.0-only OR MIT

mod handshake;
mod messages;
mod packets;
mod server;
