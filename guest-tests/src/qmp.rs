// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! QEMU's machine protocol, as much of it as the tests need.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use serde_json::{json, Value};

use crate::patience::stretched;

/// A connection to one QEMU.
pub struct Qmp {
    writer: Mutex<UnixStream>,
    inbox: Arc<Inbox>,
}

#[derive(Default)]
struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    answers: Vec<Value>,
    events: Vec<Value>,
    closed: bool,
}

impl Qmp {
    /// Takes over a connection that QEMU has just made, and leaves the negotiation mode.
    ///
    /// # Errors
    /// When QEMU does not answer as documented.
    pub fn new(stream: UnixStream) -> Result<Self> {
        let inbox = Arc::new(Inbox::default());
        let reader = BufReader::new(stream.try_clone()?);
        let to = inbox.clone();
        thread::spawn(move || receive(reader, &to));
        let qmp = Self {
            writer: Mutex::new(stream),
            inbox,
        };
        qmp.call("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and gives its result.
    ///
    /// # Errors
    /// QEMU's error, or that it does not answer within 30 s.
    pub fn call(&self, command: &str, arguments: Value) -> Result<Value> {
        // Held until the answer is here: answers carry no order of their own.
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut line = json!({"execute": command, "arguments": arguments}).to_string();
        line.push('\n');
        writer
            .write_all(line.as_bytes())
            .with_context(|| format!("QMP {command}"))?;
        let answer = self
            .inbox
            .wait(Duration::from_secs(30), |state| state.answers.pop());
        let answer = answer.with_context(|| format!("QMP {command}"))?;
        match answer.get("error") {
            Some(error) => bail!(
                "QMP {command}: {}",
                error["desc"].as_str().unwrap_or("failed")
            ),
            None => Ok(answer["return"].clone()),
        }
    }

    /// Waits for an event of this name, also one that came before; it is taken out of the queue.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn event(&self, name: &str, timeout: Duration) -> Result<Value> {
        self.inbox
            .wait(stretched(timeout), |state| {
                let at = state
                    .events
                    .iter()
                    .position(|event| event["event"] == name)?;
                Some(state.events.remove(at))
            })
            .with_context(|| format!("QEMU's event {name}"))
    }

    /// Stops all vCPUs.
    ///
    /// # Errors
    /// See [`Qmp::call`].
    pub fn stop(&self) -> Result<()> {
        self.call("stop", json!({})).map(drop)
    }

    /// Lets all vCPUs go on.
    ///
    /// # Errors
    /// See [`Qmp::call`].
    pub fn cont(&self) -> Result<()> {
        self.call("cont", json!({})).map(drop)
    }
}

impl Inbox {
    fn wait<T>(
        &self,
        timeout: Duration,
        mut pick: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + timeout;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = pick(&mut state) {
                return Ok(found);
            }
            if state.closed {
                bail!("QEMU has ended");
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("none within {} s", timeout.as_secs());
            }
            (state, _) = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn receive(mut reader: impl BufRead, inbox: &Inbox) {
    loop {
        let mut line = String::new();
        let more = matches!(reader.read_line(&mut line), Ok(1..));
        let mut state = inbox.state.lock().unwrap_or_else(PoisonError::into_inner);
        match serde_json::from_str::<Value>(&line) {
            Ok(value) if value.get("event").is_some() => state.events.push(value),
            Ok(value) if value.get("QMP").is_none() => state.answers.push(value),
            _ => {}
        }
        state.closed = !more;
        inbox.changed.notify_all();
        if !more {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A QEMU that greets, sends an event in between, and then answers from the list.
    fn scripted(answers: &'static [&'static str]) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut reader = BufReader::new(theirs.try_clone().unwrap());
            let mut writer = theirs;
            writeln!(writer, r#"{{"QMP": {{"version": {{}}}}}}"#).unwrap();
            for answer in answers {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                writeln!(writer, r#"{{"event": "STOP", "timestamp": {{}}}}"#).unwrap();
                writeln!(writer, "{answer}").unwrap();
            }
        });
        ours
    }

    #[test]
    fn answers_and_events_are_told_apart() {
        let qmp = Qmp::new(scripted(&[r#"{"return": {}}"#, r#"{"return": 7}"#])).unwrap();
        assert_eq!(qmp.call("query-x", json!({})).unwrap(), json!(7));
        assert!(qmp.event("STOP", Duration::from_secs(5)).is_ok());
    }

    #[test]
    fn errors_and_the_end_are_reported() {
        const ANSWERS: &[&str] = &[
            r#"{"return": {}}"#,
            r#"{"error": {"class": "GenericError", "desc": "no such thing"}}"#,
        ];
        let qmp = Qmp::new(scripted(ANSWERS)).unwrap();
        let err = qmp.call("query-x", json!({})).unwrap_err();
        assert!(format!("{err:#}").contains("no such thing"));
        assert!(qmp.event("SHUTDOWN", Duration::from_secs(5)).is_err());
    }
}
