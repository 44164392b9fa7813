// SPDX-License-Identifier: GPL-2.0

//! Coming and going of a channel's device: work items.

use core::sync::atomic::Ordering;
use kernel::{prelude::*, sync::Arc, workqueue::WorkItem};

use super::{Chan, Registered};
use crate::{
    channel::Channel,
    device::Device,
    log::{pr_warn_limited, Show},
    sysfs::{ChannelDir, SubchannelDir},
};

impl Chan {
    /// Registers the device, on the queue that does so in the order of the offers. Subchannels are offered to the driver
    /// on a queue of their own, since they come while their device is being probed.
    pub(crate) fn queue_add(self: &Arc<Self>) {
        let queues = &self.conn.queues;
        let queue = match self.primary {
            None => &queues.add,
            Some(_) => &queues.sub,
        };
        // A channel is added once, so the item cannot be queued already.
        let _ = queue.queue().enqueue::<_, 0>(self.clone());
    }

    /// Claims the task of removing the channel: true once.
    pub(crate) fn claim_removal(&self) -> bool {
        !self.removing.swap(true, Ordering::AcqRel)
    }

    /// Takes the channel apart, on a queue where no channel waits for another.
    pub(crate) fn queue_remove(self: &Arc<Self>) {
        let _ = self
            .conn
            .queues
            .remove
            .queue()
            .enqueue::<_, 1>(self.clone());
    }

    fn add(self: &Arc<Self>) {
        if let Some(primary) = &self.primary {
            return self.add_subchannel(primary);
        }
        if let Some(old) = self.conn.older_instance(self) {
            // The host offers the device again before we are done with the old offer.
            old.gone.wait();
        }
        if !self.is_rescinded() && !self.conn.is_closing() {
            // Not under the lock: probing waits for the host, and for subchannels.
            match Device::register(self.clone(), self.conn.parent()) {
                Ok(device) => {
                    // SAFETY: The device was just registered.
                    let channels = unsafe { ChannelDir::new(device, self) };
                    let channels = channels.inspect_err(|e| self.not_in_sysfs(*e)).ok();
                    *self.registered.lock() = Some(Registered {
                        subs: KVec::new(),
                        channels,
                        device,
                    });
                    self.conn
                        .for_each_subchannel(self, |sub| self.show_subchannel(sub));
                }
                Err(e) => pr_warn_limited!(
                    "cannot register device {}: {}\n",
                    Show(self.offer.instance_id),
                    e.to_errno()
                ),
            }
        }
        self.added.signal();
    }

    #[cold]
    fn not_in_sysfs(&self, e: Error) {
        pr_warn_limited!(
            "{}: channels are missing in sysfs: {}\n",
            Show(self.offer.instance_id),
            e.to_errno()
        );
    }

    /// Puts a subchannel into sysfs, if it is not there, and not on its way out. For a primary channel.
    fn show_subchannel(&self, sub: &Arc<Chan>) {
        let mut registered = self.registered.lock();
        let Some(Registered {
            subs,
            channels: Some(channels),
            ..
        }) = &mut *registered
        else {
            return;
        };
        // Its removal takes the lock after it has claimed to be the one.
        if sub.removing.load(Ordering::Acquire) || subs.iter().any(|s| s.is_of(sub)) {
            return;
        }
        let shown = subs
            .reserve(1, GFP_KERNEL)
            .map_err(Error::from)
            .and_then(|()| SubchannelDir::new(channels, sub))
            .and_then(|dir| Ok(subs.push(dir, GFP_KERNEL)?));
        if let Err(e) = shown {
            self.not_in_sysfs(e);
        }
    }

    /// Offers a subchannel to the driver of `primary`.
    fn add_subchannel(self: &Arc<Self>, primary: &Arc<Chan>) {
        primary.show_subchannel(self);
        let handler = primary.subchannels.lock();
        if let Some(handler) = &*handler {
            if !self.is_rescinded() && !self.conn.is_closing() {
                if let Ok(channel) = Channel::take(self) {
                    handler.offered(channel);
                }
            }
        }
        drop(handler);
        self.added.signal();
    }

    /// Forgets a subchannel without a word to the host: the connection is about to end. The driver has closed it.
    pub(crate) fn forget_subchannel(self: &Arc<Self>) {
        if self.claim_removal() {
            self.machine.lock().detach();
            self.leave_sysfs();
            self.conn.forget(self);
            self.gone.signal();
        }
    }

    /// Takes a subchannel out of sysfs.
    fn leave_sysfs(self: &Arc<Self>) {
        if let Some(primary) = &self.primary {
            if let Some(registered) = &mut *primary.registered.lock() {
                registered.subs.retain(|dir| !dir.is_of(self));
            }
        }
    }

    /// Unregisters the device, closes the channel and forgets it. Tells the host when it took the offer back. For who has
    /// claimed the removal.
    pub(crate) fn remove(self: &Arc<Self>) {
        // Ends: what a probe waits for ends when the channel is rescinded.
        self.added.wait();
        let registered = self.registered.lock().take();
        self.leave_sysfs();
        if let Some(Registered {
            subs,
            channels,
            device,
        }) = registered
        {
            drop(subs);
            drop(channels);
            // SAFETY: The device came from `register`; it was taken out of its place, so this happens once.
            unsafe { Device::unregister(device) };
        }
        self.close_all();
        self.conn.forget(self);
        if self.is_rescinded() {
            let message = self.machine.lock().release();
            if let Ok(message) = message {
                // Logged; there is nothing else to do about it.
                let _ = self.post(&message);
            }
        }
        self.gone.signal();
    }
}

impl WorkItem<0> for Chan {
    type Pointer = Arc<Chan>;

    fn run(this: Arc<Chan>) {
        this.add();
    }
}

impl WorkItem<1> for Chan {
    type Pointer = Arc<Chan>;

    fn run(this: Arc<Chan>) {
        this.remove();
    }
}
