// SPDX-License-Identifier: GPL-2.0

//! The connection with the host: version, messages in both directions, the table of channels.
//!
//! # Contexts
//!
//! Messages from the host are taken out of the message page in a tasklet on the CPU where they come. Answers to requests
//! are handed to their waiters right there, so nothing that waits for an answer can keep it from being seen. Offers and
//! rescinds go to a work queue ([`Queues::control`]), which keeps the table of channels and never waits for a driver: it
//! passes the channel on to [`Queues::add`] (devices are registered and probed one after the other, so that names are
//! given in the order of the offers) and [`Queues::remove`] (all at once, so that no removal waits for another device).

use core::{
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU8, AtomicUsize, Ordering},
};
use kernel::{
    bindings,
    ffi::c_ulong,
    impl_has_work, new_mutex, new_work,
    prelude::*,
    sync::{Arc, ArcBorrow, Mutex},
    time::msecs_to_jiffies,
    workqueue::{Work, WorkItem},
};
use vmbus_proto::{
    msg::{
        ChannelMessage, ConnectionState, GpadlId, HostMessage, InitiateContact, ModifyChannel,
        OfferChannel, Relid, RelidReleased, RequestOffers, TargetInfo, Unload, MAX_CHANNELS,
        MESSAGE_CONNECTION_ID, MESSAGE_CONNECTION_ID_4, VMBUS_MESSAGE_TYPE, VMBUS_SINT,
    },
    tlfs::{
        hypercall::ConnectionId,
        synic::{HvMessage, MessageType},
    },
    version::{FeatureFlags, VmbusVersion},
};
use zerocopy::IntoBytes;

use crate::{
    log::{pr_warn_limited, Show},
    chan::Chan,
    ffi::{self, Features},
    hypercall::{self, PostError, Wait},
    memory::SharedPage,
    requests::{Key, Reply, RequestError, Requests},
    sync::{new_irq_lock, Event, IrqLock},
    synic::{self, Synic, EVENT_WORDS},
    workqueue::OwnedQueue,
};

/// CPU that the host sends messages to; it cannot be taken offline while connected.
pub(crate) const CONNECT_CPU: u32 = 0;

/// How long to wait for the host to have sent all offers.
const OFFERS_SECONDS: u32 = 60;

/// Messages taken from the page in one go.
const MESSAGES_PER_RUN: usize = 32;

/// Where the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// Not connected yet, or not any more.
    Disconnected = 0,
    /// Messages go back and forth.
    Connected = 1,
    /// Offers are not taken any more; on the way to `Disconnected`.
    Closing = 2,
}

/// A message that may take long to act on.
enum Control {
    Offer(OfferChannel),
    Rescind(Relid),
    AllOffers,
}

/// See the [module's documentation](self).
pub(crate) struct Queues {
    control: OwnedQueue,
    pub(crate) add: OwnedQueue,
    pub(crate) remove: OwnedQueue,
}

/// The connection. There is one, from module load to module exit.
#[pin_data]
pub(crate) struct Connection {
    pub(crate) features: Features,
    pub(crate) synic: Synic,
    pub(crate) queues: Queues,
    #[pin]
    pub(crate) requests: Requests,
    phase: AtomicU8,
    version: AtomicU32,
    /// Where messages are posted to.
    connection_id: AtomicU32,
    /// Used before 5.0: a bit per channel, host to guest in the first half, guest to host in the second.
    interrupt_page: SharedPage,
    /// Host to guest, guest to host.
    monitor_pages: [SharedPage; 2],
    /// Parent of all devices: the ACPI device.
    parent: AtomicPtr<bindings::device>,
    /// Channels by relid, each holding a reference. For interrupts; readers are in RCU read-side sections.
    table: KVVec<AtomicPtr<Chan>>,
    /// Words of event flags that may have channels.
    words: AtomicUsize,
    /// All channels, in the order of their offers.
    #[pin]
    list: Mutex<KVec<Arc<Chan>>>,
    #[pin]
    inbox: IrqLock<KVec<Control>>,
    #[pin]
    control_work: Work<Connection>,
    #[pin]
    all_offers: Event,
    next_gpadl: AtomicU32,
    next_open: AtomicU32,
    /// UNLOAD was sent and answered, or there is nothing to unload.
    unloaded: AtomicBool,
    unload_started: AtomicBool,
}

