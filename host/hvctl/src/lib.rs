// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The control protocol of the emulated host and its client.
//!
//! A Unix stream socket carries JSON lines. A request is `{"id": 1, "cmd": "NAME", …arguments}`, its answer
//! `{"id": 1, "ok": …}` or `{"id": 1, "err": "sentence"}`. Answers may come out of order: a `wait` does not hold up
//! what is asked after it. After a `watch` the host also sends lines `{"event": "NAME", …}`.
//!
//! All times are in milliseconds, all counts since the VM started or since `reset-counters`.
#![forbid(unsafe_code)]

mod client;
#[cfg(test)]
mod client_tests;
pub mod disk;
pub mod event;
pub mod exchange;
pub mod net;
pub mod profile;
pub mod reply;
pub mod request;

pub use client::{Client, Error, Watch};
pub use disk::*;
pub use event::Event;
pub use exchange::*;
pub use net::*;
pub use reply::*;
pub use request::*;
