// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What the emulated NIC is plugged into.

use std::sync::Arc;

use crate::stream::{Peer, Stream};
use crate::{Link, Tap};

/// Called by a back end, from any thread, when [`Backend::receive`] may have a frame again, when [`Backend::send`] may
/// have room again, or when the link changed.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Taken,
    /// No room now: try again after the waker was called.
    Full,
    /// It is lost.
    Dropped,
}

/// A back end for people: what it is, and what it counted by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendInfo {
    /// As on the command line, such as `tap;hv0`.
    pub kind: String,
    /// Names and counts.
    pub counters: Vec<(&'static str, u64)>,
}

/// Where the NIC's frames go and come from. All methods are called on the host's worker and must not block: a back end
/// that waits for something has a thread of its own and calls the waker.
///
/// Frames are finished Ethernet frames without frame check sequence: checksums filled in, not longer than the MTU allows,
/// VLAN tags inline.
pub trait Backend: Send {
    /// Begins. Called once, before anything else.
    ///
    /// # Errors
    /// A sentence for the user.
    fn start(&mut self, waker: Waker) -> Result<(), String>;

    /// Takes a frame from the guest.
    fn send(&mut self, frame: &[u8]) -> Sent;

    /// What was sent may go out now: the end of a batch.
    fn flush(&mut self) {}

    /// Puts the next frame for the guest into `frame`, which it clears. `false`: there is none now; the waker will be
    /// called when there is.
    fn receive(&mut self, frame: &mut Vec<u8>) -> bool;

    /// Whether there is somebody at the other end.
    fn link(&self) -> bool {
        true
    }

    /// For people.
    fn info(&self) -> BackendInfo;
}

/// Nothing: takes no frame and brings none.
#[derive(Debug, Default)]
pub struct None;

impl Backend for None {
    fn start(&mut self, _waker: Waker) -> Result<(), String> {
        Ok(())
    }

    fn send(&mut self, _frame: &[u8]) -> Sent {
        Sent::Dropped
    }

    fn receive(&mut self, _frame: &mut Vec<u8>) -> bool {
        false
    }

    fn info(&self) -> BackendInfo {
        BackendInfo {
            kind: "none".into(),
            counters: Vec::new(),
        }
    }
}

/// Takes every frame and brings none.
#[derive(Debug, Default)]
pub struct Sink {
    frames: u64,
    bytes: u64,
}

impl Backend for Sink {
    fn start(&mut self, _waker: Waker) -> Result<(), String> {
        Ok(())
    }

    fn send(&mut self, frame: &[u8]) -> Sent {
        self.frames += 1;
        self.bytes += frame.len() as u64;
        Sent::Taken
    }

    fn receive(&mut self, _frame: &mut Vec<u8>) -> bool {
        false
    }

    fn info(&self) -> BackendInfo {
        BackendInfo {
            kind: "sink".into(),
            counters: vec![("frames", self.frames), ("bytes", self.bytes)],
        }
    }
}

/// Makes the back end that `text`, `KIND[;ARGUMENT…]`, names.
///
/// # Errors
/// A sentence for the user.
pub fn open(text: &str) -> Result<Box<dyn Backend>, String> {
    let (kind, rest) = text.split_once(';').unwrap_or((text, ""));
    let stream = |peer| match Stream::new(peer) {
        Ok(stream) => Ok(Box::new(stream) as Box<dyn Backend>),
        Err(e) => Err(e.to_string()),
    };
    match (kind, rest) {
        ("none", "") => Ok(Box::new(None)),
        ("sink", "") => Ok(Box::<Sink>::default()),
        ("echo", "") => Ok(Box::<crate::Echo>::default()),
        ("passt", _) => {
            let arguments = rest.split(';').filter(|argument| !argument.is_empty());
            stream(Peer::Passt(arguments.map(String::from).collect()))
        }
        ("connect" | "listen" | "link" | "tap", "") => Err(format!("back end '{text}': {kind};NAME")),
        ("connect", path) => stream(Peer::Connect(path.into())),
        ("listen", path) => stream(Peer::Listen(path.into())),
        ("link", name) => Ok(Box::new(Link::new(name)?)),
        ("tap", name) => Ok(Box::new(Tap::new(name))),
        _ => Err(format!(
            "back end '{text}': expected connect;PATH, listen;PATH, passt[;ARGUMENT…], tap;NAME, link;NAME, echo, sink or none"
        )),
    }
}