impl_has_work! {
    impl HasWork<Self> for Connection { self.control_work }
}

/// The connection, for callbacks from C that have no argument. Set before anything is turned on, cleared after everything
/// is turned off and a grace period has passed.
static GLOBAL: AtomicPtr<Connection> = AtomicPtr::new(ptr::null_mut());

impl Connection {
    pub(crate) fn new(features: Features) -> Result<Arc<Self>> {
        let synic = Synic::new(features.callback_vector, features.auto_eoi, on_messages)?;
        let queues = Queues {
            control: OwnedQueue::ordered(c"hv_vmbus_con")?,
            add: OwnedQueue::ordered(c"hv_vmbus_add")?,
            remove: OwnedQueue::concurrent(c"hv_vmbus_rescind")?,
        };
        let interrupt_page = SharedPage::new(-1)?;
        let monitor_pages = [SharedPage::new(-1)?, SharedPage::new(-1)?];
        let mut table = KVVec::with_capacity(MAX_CHANNELS as usize, GFP_KERNEL)?;
        for _ in 0..MAX_CHANNELS {
            table.push(AtomicPtr::new(ptr::null_mut()), GFP_KERNEL)?;
        }
        Arc::pin_init(
            pin_init!(Self {
                features,
                synic,
                queues,
                requests <- Requests::new(),
                phase: AtomicU8::new(Phase::Disconnected as u8),
                version: AtomicU32::new(0),
                connection_id: AtomicU32::new(MESSAGE_CONNECTION_ID),
                interrupt_page,
                monitor_pages,
                parent: AtomicPtr::new(ptr::null_mut()),
                table,
                words: AtomicUsize::new(0),
                list <- new_mutex!(KVec::new(), "hv_vmbus_rs::Connection::list"),
                inbox <- new_irq_lock!(KVec::new(), c"hv_vmbus_rs::inbox"),
                control_work <- new_work!("hv_vmbus_rs::control_work"),
                all_offers <- Event::new(),
                // Where the C driver starts, too; makes traces easy to compare.
                next_gpadl: AtomicU32::new(0xe1e10),
                next_open: AtomicU32::new(1),
                unloaded: AtomicBool::new(true),
                unload_started: AtomicBool::new(false),
            }),
            GFP_KERNEL,
        )
    }

    /// The connection, while there is one. For callbacks that are turned off before it goes; see [`GLOBAL`].
    #[inline]
    pub(crate) fn global<'a>() -> Option<&'a Connection> {
        // SAFETY: See `GLOBAL`: who calls this was turned on while the pointer was set, and will be turned off before the
        // connection goes.
        unsafe { GLOBAL.load(Ordering::Acquire).as_ref() }
    }

    /// Makes `this` the one that callbacks find.
    pub(crate) fn set_global(this: &Arc<Self>) {
        GLOBAL.store(ptr::from_ref(&**this).cast_mut(), Ordering::Release);
    }

    /// Undoes [`set_global`](Self::set_global), and waits for interrupt handlers in progress.
    pub(crate) fn clear_global() {
        GLOBAL.store(ptr::null_mut(), Ordering::Release);
        // SAFETY: May sleep.
        unsafe { bindings::synchronize_rcu() };
    }

    /// One more reference.
    fn to_arc(&self) -> Arc<Self> {
        // SAFETY: All connections are in an `Arc`: see `new`.
        unsafe { ArcBorrow::from_raw(self) }.into()
    }

    /// The version spoken with the host; 0.0 before it was agreed on.
    pub(crate) fn version(&self) -> VmbusVersion {
        VmbusVersion(self.version.load(Ordering::Relaxed))
    }

    pub(crate) fn set_parent(&self, dev: *mut bindings::device) {
        self.parent.store(dev, Ordering::Release);
    }

    pub(crate) fn parent(&self) -> *mut bindings::device {
        self.parent.load(Ordering::Acquire)
    }

    fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    fn is_connected(&self) -> bool {
        self.phase.load(Ordering::SeqCst) != Phase::Disconnected as u8
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.phase.load(Ordering::SeqCst) != Phase::Connected as u8
    }

    pub(crate) fn monitor_page(&self, to_host: bool) -> *mut u8 {
        let [from, to] = &self.monitor_pages;
        if to_host { to } else { from }.as_ptr()
    }

    pub(crate) fn interrupt_page(&self) -> *mut u8 {
        self.interrupt_page.as_ptr()
    }

    pub(crate) fn new_gpadl_id(&self) -> GpadlId {
        loop {
            let id = self.next_gpadl.fetch_add(1, Ordering::Relaxed);
            if id != 0 {
                return GpadlId(id);
            }
        }
    }

    pub(crate) fn new_open_id(&self) -> u32 {
        self.next_open.fetch_add(1, Ordering::Relaxed)
    }

    // --- CPUs.

    /// CPU hotplug callback, on the CPU.
    pub(crate) fn cpu_online(&self, cpu: u32) -> Result {
        self.synic.enable_this_cpu(cpu)
    }

    /// CPU hotplug callback, on the CPU. May sleep.
    ///
    /// # Errors
    /// `EBUSY`: the CPU is needed.
    pub(crate) fn cpu_offline(&self, cpu: u32) -> Result {
        if self.is_connected() {
            if cpu == CONNECT_CPU {
                return Err(EBUSY);
            }
            // Not under the list's lock: moving a channel waits for the host.
            for chan in &self.channels()? {
                chan.leave_cpu(cpu)?;
            }
            // Let the interrupt handler see what was signalled here before.
            if let Some(synic) = self.synic.cpu(cpu) {
                for _ in 0..3 {
                    if !synic.has_events() {
                        break;
                    }
                    // SAFETY: May sleep.
                    unsafe { bindings::msleep(15) };
                }
                if synic.has_events() {
                    return Err(EBUSY);
                }
            }
        }
        synic::disable_this_cpu();
        Ok(())
    }

    /// Usable CPUs for `chan`, best first: for channels that carry load those with the fewest such channels, for others
    /// the one that messages go to.
    pub(crate) fn cpus_for(&self, chan: &Chan) -> impl Iterator<Item = u32> + use<> {
        let first = self.best_cpu(chan.class.perf, chan.primary.as_deref());
        let count = ffi::hv_rs_nr_cpu_ids();
        let others = (0..count).filter(move |cpu| *cpu != first);
        Iterator::chain(core::iter::once(first), others).filter(|cpu| ffi::hv_rs_cpu_usable(*cpu))
    }

    /// See [`cpus_for`](Self::cpus_for). `primary`: spread over CPUs that the device does not use yet.
    fn best_cpu(&self, perf: bool, primary: Option<&Chan>) -> u32 {
        if !perf {
            return CONNECT_CPU;
        }
        let list = self.list.lock();
        let load = |cpu: u32| {
            let mut same = 0usize;
            let mut all = 0usize;
            for c in list.iter().filter(|c| c.class.perf && c.target_cpu() == cpu) {
                all += 1;
                let family = primary.is_some_and(|p| {
                    ptr::eq(&**c, p) || c.primary.as_deref().is_some_and(|q| ptr::eq(q, p))
                });
                same += usize::from(family);
            }
            (same, all)
        };
        (0..ffi::hv_rs_nr_cpu_ids())
            .filter(|cpu| ffi::hv_rs_cpu_usable(*cpu))
            .min_by_key(|cpu| load(*cpu))
            .unwrap_or(CONNECT_CPU)
    }

    // --- Messages to the host.

    /// Posts a message to the host.
    pub(crate) fn post(&self, message: &[u8], wait: Wait) -> Result {
        let connection = ConnectionId(self.connection_id.load(Ordering::Relaxed));
        Ok(hypercall::post_message(connection, message, wait, false)?)
    }

