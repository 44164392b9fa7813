// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! How much longer than usual a guest may take: under the kernel's own checkers everything is slow.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

static TIMES: AtomicU32 = AtomicU32::new(1);

/// Makes every limit of a wait longer, for the rest of this process.
pub fn set(times: u32) {
    TIMES.store(times.max(1), Ordering::Relaxed);
}

/// How many times as long as usual.
pub fn times() -> u32 {
    TIMES.load(Ordering::Relaxed)
}

/// A limit, made longer.
pub fn stretched(limit: Duration) -> Duration {
    limit.saturating_mul(times())
}
