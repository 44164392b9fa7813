// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The harness's end of the agent protocol.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::patience::{self, stretched};
use anyhow::{anyhow, bail, Context, Result};
use guest_agent::{Answer, Command, Hello, Request};
use serde::de::DeserializeOwned;

/// A connection to the agent of one VM; lives as long as QEMU does, across resets of the guest.
pub struct Agent {
    writer: Mutex<UnixStream>,
    next: AtomicU64,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    pending: HashMap<u64, Sender<Answer>>,
    hellos: Vec<Hello>,
    closed: bool,
}

impl Agent {
    /// Takes over QEMU's connection for the second serial port.
    ///
    /// # Errors
    /// When the socket cannot be shared between the two directions.
    pub fn new(stream: UnixStream) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let reader = BufReader::new(stream.try_clone()?);
        let to = shared.clone();
        thread::spawn(move || receive(reader, &to));
        Ok(Self {
            writer: Mutex::new(stream),
            next: AtomicU64::new(1),
            shared,
        })
    }

    /// Waits for the `count`-th greeting of an agent in this VM: the first after the first boot, the second after a
    /// reset, and so on.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn hello(&self, count: usize, timeout: Duration) -> Result<Hello> {
        let timeout = stretched(timeout);
        let end = Instant::now() + timeout;
        let mut state = self
            .shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(hello) = state.hellos.get(count - 1) {
                return Ok(hello.clone());
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.closed {
                bail!("QEMU ended before the guest's agent was up");
            }
            if left.is_zero() {
                bail!(
                    "the guest's agent was not up within {} s",
                    timeout.as_secs()
                );
            }
            (state, _) = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Sends a command and gives what to wait on.
    fn send(&self, mut cmd: Command) -> Result<mpsc::Receiver<Answer>> {
        if let Some(ms) = cmd.timeout_ms() {
            *ms = ms.saturating_mul(patience::times().into());
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = mpsc::channel();
        {
            let mut state = self
                .shared
                .state
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if state.closed {
                bail!("QEMU has ended");
            }
            state.pending.insert(id, tx);
        }
        let mut line = serde_json::to_vec(&Request { id, cmd })?;
        line.push(b'\n');
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(&line).context("agent")?;
        Ok(rx)
    }

    /// Sends a command whose answer is not waited for, such as one that ends the guest.
    ///
    /// # Errors
    /// When QEMU has ended.
    pub fn post(&self, cmd: Command) -> Result<()> {
        self.send(cmd).map(drop)
    }

    /// Runs a command and gives its result.
    ///
    /// # Errors
    /// The agent's sentence, or that no answer came in time.
    pub fn call<T: DeserializeOwned>(&self, cmd: Command, timeout: Duration) -> Result<T> {
        let timeout = stretched(timeout);
        let answer = self.send(cmd)?.recv_timeout(timeout);
        let answer = answer.map_err(|err| match err {
            mpsc::RecvTimeoutError::Timeout => {
                anyhow!("the agent did not answer within {} s", timeout.as_secs())
            }
            mpsc::RecvTimeoutError::Disconnected => {
                anyhow!("the guest ended or was reset before the agent answered")
            }
        })?;
        match (answer.ok, answer.err) {
            (_, Some(err)) => bail!("{err}"),
            (ok, None) => {
                serde_json::from_value(ok.unwrap_or_default()).context("the agent's answer")
            }
        }
    }
}

fn receive(mut reader: impl BufRead, shared: &Shared) {
    loop {
        let mut line = Vec::new();
        let more = matches!(reader.read_until(b'\n', &mut line), Ok(1..));
        let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        // What is not an answer is noise of the port, such as firmware that writes to it.
        if let Ok(answer) = serde_json::from_slice::<Answer>(&line) {
            if let Some(hello) = answer.hello {
                // A new agent knows nothing of what was asked from the one before it.
                state.pending.clear();
                state.hellos.push(hello);
            } else if let Some(waiting) = answer.id.and_then(|id| state.pending.remove(&id)) {
                let _ = waiting.send(answer);
            }
        }
        if !more {
            state.closed = true;
            state.pending.clear();
        }
        shared.changed.notify_all();
        if !more {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_find_their_questions() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let agent = Agent::new(ours).unwrap();
        thread::spawn(move || {
            let mut reader = BufReader::new(theirs.try_clone().unwrap());
            let mut writer = theirs;
            let hello = r#"{"kernel":"7","cpus":1,"pid":2,"uptime_ms":3}"#;
            writeln!(writer, "noise\n{{\"id\":null,\"hello\":{hello}}}").unwrap();
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            reader.read_line(&mut line).unwrap();
            writeln!(writer, r#"{{"id":2,"err":"no"}}"#).unwrap();
            writeln!(writer, r#"{{"id":1,"ok":5}}"#).unwrap();
        });
        assert_eq!(agent.hello(1, Duration::from_secs(5)).unwrap().kernel, "7");
        let first = agent.send(Command::Time).unwrap();
        let second: Result<u64> = agent.call(Command::Ping, Duration::from_secs(5));
        assert_eq!(second.unwrap_err().to_string(), "no");
        assert_eq!(first.recv().unwrap().ok.unwrap(), 5);
        assert!(agent.hello(2, Duration::from_secs(5)).is_err());
    }
}