    /// Offers the host versions up to `max`, newest first, until it takes one. Process context.
    pub(crate) fn connect(&self, max: VmbusVersion) -> Result {
        self.unloaded.store(false, Ordering::Relaxed);
        for version in VmbusVersion::SUPPORTED.into_iter().filter(|v| *v <= max) {
            match self.try_version(version) {
                Ok(true) => {
                    self.version.store(version.0, Ordering::Relaxed);
                    self.set_phase(Phase::Connected);
                    pr_info!("Vmbus version:{}\n", Show(version));
                    return Ok(());
                }
                Ok(false) => {}
                Err(e) => {
                    pr_err!("Unable to connect to host: {}\n", e.to_errno());
                    return Err(e);
                }
            }
        }
        pr_err!(
            "Unable to connect to host: it speaks no VMBus version from {} to {}\n",
            Show(VmbusVersion::V4_0),
            Show(max)
        );
        Err(EDOM)
    }

    fn try_version(&self, version: VmbusVersion) -> Result<bool> {
        let by_id = version.has_message_connection_id();
        let connection = if by_id { MESSAGE_CONNECTION_ID_4 } else { MESSAGE_CONNECTION_ID };
        let [from_host, to_host] = &self.monitor_pages;
        let mut message = InitiateContact::blank();
        message.version = version;
        message.target_vp = vp_index(CONNECT_CPU);
        message.interrupt_page_or_target = if by_id {
            TargetInfo {
                sint: VMBUS_SINT,
                vtl: self.features.vtl,
                reserved: [0; 2],
                features: FeatureFlags::empty(),
            }
            .to_u64()
        } else {
            self.interrupt_page.gpa()
        };
        message.monitor_page1 = from_host.gpa();
        message.monitor_page2 = to_host.gpa();

        self.connection_id.store(connection, Ordering::Relaxed);
        let mut unknown_connection = false;
        let reply = self.requests.run(Key::Version, None, || false, || {
            hypercall::post_message(ConnectionId(connection), message.as_bytes(), Wait::Sleep, true)
                .inspect_err(|e| unknown_connection = *e == PostError::NoConnection)
                .map_err(Error::from)
        });
        let answer = match reply {
            Ok(Reply::Version(answer)) => answer,
            // Hosts before 5.0 have no connection 4.
            Err(RequestError::NotSent(_)) if unknown_connection => return Ok(false),
            Ok(_) => return Err(EIO),
            Err(e) => return Err(e.into()),
        };
        if answer.base.version_supported == 0 {
            return Ok(false);
        }
        if answer.base.connection_state != ConnectionState::SUCCESSFUL {
            pr_err!(
                "the host speaks version {} but refuses the connection: {:?}\n",
                Show(version),
                answer.base.connection_state
            );
            return Err(ECONNREFUSED);
        }
        if by_id {
            self.connection_id.store(answer.base.connection_id, Ordering::Relaxed);
        }
        Ok(true)
    }

    /// Asks for the offers, and waits until they have been sent and their devices been registered. Process context.
    pub(crate) fn request_offers(&self) -> Result {
        self.post(RequestOffers::blank().as_bytes(), Wait::Sleep)?;
        if !self.all_offers.wait_timeout(msecs_to_jiffies(OFFERS_SECONDS * 1000)) {
            pr_warn!("the host has not sent all offers within {} s\n", OFFERS_SECONDS);
        }
        // What came is in the inbox already.
        self.queues.control.flush();
        self.queues.add.flush();
        Ok(())
    }

    /// Moves the interrupts of an open channel.
    pub(crate) fn modify_channel(&self, chan: &Chan, cpu: u32) -> Result {
        let mut message = ModifyChannel::blank();
        message.relid = chan.relid();
        message.target_vp = vp_index(cpu);
        if !self.version().has_modify_channel_response() {
            return self.post(message.as_bytes(), Wait::Sleep);
        }
        let reply = self.requests.run(
            Key::Modify(chan.relid()),
            Some(chan.relid()),
            || chan.is_rescinded(),
            || self.post(message.as_bytes(), Wait::Sleep),
        )?;
        match reply {
            Reply::Status(status) if status.is_success() => Ok(()),
            _ => Err(EIO),
        }
    }

