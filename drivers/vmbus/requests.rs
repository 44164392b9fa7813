// SPDX-License-Identifier: GPL-2.0

//! Requests to the host that wait for its answer.

use core::{cell::UnsafeCell, ptr::NonNull};
use kernel::{prelude::*, time::msecs_to_jiffies};
use vmbus_proto::msg::{GpadlId, Relid, Status, VersionAnswer};

use crate::sync::{new_irq_lock, Event, IrqLock};

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// VERSION_RESPONSE.
    Version,
    /// OPEN_CHANNEL_RESULT with this `open_id`.
    Open(Relid, u32),
    /// GPADL_CREATED.
    GpadlCreated(Relid, GpadlId),
    /// GPADL_TORNDOWN.
    GpadlTorndown(GpadlId),
    /// MODIFY_CHANNEL_RESPONSE.
    Modify(Relid),
    /// UNLOAD_RESPONSE.
    Unload,
}

/// The answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reply {
    /// To INITIATE_CONTACT.
    Version(VersionAnswer),
    /// With a status.
    Status(Status),
    /// Without one.
    Done,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestError {
    /// The host took the channel away.
    Rescinded,
    /// The host did not answer for [`GIVE_UP_SECONDS`].
    TimedOut,
    /// The message could not be posted.
    NotSent(Error),
}

impl From<RequestError> for Error {
    fn from(e: RequestError) -> Self {
        match e {
            RequestError::Rescinded => ENODEV,
            RequestError::TimedOut => ETIMEDOUT,
            RequestError::NotSent(e) => e,
        }
    }
}

/// After how many seconds without an answer a message is logged, and how often.
const WARN_SECONDS: u32 = 30;
/// After how many seconds a request is given up. Hosts have been seen to take more than a minute under load.
const GIVE_UP_SECONDS: u32 = 300;

/// A request in flight; on the stack of the thread that waits.
#[pin_data]
struct Pending {
    key: Key,
    /// For rescinds.
    relid: Option<Relid>,
    #[pin]
    answered: Event,
    // Written once, under the table's lock, before `answered`.
    reply: UnsafeCell<Option<Result<Reply, RequestError>>>,
}

/// The requests in flight.
///
/// # Invariants
/// Each pointer is valid: an entry leaves the table, under the lock, before its memory goes.
#[pin_data]
pub(crate) struct Requests {
    #[pin]
    table: IrqLock<KVec<NonNull<Pending>>>,
}

// SAFETY: The entries are reached under the lock only.
unsafe impl Send for Requests {}
// SAFETY: The entries are reached under the lock only.
unsafe impl Sync for Requests {}

// SAFETY: The pointers may be used from any thread, under the lock.
unsafe impl Send for Pending {}

impl Requests {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            table <- new_irq_lock!(KVec::new(), c"hv_vmbus_rs::requests"),
        })
    }

    /// Sends a request and waits for the answer to `key`. `relid` names the channel that the request dies with, and `gone`
    /// says whether that has happened already. Process context, sleeps.
    pub(crate) fn run(
        &self,
        key: Key,
        relid: Option<Relid>,
        gone: impl Fn() -> bool,
        send: impl FnOnce() -> Result,
    ) -> Result<Reply, RequestError> {
        pin_init::stack_pin_init!(let pending = pin_init!(Pending {
            key,
            relid,
            answered <- Event::new(),
            reply: UnsafeCell::new(None),
        }));
        let me = NonNull::from(&*pending);
        // INVARIANT: All ways out of this function remove the entry.
        self.table
            .lock()
            .push(me, GFP_ATOMIC)
            .map_err(|_| RequestError::NotSent(ENOMEM))?;
        // A rescind that came before the entry was in the table did not see it.
        if gone() {
            self.remove(me);
            return Err(RequestError::Rescinded);
        }
        if let Err(e) = send() {
            self.remove(me);
            return Err(RequestError::NotSent(e));
        }
        let mut waited = 0;
        while !pending.answered.wait_timeout(msecs_to_jiffies(WARN_SECONDS * 1000)) {
            waited += WARN_SECONDS;
            if waited >= GIVE_UP_SECONDS {
                break;
            }
            pr_warn!("the host has not answered {:?} for {} s\n", key, waited);
        }
        self.remove(me);
        // SAFETY: The entry is out of the table, so nobody else reaches it.
        match unsafe { *pending.reply.get() } {
            Some(reply) => reply,
            None => {
                pr_err!("the host did not answer {:?} within {} s\n", key, waited);
                Err(RequestError::TimedOut)
            }
        }
    }

    fn remove(&self, entry: NonNull<Pending>) {
        self.table.lock().retain(|p| *p != entry);
    }

    /// Hands `reply` to the first request that waits for `key`; false when there is none. Any context but NMI.
    pub(crate) fn answer(&self, key: Key, reply: Reply) -> bool {
        self.settle(Ok(reply), |p| p.key == key, true)
    }

    /// Ends all requests that concern channel `relid`. Any context but NMI.
    pub(crate) fn rescind(&self, relid: Relid) {
        self.settle(Err(RequestError::Rescinded), |p| p.relid == Some(relid), false);
    }

    fn settle(
        &self,
        reply: Result<Reply, RequestError>,
        matches: impl Fn(&Pending) -> bool,
        first: bool,
    ) -> bool {
        let table = self.table.lock();
        let mut found = false;
        for entry in table.iter() {
            // SAFETY: By the type's invariant; the lock is held.
            let pending = unsafe { entry.as_ref() };
            // SAFETY: Written under the lock only, which is held.
            let slot = unsafe { &mut *pending.reply.get() };
            if slot.is_none() && matches(pending) {
                *slot = Some(reply);
                // Under the lock, so that the waiter, which takes it to leave, does not free the event meanwhile.
                pending.answered.signal();
                found = true;
                if first {
                    break;
                }
            }
        }
        found
    }
}
