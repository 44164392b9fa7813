// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A cable between two NICs of one machine.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::{Backend, BackendInfo, Sent, Waker};

/// Frames under way in one direction at most.
const MAX_FRAMES: usize = 1024;

/// What is under way to one end.
#[derive(Default)]
struct Direction {
    frames: VecDeque<Vec<u8>>,
    /// The other end wants to be told when there is room.
    full: bool,
}

#[derive(Default)]
struct State {
    /// By the end that they go to.
    to: [Direction; 2],
    /// Of the ends that are there.
    wakers: [Option<Waker>; 2],
    /// Ends that are taken.
    taken: [bool; 2],
}

#[derive(Default)]
struct Cable(Mutex<State>);

impl Cable {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The cables of this process by name; each lives as long as one of its ends.
static CABLES: Mutex<Option<HashMap<String, Weak<Cable>>>> = Mutex::new(None);

/// One end of a cable.
pub struct Link {
    name: String,
    cable: Arc<Cable>,
    end: usize,
    sent: u64,
    received: u64,
    dropped: u64,
}

impl Link {
    /// A free end of the cable `name`.
    ///
    /// # Errors
    /// Both ends are taken.
    pub fn new(name: &str) -> Result<Self, String> {
        let mut cables = CABLES.lock().unwrap_or_else(PoisonError::into_inner);
        let cables = cables.get_or_insert_with(HashMap::new);
        let place = cables.entry(name.into()).or_default();
        let cable = place.upgrade().unwrap_or_default();
        *place = Arc::downgrade(&cable);
        let mut state = cable.lock();
        let end = state
            .taken
            .iter()
            .position(|taken| !taken)
            .ok_or_else(|| format!("both ends of link '{name}' are taken"))?;
        state.taken[end] = true;
        drop(state);
        Ok(Self {
            name: name.into(),
            cable,
            end,
            sent: 0,
            received: 0,
            dropped: 0,
        })
    }
}

impl Backend for Link {
    fn start(&mut self, waker: Waker) -> Result<(), String> {
        let other = {
            let mut state = self.cable.lock();
            state.wakers[self.end] = Some(waker);
            state.wakers[1 - self.end].clone()
        };
        // Its link is up now. Never with the lock held: the waker may call us.
        if let Some(other) = other {
            other();
        }
        Ok(())
    }

    fn send(&mut self, frame: &[u8]) -> Sent {
        let waker = {
            let mut state = self.cable.lock();
            let Some(waker) = state.wakers[1 - self.end].clone() else {
                self.dropped += 1;
                return Sent::Dropped;
            };
            let to = &mut state.to[1 - self.end];
            if to.frames.len() >= MAX_FRAMES {
                to.full = true;
                return Sent::Full;
            }
            to.frames.push_back(frame.to_vec());
            (to.frames.len() == 1).then_some(waker)
        };
        self.sent += 1;
        if let Some(waker) = waker {
            waker();
        }
        Sent::Taken
    }

    fn receive(&mut self, frame: &mut Vec<u8>) -> bool {
        frame.clear();
        let (next, waker) = {
            let mut state = self.cable.lock();
            let to = &mut state.to[self.end];
            let next = to.frames.pop_front();
            // Half of it is free: worth telling.
            let tell = to.full && to.frames.len() <= MAX_FRAMES / 2;
            to.full &= !tell;
            let waker = state.wakers[1 - self.end].clone();
            (next, waker.filter(|_| tell))
        };
        if let Some(waker) = waker {
            waker();
        }
        let Some(next) = next else {
            return false;
        };
        self.received += 1;
        *frame = next;
        true
    }

    fn link(&self) -> bool {
        self.cable.lock().wakers[1 - self.end].is_some()
    }

    fn info(&self) -> BackendInfo {
        BackendInfo {
            kind: format!("link;{}", self.name),
            counters: vec![
                ("sent", self.sent),
                ("received", self.received),
                ("dropped", self.dropped),
            ],
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let other = {
            let mut state = self.cable.lock();
            state.wakers[self.end] = None;
            state.taken[self.end] = false;
            state.to = Default::default();
            state.wakers[1 - self.end].clone()
        };
        if let Some(other) = other {
            other();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn end(name: &str) -> (Link, Arc<AtomicU32>) {
        let wakes = Arc::new(AtomicU32::new(0));
        let mut link = Link::new(name).expect("an end");
        let counter = wakes.clone();
        let waker = move || {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        link.start(Arc::new(waker)).expect("starts");
        (link, wakes)
    }

    #[test]
    fn frames_cross_and_the_link_follows_the_other_end() {
        let (mut a, woken_a) = end("cross");
        assert!(!a.link());
        assert_eq!(a.send(&[1; 14]), Sent::Dropped);
        let (mut b, woken_b) = end("cross");
        assert!(Link::new("cross").is_err(), "a third end");
        assert!(a.link() && b.link());
        assert_eq!(woken_a.load(Ordering::Relaxed), 1, "link up");
        assert_eq!(a.send(&[2; 14]), Sent::Taken);
        assert_eq!(a.send(&[3; 15]), Sent::Taken);
        assert_eq!(woken_b.load(Ordering::Relaxed), 1, "once for both");
        let mut frame = Vec::new();
        assert!(b.receive(&mut frame) && frame == [2; 14]);
        assert!(b.receive(&mut frame) && frame == [3; 15]);
        assert!(!b.receive(&mut frame));
        assert!(!a.receive(&mut frame), "not to itself");
        drop(b);
        assert!(!a.link());
        assert_eq!(woken_a.load(Ordering::Relaxed), 2, "link down");
        let (_b, _) = end("cross");
        assert!(a.link());
    }

    #[test]
    fn who_was_told_that_it_is_full_is_told_when_it_is_not() {
        let (mut a, woken) = end("full");
        let (mut b, _) = end("full");
        let before = woken.load(Ordering::Relaxed);
        for _ in 0..MAX_FRAMES {
            assert_eq!(a.send(&[0; 14]), Sent::Taken);
        }
        assert_eq!(a.send(&[0; 14]), Sent::Full);
        let mut frame = Vec::new();
        for _ in 0..MAX_FRAMES {
            assert!(b.receive(&mut frame));
        }
        assert_eq!(woken.load(Ordering::Relaxed), before + 1);
        assert_eq!(a.send(&[0; 14]), Sent::Taken);
    }
}
