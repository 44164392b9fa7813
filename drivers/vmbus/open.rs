// SPDX-License-Identifier: GPL-2.0

//! An open channel: rings, their GPADL, signalling.

use core::{
    cell::UnsafeCell,
    mem::ManuallyDrop,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};
use kernel::{prelude::*, sync::Arc};
use vmbus_proto::{
    msg::{Relid, MAX_CHANNELS},
    ring::{
        Consumer, ControlWord, PacketView, Producer, ReadError, RingMemory, Shown, Step, WriteError,
    },
    tlfs::{
        hypercall::{ConnectionId, HvStatus},
        monitor::MonitorPosition,
    },
    util::{signal_method, SignalMethod},
};

use crate::{
    chan::Chan,
    channel::{
        CallbackMode, InRing, OpenParams, Received, Receiver, RecvError, RingProducer, SendError,
    },
    connection::Connection,
    hypercall,
    log::{pr_warn_limited, Show},
    memory::{RingMap, SharedPages, PAGE},
    ring::RingView,
    sync::{new_irq_lock, IrqGuard, IrqLock},
};

/// How to call a driver's handler.
#[derive(Clone, Copy)]
pub(crate) struct Callback {
    pub(crate) mode: CallbackMode,
    /// # Safety
    /// Called with `ctx`, only while the channel is open.
    pub(crate) func: unsafe fn(ctx: *const (), rx: &mut Receiver<'_>),
    /// The host has signalled, in mode [`CallbackMode::Poll`].
    ///
    /// # Safety
    /// Called with `ctx`, only while the channel is open.
    pub(crate) signal: unsafe fn(ctx: *const ()),
    /// The channel has moved to another CPU.
    ///
    /// # Safety
    /// Called with `ctx`, only while the channel is open.
    pub(crate) moved: unsafe fn(ctx: *const ()),
    pub(crate) ctx: *const (),
}

// SAFETY: Handlers are `Send + Sync`.
unsafe impl Send for Callback {}
// SAFETY: Handlers are `Send + Sync`.
unsafe impl Sync for Callback {}

/// The sending side.
struct Tx {
    ring: Producer<RingView>,
    open: bool,
    /// The last packet found the ring full.
    was_full: bool,
    /// A signal is due for packets that were written without one. See [`OpenCore::signal_owed`].
    owed: bool,
}

/// The outgoing ring, locked, with interrupts off; see [`Sender::begin`](crate::channel::Sender::begin).
pub struct Sending<'a> {
    core: &'a OpenCore,
    tx: IrqGuard<'a, Tx>,
}

impl Sending<'_> {
    /// The ring.
    #[inline(always)]
    pub fn ring(&mut self) -> RingProducer<'_> {
        RingProducer::new(&mut self.tx.ring)
    }

    /// Shows the host what was written, and signals it if it must.
    #[inline(always)]
    pub fn commit(self) {
        let this = ManuallyDrop::new(self);
        // SAFETY: Moved out once: `this` is not dropped.
        let tx = unsafe { core::ptr::read(&this.tx) };
        this.core.written(tx);
    }
}

impl Sending<'_> {
    /// Forgets what was written, since writing failed with `e`; counts, and logs what is to be logged.
    #[cold]
    pub fn fail(mut self, e: WriteError) -> SendError {
        let core = self.core;
        self.tx.ring.revert();
        core.send_failed(&mut self.tx, e)
    }
}

impl Drop for Sending<'_> {
    #[inline]
    fn drop(&mut self) {
        self.tx.ring.revert();
    }
}

/// The receiving side.
struct Rx {
    ring: Consumer<RingView>,
}

/// When the host hears of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// At once, if it does not look by itself.
    Now,
    /// Together with a later packet, or by [`Sender::signal_owed`](crate::channel::Sender::signal_owed): the sender sees to it.
    Later,
}

