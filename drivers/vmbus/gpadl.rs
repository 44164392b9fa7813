// SPDX-License-Identifier: GPL-2.0

//! GPADLs: memory of ours that the host may use.

use kernel::prelude::*;
use vmbus_proto::msg::{ChannelMessage, GpadlBody, GpadlHeader, GpadlId, GpadlTeardown, MessageBuffer, MAX_MESSAGE_SIZE};
use zerocopy::IntoBytes;

use crate::{
    log::Show,
    chan::Chan,
    hypercall::Wait,
    memory::PAGE,
    requests::{Key, Reply, RequestError},
};

/// Most pages of one GPADL: the length of its description is a 16-bit number.
const MAX_PAGES: usize = (u16::MAX as usize - 8) / 8;

/// Page frame numbers that fit the first message, after the range's own header.
const FIRST: usize = (MAX_MESSAGE_SIZE - size_of::<GpadlHeader>() - 8) / 8;
/// Page frame numbers that fit each further message.
const NEXT: usize = (MAX_MESSAGE_SIZE - size_of::<GpadlBody>()) / 8;

/// Shows `count` pages to the host, and waits until it has taken them. Process context.
///
/// # Errors
/// With `true` when the host may hold the pages in spite of the error.
pub(crate) fn create(
    chan: &Chan,
    mut pfns: impl Iterator<Item = u64>,
    count: usize,
) -> Result<GpadlId, (Error, bool)> {
    if count == 0 || count > MAX_PAGES {
        return Err((EINVAL, false));
    }
    let gpadl = chan.conn.new_gpadl_id();
    let mut header = GpadlHeader::blank();
    header.relid = chan.relid();
    header.gpadl = gpadl;
    header.range_count = 1;
    header.range_buflen = (8 + 8 * count) as u16;
    let mut body = GpadlBody::blank();
    body.gpadl = gpadl;

    let reply = chan.conn.requests.run(
        Key::GpadlCreated(chan.relid(), gpadl),
        Some(chan.relid()),
        || chan.is_rescinded(),
        || {
            let mut message = MessageBuffer::from_message(&header);
            let range = [(count * PAGE) as u32, 0];
            message.append(range.as_bytes()).map_err(|_| EMSGSIZE)?;
            let mut left = count;
            let mut room = FIRST;
            let mut number = 0;
            loop {
                let now = left.min(room);
                for pfn in pfns.by_ref().take(now) {
                    message.append(pfn.as_bytes()).map_err(|_| EMSGSIZE)?;
                }
                chan.conn.post(message.as_bytes(), Wait::Sleep)?;
                left -= now;
                if left == 0 {
                    return Ok(());
                }
                number += 1;
                body.message_number = number;
                message = MessageBuffer::from_message(&body);
                room = NEXT;
            }
        },
    );
    match reply {
        Ok(Reply::Status(status)) if status.is_success() => Ok(gpadl),
        Ok(_) => {
            pr_err!("channel {}: the host refuses GPADL {}\n", Show(chan.relid()), Show(gpadl));
            Err((EIO, false))
        }
        // The host lets go of everything that belongs to a channel before it takes it away.
        Err(RequestError::Rescinded) => Err((ENODEV, false)),
        Err(e) => Err((e.into(), true)),
    }
}

/// Takes the pages of `gpadl` back, and waits until the host has let go of them. Process context.
///
/// # Errors
/// The host may hold the pages.
pub(crate) fn destroy(chan: &Chan, gpadl: GpadlId) -> Result {
    if chan.is_rescinded() {
        return Ok(());
    }
    let mut message = GpadlTeardown::blank();
    message.relid = chan.relid();
    message.gpadl = gpadl;
    let reply = chan.conn.requests.run(
        Key::GpadlTorndown(gpadl),
        Some(chan.relid()),
        || chan.is_rescinded(),
        || chan.conn.post(message.as_bytes(), Wait::Sleep),
    );
    match reply {
        Ok(_) | Err(RequestError::Rescinded) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
