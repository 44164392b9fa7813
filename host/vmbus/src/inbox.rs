// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Where vCPU threads and control connections leave what the worker thread has to do. Nobody waits here
//! but the worker.

use std::collections::VecDeque;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Instant;

use hv_partition::{HvStatus, HypercallSink, VpIndex};
use hvctl::{Command, Event, Reply};
use parking_lot::{Condvar, Mutex};
use vmbus_proto::msg::{Relid, MAX_CHANNELS, MESSAGE_CONNECTION_ID, MESSAGE_CONNECTION_ID_4};

use crate::server::relid_of_connection;

/// TLFS, "Hypercall status values".
const HV_STATUS_SUCCESS: HvStatus = 0;
const HV_STATUS_INVALID_CONNECTION_ID: HvStatus = 0x12;
const HV_STATUS_INSUFFICIENT_BUFFERS: HvStatus = 0x13;

/// Messages of the guest that may wait here; further ones are refused as the TLFS says. The largest
/// GPADL takes 293.
const MAX_MESSAGES: usize = 1024;

/// A message of the guest.
#[derive(Clone, Debug)]
pub(crate) struct GuestPost {
    pub(crate) connection_id: u32,
    pub(crate) msg_type: u32,
    pub(crate) payload: Vec<u8>,
}

/// What has to be done, in the order in which it came.
pub(crate) enum Input {
    /// The guest posted a message.
    Post(GuestPost),
    /// The VM was reset.
    Reset,
    /// The guest reported a crash.
    Crash,
    /// A control connection asks.
    Control {
        client: Client,
        id: u64,
        cmd: Command,
    },
    /// A device's own thread has something for its device.
    Wake { device: usize },
}

/// The worker's end of a control connection.
#[derive(Clone)]
pub(crate) struct Client {
    lines: SyncSender<String>,
}

impl Client {
    pub(crate) fn new(lines: SyncSender<String>) -> Self {
        Self { lines }
    }

    /// Queues a line; `Err` when the client is gone, `Ok(false)` when it does not read.
    pub(crate) fn send_line(&self, line: String) -> Result<bool, ()> {
        match self.lines.try_send(line) {
            Ok(()) => Ok(true),
            Err(TrySendError::Full(_)) => Ok(false),
            Err(TrySendError::Disconnected(_)) => Err(()),
        }
    }

    /// Answers request `id`. A client that does not read its answers loses them.
    pub(crate) fn reply(&self, id: u64, result: Result<serde_json::Value, String>) {
        let reply = match result {
            Ok(value) => Reply {
                id,
                ok: Some(value),
                err: None,
            },
            Err(text) => Reply {
                id,
                ok: None,
                err: Some(text),
            },
        };
        if let Ok(mut line) = serde_json::to_string(&reply) {
            line.push('\n');
            let _ = self.send_line(line);
        }
    }

    /// Tells of an event, as [`Client::send_line`].
    pub(crate) fn event(&self, event: &Event) -> Result<bool, ()> {
        let mut line = serde_json::to_string(event).map_err(|_| ())?;
        line.push('\n');
        self.send_line(line)
    }
}

#[derive(Default)]
struct State {
    inputs: VecDeque<Input>,
    posts: usize,
    /// By relid: signals not yet taken; `None` when the channel is closed.
    signals: Vec<Option<u32>>,
    /// Relids with signals not yet taken.
    signalled: Vec<Relid>,
    unknown_signals: u64,
    refuse_post: (u32, HvStatus),
    stop: bool,
}

/// What the worker took from the inbox.
#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) inputs: VecDeque<Input>,
    /// Channels that were signalled, and how often.
    pub(crate) signals: Vec<(Relid, u32)>,
    pub(crate) stop: bool,
}

/// The inbox. See the module's documentation.
pub(crate) struct Inbox {
    state: Mutex<State>,
    wake: Condvar,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        let state = State {
            signals: vec![None; MAX_CHANNELS as usize],
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            wake: Condvar::new(),
        }
    }

    pub(crate) fn push(&self, input: Input) {
        self.state.lock().inputs.push_back(input);
        self.wake.notify_one();
    }

    pub(crate) fn stop(&self) {
        self.state.lock().stop = true;
        self.wake.notify_one();
    }

    /// From now on the guest may signal the channel.
    pub(crate) fn open(&self, relid: Relid) {
        if let Some(slot) = self.state.lock().signals.get_mut(relid.0 as usize) {
            *slot = Some(0);
        }
    }

    /// From now on signals to the channel are refused; those not taken are dropped.
    pub(crate) fn close(&self, relid: Relid) {
        if let Some(slot) = self.state.lock().signals.get_mut(relid.0 as usize) {
            *slot = None;
        }
    }

    /// Fault injection: answers the next `count` posts with `status`.
    pub(crate) fn refuse_posts(&self, count: u32, status: HvStatus) {
        self.state.lock().refuse_post = (count, status);
    }

    /// Signals to connection ids that no channel has, since the start.
    pub(crate) fn unknown_signals(&self) -> u64 {
        self.state.lock().unknown_signals
    }

    /// Waits until there is something to do or `deadline` is over, and takes it. `room`: the guest may post as many
    /// messages again; otherwise those taken go on counting, and further ones are refused in the end.
    pub(crate) fn take(&self, deadline: Instant, room: bool) -> Taken {
        let mut state = self.state.lock();
        while state.inputs.is_empty() && state.signalled.is_empty() && !state.stop {
            if self.wake.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        if room {
            state.posts = 0;
        }
        let mut taken = Taken {
            inputs: std::mem::take(&mut state.inputs),
            signals: Vec::new(),
            stop: state.stop,
        };
        for relid in std::mem::take(&mut state.signalled) {
            if let Some(Some(count)) = state.signals.get_mut(relid.0 as usize) {
                taken.signals.push((relid, std::mem::take(count)));
            }
        }
        taken
    }
}

