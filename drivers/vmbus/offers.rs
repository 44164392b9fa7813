// SPDX-License-Identifier: GPL-2.0

//! The table of channels: offers, rescinds, and which CPU a channel interrupts.

use core::{
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};
use kernel::{prelude::*, sync::Arc};
use vmbus_proto::{
    channel::{judge_offer, same_device, Action, OfferError, OfferPolicy, State, Verdict},
    class::class_of,
    msg::{ChannelMessage, HostMessage, OfferChannel, Relid, RelidReleased},
    placement::{CpuLoad, Loads},
};

use crate::{
    chan::Chan,
    connection::{unexpected, Connection, CONNECT_CPU},
    ffi,
    log::{pr_warn_limited, Show},
    services::rcu,
    synic::EVENT_WORDS,
};

impl Connection {
    /// Acts on an offer. On the control queue.
    pub(crate) fn on_offer(self: &Arc<Self>, offer: OfferChannel) {
        if self.is_closing() {
            return;
        }
        let policy = OfferPolicy {
            version: self.version(),
            isolated: false,
            confidential: false,
        };
        let primary = self.primary_of(&offer);
        let in_use = self
            .slot(offer.relid)
            .is_some_and(|slot| !slot.load(Ordering::Acquire).is_null());
        let state = primary.as_ref().map(|p| p.machine_state());
        let result = match judge_offer(&offer, policy, in_use, state) {
            Ok(Verdict::Primary | Verdict::AfterOlder) => self.add_channel(offer, None),
            Ok(Verdict::Subchannel) => self.add_channel(offer, primary),
            Ok(Verdict::Again) => primary.map_or(Err(EINVAL), |chan| {
                chan.offered_again(offer)?;
                self.map(&chan)
            }),
            Err(e) => {
                pr_warn_limited!("{}: {}\n", Show(offer.instance_id), Show(e));
                if !matches!(e, OfferError::BadRelid(_) | OfferError::RelidInUse(_)) {
                    let mut message = RelidReleased::blank();
                    message.relid = offer.relid;
                    // Of no use to anybody if it fails.
                    let _ = self.post(&message);
                }
                Ok(())
            }
        };
        if let Err(e) = result {
            pr_warn_limited!(
                "offer of {} (class {}, channel {}) is lost: {}\n",
                Show(offer.instance_id),
                Show(offer.class_id),
                Show(offer.relid),
                e.to_errno()
            );
        }
    }

    fn slot(&self, relid: Relid) -> Option<&AtomicPtr<Chan>> {
        self.table.get(relid.0 as usize)
    }

    /// Lets interrupts and answers find `chan`.
    fn map(&self, chan: &Arc<Chan>) -> Result {
        let slot = self.slot(chan.relid()).ok_or(EINVAL)?;
        let word = chan.relid().0 as usize / 64;
        self.words
            .fetch_max((word + 1).min(EVENT_WORDS), Ordering::AcqRel);
        // The table's reference; given back by `unmap`.
        slot.store(Arc::into_raw(chan.clone()).cast_mut(), Ordering::Release);
        Ok(())
    }

