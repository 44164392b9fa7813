// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Threads that carry out what may have to wait.
//!
//! Work comes in lines, one for each disk, which take turns. A line whose work waits for ever must not hold up the others: besides the
//! threads that all share, work is begun in each line in which none is under way, on a further thread if need be. So there are at most as many
//! threads as were asked for, and one for each line.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::request::Request;
use crate::scsi::{Failure, Outcome, Patience};

/// A further thread ends when it has had nothing to do for so long.
const IDLE: Duration = Duration::from_secs(10);

/// What a pool carries out.
pub(crate) trait Work: Send + 'static {
    /// What comes of it.
    type Done: Send;

    /// The line that it stands in. No two lines that have work at the same time have the same number.
    fn line(&self) -> usize;

    /// Carries it out, which may take for ever.
    fn carry_out(self) -> Self::Done;
}

struct Line<W> {
    waiting: VecDeque<W>,
    running: usize,
}

/// What is to be done, and which of it is begun next.
struct Lines<W> {
    /// Those that have work, waiting or under way.
    lines: BTreeMap<usize, Line<W>>,
    /// Those in which work waits, each once; the first one's turn is next.
    turns: VecDeque<usize>,
    /// Work under way, of all lines.
    running: usize,
    /// Work that may be under way even if its line has some already.
    shared: usize,
}

impl<W: Work> Lines<W> {
    fn new(shared: usize) -> Self {
        Self {
            lines: BTreeMap::new(),
            turns: VecDeque::new(),
            running: 0,
            shared,
        }
    }

    fn push(&mut self, work: W) {
        let number = work.line();
        let line = self.lines.entry(number).or_insert_with(|| Line {
            waiting: VecDeque::new(),
            running: 0,
        });
        if line.waiting.is_empty() {
            self.turns.push_back(number);
        }
        line.waiting.push_back(work);
    }

    /// The turn in which work can be begun now.
    fn next(&self) -> Option<usize> {
        if self.running < self.shared {
            return (!self.turns.is_empty()).then_some(0);
        }
        let idle = |number| self.lines.get(number).is_some_and(|line| line.running == 0);
        self.turns.iter().position(idle)
    }

    /// Work to begin now.
    fn take(&mut self) -> Option<W> {
        let number = self.turns.remove(self.next()?)?;
        let line = self.lines.get_mut(&number)?;
        let work = line.waiting.pop_front()?;
        line.running += 1;
        self.running += 1;
        if !line.waiting.is_empty() {
            self.turns.push_back(number);
        }
        Some(work)
    }

    /// Work of a line is done.
    fn done(&mut self, number: usize) {
        let Some(line) = self.lines.get_mut(&number) else {
            return;
        };
        line.running -= 1;
        self.running -= 1;
        if line.running == 0 && line.waiting.is_empty() {
            self.lines.remove(&number);
        }
    }
}

struct State<W> {
    lines: Lines<W>,
    /// Threads there are, but for those that have made up their mind to end.
    alive: usize,
    /// Those of them that wait for work.
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    stop: bool,
}

struct Shared<W: Work> {
    name: String,
    state: Mutex<State<W>>,
    ready: Condvar,
    finished: Mutex<Vec<W::Done>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

/// The threads. Dropping the pool ends them; what waits is not carried out.
pub(crate) struct Pool<W: Work> {
    shared: Arc<Shared<W>>,
}

impl<W: Work> Pool<W> {
    /// Starts `threads` threads. `wake` is called, on one of them, when there is something for [`take_finished`](Self::take_finished).
    pub(crate) fn start(
        name: &str,
        threads: usize,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let pool = Self {
            shared: Arc::new(Shared {
                name: name.to_owned(),
                state: Mutex::new(State {
                    lines: Lines::new(threads),
                    alive: 0,
                    idle: 0,
                    threads: Vec::new(),
                    stop: false,
                }),
                ready: Condvar::new(),
                finished: Mutex::default(),
                wake: Box::new(wake),
            }),
        };
        for _ in 0..threads {
            Shared::add_thread(&pool.shared, &mut pool.shared.state.lock(), None)?;
        }
        Ok(pool)
    }

    pub(crate) fn push(&self, work: W) {
        let mut state = self.shared.state.lock();
        state.lines.push(work);
        Shared::see_to_rest(&self.shared, &mut state);
    }