    /// Tells the host that we are done with a rescinded channel.
    pub(crate) fn release_relid(&self, relid: Relid) {
        if !self.is_connected() {
            return;
        }
        let mut message = RelidReleased::blank();
        message.relid = relid;
        if let Err(e) = self.post(message.as_bytes(), Wait::Sleep) {
            pr_err!("cannot release channel {}: {}\n", Show(relid), e.to_errno());
        }
    }

    /// Disconnects: after this the host uses no memory of ours. Process context; waits for the host.
    pub(crate) fn unload(&self) {
        self.set_phase(Phase::Closing);
        if self.unload_started.swap(true, Ordering::AcqRel) || self.unloaded.load(Ordering::Relaxed) {
            self.set_phase(Phase::Disconnected);
            return;
        }
        let reply = self.requests.run(Key::Unload, None, || false, || {
            self.post(Unload::blank().as_bytes(), Wait::Sleep)
        });
        match reply {
            Ok(_) => self.unloaded.store(true, Ordering::Relaxed),
            Err(e) => pr_err!("the host does not let go: {:?}; memory shared with it is not freed\n", e),
        }
        self.set_phase(Phase::Disconnected);
    }

    /// As [`unload`](Self::unload), from a crashing kernel: nothing may be waited for but by looking. Any context, other
    /// CPUs may be stopped.
    pub(crate) fn unload_atomic(&self) {
        const TRY_MS: u32 = 10;
        const NOTICE_MS: u32 = 5_000;
        const GIVE_UP_MS: u32 = 100_000;

        if self.unload_started.swap(true, Ordering::AcqRel) || self.unloaded.load(Ordering::Relaxed) {
            return;
        }
        self.set_phase(Phase::Disconnected);
        if self.post(Unload::blank().as_bytes(), Wait::Spin).is_err() {
            return;
        }
        let mut waited = 0;
        while waited < GIVE_UP_MS {
            // The answer goes to the connect CPU, but a slot that is not emptied could hold it up.
            for cpu in 0..ffi::hv_rs_nr_cpu_ids() {
                let Some(synic) = self.synic.cpu(cpu) else {
                    continue;
                };
                if let Some(message) = synic.peek_message() {
                    let done = message.payload().is_some_and(|p| {
                        matches!(HostMessage::parse(p), Ok(HostMessage::UnloadResponse(_)))
                    });
                    synic.finish_message(&message);
                    if done {
                        self.unloaded.store(true, Ordering::Relaxed);
                        return;
                    }
                }
            }
            hypercall::spin_us(TRY_MS * 1000);
            waited += TRY_MS;
            if waited % NOTICE_MS == 0 {
                pr_notice!("waiting for the host to end the connection: {} s\n", waited / 1000);
            }
        }
        pr_err!("the host did not end the connection\n");
    }

    // --- Messages from the host.

    /// Takes the messages of the current CPU. Softirq context.
    fn on_messages(&self, cpu: u32) {
        let Some(synic) = self.synic.cpu(cpu) else {
            return;
        };
        for _ in 0..MESSAGES_PER_RUN {
            let Some(message) = synic.peek_message() else {
                return;
            };
            if self.on_message(&message).is_err() {
                // No memory to note it: it stays in the slot, which keeps the host from sending more, and is looked at
                // again.
                break;
            }
            synic.finish_message(&message);
        }
        synic.schedule_messages();
    }

