// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Ethernet frames and where they go: the half of the emulated NIC that knows neither VMBus nor guest.
#![forbid(unsafe_code)]

mod backend;
mod echo;
pub mod frame;
mod link;
mod passt;
mod stream;
mod tap;

pub use backend::{open, Backend, BackendInfo, None, Sent, Sink, Waker};
pub use echo::Echo;
pub use link::Link;
pub use stream::{Peer, Stream, MAX_FRAME};
pub use tap::Tap;