    /// What was finished since the last call.
    pub(crate) fn take_finished(&self) -> Vec<W::Done> {
        std::mem::take(&mut *self.shared.finished.lock())
    }
}

impl<W: Work> Drop for Pool<W> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.stop = true;
        let threads = std::mem::take(&mut state.threads);
        drop(state);
        self.shared.ready.notify_all();
        for thread in threads {
            let _ = thread.join();
        }
    }
}

impl<W: Work> Shared<W> {
    /// Starts a thread, which ends when it was idle for `patience`.
    fn add_thread(
        this: &Arc<Self>,
        state: &mut State<W>,
        patience: Option<Duration>,
    ) -> std::io::Result<()> {
        state.threads.retain(|thread| !thread.is_finished());
        let shared = this.clone();
        let thread = std::thread::Builder::new()
            .name(format!("hv-{}-{}", this.name, state.threads.len()))
            .spawn(move || Self::work(&shared, patience))?;
        state.threads.push(thread);
        state.alive += 1;
        Ok(())
    }

    /// If there is work that can be begun, has a thread look for it. Who takes work calls this, too, so one thread at a time is enough.
    fn see_to_rest(this: &Arc<Self>, state: &mut State<W>) {
        if state.stop || state.lines.next().is_none() {
            return;
        }
        if state.idle > 0 {
            this.ready.notify_one();
        } else if state.lines.running >= state.alive {
            // All threads are at work, and none is about to look for more.
            if let Err(e) = Self::add_thread(this, state, Some(IDLE)) {
                tracing::warn!("{}: one more thread: {e}", this.name);
            }
        }
    }

    /// Work to begin now; `None` when the thread shall end.
    fn wait(
        this: &Arc<Self>,
        state: &mut parking_lot::MutexGuard<'_, State<W>>,
        patience: Option<Duration>,
    ) -> Option<W> {
        loop {
            if state.stop {
                return None;
            }
            if let Some(work) = state.lines.take() {
                Self::see_to_rest(this, state);
                return Some(work);
            }
            state.idle += 1;
            let late = match patience {
                None => {
                    this.ready.wait(state);
                    false
                }
                Some(limit) => this.ready.wait_for(state, limit).timed_out(),
            };
            state.idle -= 1;
            if late && state.lines.next().is_none() {
                state.alive -= 1;
                return None;
            }
        }
    }

    fn work(this: &Arc<Self>, patience: Option<Duration>) {
        let mut state = this.state.lock();
        while let Some(work) = Self::wait(this, &mut state, patience) {
            drop(state);
            let line = work.line();
            let done = work.carry_out();
            // Before anybody else gets `done`, after which a new line may have this number.
            this.state.lock().lines.done(line);
            let mut finished = this.finished.lock();
            let first = finished.is_empty();
            finished.push(done);
            drop(finished);
            // Whoever takes the list takes all of it, so one call is enough.
            if first {
                (this.wake)();
            }
            state = this.state.lock();
        }
    }
}

/// A command for the pool. `number` grows with each.
pub(crate) struct Job {
    pub(crate) number: u64,
    pub(crate) request: Request,
}

/// A command that the pool is done with.
pub(crate) struct Finished {
    pub(crate) number: u64,
    pub(crate) request: Request,
    pub(crate) outcome: Outcome,
}

impl Work for Job {
    type Done = Finished;

    fn line(&self) -> usize {
        self.request.line()
    }

