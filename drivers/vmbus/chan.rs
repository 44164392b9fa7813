// SPDX-License-Identifier: GPL-2.0

//! A channel as the bus keeps it: from the host's offer to the release of its number.
//!
//! # Locks
//!
//! In this order; each may be skipped:
//! `cpus_read_lock` → [`Chan::op`] (sleeps; held over a conversation with the host) → [`Connection`]'s locks.
//! The callback side ([`Chan::core_ptr`], the tasklet, the counters) has no lock: see [`Chan::publish`].

use core::{
    mem::offset_of,
    ptr::{self, NonNull},
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering},
};
use kernel::{
    ffi::c_ulong,
    impl_has_work, new_mutex, new_work,
    prelude::*,
    sync::{Arc, Mutex},
    workqueue::Work,
};
use vmbus_proto::{
    channel::{self as machine, Action, MoveError, OpenRequest, WrongState},
    class::{class_of, DeviceClass},
    gpadl::GpadlMessages,
    msg::{ChannelMessage, HostMessage, OfferChannel, Relid, USER_DATA_SIZE},
    tlfs::monitor::MonitorPosition,
};

use crate::{
    buffer::Desk,
    channel::{CallbackMode, OpenParams, Subchannels},
    connection::{vp_index, Connection},
    device::Device,
    ffi,
    hypercall::Wait,
    log::Show,
    open::{Callback, OpenCore},
    services::rcu,
    sync::{new_irq_lock, Event, IrqLock},
    sysfs::{ChannelDir, SubchannelDir},
    tasklet::Tasklet,
    waiter::Waiter,
};

mod device;

/// What belongs to the registered device; only touched by the channel's own work items and at module exit.
struct Registered {
    /// Subchannels in sysfs. Dropped before the directory that they are in.
    subs: KVec<SubchannelDir>,
    channels: Option<ChannelDir>,
    device: NonNull<Device>,
}

// SAFETY: Devices may be unregistered from any thread.
unsafe impl Send for Registered {}

/// A channel.
#[pin_data(PinnedDrop)]
pub(crate) struct Chan {
    pub(crate) conn: Arc<Connection>,
    /// The first offer, checked. What may change with another offer of the device is in `machine`.
    pub(crate) offer: OfferChannel,
    /// The number of the channel in messages.
    relid: AtomicU32,
    pub(crate) class: &'static DeviceClass,
    /// For a subchannel: the channel that the device is registered for.
    pub(crate) primary: Option<Arc<Chan>>,
    /// Decides what messages mean, and which are possible. Taken in softirq context, too.
    #[pin]
    machine: IrqLock<machine::Channel>,
    /// For the answer to what was asked under `op`.
    #[pin]
    waiter: Waiter<Action>,
    /// For what is asked about memory beside the rings.
    #[pin]
    pub(crate) desk: Desk,
    /// The host took the offer back: the machine is `Rescinded` or `Released`. Set once.
    rescinded: AtomicBool,
    /// CPU that the host interrupts; of an open channel changed under `op` and by agreement with the host only.
    target_cpu: AtomicU32,
    /// A `Channel` handle exists.
    handle: AtomicBool,
    /// Counts the bindings of the device that ended: a handle of an earlier one opens nothing. Changed under `op`.
    binding: AtomicU32,
    /// Was open once.
    opened: AtomicBool,
    /// Somebody has taken it on to remove the channel.
    removing: AtomicBool,
    /// The open channel. Held over open, close and modify.
    #[pin]
    op: Mutex<Option<Arc<OpenCore>>>,
    /// The same for callbacks and statistics; null when there is none. See `publish`.
    core_ptr: AtomicPtr<OpenCore>,
    /// Calls the handler, in the modes that do not call it from the interrupt.
    #[pin]
    tasklet: Tasklet,
    /// Interrupts from the host.
    pub(crate) interrupts: AtomicU64,
    /// Signals sent to the host by hypercall.
    pub(crate) signals: AtomicU64,
    /// Statistics of sysfs: see the C driver's documentation of the files of these names.
    pub(crate) intr_in_full: AtomicU64,
    pub(crate) intr_out_empty: AtomicU64,
    pub(crate) out_full_first: AtomicU64,
    pub(crate) out_full_total: AtomicU64,
    #[pin]
    registered: Mutex<Option<Registered>>,
    /// Takes subchannels, while the driver wants any. Held over its calls, so taken before `op` of a subchannel.
    #[pin]
    subchannels: Mutex<Option<Arc<dyn Subchannels>>>,
    /// Registration is over, successful or not.
    #[pin]
    added: Event,
    /// The channel is out of the table and its device, if any, gone.
    #[pin]
    pub(crate) gone: Event,
    #[pin]
    add_work: Work<Chan, 0>,
    #[pin]
    remove_work: Work<Chan, 1>,
}

