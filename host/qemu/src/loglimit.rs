// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Keeps the log short. A guest can make the host write a line as often as it likes (a refused MSR access, a
//! failed hypercall, a protocol violation), and must not fill the host's disk by that. Each place in the
//! source may write [`BURST`] lines at once and [`PER_SECOND`] in the long run; how many were left out is said
//! before its next one. Lines of level trace are not limited: who asks for them wants all.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::Context;
use tracing_subscriber::Layer;

const BURST: u32 = 200;
const PER_SECOND: u32 = 10;

/// What a place in the source may still write.
struct Allowance {
    /// Lines.
    left: u32,
    /// Up to when lines were granted.
    granted: Instant,
    left_out: u64,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            granted: now,
            left_out: 0,
        }
    }

    /// Takes a line; how many were left out since the last one. `None`: this one is left out, too.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let per_line = Duration::from_secs(1) / PER_SECOND;
        let lines = now.saturating_duration_since(self.granted).as_nanos() / per_line.as_nanos();
        let lines = u32::try_from(lines).unwrap_or(u32::MAX);
        if lines >= BURST {
            self.left = BURST;
            self.granted = now;
        } else {
            self.left = (self.left + lines).min(BURST);
            self.granted += per_line * lines;
        }
        if self.left == 0 {
            self.left_out += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// The limit, as a layer below the one that writes.
#[derive(Default)]
pub struct LogLimit {
    places: Mutex<HashMap<Identifier, Allowance>>,
}

impl<S: Subscriber> Layer<S> for LogLimit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let meta = event.metadata();
        if *meta.level() == Level::TRACE {
            return true;
        }
        let now = Instant::now();
        // The lock is not held while the summary is written, which comes here, too.
        let taken = self
            .places
            .lock()
            .entry(meta.callsite())
            .or_insert_with(|| Allowance::new(now))
            .take(now);
        match taken {
            None => false,
            Some(0) => true,
            Some(n) => {
                tracing::warn!("{n} lines like the next one were left out");
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;
    use tracing_subscriber::layer::SubscriberExt;

    #[test]
    fn a_burst_then_a_trickle() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let taken = (0..1000)
            .filter(|_| allowance.take(start).is_some())
            .count();
        assert_eq!(taken, BURST as usize);
        assert_eq!(allowance.take(start + Duration::from_millis(99)), None);
        let later = start + Duration::from_millis(100);
        assert_eq!(allowance.take(later), Some(1000 - u64::from(BURST) + 1));
        assert_eq!(allowance.take(later), None);
        let seconds = 60;
        let in_a_minute = (0..seconds * 1000)
            .filter(|ms| allowance.take(later + Duration::from_millis(*ms)).is_some())
            .count();
        assert!(
            (599..=600).contains(&in_a_minute),
            "{in_a_minute} lines in a minute"
        );
        let much_later = later + Duration::from_secs(86_400 * 365);
        let taken = (0..1000)
            .filter(|_| allowance.take(much_later).is_some())
            .count();
        assert_eq!(taken, BURST as usize, "no more is saved up");
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_place_that_floods_leaves_the_others_alone() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::registry()
            .with(LogLimit::default())
            .with(tracing_subscriber::fmt::layer().with_writer(move || writer.clone()));
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..10_000 {
                tracing::warn!("refused {n}");
            }
            tracing::info!("still heard");
            for _ in 0..1000 {
                tracing::trace!("not limited");
            }
        });
        let text = String::from_utf8(lines.0.lock().clone()).expect("text");
        let count = |what: &str| text.matches(what).count();
        // The test itself may take long enough for some more.
        assert!(
            (200..400).contains(&count("refused")),
            "{}",
            count("refused")
        );
        assert_eq!(count("still heard"), 1);
        assert_eq!(count("not limited"), 1000);
    }
}