    /// Undoes [`map`](Self::map), and waits until interrupt handlers do not use the channel.
    fn unmap(&self, chan: &Arc<Chan>) {
        let Some(slot) = self.slot(chan.relid()) else {
            return;
        };
        let mine = Arc::as_ptr(chan).cast_mut();
        if slot
            .compare_exchange(mine, ptr::null_mut(), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
        {
            rcu::synchronize();
            // SAFETY: The reference that `map` put into the table.
            drop(unsafe { Arc::from_raw(mine.cast_const()) });
        }
    }

    /// The primary channel of the device that `offer` is of; the latest, when an older one is being removed.
    fn primary_of(&self, offer: &OfferChannel) -> Option<Arc<Chan>> {
        self.list
            .lock()
            .iter()
            .rev()
            .find(|c| c.primary.is_none() && same_device(&c.offer, offer))
            .cloned()
    }

    fn add_channel(self: &Arc<Self>, offer: OfferChannel, primary: Option<Arc<Chan>>) -> Result {
        // The CPU stays online until the channel is in the list, where `cpu_offline` finds it.
        let cpus = crate::cpus::read_lock();
        let cpu = self.best_cpu(class_of(&offer.class_id).perf, primary.as_deref());
        let chan = Chan::new(self.clone(), offer, primary, cpu)?;
        self.list.lock().push(chan.clone(), GFP_KERNEL)?;
        drop(cpus);
        self.map(&chan)?;
        chan.queue_add();
        Ok(())
    }

    /// Tells the channel of a rescind at once, if its offer was acted on: who waits for an answer about it waits in vain,
    /// and may hold up the control queue. Softirq context.
    pub(crate) fn on_rescind_seen(&self, message: &HostMessage) {
        let HostMessage::RescindChannelOffer(rescind) = message else {
            return;
        };
        let _rcu = kernel::sync::rcu::read_lock();
        if let Some(slot) = self.table.get(rescind.relid.0 as usize) {
            // SAFETY: Null or a channel, which stays until a grace period after it is taken out of the table; this
            // is a read-side section.
            if let Some(chan) = unsafe { slot.load(Ordering::Acquire).as_ref() } {
                let _ = chan.on_host_message(message);
            }
        }
    }

    /// Acts on a rescind. On the control queue, so after the offer.
    pub(crate) fn on_rescind(&self, message: &HostMessage) {
        let HostMessage::RescindChannelOffer(rescind) = message else {
            return;
        };
        let list = self.list.lock();
        let Some(chan) = list.iter().rev().find(|c| {
            c.relid() == rescind.relid
                && !matches!(c.machine_state(), State::Released | State::Detached)
        }) else {
            drop(list);
            pr_warn_limited!("rescind of a channel that is not on offer\n");
            return;
        };
        // Often done already, see `on_rescind_seen`.
        let _ = chan.on_host_message(message);
        if chan.claim_removal() {
            chan.queue_remove();
        } else if !self.is_closing() {
            unexpected(message.message_type());
        }
    }

    /// Hands an answer about a channel to it. Softirq context.
    pub(crate) fn on_channel_answer(&self, message: &HostMessage) {
        let _rcu = kernel::sync::rcu::read_lock();
        let relid = match message {
            HostMessage::OpenChannelResult(m) => Some(m.relid),
            HostMessage::GpadlCreated(m) => Some(m.relid),
            HostMessage::ModifyChannelResponse(m) => Some(m.relid),
            // Does not say whose.
            HostMessage::GpadlTorndown(_) => None,
            // Answers to what this driver does not ask.
            _ => return unexpected(message.message_type()),
        };
        let last = self.words.load(Ordering::Acquire) * 64;
        let range = match relid {
            Some(relid) => relid.0 as usize..(relid.0 as usize).saturating_add(1),
            None => 0..last,
        };
        for slot in self.table.get(range).unwrap_or(&[]) {
            // SAFETY: Null or a channel, which stays until a grace period after it is taken out of the table; this
            // is a read-side section.
            let Some(chan) = (unsafe { slot.load(Ordering::Acquire).as_ref() }) else {
                continue;
            };
            match chan.on_host_message(message) {
                Action::NotMine => {}
                Action::Unexpected(kind) => return unexpected(kind),
                _ => return,
            }
        }
        unexpected(message.message_type());
    }

    /// Takes a closed channel out of the table and the list, and waits until interrupt handlers do not use it.
    pub(crate) fn forget(&self, chan: &Arc<Chan>) {
        self.unmap(chan);
        self.list.lock().retain(|c| !Arc::ptr_eq(c, chan));
    }

    /// A rescinded channel for the device of `chan` whose removal is not over yet.
    pub(crate) fn older_instance(&self, chan: &Arc<Chan>) -> Option<Arc<Chan>> {
        self.list
            .lock()
            .iter()
            .take_while(|c| !Arc::ptr_eq(c, chan))
            .find(|c| c.primary.is_none() && same_device(&c.offer, &chan.offer))
            .cloned()
    }

    /// A subchannel of `primary` of which a driver has a handle.
    pub(crate) fn subchannel_in_use(&self, primary: &Chan) -> Option<Arc<Chan>> {
        self.list
            .lock()
            .iter()
            .find(|c| c.is_subchannel_of(primary) && c.has_handle())
            .cloned()
    }

    /// Calls `f` for the subchannels that `primary` has at the moment.
    pub(crate) fn for_each_subchannel(&self, primary: &Chan, f: impl Fn(&Arc<Chan>)) {
        // Those that come later find the primary channel complete. Without memory some are missing in sysfs.
        for chan in self.channels().iter().flatten() {
            if chan.is_subchannel_of(primary) {
                f(chan);
            }
        }
    }

    /// All channels at the moment.
    pub(crate) fn channels(&self) -> Result<KVec<Arc<Chan>>> {
        loop {
            let count = self.list.lock().len();
            let mut copy = KVec::with_capacity(count, GFP_KERNEL)?;
            let list = self.list.lock();
            if list.len() > copy.capacity() {
                continue;
            }
            for chan in list.iter() {
                copy.push(chan.clone(), GFP_KERNEL)?;
            }
            return Ok(copy);
        }
    }

    /// Before hibernation: ends the connection, keeping the devices. Their drivers have closed the channels. Process
    /// context.
    ///
    /// # Errors
    /// `EBUSY` when a driver has not: everything is as before. `EIO` when the host does not let go: the devices are lost.
    /// After an error there is no call of [`resume`](Self::resume).
    pub(crate) fn suspend(&self) -> Result {
        self.close();
        self.queues.control.flush();
        self.queues.add.flush();
        self.queues.sub.flush();
        self.queues.remove.flush();
        let result = self.suspend_channels();
        if result.is_err() {
            self.reopen();
        }
        result
    }

    fn suspend_channels(&self) -> Result {
        let channels = self.channels()?;
        if let Some(chan) = channels.iter().find(|c| c.is_open()) {
            pr_err!("{} is open still\n", Show(chan.offer.instance_id));
            return Err(EBUSY);
        }
        // Drivers ask for new subchannels when they are back.
        for chan in channels.iter().filter(|c| c.primary.is_some()) {
            chan.forget_subchannel();
        }
        for chan in channels.iter().filter(|c| c.primary.is_none()) {
            // No driver can open it meanwhile: they are suspended.
            chan.detach()?;
            self.unmap(chan);
        }
        self.unload();
        if self.shared.load(Ordering::Acquire) {
            self.remove_detached();
            return Err(EIO);
        }
        Ok(())
    }

    /// After hibernation, or when it was given up: connects again, with the version of before, and finds the devices
    /// among the offers. Devices that are not there any more are removed; all of them if there is no connection. Process
    /// context.
    ///
    /// # Errors
    /// Those of [`reconnect`](Self::reconnect).
    pub(crate) fn resume(&self) -> Result {
        self.reopen();
        let result = self.reconnect().and_then(|()| self.wait_for_offers());
        self.remove_detached();
        result
    }

    /// Removes the devices that the host did not offer again.
    fn remove_detached(&self) {
        for chan in self.list.lock().iter() {
            if chan.machine_state() == State::Detached {
                pr_err!(
                    "{} is not on offer any more\n",
                    Show(chan.offer.instance_id)
                );
                chan.set_lost();
                if chan.claim_removal() {
                    chan.queue_remove();
                }
            }
        }
    }

    /// Takes no more offers, and unregisters all devices. No driver is bound any more. Process context.
    pub(crate) fn remove_all(&self) {
        self.close();
        self.queues.control.flush();
        self.queues.add.flush();
        self.queues.sub.flush();
        loop {
            // The others are in the hands of the work queue.
            let chan = self.list.lock().iter().find(|c| c.claim_removal()).cloned();
            let Some(chan) = chan else { break };
            chan.remove();
        }
        self.queues.remove.flush();
    }

    /// The best CPU for a new channel, see [`Loads`]. `primary`: of the same device. Without memory, the one that messages go to, as with
    /// the C driver.
    fn best_cpu(&self, perf: bool, primary: Option<&Chan>) -> u32 {
        if !perf {
            return CONNECT_CPU;
        }
        let Ok(mut room) = LoadRoom::new() else {
            return CONNECT_CPU;
        };
        self.loads(&mut room, primary, None)
            .best()
            .unwrap_or(CONNECT_CPU)
    }

    /// Finds a CPU for `chan` in place of `leaving`, and calls `go` with it; with the next best when that fails. [`CONNECT_CPU`] is
    /// the first for channels without load, and the last way out for the others. No CPU is tried twice.
    pub(crate) fn find_cpu(
        &self,
        chan: &Chan,
        leaving: u32,
        mut go: impl FnMut(u32) -> Result,
    ) -> Result {
        let mut tried = !chan.class.perf;
        if tried && go(CONNECT_CPU).is_ok() {
            return Ok(());
        }
        // Without memory there is that CPU alone.
        if let Ok(mut room) = LoadRoom::new() {
            let mut loads = self.loads(&mut room, chan.primary.as_deref(), Some(chan));
            loads.rule_out(leaving);
            if tried {
                loads.rule_out(CONNECT_CPU);
            }
            while let Some(cpu) = loads.best() {
                if go(cpu).is_ok() {
                    return Ok(());
                }
                tried |= cpu == CONNECT_CPU;
                loads.rule_out(cpu);
            }
        }
        if tried {
            return Err(EBUSY);
        }
        go(CONNECT_CPU)
    }

    /// The loads as a channel sees them that is a sub-channel of `primary`, or `chan` itself, which is not counted.
    fn loads<'a>(
        &self,
        room: &'a mut LoadRoom,
        primary: Option<&Chan>,
        chan: Option<&Chan>,
    ) -> Loads<'a> {
        let mut loads = Loads::new(&mut room.cpus, &mut room.nodes);
        // The device's primary channel.
        let head = primary.or(chan);
        for c in self.list.lock().iter().filter(|c| c.class.perf) {
            if chan.is_some_and(|chan| ptr::eq(&**c, chan)) {
                continue;
            }
            let own = head.is_some_and(|head| ptr::eq(&**c, head) || c.is_subchannel_of(head));
            loads.add(c.target_cpu(), own);
        }
        loads
    }
}

/// Room for [`Loads`].
struct LoadRoom {
    cpus: KVec<CpuLoad>,
    nodes: KVec<u32>,
}

impl LoadRoom {
    /// With the CPUs as they are now.
    fn new() -> Result<Self> {
        let count = ffi::hv_rs_nr_cpu_ids();
        let mut cpus = KVec::with_capacity(count as usize, GFP_KERNEL)?;
        let mut last = 0;
        for cpu in 0..count {
            // SAFETY: CPUs below `nr_cpu_ids` have an entry in the kernel's tables.
            let node = unsafe { ffi::hv_rs_cpu_to_node(cpu) };
            // Negative: not known.
            let node = u32::try_from(node).unwrap_or(0);
            last = node.max(last);
            let load = CpuLoad {
                usable: ffi::hv_rs_cpu_usable(cpu),
                node,
                ..CpuLoad::default()
            };
            cpus.push(load, GFP_KERNEL)?;
        }
        let nodes = KVec::from_elem(0, last as usize + 1, GFP_KERNEL)?;
        Ok(Self { cpus, nodes })
    }
}