impl_has_work! {
    impl HasWork<Self, 0> for Chan { self.add_work }
    impl HasWork<Self, 1> for Chan { self.remove_work }
}

impl Chan {
    /// A channel for `offer`, not known to anybody yet.
    pub(crate) fn new(
        conn: Arc<Connection>,
        offer: OfferChannel,
        primary: Option<Arc<Chan>>,
        target_cpu: u32,
    ) -> Result<Arc<Self>> {
        let class = class_of(&offer.class_id);
        let machine = machine::Channel::new(offer, conn.version());
        Arc::pin_init(
            pin_init!(Self {
                conn,
                offer,
                relid: AtomicU32::new(offer.relid.0),
                class,
                primary,
                machine <- new_irq_lock!(machine, c"hv_vmbus_rs::Chan::machine"),
                waiter <- Waiter::new(),
                desk <- Desk::new(),
                rescinded: AtomicBool::new(false),
                target_cpu: AtomicU32::new(target_cpu),
                handle: AtomicBool::new(false),
                binding: AtomicU32::new(0),
                opened: AtomicBool::new(false),
                removing: AtomicBool::new(false),
                op <- new_mutex!(None, "hv_vmbus_rs::Chan::op"),
                core_ptr: AtomicPtr::new(ptr::null_mut()),
                // The argument is the channel's address, which is only known once it is pinned.
                tasklet <- Tasklet::new(tasklet_fn, |t| t as c_ulong - offset_of!(Chan, tasklet) as c_ulong),
                interrupts: AtomicU64::new(0),
                signals: AtomicU64::new(0),
                intr_in_full: AtomicU64::new(0),
                intr_out_empty: AtomicU64::new(0),
                out_full_first: AtomicU64::new(0),
                out_full_total: AtomicU64::new(0),
                registered <- new_mutex!(None, "hv_vmbus_rs::Chan::registered"),
                subchannels <- new_mutex!(None, "hv_vmbus_rs::Chan::subchannels"),
                added <- Event::new(),
                gone <- Event::new(),
                add_work <- new_work!("hv_vmbus_rs::Chan::add_work"),
                remove_work <- new_work!("hv_vmbus_rs::Chan::remove_work"),
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn relid(&self) -> Relid {
        Relid(self.relid.load(Ordering::Relaxed))
    }

    /// The offer as it is now: after hibernation the device is offered again.
    pub(crate) fn current_offer(&self) -> OfferChannel {
        *self.machine.lock().offer()
    }

    /// The channel's place in the monitor page, if it has one.
    pub(crate) fn monitor(&self) -> Option<MonitorPosition> {
        self.current_offer()
            .monitor_id()
            .and_then(MonitorPosition::new)
    }

    #[inline]
    pub(crate) fn is_rescinded(&self) -> bool {
        self.rescinded.load(Ordering::Acquire)
    }

    pub(crate) fn target_cpu(&self) -> u32 {
        self.target_cpu.load(Ordering::Relaxed)
    }

    pub(crate) fn machine_state(&self) -> machine::State {
        self.machine.lock().state()
    }

    /// The state as the C driver numbers it in sysfs: 0 offered, 1 opening, 2 closed after having been open, 3 open.
    pub(crate) fn state_number(&self) -> u32 {
        match self.machine_state() {
            machine::State::Sharing(_) | machine::State::Opening { .. } => 1,
            machine::State::Open { .. } => 3,
            _ if self.opened.load(Ordering::Relaxed) => 2,
            _ => 0,
        }
    }

    /// Claims the right to the one `Channel` handle.
    ///
    /// Returns the number of the device's binding, which the handle shows again when it is used.
    pub(crate) fn take_handle(&self) -> Option<u32> {
        (!self.handle.swap(true, Ordering::AcqRel)).then(|| self.binding.load(Ordering::Acquire))
    }

    /// Undoes [`take_handle`](Self::take_handle), unless that was in an earlier binding.
    pub(crate) fn give_handle(&self, binding: u32) {
        let _op = self.op.lock();
        if self.binding.load(Ordering::Relaxed) == binding {
            self.handle.store(false, Ordering::Release);
        }
    }

    /// Has `to` called for each subchannel that the host offers from now on. Process context.
    pub(crate) fn set_subchannels(&self, to: Arc<dyn Subchannels>) {
        *self.subchannels.lock() = Some(to);
    }

    /// Ends that, and waits for a call in progress. Process context, not from such a call.
    pub(crate) fn clear_subchannels(&self) {
        let handler = self.subchannels.lock().take();
        // Not under the lock: it may own anything.
        drop(handler);
    }

    /// Whether it is a subchannel of `primary`.
    pub(crate) fn is_subchannel_of(&self, primary: &Chan) -> bool {
        self.primary.as_deref().is_some_and(|p| ptr::eq(p, primary))
    }

    /// A driver has a handle, or had one and has lost it without dropping it.
    pub(crate) fn has_handle(&self) -> bool {
        self.handle.load(Ordering::Acquire)
    }

    /// The device is being unbound: closes whatever is open of its channels, and makes handles that the driver kept useless.
    /// When this returns no callback runs any more, and none will.
    pub(crate) fn end_binding(&self) {
        // No subchannel is handed out after this.
        self.clear_subchannels();
        while let Some(sub) = self.conn.subchannel_in_use(self) {
            sub.end_own_binding();
        }
        self.end_own_binding();
    }

    fn end_own_binding(&self) {
        let mut op = self.op.lock();
        if let Some(core) = op.take() {
            self.close_locked(&core);
        }
        let binding = self.binding.load(Ordering::Relaxed);
        self.binding
            .store(binding.wrapping_add(1), Ordering::Release);
        self.handle.store(false, Ordering::Release);
    }

    /// Takes in a message about channels, and tells who waits for it. Any context but NMI.
    pub(crate) fn on_host_message(&self, message: &HostMessage) -> Action {
        let action = self.machine.lock().on_message(message);
        match action {
            Action::NotMine => return self.desk.on_host_message(message),
            Action::Late | Action::Unexpected(_) => {}
            Action::Rescinded { .. } => {
                self.rescinded.store(true, Ordering::Release);
                self.with_core(|core| {
                    core.forbid_sending();
                    // The handler is to take what is in the ring yet, and to learn that this was all.
                    self.tasklet.schedule();
                });
                self.waiter.answer(action);
                self.desk.on_rescind();
            }
            _ => self.waiter.answer(action),
        }
        action
    }

    // --- Opening and closing. Process context.

    /// See `Channel::open`.
    pub(crate) fn open(
        self: &Arc<Self>,
        params: &OpenParams<'_>,
        callback: Callback,
        binding: u32,
    ) -> Result<Arc<OpenCore>> {
        // SAFETY: `target_cpu` exists.
        let node = unsafe { ffi::hv_rs_cpu_to_node(self.target_cpu()) };
        let core = OpenCore::new(self, params, callback, node)?;
        // So that the target CPU does not go offline before the host knows of it.
        let _cpus = crate::cpus::read_lock();
        let mut op = self.op.lock();
        // A handle kept by a driver that was unbound: its module may be on the way out.
        if self.binding.load(Ordering::Relaxed) != binding {
            return Err(ENODEV);
        }
        if op.is_some() {
            return Err(EBUSY);
        }
        let result = self.share(&core).and_then(|()| {
            // The host may interrupt before its answer arrives.
            self.publish(&core);
            self.ask_open(&core, params).inspect_err(|_| {
                core.forbid_sending();
                self.unpublish();
                self.unshare();
            })
        });
        match result {
            Ok(()) => {
                self.opened.store(true, Ordering::Relaxed);
                *op = Some(core.clone());
                Ok(core)
            }
            Err(e) => {
                core.set_held(self.machine_state().host_may_use_ring());
                Err(e)
            }
        }
    }

    /// Shows the rings to the host.
    fn share(&self, core: &OpenCore) -> Result {
        let id = self.conn.new_gpadl_id();
        let (bytes, pfns) = core.memory();
        let messages = GpadlMessages::new(self.relid(), id, 0, bytes, pfns).map_err(|_| EINVAL)?;
        self.waiter.expect();
        self.machine
            .lock()
            .share_ring(id)
            .map_err(Self::wrong_state)?;
        core.set_held(true);
        let mut begun = false;
        for message in messages {
            if let Err(e) = self.conn.post_bytes(message.as_bytes(), Wait::Sleep) {
                // Once the host has a part, it may have the rest of its own making.
                if !begun {
                    self.machine.lock().not_posted();
                }
                return Err(e);
            }
            begun = true;
        }
        match self.answer("GPADL_HEADER")? {
            Action::RingShared => Ok(()),
            Action::RingRefused(status) => {
                pr_err!(
                    "channel {}: the host refuses the rings: {:?}\n",
                    Show(self.relid()),
                    status
                );
                Err(EIO)
            }
            _ => Err(EIO),
        }
    }

    fn ask_open(&self, core: &OpenCore, params: &OpenParams<'_>) -> Result {
        let mut user_data = [0; USER_DATA_SIZE];
        user_data
            .get_mut(..params.user_data.len())
            .ok_or(EINVAL)?
            .copy_from_slice(params.user_data);
        let request = OpenRequest {
            open_id: self.conn.new_open_id(),
            target_vp: vp_index(self.target_cpu()),
            downstream_page_offset: core.send_pages(),
            user_data,
        };
        self.waiter.expect();
        let message = self.machine.lock().open(&request);
        self.post(&message.map_err(Self::wrong_state)?)?;
        match self.answer("OPEN_CHANNEL")? {
            Action::Opened => Ok(()),
            Action::OpenRefused(status) => {
                pr_err!(
                    "channel {}: the host refuses to open it: {:?}\n",
                    Show(self.relid()),
                    status
                );
                Err(EIO)
            }
            _ => Err(EIO),
        }
    }

    /// Takes the rings back from the host.
    fn unshare(&self) {
        self.waiter.expect();
        // In other states there is nothing to take back, or no way to.
        let Ok(message) = self.machine.lock().unshare_ring() else {
            return;
        };
        let result = self
            .post(&message)
            .and_then(|()| self.answer("GPADL_TEARDOWN"));
        if self.machine_state().host_may_use_ring() {
            pr_err!(
                "channel {}: the host does not give the rings back ({:?}); their memory is not freed\n",
                Show(self.relid()),
                result
            );
        }
    }

    /// Closes `core` if it is open still. When this returns no callback runs any more.
    pub(crate) fn close(&self, core: &OpenCore) {
        let mut op = self.op.lock();
        if op.as_ref().is_some_and(|open| ptr::eq(&**open, core)) {
            if let Some(core) = op.take() {
                self.close_locked(&core);
            }
        }
    }

    /// Closes whatever is open. When this returns no callback runs any more.
    pub(crate) fn close_all(&self) {
        let mut op = self.op.lock();
        if let Some(core) = op.take() {
            self.close_locked(&core);
        }
    }

    fn close_locked(&self, core: &OpenCore) {
        core.forbid_sending();
        self.unpublish();
        let message = self.machine.lock().close();
        if let Ok(message) = message {
            if self.post(&message).is_ok() {
                self.unshare();
            }
        }
        core.set_held(self.machine_state().host_may_use_ring());
    }

    /// Posts the message that the machine just gave out.
    fn post<M: ChannelMessage>(&self, message: &M) -> Result {
        self.conn.post(message).inspect_err(|e| {
            self.machine.lock().not_posted();
            pr_err!(
                "channel {}: cannot post {:?}: {}\n",
                Show(self.relid()),
                M::TYPE,
                e.to_errno()
            );
        })
    }

    /// Waits for the answer to what was asked since `waiter.expect`.
    fn answer(&self, what: &str) -> Result<Action> {
        match self.waiter.wait(&what) {
            Some(Action::Rescinded { .. }) => Err(ENODEV),
            Some(action) => Ok(action),
            None => Err(ETIMEDOUT),
        }
    }

    fn wrong_state(e: WrongState) -> Error {
        match e.0 {
            machine::State::Rescinded | machine::State::Released | machine::State::Detached => {
                ENODEV
            }
            _ => EIO,
        }
    }

    /// Moves the channel's interrupts to `cpu`, which the caller keeps online (`cpus_read_lock` or hotplug callback).
    ///
    /// # Errors
    /// `EINVAL`: not a usable CPU. `EIO`: the channel is not open, the protocol too old, or the host refused.
    pub(crate) fn set_cpu(&self, cpu: u32) -> Result {
        if !self.conn.version().has_modify_channel() {
            return Err(EIO);
        }
        if !ffi::hv_rs_cpu_usable(cpu) {
            return Err(EINVAL);
        }
        let op = self.op.lock();
        let core = op.as_ref().ok_or(EIO)?;
        self.move_to(core, cpu)
    }

    /// See [`set_cpu`](Self::set_cpu). Under `op`; `core` is open, the CPU usable.
    fn move_to(&self, core: &OpenCore, cpu: u32) -> Result {
        if cpu == self.target_cpu() {
            return Ok(());
        }
        self.waiter.expect();
        let message = self.machine.lock().move_to(vp_index(cpu));
        let message = message.map_err(|_: MoveError| EIO)?;
        self.post(&message).map_err(|_| EIO)?;
        if self.conn.version().has_modify_channel_response() {
            match self.answer("MODIFY_CHANNEL").map_err(|_| EIO)? {
                Action::Moved(status) if status.is_success() => {}
                _ => return Err(EIO),
            }
        }
        self.target_cpu.store(cpu, Ordering::Relaxed);
        core.call_moved();
        Ok(())
    }

    /// Moves the channel away from `cpu`, which goes offline. CPU hotplug callback.
    pub(crate) fn leave_cpu(&self, cpu: u32) -> Result {
        if self.target_cpu() != cpu {
            return Ok(());
        }
        let op = self.op.lock();
        let Some(core) = op.as_ref() else {
            // The host does not know of the CPU yet; an `open` will find the new value, as it holds `cpus_read_lock`
            // from before it reads it until the host knows.
            return self.conn.find_cpu(self, cpu, |new| {
                self.target_cpu.store(new, Ordering::Relaxed);
                Ok(())
            });
        };
        // Without an answer to MODIFY_CHANNEL there is no telling when the old CPU is free of interrupts.
        if !self.conn.version().has_modify_channel_response() {
            return Err(EBUSY);
        }
        self.conn
            .find_cpu(self, cpu, |new| self.move_to(core, new))
            .map_err(|_| EBUSY)
    }

    // --- Hibernation. Process context.

    /// Ends the channel's part in a connection that is about to end. The driver has closed it.
    ///
    /// # Errors
    /// `EBUSY` when it has not.
    pub(crate) fn detach(&self) -> Result {
        let op = self.op.lock();
        if op.is_some() {
            return Err(EBUSY);
        }
        self.machine.lock().detach();
        Ok(())
    }

    /// Whether the driver has it open.
    pub(crate) fn is_open(&self) -> bool {
        self.op.lock().is_some()
    }

    /// The device is on offer again.
    pub(crate) fn offered_again(&self, offer: OfferChannel) -> Result {
        self.machine
            .lock()
            .offered_again(offer)
            .map_err(Self::wrong_state)?;
        self.relid.store(offer.relid.0, Ordering::Relaxed);
        Ok(())
    }

    /// The device did not come back.
    pub(crate) fn set_lost(&self) {
        self.rescinded.store(true, Ordering::Release);
    }

    // --- Callbacks.
    //
    // The interrupt handler finds the channel in the connection's table and the open channel in `core_ptr`. Both are read
    // in RCU read-side sections (an interrupt handler is one); who empties them waits for a grace period before it lets
    // the object go. The tasklet is outside of that: it is killed after the grace period, when nobody schedules it.

    fn publish(&self, core: &Arc<OpenCore>) {
        self.core_ptr
            .store(ptr::from_ref(&**core).cast_mut(), Ordering::Release);
    }

    /// Stops callbacks, and waits for those in progress.
    fn unpublish(&self) {
        self.core_ptr.store(ptr::null_mut(), Ordering::Release);
        rcu::synchronize();
        // After the grace period the interrupt handler does not schedule it.
        self.tasklet.kill();
    }

    /// Runs `f` with the open channel, if there is one. Any context; `f` must not sleep.
    pub(crate) fn with_core<R>(&self, f: impl FnOnce(&OpenCore) -> R) -> Option<R> {
        let _rcu = kernel::sync::rcu::read_lock();
        // SAFETY: The object stays until a grace period after the pointer is cleared, and this is a read-side section.
        unsafe { self.core_ptr.load(Ordering::Acquire).as_ref() }.map(f)
    }

    /// The host signalled the channel. Interrupt context.
    #[inline]
    pub(crate) fn on_interrupt(&self) {
        // SAFETY: As in `with_core`; interrupt handlers are read-side sections.
        let Some(core) = (unsafe { self.core_ptr.load(Ordering::Acquire).as_ref() }) else {
            return;
        };
        // Statistics: only this CPU counts, but for the moment when the channel moves.
        self.interrupts.store(
            self.interrupts.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Relaxed,
        );
        match core.callback.mode {
            CallbackMode::Isr => core.run_in_interrupt(),
            CallbackMode::Poll => {
                core.mask_from_interrupt();
                core.call_signal();
            }
            CallbackMode::Batched => {
                core.mask_from_interrupt();
                self.tasklet.schedule();
            }
            CallbackMode::Direct => self.tasklet.schedule(),
        }
    }

    fn on_tasklet(&self) {
        // SAFETY: `unpublish` waits for the tasklet before the object goes.
        let Some(core) = (unsafe { self.core_ptr.load(Ordering::Acquire).as_ref() }) else {
            return;
        };
        if core.run_handler() {
            // Something came in while the host thought that we were still reading; it will not tell us again.
            self.tasklet.schedule();
        }
    }

    /// Has the handler called as if the host had signalled, unless `core` is closed. Any context.
    pub(crate) fn call_again(&self, core: &OpenCore) {
        // The tasklet may not be scheduled once it was killed, which is a grace period after the pointer was cleared.
        self.with_core(|open| {
            if ptr::eq(open, core) {
                self.tasklet.schedule();
            }
        });
    }
}

#[pinned_drop]
impl PinnedDrop for Chan {
    fn drop(self: Pin<&mut Self>) {
        debug_assert!(self.core_ptr.load(Ordering::Relaxed).is_null());
    }
}

/// # Safety
/// Called as the tasklet function of a `Chan`, whose address is `data`.
unsafe extern "C" fn tasklet_fn(data: c_ulong) {
    // SAFETY: The channel stays until its tasklet is killed.
    unsafe { &*(data as *const Chan) }.on_tasklet();
}