impl HypercallSink for Inbox {
    fn post_message(
        &self,
        _vp: VpIndex,
        connection_id: u32,
        msg_type: u32,
        payload: &[u8],
    ) -> HvStatus {
        if connection_id != MESSAGE_CONNECTION_ID && connection_id != MESSAGE_CONNECTION_ID_4 {
            return HV_STATUS_INVALID_CONNECTION_ID;
        }
        let mut state = self.state.lock();
        if state.refuse_post.0 > 0 {
            state.refuse_post.0 -= 1;
            return state.refuse_post.1;
        }
        if state.posts >= MAX_MESSAGES {
            return HV_STATUS_INSUFFICIENT_BUFFERS;
        }
        state.posts += 1;
        state.inputs.push_back(Input::Post(GuestPost {
            connection_id,
            msg_type,
            payload: payload.to_vec(),
        }));
        drop(state);
        self.wake.notify_one();
        HV_STATUS_SUCCESS
    }

    fn signal_event(&self, _vp: VpIndex, connection_id: u32, flag: u16) -> HvStatus {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let slot = relid_of_connection(connection_id)
            .filter(|_| flag == 0)
            .and_then(|relid| Some((relid, state.signals.get_mut(relid.0 as usize)?.as_mut()?)));
        let Some((relid, count)) = slot else {
            // A guest may signal a channel that was rescinded a moment ago.
            state.unknown_signals += 1;
            return HV_STATUS_INVALID_CONNECTION_ID;
        };
        if *count == 0 {
            state.signalled.push(relid);
        }
        *count = count.saturating_add(1);
        drop(guard);
        self.wake.notify_one();
        HV_STATUS_SUCCESS
    }

    fn reset(&self) {
        self.push(Input::Reset);
    }

    fn guest_crashed(&self) {
        self.push(Input::Crash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VP: VpIndex = VpIndex(0);

    fn now() -> Instant {
        Instant::now()
    }

    #[test]
    fn only_the_message_connections_take_messages() {
        let inbox = Inbox::new();
        assert_eq!(inbox.post_message(VP, 1, 1, &[1]), HV_STATUS_SUCCESS);
        assert_eq!(inbox.post_message(VP, 4, 1, &[2]), HV_STATUS_SUCCESS);
        for id in [0, 2, 3, 5, 0x80_0074, 0x2001] {
            assert_eq!(
                inbox.post_message(VP, id, 1, &[]),
                HV_STATUS_INVALID_CONNECTION_ID,
                "connection {id:#x}"
            );
        }
        assert_eq!(inbox.take(now(), true).inputs.len(), 2);
    }

    #[test]
    fn a_flood_of_messages_is_refused_until_the_worker_has_taken_some() {
        let inbox = Inbox::new();
        let accepted = (0..MAX_MESSAGES * 2)
            .filter(|_| inbox.post_message(VP, 1, 1, &[0; 240]) == 0)
            .count();
        assert_eq!(accepted, MAX_MESSAGES);
        inbox.take(now(), false);
        assert_eq!(
            inbox.post_message(VP, 1, 1, &[]),
            HV_STATUS_INSUFFICIENT_BUFFERS,
            "taken, but the answers have not gone"
        );
        inbox.take(now(), true);
        assert_eq!(inbox.post_message(VP, 1, 1, &[]), HV_STATUS_SUCCESS);
    }

    #[test]
    fn signals_are_counted_for_open_channels_and_refused_for_others() {
        let inbox = Inbox::new();
        assert_eq!(
            inbox.signal_event(VP, 0x2005, 0),
            HV_STATUS_INVALID_CONNECTION_ID
        );
        inbox.open(Relid(5));
        assert_eq!(inbox.signal_event(VP, 0x2005, 0), HV_STATUS_SUCCESS);
        assert_eq!(inbox.signal_event(VP, 0x2005, 0), HV_STATUS_SUCCESS);
        assert_eq!(
            inbox.signal_event(VP, 0x2005, 1),
            HV_STATUS_INVALID_CONNECTION_ID
        );
        assert_eq!(
            inbox.signal_event(VP, 5, 0),
            HV_STATUS_INVALID_CONNECTION_ID
        );
        assert_eq!(inbox.take(now(), true).signals, [(Relid(5), 2)]);
        assert!(inbox.take(now(), true).signals.is_empty());
        inbox.signal_event(VP, 0x2005, 0);
        inbox.close(Relid(5));
        assert!(inbox.take(now(), true).signals.is_empty());
        assert_eq!(inbox.unknown_signals(), 3);
    }

    #[test]
    fn refused_posts_are_not_taken() {
        let inbox = Inbox::new();
        inbox.refuse_posts(1, HV_STATUS_INSUFFICIENT_BUFFERS);
        assert_eq!(
            inbox.post_message(VP, 1, 1, &[]),
            HV_STATUS_INSUFFICIENT_BUFFERS
        );
        assert_eq!(inbox.post_message(VP, 1, 1, &[]), HV_STATUS_SUCCESS);
        assert_eq!(inbox.take(now(), true).inputs.len(), 1);
    }
}
