// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Threads that carry out what may have to wait.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use hv_vmbus_host::device::Waker;
use parking_lot::{Condvar, Mutex};

use crate::request::Request;
use crate::scsi::{Failure, Outcome, Patience};

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

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    stop: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    ready: Condvar,
    finished: Mutex<Vec<Finished>>,
    waker: Waker,
}

/// The threads. Dropping the pool ends them; what waits is not carried out.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `threads` threads.
    pub(crate) fn start(name: &str, threads: usize, waker: Waker) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            ready: Condvar::new(),
            finished: Mutex::default(),
            waker,
        });
        let mut pool = Self {
            shared: shared.clone(),
            threads: Vec::new(),
        };
        for n in 0..threads {
            let shared = shared.clone();
            let thread = std::thread::Builder::new()
                .name(format!("hv-{name}-{n}"))
                .spawn(move || work(&shared))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    pub(crate) fn push(&self, job: Job) {
        self.shared.queue.lock().jobs.push_back(job);
        self.shared.ready.notify_one();
    }

    /// What was finished since the last call.
    pub(crate) fn take_finished(&self) -> Vec<Finished> {
        std::mem::take(&mut *self.shared.finished.lock())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.queue.lock().stop = true;
        self.shared.ready.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work(shared: &Shared) {
    loop {
        let mut queue = shared.queue.lock();
        let job = loop {
            if queue.stop {
                return;
            }
            match queue.jobs.pop_front() {
                Some(job) => break job,
                None => shared.ready.wait(&mut queue),
            }
        };
        drop(queue);
        let Job { number, request } = job;
        let outcome = match &request.disk {
            Some(in_flight) if request.reply.gate.is_open() => {
                in_flight
                    .0
                    .disk
                    .execute(&request.cdb, &request.buffer, Patience::Wait)
            }
            _ => None,
        };
        let finished = Finished {
            number,
            request,
            outcome: outcome.unwrap_or_else(|| Failure::Closed.into()),
        };
        let mut list = shared.finished.lock();
        let first = list.is_empty();
        list.push(finished);
        drop(list);
        // Whoever takes the list takes all of it, so one call is enough.
        if first {
            shared.waker.wake();
        }
    }
}