/// See the [module's documentation](self).
#[pin_data(PinnedDrop)]
pub(crate) struct OpenCore {
    pub(crate) callback: Callback,
    #[pin]
    tx: IrqLock<Tx>,
    /// Belongs to who set `rx_busy`.
    rx: UnsafeCell<Rx>,
    rx_busy: AtomicBool,
    /// The handler was due while somebody else had the receiving side: who gives it back sees to it that it is called.
    rx_missed: AtomicBool,
    /// The ring broke: no use in calling the handler again.
    broken: AtomicBool,
    out_view: RingView,
    in_view: RingView,
    conn: Arc<Connection>,
    relid: Relid,
    connection_id: ConnectionId,
    method: SignalMethod,
    /// The host may use the rings' memory: it must not be freed.
    held: AtomicBool,
    /// A cycle of references while the channel is open; closing ends it. Senders may outlive the channel's time on the bus.
    chan: Arc<Chan>,
    send_pages: u32,
    // Released last: the views above point into them.
    maps: ManuallyDrop<[RingMap; 2]>,
    pages: ManuallyDrop<SharedPages>,
}

// SAFETY: `rx` is reached by its owner alone; the rest is `Sync`.
unsafe impl Sync for OpenCore {}
// SAFETY: Nothing is tied to a thread.
unsafe impl Send for OpenCore {}

#[inline]
fn bump(counter: &AtomicU64) {
    // Statistics: a lost count does no harm, an atomic addition costs.
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(1),
        Ordering::Relaxed,
    );
}

impl OpenCore {
    /// Allocates the rings; the host knows nothing yet.
    pub(crate) fn new(
        chan: &Arc<Chan>,
        params: &OpenParams<'_>,
        callback: Callback,
        node: i32,
    ) -> Result<Arc<Self>> {
        let (send, recv) = (params.send_ring / PAGE, params.recv_ring / PAGE);
        let pages = SharedPages::new(node, send + recv)?;
        let maps = [pages.map_ring(0, send)?, pages.map_ring(send, recv)?];
        let [out_map, in_map] = &maps;
        // SAFETY: The maps are kept in the same object, and dropped after all else.
        let (out_view, in_view) = unsafe { (RingView::new(out_map), RingView::new(in_map)) };
        let tx = Tx {
            ring: Producer::init(out_view).map_err(|_| EINVAL)?,
            open: true,
            was_full: false,
            owed: false,
        };
        let rx = Rx {
            ring: Consumer::init(in_view).map_err(|_| EINVAL)?,
        };
        let offer = chan.current_offer();
        Arc::pin_init(
            pin_init!(Self {
                callback,
                tx <- new_irq_lock!(tx, c"hv_vmbus_rs::OpenCore::tx"),
                rx: UnsafeCell::new(rx),
                rx_busy: AtomicBool::new(false),
                rx_missed: AtomicBool::new(false),
                broken: AtomicBool::new(false),
                out_view,
                in_view,
                conn: chan.conn.clone(),
                relid: offer.relid,
                connection_id: ConnectionId(offer.connection_id),
                method: signal_method(&offer, false),
                held: AtomicBool::new(false),
                chan: chan.clone(),
                send_pages: send as u32,
                maps: ManuallyDrop::new(maps),
                pages: ManuallyDrop::new(pages),
            }),
            GFP_KERNEL,
        )
    }

    /// Size in bytes and page frame numbers of both rings, the outgoing first.
    pub(crate) fn memory(&self) -> (u32, impl ExactSizeIterator<Item = u64> + '_) {
        ((self.pages.len() * PAGE) as u32, self.pages.pfns())
    }

    /// Pages of the outgoing ring.
    pub(crate) fn send_pages(&self) -> u32 {
        self.send_pages
    }

    /// Notes whether the host may use the rings' memory.
    pub(crate) fn set_held(&self, held: bool) {
        self.held.store(held, Ordering::Release);
    }

    // --- Sending. Any context.

    /// Lets senders fail from now on.
    pub(crate) fn forbid_sending(&self) {
        self.tx.lock().open = false;
    }

    /// Runs `write` on the outgoing ring, commits, and signals the host if it must.
    #[inline]
    pub(crate) fn send(
        &self,
        write: impl FnOnce(&mut Producer<RingView>) -> Result<(), WriteError>,
    ) -> Result<(), SendError> {
        self.send_value((), |ring, ()| write(ring).map_err(|e| (e, ())))
            .map_err(|(e, ())| e)
    }

