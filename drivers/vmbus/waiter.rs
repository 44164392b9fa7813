// SPDX-License-Identifier: GPL-2.0

//! Waiting for the host's answer.

use kernel::{
    prelude::*,
    time::{msecs_to_jiffies, Jiffies}, //
};

use crate::sync::{new_irq_lock, Event, IrqLock};

/// After how many seconds without an answer a message is logged, and how often.
const WARN_SECONDS: u32 = 30;
/// After how many seconds an answer is not waited for any more. Hosts have been seen to take more than
/// a minute under load.
const GIVE_UP_SECONDS: u32 = 300;

/// A place for one answer at a time.
///
/// The thread that asks calls [`expect`](Self::expect), then sends its request, then
/// [`wait`](Self::wait)s; who sees the answer calls [`answer`](Self::answer). Whoever asks sees to it that
/// nobody else does at the same time.
#[pin_data]
pub(crate) struct Waiter<T> {
    #[pin]
    answer: IrqLock<Option<T>>,
    #[pin]
    come: Event,
}

impl<T: Send> Waiter<T> {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            answer <- new_irq_lock!(None, c"hv_vmbus_rs::Waiter"),
            come <- Event::new(),
        })
    }

    /// Forgets what came before.
    pub(crate) fn expect(&self) {
        let mut answer = self.answer.lock();
        *answer = None;
        // Under the lock, so that an answer to the last request cannot come in between.
        self.come.reset();
    }

    /// Hands over the answer. The first counts. Any context but NMI.
    pub(crate) fn answer(&self, value: T) {
        let mut answer = self.answer.lock();
        if answer.is_none() {
            *answer = Some(value);
            self.come.signal();
        }
    }

    /// Sleeps until there is an answer, and takes it; `None` when `timeout` passed first. Process context.
    pub(crate) fn wait_timeout(&self, timeout: Jiffies) -> Option<T> {
        // In vain or not: it may have come at the last moment.
        let _ = self.come.wait_timeout(timeout);
        self.answer.lock().take()
    }

    /// Sleeps until there is an answer, and takes it; `None` when the host gave none for minutes. `what` is for
    /// the log. Process context.
    pub(crate) fn wait(&self, what: &dyn kernel::fmt::Display) -> Option<T> {
        let mut waited = 0;
        while !self
            .come
            .wait_timeout(msecs_to_jiffies(WARN_SECONDS * 1000))
        {
            waited += WARN_SECONDS;
            if waited >= GIVE_UP_SECONDS {
                pr_err!(
                    "the host has not answered {} for {} s, giving up\n",
                    what,
                    waited
                );
                break;
            }
            pr_warn!("the host has not answered {} for {} s\n", what, waited);
        }
        self.answer.lock().take()
    }
}
