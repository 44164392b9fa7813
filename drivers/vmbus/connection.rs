// SPDX-License-Identifier: GPL-2.0

//! The connection with the host: version, messages in both directions, interrupts.
//!
//! What a message means is decided by the state machines of `vmbus-proto`
//! ([`vmbus_proto::connection`], [`vmbus_proto::channel`]); here is what they need done.
//!
//! # Contexts
//!
//! Messages from the host are taken out of the message page in a tasklet on the CPU where they come. Answers to
//! requests are handed to their waiters right there, so nothing that waits for an answer can keep it from being
//! seen. Offers and rescinds go to a work queue ([`Queues::control`]), which keeps the table of channels and
//! never waits for a driver: it passes the channel on to [`Queues::add`] (devices are registered and probed
//! one after the other, so that names are given in the order of the offers), to [`Queues::sub`] (subchannels, which
//! come while their device is being probed) and [`Queues::remove`] (all at once, so that no removal waits for another
//! device).

use core::{
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering},
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
    connection::{self as machine, Action, ConnectError, Post},
    msg::{
        ChannelMessage, GpadlId, HostMessage, MessageType, OfferChannel, Unload, MAX_CHANNELS,
        MESSAGE_CONNECTION_ID, VMBUS_MESSAGE_TYPE,
    },
    tlfs::{
        hypercall::{ConnectionId, HvStatus},
        synic::{HvMessage, MessageType as SynicType},
    },
    version::{FeatureFlags, VmbusVersion},
};
use zerocopy::IntoBytes;

use crate::{
    chan::Chan,
    compat,
    ffi::{self, Features},
    hypercall::{self, PostError, Wait},
    inbox::{Inbox, Node},
    log::{pr_warn_limited, Show},
    memory::SharedPage,
    services::{cpu, rcu},
    sync::{new_irq_lock, Event, IrqLock},
    synic::{self, Synic},
    waiter::Waiter,
    workqueue::OwnedQueue,
};

/// CPU that the host sends messages to; it cannot be taken offline while connected.
pub(crate) const CONNECT_CPU: u32 = 0;

/// How long to wait for the host to have sent all offers.
const OFFERS_SECONDS: u32 = 60;

/// Messages taken from the page in one go.
const MESSAGES_PER_RUN: usize = 32;

/// A message that is acted on in process context, in order.
pub(crate) enum Control {
    Offer(OfferChannel),
    /// The message itself: the channel's machine wants it.
    Rescind(HostMessage),
    AllOffers,
}

/// See the [module's documentation](self).
pub(crate) struct Queues {
    pub(crate) control: OwnedQueue,
    pub(crate) add: OwnedQueue,
    pub(crate) sub: OwnedQueue,
    pub(crate) remove: OwnedQueue,
}

impl Queues {
    /// Waits until nothing is queued or runs. Nothing may be queued from outside meanwhile.
    pub(crate) fn flush(&self) {
        self.control.flush();
        self.add.flush();
        self.sub.flush();
        self.remove.flush();
    }
}

/// What comes of an INITIATE_CONTACT.
#[allow(clippy::large_enum_variant)] // One at a time, and not for long.
enum Contact {
    /// Try this.
    Next(Post),
    Connected(machine::Negotiated),
    Failed(ConnectError),
}

/// The connection. There is one, from module load to module exit.
#[pin_data]
pub(crate) struct Connection {
    pub(crate) synic: Synic,
    pub(crate) queues: Queues,
    /// Decides. Taken in softirq context, too.
    #[pin]
    machine: IrqLock<machine::Connection>,
    #[pin]
    contact: Waiter<Contact>,
    #[pin]
    unloaded: Waiter<()>,
    /// The version agreed on; 0 before.
    version: AtomicU32,
    /// Where messages are posted to.
    connection_id: AtomicU32,
    /// The host may hold memory of ours.
    pub(crate) shared: AtomicBool,
    /// UNLOAD was posted.
    unloading: AtomicBool,
    /// Offers are not taken.
    closing: AtomicBool,
    /// Used before 5.0: a bit per channel, host to guest in the first half, guest to host in the second.
    interrupt_page: SharedPage,
    /// Host to guest, guest to host.
    monitor_pages: [SharedPage; 2],
    /// Parent of all devices: the ACPI device.
    parent: AtomicPtr<bindings::device>,
    /// Channels by relid, each holding a reference. For interrupts; readers are in RCU read-side sections.
    pub(crate) table: KVVec<AtomicPtr<Chan>>,
    /// Words of event flags that may have channels.
    pub(crate) words: AtomicUsize,
    /// All channels, in the order of their offers.
    #[pin]
    pub(crate) list: Mutex<KVec<Arc<Chan>>>,
    #[pin]
    inbox: Inbox<Control>,
    #[pin]
    control_work: Work<Connection>,
    #[pin]
    all_offers: Event,
    next_gpadl: AtomicU32,
    next_open: AtomicU32,
}