    /// As [`send`](Self::send); `value` goes to `write`, or comes back.
    #[inline]
    pub(crate) fn send_value<T>(
        &self,
        value: T,
        write: impl FnOnce(&mut Producer<RingView>, T) -> Result<(), (WriteError, T)>,
    ) -> Result<(), (SendError, T)> {
        let mut tx = self.tx.lock();
        if !tx.open {
            return Err((SendError::Closed, value));
        }
        if let Err((e, value)) = write(&mut tx.ring, value) {
            tx.ring.revert();
            return Err((self.send_failed(&mut tx, e), value));
        }
        self.written(tx);
        Ok(())
    }

    /// As [`send_value`](Self::send_value), without the reasons: nothing was sent if `value` comes back. `write` tells whether the
    /// host is signalled; if not, it is so by the next packet for which it is, or by [`signal_owed`](Self::signal_owed).
    #[inline(always)]
    pub(crate) fn try_send_value<T>(
        &self,
        value: T,
        write: impl FnOnce(&mut Producer<RingView>, T) -> Result<Signal, T>,
    ) -> Result<(), T> {
        let mut tx = self.tx.lock();
        if !tx.open {
            return Err(value);
        }
        match write(&mut tx.ring, value) {
            Ok(Signal::Now) => self.written(tx),
            Ok(Signal::Later) => {
                tx.was_full = false;
                tx.owed |= tx.ring.commit();
            }
            Err(value) => {
                tx.ring.revert();
                return Err(value);
            }
        }
        Ok(())
    }

