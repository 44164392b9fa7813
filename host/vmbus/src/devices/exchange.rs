// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What the data exchange services have in common: one request at a time, which may be sent broken on purpose, and an answer that
//! ends a control command.

use hvctl::Sending;
use vmbus_proto::ic::{IcVersion, MessageType, Status};
use vmbus_proto::packet::Packet;
use vmbus_proto::Guid;

use super::ic::{Answer, Ic, Incoming};
use crate::device::{Control, DeviceInfo, DeviceIo};
use crate::engine::fault::bytes;
use crate::SendError;

/// The exchange of requests and answers; `J` is what the device remembers of a request.
pub(super) struct Exchange<J> {
    pub(super) ic: Ic,
    name: &'static str,
    /// Requests without an answer. More than one only when that was forced.
    outstanding: Vec<(u64, J)>,
    /// Tokens given to control commands so far.
    tokens: u64,
}

impl<J> Exchange<J> {
    pub(super) fn new(
        name: &'static str,
        class: Guid,
        instance: Guid,
        service: MessageType,
        versions: &[IcVersion],
        args: &[(String, String)],
    ) -> Result<Self, String> {
        Ok(Self {
            ic: Ic::new(name, class, instance, service, versions, args)?,
            name,
            outstanding: Vec::new(),
            tokens: 0,
        })
    }

    pub(super) fn info(&self) -> DeviceInfo {
        self.ic.info()
    }

    /// Names a control command.
    pub(super) fn token(&mut self) -> u64 {
        self.tokens += 1;
        self.tokens
    }

    /// Sends a request.
    ///
    /// # Errors
    /// A sentence: not negotiated, the last request is not answered, no room.
    pub(super) fn ask(
        &mut self,
        io: &mut DeviceIo<'_>,
        body: &[u8],
        how: &Sending,
        job: J,
    ) -> Result<(), String> {
        let name = self.name;
        if self.ic.negotiated().is_none() {
            return Err(format!("{name}: the guest's service is not negotiated"));
        }
        if !self.outstanding.is_empty() && !how.force {
            return Err(format!("{name}: the last request is not answered yet"));
        }
        let mut body = body.to_vec();
        for patch in &how.patch {
            let new = bytes(&patch.hex)?;
            let (end, len) = (patch.at.saturating_add(new.len()), body.len());
            body.get_mut(patch.at..end)
                .ok_or_else(|| format!("{name}: patch up to byte {end} of {len}"))?
                .copy_from_slice(&new);
        }
        body.truncate(how.cut.unwrap_or(body.len()));
        let id = self.ic.request(io, &body).map_err(|e| match e {
            SendError::Full => format!("{name}: the guest does not read its ring"),
            other => format!("{name}: {other}"),
        })?;
        self.outstanding.push((id, job));
        Ok(())
    }

    /// The request that a packet answers, if it does.
    pub(super) fn answered<'a>(
        &mut self,
        io: &mut DeviceIo<'_>,
        packet: &Packet<'a>,
    ) -> Option<(J, Status, &'a [u8])> {
        let Incoming::Answer(Answer { id, status, body }) = self.ic.packet(io, packet) else {
            return None;
        };
        let Some(at) = self.outstanding.iter().position(|(i, _)| *i == id) else {
            io.violation(format!("request {id} was answered twice"));
            return None;
        };
        let (_, job) = self.outstanding.remove(at);
        Some((job, status, body))
    }

    /// The channel is closed; what was asked will not be answered.
    pub(super) fn closed(&mut self) -> impl Iterator<Item = J> + '_ {
        self.ic.closed();
        self.outstanding.drain(..).map(|(_, job)| job)
    }
}

/// What jobs end with when the guest closes the channel.
pub(super) fn closed(name: &str) -> Result<serde_json::Value, String> {
    Err(format!(
        "{name}: the guest closed the channel without an answer"
    ))
}

pub(super) fn json<T: serde::Serialize>(value: T) -> Result<serde_json::Value, String> {
    serde_json::to_value(value).map_err(|e| e.to_string())
}

/// How a command of `how` goes on: later, if it was sent.
pub(super) fn later(sent: Result<(), String>, token: u64, how: &Sending) -> Control {
    match sent {
        Ok(()) => Control::Later {
            token,
            timeout_ms: how.wait_ms,
        },
        Err(text) => Control::Failed(text),
    }
}