    /// # Errors
    /// `ENOMEM`: call again later.
    fn on_message(&self, message: &HvMessage) -> Result {
        if message.header.message_type != MessageType(VMBUS_MESSAGE_TYPE) {
            pr_warn_limited!("message of unknown type {:?}\n", message.header.message_type);
            return Ok(());
        }
        let Some(payload) = message.payload() else {
            pr_warn_limited!("message longer than its slot\n");
            return Ok(());
        };
        let message = match HostMessage::parse(payload) {
            Ok(message) => message,
            Err(e) => {
                pr_warn_limited!("malformed message: {:?}\n", e);
                return Ok(());
            }
        };
        let kind = message.message_type();
        let answered = match message {
            HostMessage::OfferChannel(offer) => return self.defer(Control::Offer(offer)),
            HostMessage::RescindChannelOffer(m) => return self.defer(Control::Rescind(m.relid)),
            HostMessage::AllOffersDelivered(_) => return self.defer(Control::AllOffers),
            HostMessage::VersionResponse(answer) => {
                self.requests.answer(Key::Version, Reply::Version(answer))
            }
            HostMessage::OpenChannelResult(m) => self
                .requests
                .answer(Key::Open(m.relid, m.open_id), Reply::Status(m.status)),
            HostMessage::GpadlCreated(m) => self
                .requests
                .answer(Key::GpadlCreated(m.relid, m.gpadl), Reply::Status(m.status)),
            HostMessage::GpadlTorndown(m) => {
                self.requests.answer(Key::GpadlTorndown(m.gpadl), Reply::Done)
            }
            HostMessage::ModifyChannelResponse(m) => self
                .requests
                .answer(Key::Modify(m.relid), Reply::Status(m.status)),
            HostMessage::UnloadResponse(_) => self.requests.answer(Key::Unload, Reply::Done),
            // Not asked for by this driver.
            HostMessage::CloseReservedResponse(_)
            | HostMessage::TlConnectResult(_)
            | HostMessage::ModifyConnectionResponse(_)
            | HostMessage::PauseResponse(_) => false,
        };
        if !answered {
            pr_warn_limited!("{:?} that nobody waits for\n", kind);
        }
        Ok(())
    }

    fn defer(&self, control: Control) -> Result {
        self.inbox.lock().push(control, GFP_ATOMIC)?;
        // Queued already: that run will see the message.
        let _ = self.queues.control.queue().enqueue(self.to_arc());
        Ok(())
    }

    fn process(self: &Arc<Self>) {
        loop {
            let inbox = core::mem::take(&mut *self.inbox.lock());
            if inbox.is_empty() {
                return;
            }
            for control in inbox {
                match control {
                    Control::Offer(offer) => self.on_offer(offer),
                    Control::Rescind(relid) => self.on_rescind(relid),
                    Control::AllOffers => self.all_offers.signal(),
                }
            }
        }
    }

    fn on_offer(self: &Arc<Self>, offer: OfferChannel) {
        if self.is_closing() {
            return;
        }
        if let Err(e) = self.add_channel(offer) {
            pr_err!(
                "offer of {} (class {}, channel {}) is not usable: {}\n",
                Show(offer.instance_id),
                Show(offer.class_id),
                Show(offer.relid),
                e.to_errno()
            );
        }
    }

    fn add_channel(self: &Arc<Self>, offer: OfferChannel) -> Result {
        let slot = self.table.get(offer.relid.0 as usize).ok_or(EINVAL)?;
        if !offer.relid.is_valid() {
            return Err(EINVAL);
        }
        if !slot.load(Ordering::Acquire).is_null() {
            return Err(EEXIST);
        }
        let family = |c: &&Arc<Chan>| {
            c.offer.instance_id == offer.instance_id
                && c.offer.class_id == offer.class_id
                && c.primary.is_none()
                && !c.is_rescinded()
        };
        let primary = self.list.lock().iter().find(family).cloned();
        if primary.is_some() != offer.is_subchannel() {
            return Err(if primary.is_some() { EEXIST } else { ENOENT });
        }
        // The CPU stays online until the channel is in the list, where `cpu_offline` finds it.
        let cpus = crate::cpus::read_lock();
        let cpu = self.best_cpu(
            vmbus_proto::class::class_of(&offer.class_id).perf,
            primary.as_deref(),
        );
        let chan = Chan::new(self.clone(), offer, primary, cpu)?;
        self.list.lock().push(chan.clone(), GFP_KERNEL)?;
        drop(cpus);
        let word = offer.relid.0 as usize / 64;
        self.words.fetch_max((word + 1).min(EVENT_WORDS), Ordering::AcqRel);
        // The table's reference; given back by `forget`.
        slot.store(Arc::into_raw(chan.clone()).cast_mut(), Ordering::Release);
        if chan.primary.is_some() {
            chan.skip_add();
        } else {
            chan.queue_add();
        }
        Ok(())
    }