    /// Takes the outgoing ring; `None` when nothing may be sent.
    #[inline(always)]
    pub(crate) fn begin_send(&self) -> Option<Sending<'_>> {
        let tx = self.tx.lock();
        // Written so that it costs the least.
        if !tx.open {
            return None;
        }
        Some(Sending { core: self, tx })
    }

    /// Signals the host if that is due for packets that were written with [`Signal::Later`], and it has not read them by itself.
    pub(crate) fn signal_owed(&self) {
        let mut tx = self.tx.lock();
        if core::mem::take(&mut tx.owed) && tx.open && !tx.ring.is_read() {
            drop(tx);
            bump(&self.stats().intr_out_empty);
            self.signal_host();
        }
    }

    /// Shows the host what was written.
    #[inline(always)]
    fn written(&self, mut tx: IrqGuard<'_, Tx>) {
        tx.was_full = false;
        // What the host has read by itself it need not be told of. Looked at before the commit, which tells about its own packets.
        let owed = core::mem::take(&mut tx.owed) && !tx.ring.is_read();
        let signal = tx.ring.commit() | owed;
        drop(tx);
        if signal {
            bump(&self.stats().intr_out_empty);
            self.signal_host();
        }
    }

    #[cold]
    fn send_failed(&self, tx: &mut Tx, e: WriteError) -> SendError {
        match e {
            WriteError::Full { needed } => {
                bump(&self.stats().out_full_total);
                if !tx.was_full {
                    bump(&self.stats().out_full_first);
                }
                tx.was_full = true;
                SendError::Full { needed }
            }
            WriteError::TooLarge | WriteError::WrongLength => SendError::Invalid,
            WriteError::Corrupt(e) => {
                pr_warn_limited!("channel {}: outgoing ring: {}\n", Show(self.relid), Show(e));
                SendError::Broken
            }
        }
    }

    /// Asks the host for a signal once `needed` bytes are free. Returns true when they are already.
    pub(crate) fn request_space(&self, needed: u32) -> Result<bool, SendError> {
        let mut tx = self.tx.lock();
        if !tx.open {
            return Err(SendError::Closed);
        }
        match tx.ring.request_space(needed) {
            Ok(free) => Ok(free),
            Err(e) => Err(self.send_failed(&mut tx, e)),
        }
    }

    #[inline]
    fn stats(&self) -> &Chan {
        &self.chan
    }

    /// Signals the host.
    #[doc(alias = "vmbus_setevent")]
    #[inline]
    fn signal_host(&self) {
        if self.method != (SignalMethod::Hypercall { dedicated: true }) {
            return self.signal_otherwise();
        }
        bump(&self.stats().signals);
        let status = hypercall::signal_event(self.connection_id);
        if !status.is_success() {
            self.signal_failed(status);
        }
    }

    /// As hosts before 5.0 want it, or by the monitor page.
    #[inline(never)]
    fn signal_otherwise(&self) {
        self.set_interrupt_bit();
        if let SignalMethod::Monitor(position) = self.method {
            return self.signal_by_monitor(position);
        }
        bump(&self.stats().signals);
        let status = hypercall::signal_event(self.connection_id);
        if !status.is_success() {
            self.signal_failed(status);
        }
    }

    #[cold]
    fn signal_failed(&self, status: HvStatus) {
        // The host forgets a channel's connection when it sends the rescind, which we may not have seen yet.
        if status != HvStatus::INVALID_CONNECTION_ID {
            pr_warn_limited!(
                "channel {}: cannot signal the host: {:?}\n",
                Show(self.relid),
                status
            );
        }
    }

    fn signal_by_monitor(&self, position: MonitorPosition) {
        // SAFETY: The word is inside the page and aligned; the hypervisor uses atomics, too.
        let pending = unsafe {
            AtomicU32::from_ptr(
                self.conn
                    .monitor_page(true)
                    .add(position.pending_offset())
                    .cast(),
            )
        };
        pending.fetch_or(1 << (position.bit & 31), Ordering::SeqCst);
    }

    /// Hosts before 5.0 find out from the interrupt page which channel is meant; its second half is ours.
    fn set_interrupt_bit(&self) {
        let bit = self.relid.0 % MAX_CHANNELS;
        // SAFETY: The word is inside the page, which holds 2048 bytes from its middle, and aligned; both sides use
        // atomics.
        let word = unsafe {
            AtomicU32::from_ptr(
                self.conn
                    .interrupt_page()
                    .add(PAGE / 2)
                    .cast::<u32>()
                    .add(bit as usize / 32),
            )
        };
        word.fetch_or(1 << (bit % 32), Ordering::SeqCst);
    }

    // --- Receiving.

    /// Claims the receiving side.
    #[inline]
    pub(crate) fn try_receiver(&self) -> Option<Receiver<'_>> {
        if self.rx_busy.swap(true, Ordering::SeqCst) {
            return None;
        }
        // SAFETY: The receiving side was just claimed.
        Some(unsafe { Receiver::new(self) })
    }

    /// Takes the next packet, copying no more than the first `N` bytes of the payload.
    ///
    /// # Safety
    /// The caller holds the receiving side.
    #[inline]
    pub(crate) unsafe fn recv_into<const N: usize>(
        &self,
        payload: &mut [u8; N],
    ) -> Result<Option<Received>, RecvError> {
        // SAFETY: By the requirement, nobody else uses `rx`.
        let rx = unsafe { &mut *self.rx.get() };
        let incoming = match rx.ring.peek() {
            Ok(incoming) => incoming,
            Err(ReadError::Empty) => return Ok(None),
            Err(e) => return Err(self.recv_failed(e)),
        };
        let descriptor = incoming.descriptor;
        let offset = descriptor.payload_offset();
        let there = descriptor.payload_len() as usize;
        // The usual case has a constant length.
        let len = if there >= N {
            let _ = rx.ring.copy(&incoming, offset, payload);
            N
        } else {
            if let Some(part) = payload.get_mut(..there) {
                let _ = rx.ring.copy(&incoming, offset, part);
            }
            there
        };
        rx.ring.accept(&incoming);
        self.give_room_if_due(&mut rx.ring);
        Ok(Some(Received { descriptor, len }))
    }

    /// See [`Consumer::take_completion`].
    ///
    /// # Safety
    /// The caller holds the receiving side.
    #[inline]
    pub(crate) unsafe fn recv_completion<const N: usize, R>(
        &self,
        payload: u32,
        take: impl FnOnce(u64, &[u64; N]) -> Option<R>,
    ) -> Option<R> {
        // SAFETY: By the requirement, nobody else uses `rx`.
        let rx = unsafe { &mut *self.rx.get() };
        let taken = rx.ring.take_completion(payload, take)?;
        // Who has read all says so soon.
        if !rx.ring.is_drained() {
            self.give_room_if_due(&mut rx.ring);
        }
        Some(taken)
    }

    /// See [`Consumer::take_while`]. The space is given back by who ends reading.
    ///
    /// # Safety
    /// The caller holds the receiving side.
    #[inline(always)]
    pub(crate) unsafe fn recv_take_while(
        &self,
        take: impl FnMut(&PacketView<'_>) -> Step,
    ) -> Shown {
        // SAFETY: By the requirement, nobody else uses `rx`.
        let rx = unsafe { &mut *self.rx.get() };
        rx.ring.take_while(take)
    }

    /// See [`Consumer::is_drained`].
    ///
    /// # Safety
    /// The caller holds the receiving side.
    #[inline]
    pub(crate) unsafe fn is_drained(&self) -> bool {
        // SAFETY: By the requirement.
        unsafe { &*self.rx.get() }.ring.is_drained()
    }

    /// Shows the next packet to `take`, where it lies, and moves on.
    ///
    /// # Safety
    /// The caller holds the receiving side.
    #[inline]
    pub(crate) unsafe fn recv_with<R>(
        &self,
        take: impl FnOnce(&InRing<'_>) -> R,
    ) -> Result<Option<R>, RecvError> {
        // SAFETY: By the requirement, nobody else uses `rx`.
        let rx = unsafe { &mut *self.rx.get() };
        let incoming = match rx.ring.peek() {
            Ok(incoming) => incoming,
            Err(ReadError::Empty) => return Ok(None),
            Err(e) => return Err(self.recv_failed(e)),
        };
        let result = take(&InRing::new(&rx.ring, incoming));
        rx.ring.accept(&incoming);
        self.give_room_if_due(&mut rx.ring);
        Ok(Some(result))
    }

    /// Gives the space of the packets read back to the host in between, when there is much of it: a handler that answers a
    /// host which asks again at once would read to the end of the ring without giving room.
    #[inline]
    fn give_room_if_due(&self, ring: &mut Consumer<RingView>) {
        if ring.should_commit() {
            self.give_room(ring);
        }
    }

    #[cold]
    fn give_room(&self, ring: &mut Consumer<RingView>) {
        if ring.commit() {
            bump(&self.stats().intr_in_full);
            self.signal_host();
        }
    }

    /// Has the handler called in softirq context.
    pub(crate) fn call_again(&self) {
        self.chan.call_again(self);
    }

    /// Tells the handler that the channel interrupts another CPU. The channel is open, and stays so during the call.
    pub(crate) fn call_moved(&self) {
        // SAFETY: The channel is open.
        unsafe { (self.callback.moved)(self.callback.ctx) };
    }

    pub(crate) fn target_cpu(&self) -> u32 {
        self.chan.target_cpu()
    }

    #[inline]
    pub(crate) fn is_rescinded(&self) -> bool {
        self.chan.is_rescinded()
    }

    #[cold]
    fn recv_failed(&self, e: ReadError) -> RecvError {
        if !self.broken.swap(true, Ordering::Relaxed) {
            pr_err!("channel {}: incoming ring: {}\n", Show(self.relid), Show(e));
        }
        RecvError::Broken
    }

    /// Gives the space of the packets read back to the host.
    ///
    /// # Safety
    /// The caller holds the receiving side.
    #[inline]
    pub(crate) unsafe fn commit_read(&self) {
        // SAFETY: By the requirement.
        let rx = unsafe { &mut *self.rx.get() };
        if rx.ring.commit() {
            self.room_given();
        }
    }

    /// The host waits for the room that it was just given.
    #[cold]
    fn room_given(&self) {
        bump(&self.stats().intr_in_full);
        self.signal_host();
    }

    /// Asks the host not to interrupt.
    ///
    /// # Safety
    /// The caller holds the receiving side.
    #[inline]
    pub(crate) unsafe fn mask(&self) {
        // SAFETY: By the requirement.
        unsafe { &mut *self.rx.get() }.ring.mask();
    }

    /// Gives the space back and lets the host interrupt again; true when there is more to read.
    ///
    /// # Safety
    /// The caller holds the receiving side.
    #[inline]
    pub(crate) unsafe fn finish_read(&self) -> bool {
        // SAFETY: By the requirement.
        let drained = unsafe { &mut *self.rx.get() }.ring.finish();
        if drained.signal {
            self.room_given();
        }
        drained.more && !self.broken.load(Ordering::Relaxed)
    }

    /// # Safety
    /// The caller holds the receiving side, and gives it up.
    #[inline]
    pub(crate) unsafe fn release_receiver(&self) {
        // SeqCst: the side is free before the flag is read; `run_handler` sets the flag before it tries again.
        self.rx_busy.store(false, Ordering::SeqCst);
        if self.rx_missed.load(Ordering::SeqCst) {
            self.make_up();
        }
    }

    /// Has the handler called that was missed, once.
    #[cold]
    fn make_up(&self) {
        if self.rx_missed.swap(false, Ordering::SeqCst) {
            self.chan.call_again(self);
        }
    }

    // --- Callbacks.

    /// Asks the host not to interrupt, from the interrupt handler: the receiving side may be in use on another CPU, which
    /// will set or clear the word as it needs.
    #[inline]
    pub(crate) fn mask_from_interrupt(&self) {
        self.in_view.store(ControlWord::InterruptMask, 1);
    }

    /// Claims the receiving side. `None`: who has it sees to it that the handler is called.
    #[inline]
    fn receiver_for_handler(&self) -> Option<Receiver<'_>> {
        self.try_receiver().or_else(|| self.receiver_missed())
    }

    /// Somebody else has the receiving side, who may have looked for the last time.
    #[cold]
    fn receiver_missed(&self) -> Option<Receiver<'_>> {
        self.rx_missed.store(true, Ordering::SeqCst);
        // Once more, in case it was given back before the flag was set.
        self.try_receiver()
    }

    /// Calls the handler of a channel in mode [`CallbackMode::Isr`]. In the interrupt handler, while the channel is published.
    #[inline(always)]
    pub(crate) fn run_in_interrupt(&self) {
        if let Some(rx) = self.receiver_for_handler() {
            let mut rx = ManuallyDrop::new(rx);
            // SAFETY: The channel is open.
            unsafe { (self.callback.func)(self.callback.ctx, &mut rx) };
            // What dropping it does, as part of this function.
            // SAFETY: `rx` holds the receiving side, and is not used any more.
            unsafe {
                self.commit_read();
                self.release_receiver();
            }
        }
    }

    /// Tells the handler of a channel in mode [`CallbackMode::Poll`] that the host has signalled. While the channel is published.
    #[inline]
    pub(crate) fn call_signal(&self) {
        // SAFETY: The channel is open.
        unsafe { (self.callback.signal)(self.callback.ctx) };
    }

    /// Calls the handler. Returns true when it must be called again because more came in. In the interrupt handler or the
    /// channel's tasklet, while the channel is published.
    pub(crate) fn run_handler(&self) -> bool {
        if self.callback.mode == CallbackMode::Poll {
            self.call_signal();
            return false;
        }
        let Some(mut rx) = self.receiver_for_handler() else {
            return false;
        };
        match self.callback.mode {
            CallbackMode::Isr => {
                // SAFETY: The channel is open.
                unsafe { (self.callback.func)(self.callback.ctx, &mut rx) };
                false
            }
            mode => {
                if mode == CallbackMode::Batched {
                    // SAFETY: `rx` holds the receiving side.
                    unsafe { self.mask() };
                }
                // SAFETY: The channel is open.
                unsafe { (self.callback.func)(self.callback.ctx, &mut rx) };
                // SAFETY: `rx` holds the receiving side.
                unsafe { self.finish_read() }
            }
        }
    }

    // --- Statistics.

    /// Control words of the outgoing (`true`) or the incoming ring, for sysfs.
    pub(crate) fn view(&self, outgoing: bool) -> RingView {
        if outgoing {
            self.out_view
        } else {
            self.in_view
        }
    }
}

#[pinned_drop]
impl PinnedDrop for OpenCore {
    fn drop(self: Pin<&mut Self>) {
        let this = self.project();
        // SAFETY: Dropped here and nowhere else.
        let (maps, pages) = unsafe {
            (
                ManuallyDrop::take(this.maps),
                ManuallyDrop::take(this.pages),
            )
        };
        drop(maps);
        if !this.held.load(Ordering::Acquire) {
            drop(pages);
        } else {
            pages.leak();
        }
    }
}