    fn carry_out(self) -> Finished {
        let Self { number, request } = self;
        #[cfg(test)]
        crate::tests::resets::wait_while_held(&request);
        let outcome = match &request.disk {
            // A command that was ended meanwhile, by a reset or with its channel, does nothing more: not even what needs no data.
            Some(in_flight) if request.reply.gate.is_open() && request.buffer.is_open() => {
                in_flight
                    .0
                    .disk
                    .execute(&request.cdb, &request.buffer, Patience::Wait)
            }
            _ => None,
        };
        Finished {
            number,
            request,
            outcome: outcome.unwrap_or_else(|| Failure::Closed.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{channel, Receiver, Sender};

    use super::*;

    /// More than a busy machine needs.
    const SOON: Duration = Duration::from_secs(60);
    const SHARED: usize = 4;

    /// Stands for a command: in line, and with something to wait for.
    struct Errand {
        line: usize,
        until: Option<Receiver<()>>,
    }

    impl Work for Errand {
        type Done = usize;

        fn line(&self) -> usize {
            self.line
        }

        fn carry_out(self) -> usize {
            if let Some(until) = self.until {
                // Ends when the test lets go of the other end.
                let _ = until.recv();
            }
            self.line
        }
    }

    struct Bench {
        // Let go of first: dropping the pool waits for what is under way.
        stuck: Vec<Sender<()>>,
        pool: Pool<Errand>,
        woken: Receiver<()>,
    }

    impl Bench {
        fn new() -> Self {
            let (wake, woken) = channel();
            let wake = move || wake.send(()).expect("the test listens");
            Self {
                pool: Pool::start("test", SHARED, wake).expect("threads"),
                woken,
                stuck: Vec::new(),
            }
        }

        fn push(&self, line: usize) {
            self.pool.push(Errand { line, until: None });
        }

        fn push_stuck(&mut self, line: usize) {
            let (sender, receiver) = channel();
            self.stuck.push(sender);
            let until = Some(receiver);
            self.pool.push(Errand { line, until });
        }

        /// The lines of the next `count` errands that end, sorted.
        fn finished(&self, count: usize) -> Vec<usize> {
            let mut all = Vec::new();
            while all.len() < count {
                self.woken.recv_timeout(SOON).expect("errands end");
                all.extend(self.pool.take_finished());
            }
            all.sort_unstable();
            all
        }

        fn threads(&self) -> usize {
            self.pool.shared.state.lock().alive
        }
    }

    #[test]
    fn a_line_that_is_stuck_holds_up_no_other() {
        let mut bench = Bench::new();
        for _ in 0..3 * SHARED {
            bench.push_stuck(1);
        }
        bench.push(2);
        assert_eq!(bench.finished(1), [2]);
        bench.stuck.clear();
        assert_eq!(bench.finished(3 * SHARED), [1; 3 * SHARED]);
    }

    #[test]
    fn many_lines_that_are_stuck_hold_up_no_other() {
        const LINES: usize = 20;
        let mut bench = Bench::new();
        for _ in 0..2 * SHARED {
            (0..LINES).for_each(|line| bench.push_stuck(line));
        }
        for _ in 0..3 {
            (LINES..2 * LINES).for_each(|line| bench.push(line));
            let all = bench.finished(LINES);
            assert!(all.iter().copied().eq(LINES..2 * LINES), "{all:?}");
        }
        assert!(bench.threads() <= SHARED + 2 * LINES);
        bench.stuck.clear();
        assert_eq!(bench.finished(2 * SHARED * LINES).len(), 2 * SHARED * LINES);
    }

    fn lines(of: &[usize]) -> Lines<Errand> {
        let mut lines = Lines::new(SHARED);
        for &line in of {
            lines.push(Errand { line, until: None });
        }
        lines
    }

    fn take(lines: &mut Lines<Errand>) -> Option<usize> {
        lines.take().map(|errand| errand.line)
    }

    #[test]
    fn lines_take_turns() {
        let mut lines = lines(&[1, 1, 1, 1, 1, 2, 2, 3]);
        let begun: Vec<_> = std::iter::from_fn(|| take(&mut lines)).collect();
        assert_eq!(begun, [1, 2, 3, 1]);
        lines.done(3);
        assert_eq!(take(&mut lines), Some(2));
        assert_eq!(take(&mut lines), None);
    }

    #[test]
    fn one_line_may_have_all_shared_threads_and_no_more() {
        let mut lines = lines(&[1; 6]);
        let begun = std::iter::from_fn(|| take(&mut lines)).count();
        assert_eq!(begun, SHARED);
        lines.push(Errand {
            line: 2,
            until: None,
        });
        lines.push(Errand {
            line: 2,
            until: None,
        });
        assert_eq!(take(&mut lines), Some(2));
        assert_eq!(take(&mut lines), None);
        // The line's own place is not one for others.
        lines.done(1);
        assert_eq!(take(&mut lines), None);
        lines.done(1);
        assert_eq!(take(&mut lines), Some(1));
    }

    #[test]
    fn lines_without_work_are_forgotten() {
        let mut lines = lines(&[1, 2, 1]);
        while let Some(line) = take(&mut lines) {
            lines.done(line);
        }
        assert!(lines.lines.is_empty() && lines.turns.is_empty());
        assert_eq!(lines.running, 0);
    }
}
