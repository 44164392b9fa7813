// SPDX-License-Identifier: GPL-2.0

//! Waiting in process context for what an interrupt brings.

use kernel::{prelude::*, time::msecs_to_jiffies};

use crate::waiter::Waiter;

/// A place for the answer to one request at a time: [`expect`](Self::expect), send the request, [`wait`](Self::wait).
#[pin_data]
pub struct Reply<T: Send> {
    #[pin]
    waiter: Waiter<T>,
}

impl<T: Send> Reply<T> {
    /// A place without an answer.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            waiter <- Waiter::new(),
        })
    }

    /// Forgets what came before. The caller sees to it that nobody waits meanwhile.
    pub fn expect(&self) {
        self.waiter.expect();
    }

    /// Hands over the answer; the first after [`expect`](Self::expect) counts. Any context but NMI.
    pub fn answer(&self, value: T) {
        self.waiter.answer(value);
    }

    /// Sleeps until there is an answer, and takes it; `None` after `ms` milliseconds. Process context.
    pub fn wait(&self, ms: u32) -> Option<T> {
        self.waiter.wait_timeout(msecs_to_jiffies(ms))
    }
}
