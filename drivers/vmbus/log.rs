// SPDX-License-Identifier: GPL-2.0

//! Messages: those that the host can cause are limited in number, and values of `vmbus-proto` can be printed.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use kernel::{bindings, time::msecs_to_jiffies};

/// Prints a value of another crate with `pr_info!` and its like, which know only types of their own.
pub struct Show<T>(pub T);

impl<T: core::fmt::Display> kernel::fmt::Display for Show<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.fmt(f)
    }
}

/// Lets through 10 messages in 5 seconds, as the kernel's own default does. Meant to be a static; see [`ratelimited!`](crate::ratelimited).
pub struct Limit {
    start: AtomicU64,
    count: AtomicU32,
}

impl Limit {
    /// A limit of which nothing is used.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Self {
            start: AtomicU64::new(0),
            count: AtomicU32::new(0),
        }
    }

    /// Whether one more message may be printed. Any context.
    pub fn allows(&self) -> bool {
        // SAFETY: A counter that is only read.
        let now = unsafe { (&raw const bindings::jiffies).read_volatile() } as u64;
        let start = self.start.load(Ordering::Relaxed);
        // Races let a message too many or too few through.
        if start == 0 || now.wrapping_sub(start) > msecs_to_jiffies(5000) as u64 {
            self.start.store(now.max(1), Ordering::Relaxed);
            self.count.store(0, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed) < 10
    }
}

/// `pr_warn!` with the limit of [`Limit`] for the place where it is written.
macro_rules! pr_warn_limited {
    ($($arg:tt)*) => {{
        static LIMIT: $crate::log::Limit = $crate::log::Limit::new();
        if LIMIT.allows() {
            ::kernel::pr_warn!($($arg)*);
        }
    }};
}
pub(crate) use pr_warn_limited;

/// Prints with `$print` (such as `pr_info`), limited by a [`Limit`](crate::log::Limit) for the place where it is written.
#[macro_export]
macro_rules! ratelimited {
    ($print:ident, $($arg:tt)+) => {{
        static LIMIT: $crate::log::Limit = $crate::log::Limit::new();
        if LIMIT.allows() {
            ::kernel::$print!($($arg)+);
        }
    }};
}
