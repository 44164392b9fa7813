// SPDX-License-Identifier: GPL-2.0

//! The two hypercalls of VMBus.

use kernel::{bindings, prelude::*};
use vmbus_proto::{
    msg::{MAX_MESSAGE_SIZE, VMBUS_MESSAGE_TYPE},
    tlfs::hypercall::{
        ConnectionId, HvStatus, HypercallCode, PostMessageInput, SignalEventInput,
        POST_MESSAGE_HEADER_SIZE,
    },
};
use zerocopy::FromZeros;

use crate::ffi;

/// How often a message is posted before it is given up.
const POST_TRIES: u32 = 100;

/// Whether a function may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Process context.
    Sleep,
    /// Any other: waits by spinning.
    Spin,
}

/// Why a message was not posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PostError {
    /// The host does not know the connection id.
    NoConnection,
    /// The host had no room for it for a long time.
    Busy,
    /// Refused for another reason.
    Refused(HvStatus),
    /// Longer than a message can be.
    TooLong,
}

impl From<PostError> for Error {
    fn from(e: PostError) -> Self {
        match e {
            PostError::NoConnection => ENXIO,
            PostError::Busy => EAGAIN,
            PostError::Refused(_) => EIO,
            PostError::TooLong => EMSGSIZE,
        }
    }
}

/// Posts `message` to `connection`. The host may be short of buffers for a while, or not know the connection yet: such
/// answers are retried with growing delays, for some minutes in the end. `first_contact`: an unknown connection id is an
/// answer, not a state that will pass.
pub(crate) fn post_message(
    connection: ConnectionId,
    message: &[u8],
    wait: Wait,
    first_contact: bool,
) -> Result<(), PostError> {
    if message.len() > MAX_MESSAGE_SIZE {
        return Err(PostError::TooLong);
    }
    let mut input = PostMessageInput::new_zeroed();
    input.connection_id = connection;
    input.message_type = VMBUS_MESSAGE_TYPE;
    input.payload_size = message.len() as u32;
    input.payload[..message.len()].copy_from_slice(message);

    let mut delay_us: u32 = 1;
    let mut last = HvStatus::SUCCESS;
    for try_ in 0..POST_TRIES {
        // SAFETY: `input` is readable for its size.
        last = HvStatus(unsafe {
            ffi::hv_rs_hypercall(
                HypercallCode::POST_MESSAGE.0,
                core::ptr::from_ref(&input).cast(),
                POST_MESSAGE_HEADER_SIZE + message.len(),
            )
        });
        if last.is_success() {
            return Ok(());
        }
        if last == HvStatus::INVALID_CONNECTION_ID && first_contact {
            return Err(PostError::NoConnection);
        }
        if !last.is_transient_for_post() {
            pr_err!("posting a message failed: {:?}\n", last);
            return Err(PostError::Refused(last));
        }
        pause(delay_us, wait);
        // Up to about two seconds.
        if try_ < 21 {
            delay_us *= 2;
        }
    }
    pr_err!(
        "posting a message failed {} times: {:?}\n",
        POST_TRIES,
        last
    );
    Err(if last == HvStatus::INVALID_CONNECTION_ID {
        PostError::NoConnection
    } else {
        PostError::Busy
    })
}

/// Lets `us` microseconds pass.
fn pause(us: u32, wait: Wait) {
    if wait == Wait::Sleep && us > 1000 {
        // SAFETY: May sleep.
        unsafe { bindings::msleep(us / 1000) };
    } else {
        spin_us(us);
    }
}

/// Spins for `us` microseconds. Any context.
pub(crate) fn spin_us(us: u32) {
    // `__udelay` takes up to 20 ms at a time.
    for _ in 0..us / 1000 {
        // SAFETY: Only spins.
        unsafe { bindings::__udelay(1000) };
    }
    // SAFETY: Only spins.
    unsafe { bindings::__udelay((us % 1000) as usize) };
}

/// Signals the host on `connection`. Any context.
#[inline]
pub(crate) fn signal_event(connection: ConnectionId) -> HvStatus {
    let input = SignalEventInput {
        connection_id: connection,
        flag: 0,
        reserved: 0,
    };
    // SAFETY: A hypercall without effect on our memory.
    HvStatus(unsafe { ffi::hv_rs_fast_hypercall(HypercallCode::SIGNAL_EVENT.0, input.to_u64()) })
}