impl_has_work! {
    impl HasWork<Self> for Connection { self.control_work }
}

/// The connection, for callbacks from C that have no argument. Set before anything is turned on, cleared after
/// everything is turned off and a grace period has passed.
static GLOBAL: AtomicPtr<Connection> = AtomicPtr::new(ptr::null_mut());

impl Connection {
    /// A connection that does not exist yet. `max`: newest version to offer the host.
    pub(crate) fn new(features: Features, max: VmbusVersion) -> Result<Arc<Self>> {
        let synic = Synic::new(features.callback_vector, features.auto_eoi, on_messages)?;
        let queues = Queues {
            control: OwnedQueue::ordered(c"hv_vmbus_con")?,
            add: OwnedQueue::ordered(c"hv_vmbus_add")?,
            sub: OwnedQueue::concurrent(c"hv_vmbus_sub")?,
            remove: OwnedQueue::concurrent(c"hv_vmbus_rescind")?,
        };
        let interrupt_page = SharedPage::new(-1)?;
        let monitor_pages = [SharedPage::new(-1)?, SharedPage::new(-1)?];
        let [from_host, to_host] = &monitor_pages;
        let config = machine::Config {
            max_version: max,
            target_vp: vp_index(CONNECT_CPU),
            vtl: features.vtl,
            interrupt_page: interrupt_page.gpa(),
            monitor_pages: [from_host.gpa(), to_host.gpa()],
            features: FeatureFlags::empty(),
            isolated: false,
        };
        let mut table = KVVec::with_capacity(MAX_CHANNELS as usize, GFP_KERNEL)?;
        for _ in 0..MAX_CHANNELS {
            table.push(AtomicPtr::new(ptr::null_mut()), GFP_KERNEL)?;
        }
        Arc::pin_init(
            pin_init!(Self {
                synic,
                queues,
                machine <- new_irq_lock!(machine::Connection::new(config), c"hv_vmbus_rs::machine"),
                contact <- Waiter::new(),
                unloaded <- Waiter::new(),
                version: AtomicU32::new(0),
                connection_id: AtomicU32::new(MESSAGE_CONNECTION_ID),
                shared: AtomicBool::new(false),
                unloading: AtomicBool::new(false),
                closing: AtomicBool::new(false),
                interrupt_page,
                monitor_pages,
                parent: AtomicPtr::new(ptr::null_mut()),
                table,
                words: AtomicUsize::new(0),
                list <- new_mutex!(KVec::new(), "hv_vmbus_rs::Connection::list"),
                inbox <- Inbox::new(),
                control_work <- new_work!("hv_vmbus_rs::control_work"),
                all_offers <- Event::new(),
                // Where the C driver starts, too; makes traces easy to compare.
                next_gpadl: AtomicU32::new(0xe1e10),
                next_open: AtomicU32::new(1),
            }),
            GFP_KERNEL,
        )
    }

    /// The connection, while there is one. For callbacks that are turned off before it goes; see [`GLOBAL`].
    #[inline]
    pub(crate) fn global<'a>() -> Option<&'a Connection> {
        // SAFETY: See `GLOBAL`: who calls this was turned on while the pointer was set, and will be turned off
        // before the connection goes.
        unsafe { GLOBAL.load(Ordering::Acquire).as_ref() }
    }

    /// Makes `this` the one that callbacks find.
    pub(crate) fn set_global(this: &Arc<Self>) {
        GLOBAL.store(ptr::from_ref(&**this).cast_mut(), Ordering::Release);
    }