    fn on_rescind(&self, relid: Relid) {
        let chan = self
            .list
            .lock()
            .iter()
            .find(|c| c.relid() == relid && !c.is_rescinded())
            .cloned();
        match chan {
            Some(chan) => {
                chan.set_rescinded();
                chan.queue_remove();
            }
            None => pr_warn_limited!("rescind of channel {}, which is not on offer\n", Show(relid)),
        }
    }

    /// Takes a closed channel out of the table and the list, and waits until interrupt handlers do not use it.
    pub(crate) fn forget(&self, chan: &Arc<Chan>) {
        if let Some(slot) = self.table.get(chan.relid().0 as usize) {
            let mine = Arc::as_ptr(chan).cast_mut();
            if slot
                .compare_exchange(mine, ptr::null_mut(), Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                // SAFETY: May sleep.
                unsafe { bindings::synchronize_rcu() };
                // SAFETY: The reference that `add_channel` put into the table.
                drop(unsafe { Arc::from_raw(mine.cast_const()) });
            }
        }
        self.list.lock().retain(|c| !Arc::ptr_eq(c, chan));
    }

    /// A rescinded channel for the device of `chan` whose removal is not over yet.
    pub(crate) fn older_instance(&self, chan: &Arc<Chan>) -> Option<Arc<Chan>> {
        self.list
            .lock()
            .iter()
            .find(|c| {
                !Arc::ptr_eq(c, chan)
                    && c.primary.is_none()
                    && c.is_rescinded()
                    && c.offer.instance_id == chan.offer.instance_id
            })
            .cloned()
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

    /// Takes no more offers, and unregisters all devices. No driver is bound any more. Process context.
    pub(crate) fn remove_all(&self) {
        self.set_phase(Phase::Closing);
        self.queues.control.flush();
        self.queues.add.flush();
        loop {
            let chan = self.list.lock().iter().find(|c| !c.is_rescinded()).cloned();
            let Some(chan) = chan else { break };
            chan.remove();
        }
        self.queues.remove.flush();
    }

    // --- Interrupts.

    /// The hypervisor's interrupt on this CPU.
    #[inline]
    fn on_interrupt(&self) {
        let Some(synic) = self.synic.cpu(ffi::hv_rs_this_cpu()) else {
            return;
        };
        for word in 0..self.words.load(Ordering::Acquire) {
            let mut flags = synic.take_events(word);
            while flags != 0 {
                let relid = word * 64 + flags.trailing_zeros() as usize;
                flags &= flags - 1;
                if let Some(slot) = self.table.get(relid) {
                    // SAFETY: Null or a channel, which stays until a grace period after it is taken out of the table;
                    // interrupt handlers are read-side sections.
                    if let Some(chan) = unsafe { slot.load(Ordering::Acquire).as_ref() } {
                        chan.on_interrupt();
                    }
                }
            }
        }
        if synic.has_message() {
            synic.schedule_messages();
        }
    }

    /// Lets go of the connection at module exit. The pages go with the last reference, unless the host may still hold them.
    pub(crate) fn finish(&self) {
        if !self.unloaded.load(Ordering::Relaxed) {
            // Keeps everything.
            core::mem::forget(self.to_arc());
        }
    }
}

impl WorkItem for Connection {
    type Pointer = Arc<Connection>;

    fn run(this: Arc<Connection>) {
        this.process();
    }
}

/// VP index of an existing CPU.
pub(crate) fn vp_index(cpu: u32) -> u32 {
    // SAFETY: The CPU exists.
    unsafe { ffi::hv_rs_vp_index(cpu) }
}

/// The interrupt handler that arch code calls.
///
/// # Safety
/// Called in interrupt context.
pub(crate) unsafe extern "C" fn interrupt_handler() {
    if let Some(conn) = Connection::global() {
        conn.on_interrupt();
    }
}

/// # Safety
/// Called as the tasklet function of a CPU's SynIC, on that CPU.
unsafe extern "C" fn on_messages(cpu: c_ulong) {
    if let Some(conn) = Connection::global() {
        conn.on_messages(cpu as u32);
    }
}