    /// Undoes [`set_global`](Self::set_global), and waits for interrupt handlers in progress.
    pub(crate) fn clear_global() {
        GLOBAL.store(ptr::null_mut(), Ordering::Release);
        rcu::synchronize();
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

    /// Whether there is a connection that is not ending.
    fn is_connected(&self) -> bool {
        self.machine.lock().negotiated().is_some()
    }

    /// Whether offers are not taken (any more).
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
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

    // --- Messages to the host.

    /// Posts a message to the host.
    pub(crate) fn post<M: ChannelMessage>(&self, message: &M) -> Result {
        self.post_bytes(message.as_bytes(), Wait::Sleep)
    }

    /// As [`post`](Self::post), for a message as bytes.
    pub(crate) fn post_bytes(&self, message: &[u8], wait: Wait) -> Result {
        let connection = ConnectionId(self.connection_id.load(Ordering::Relaxed));
        Ok(hypercall::post_message(connection, message, wait, false)?)
    }

    /// Connects: offers the host versions, newest first, until it takes one. Process context.
    pub(crate) fn connect(&self) -> Result {
        let first = self.machine.lock().start();
        match first {
            Ok(first) => self.negotiate(first),
            Err(e) => {
                pr_err!("Unable to connect to host: {}\n", Show(e));
                Err(EINVAL)
            }
        }
    }

    fn negotiate(&self, first: Post) -> Result {
        self.shared.store(true, Ordering::Release);
        self.unloading.store(false, Ordering::Release);
        let mut post = first;
        loop {
            self.contact.expect();
            let sent = hypercall::post_message(
                post.connection_id,
                post.message.as_bytes(),
                Wait::Sleep,
                true,
            );
            if let Err(e) = sent {
                let status = match e {
                    PostError::NoConnection => HvStatus::INVALID_CONNECTION_ID,
                    PostError::Refused(status) => status,
                    PostError::Busy | PostError::TooLong => HvStatus::INSUFFICIENT_BUFFERS,
                };
                let action = self.machine.lock().on_post_failed(status);
                self.on_contact(action);
            }
            match self.contact.wait(&"INITIATE_CONTACT") {
                Some(Contact::Next(next)) => post = next,
                Some(Contact::Connected(agreed)) => {
                    self.connection_id
                        .store(agreed.connection_id.0, Ordering::Relaxed);
                    self.version.store(agreed.version.0, Ordering::Relaxed);
                    pr_info!("Vmbus version:{}\n", Show(agreed.version));
                    return Ok(());
                }
                Some(Contact::Failed(e)) => {
                    // A host that names a useless connection id has accepted the connection, and the pages with it.
                    if !matches!(e, ConnectError::BadConnectionId { .. }) {
                        self.shared.store(false, Ordering::Release);
                    }
                    pr_err!("Unable to connect to host: {}\n", Show(e));
                    return Err(match e {
                        ConnectError::NoCommonVersion => EDOM,
                        ConnectError::Refused { .. } => compat::econnrefused(),
                        ConnectError::BadConnectionId { .. } => compat::eproto(),
                        ConnectError::Post(_) => EIO,
                    });
                }
                // The host may answer yet, and use the pages named to it.
                None => return Err(ETIMEDOUT),
            }
        }
    }

    /// Hands what the machine makes of an INITIATE_CONTACT to the thread that connects.
    fn on_contact(&self, action: Action) {
        match action {
            Action::Post(post) => self.contact.answer(Contact::Next(post)),
            Action::Connected(agreed) => self.contact.answer(Contact::Connected(agreed)),
            Action::Failed(e) => self.contact.answer(Contact::Failed(e)),
            _ => {}
        }
    }

    /// Connects again with the version of before; after `suspend`. Process context.
    pub(crate) fn reconnect(&self) -> Result {
        let first = self.machine.lock().restart(self.version());
        self.negotiate(first.map_err(|_| EINVAL)?)
    }

    /// Asks for the offers, and waits until they have been sent and their devices been registered. Process context.
    pub(crate) fn request_offers(&self) -> Result {
        self.wait_for_offers()?;
        self.queues.add.flush();
        Ok(())
    }

    /// Asks for the offers, and waits until they have been sent and put into the table. Process context.
    pub(crate) fn wait_for_offers(&self) -> Result {
        self.all_offers.reset();
        let post = self.machine.lock().request_offers().map_err(|_| EINVAL)?;
        self.post_bytes(post.message.as_bytes(), Wait::Sleep)?;
        if !self
            .all_offers
            .wait_timeout(msecs_to_jiffies(OFFERS_SECONDS * 1000))
        {
            pr_warn!(
                "the host has not sent all offers within {} s\n",
                OFFERS_SECONDS
            );
        }
        // What came is in the inbox already.
        self.queues.control.flush();
        Ok(())
    }

    /// Undoes [`close`](Self::close).
    pub(crate) fn reopen(&self) {
        self.closing.store(false, Ordering::Release);
    }

    /// Takes no more offers. What came before is still acted on.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Disconnects: after this the host uses no memory of ours. Process context; waits for the host.
    pub(crate) fn unload(&self) {
        self.close();
        self.unloaded.expect();
        // Not connected, or a crash was faster.
        let Ok(post) = self.machine.lock().unload() else {
            return;
        };
        if self.unloading.swap(true, Ordering::AcqRel) {
            return;
        }
        let result = self.post_bytes(post.message.as_bytes(), Wait::Sleep);
        if result.is_ok() && self.unloaded.wait(&"UNLOAD").is_some() {
            self.shared.store(false, Ordering::Release);
        } else {
            pr_err!("the host does not let go; memory shared with it is not freed\n");
        }
    }

    /// As [`unload`](Self::unload), from a crashing kernel: nothing may be waited for but by looking, no lock be
    /// taken. Any context, other CPUs may be stopped.
    pub(crate) fn unload_atomic(&self) {
        const TRY_MS: u32 = 10;
        const NOTICE_MS: u32 = 5_000;
        const GIVE_UP_MS: u32 = 100_000;

        if !self.shared.load(Ordering::Acquire) || self.unloading.swap(true, Ordering::AcqRel) {
            return;
        }
        if self
            .post_bytes(Unload::blank().as_bytes(), Wait::Spin)
            .is_err()
        {
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
                        self.shared.store(false, Ordering::Release);
                        return;
                    }
                }
            }
            hypercall::spin_us(TRY_MS * 1000);
            waited += TRY_MS;
            if waited % NOTICE_MS == 0 {
                pr_notice!(
                    "waiting for the host to end the connection: {} s\n",
                    waited / 1000
                );
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
                // No memory to note it: it stays in the slot, which keeps the host from sending more, and is
                // looked at again.
                break;
            }
            synic.finish_message(&message);
        }
        synic.schedule_messages();
    }

    /// # Errors
    /// `ENOMEM`: call again later.
    fn on_message(&self, message: &HvMessage) -> Result {
        if message.header.message_type != SynicType(VMBUS_MESSAGE_TYPE) {
            let kind = message.header.message_type;
            pr_warn_limited!("message of unknown type {:?}\n", kind);
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
        // What is noted for later needs memory first: the machine must see each message once.
        let node = match message {
            HostMessage::OfferChannel(offer) => Some(Node::new(Control::Offer(offer))?),
            HostMessage::RescindChannelOffer(_) => Some(Node::new(Control::Rescind(message))?),
            HostMessage::AllOffersDelivered(_) => Some(Node::new(Control::AllOffers)?),
            _ => None,
        };
        let action = self.machine.lock().on_message(&message);
        match action {
            Action::Channel => match message {
                HostMessage::OfferChannel(_) => self.defer(node),
                HostMessage::RescindChannelOffer(_) => {
                    self.on_rescind_seen(&message);
                    self.defer(node);
                }
                _ => self.on_channel_answer(&message),
            },
            Action::OffersDelivered => self.defer(node),
            Action::Unloaded => self.unloaded.answer(()),
            Action::Late => {}
            Action::Unexpected(kind) => unexpected(kind),
            Action::Post(_) | Action::Connected(_) | Action::Failed(_) => self.on_contact(action),
        }
        Ok(())
    }

    fn defer(&self, node: Option<KBox<Node<Control>>>) {
        if let Some(node) = node {
            self.inbox.push(node);
            // Queued already: that run will see the message.
            let _ = self.queues.control.queue().enqueue(self.to_arc());
        }
    }

    fn process(self: &Arc<Self>) {
        loop {
            let inbox = self.inbox.take();
            if inbox.is_empty() {
                return;
            }
            for control in inbox {
                match control {
                    Control::Offer(offer) => self.on_offer(offer),
                    Control::Rescind(message) => self.on_rescind(&message),
                    Control::AllOffers => self.all_offers.signal(),
                }
            }
        }
    }

    // --- Interrupts.

    /// The hypervisor's interrupt on this CPU.
    #[inline]
    fn on_interrupt(&self) {
        let Some(synic) = self.synic.cpu(cpu::current()) else {
            return;
        };
        for word in 0..self.words.load(Ordering::Acquire) {
            let mut flags = synic.take_events(word);
            while flags != 0 {
                let relid = word << 6 | flags.trailing_zeros() as usize;
                flags &= flags - 1;
                if let Some(slot) = self.table.get(relid) {
                    // SAFETY: Null or a channel, which stays until a grace period after it is taken out of the
                    // table; interrupt handlers are read-side sections.
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

    /// Lets go of the connection at module exit. The pages go with the last reference, unless the host may still
    /// hold them.
    pub(crate) fn finish(&self) {
        if self.shared.load(Ordering::Acquire) {
            // Keeps everything.
            core::mem::forget(self.to_arc());
        }
    }
}

/// Reports a message that does not belong where it came.
pub(crate) fn unexpected(kind: MessageType) {
    pr_warn_limited!("the host sent {:?} out of turn\n", kind);
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
    #[cfg(CONFIG_TRACE_IRQFLAGS)]
    crate::ffi::hv_rs_hardirq_threaded();
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
