// SPDX-License-Identifier: GPL-2.0

//! Channels as drivers use them.
//!
//! A channel is one of two typed states, and moving between them consumes it:
//!
//! ```text
//! Device::channel() ──> Channel<Offered> ──open()──> Channel<Open<H>> ──close()──> Channel<Offered>
//!                            │ drop: back to the device     │ drop: closes
//! ```
//!
//! An open channel has a pair of rings. [`Sender`] puts packets into the outgoing one, from any context. What comes in is
//! taken out by a [`Receiver`], of which there is one at a time: normally the one that the [`Handler`] gets.

use core::mem::ManuallyDrop;
use kernel::{prelude::*, sync::Arc};
use vmbus_proto::{
    msg::{Relid, USER_DATA_SIZE},
    ring::{Consumer, Incoming, Producer, RingMemory},
};

use crate::{
    chan::Chan,
    open::{Callback, OpenCore},
    ring::RingView,
};

pub use crate::open::Sending;
pub use vmbus_proto::{
    packet::{PacketDescriptor, PacketFlags, PacketKind, PacketType},
    range::{GpaRangeHeader, GpaRun},
    ring::{load_word, Filled, GpaDirectRoom, PacketView, PacketWriter, Taken, WriteError},
};

/// Why a packet was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The ring is full: try again when the host has read. With [`Sender::request_space`] the handler is called then.
    Full {
        /// Bytes that must be free.
        needed: u32,
    },
    /// The channel is closed, or was taken away by the host.
    Closed,
    /// The packet never fits the ring, or was not what it was announced to be: a mistake of the driver.
    Invalid,
    /// The host broke the rules of the ring.
    Broken,
}

impl From<SendError> for Error {
    fn from(e: SendError) -> Self {
        match e {
            SendError::Full { .. } => EAGAIN,
            SendError::Closed => ENODEV,
            SendError::Invalid => EINVAL,
            SendError::Broken => EIO,
        }
    }
}

/// Why no packet can be received any more. The channel can only be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvError {
    /// The host broke the rules of the ring.
    Broken,
}

impl From<RecvError> for Error {
    fn from(e: RecvError) -> Self {
        match e {
            RecvError::Broken => EIO,
        }
    }
}

/// The outgoing ring's producer, for packets that [`Sender`] has no method for. See [`Sender::send_with`].
///
/// Only what writes packets can be reached: a driver that held the producer itself could exchange it for that of another
/// channel, or keep its memory beyond the channel's life.
pub struct RingProducer<'a>(&'a mut Producer<RingView>);

impl<'a> RingProducer<'a> {
    #[inline(always)]
    pub(crate) fn new(ring: &'a mut Producer<RingView>) -> Self {
        Self(ring)
    }

    /// Size in bytes of the ring's data area.
    #[inline]
    pub fn size(&self) -> u32 {
        self.0.size()
    }

    /// See [`Producer::has_room`].
    ///
    /// # Errors
    /// See there.
    #[inline]
    pub fn has_room(&mut self, bytes: u32) -> Result<bool, WriteError> {
        Ok(self.0.has_room(bytes)?)
    }

    /// See [`Producer::begin`].
    ///
    /// # Errors
    /// See there.
    #[inline]
    pub fn begin(
        &mut self,
        packet_type: PacketType,
        flags: PacketFlags,
        transaction_id: u64,
        extra: usize,
        payload: usize,
    ) -> Result<PacketWriter<'_, RingView>, WriteError> {
        self.0
            .begin(packet_type, flags, transaction_id, extra, payload)
    }

    /// See [`Producer::send_in_band`].
    ///
    /// # Errors
    /// See there.
    #[inline]
    pub fn send_in_band(
        &mut self,
        payload: &[u8],
        transaction_id: u64,
        completion: bool,
    ) -> Result<(), WriteError> {
        self.0.send_in_band(payload, transaction_id, completion)
    }

    /// See [`Producer::send_words`].
    ///
    /// # Errors
    /// See there.
    #[inline(always)]
    pub fn send_words<const N: usize>(
        &mut self,
        keep: u32,
        packet_type: PacketType,
        flags: PacketFlags,
        transaction_id: u64,
        payload: [u64; N],
    ) -> Result<(), WriteError> {
        self.0
            .send_words(keep, packet_type, flags, transaction_id, payload)
    }

    /// See [`Producer::put_words`].
    #[inline(always)]
    #[must_use]
    pub fn put_words<const N: usize>(
        &mut self,
        keep: u32,
        packet_type: PacketType,
        flags: PacketFlags,
        transaction_id: u64,
        payload: [u64; N],
    ) -> bool {
        self.0
            .put_words(keep, packet_type, flags, transaction_id, payload)
    }

    /// See [`Producer::send_gpa_ranges`].
    ///
    /// # Errors
    /// See there.
    #[inline(always)]
    pub fn send_gpa_ranges<const N: usize>(
        &mut self,
        keep: u32,
        ranges: &[GpaRun],
        transaction_id: u64,
        payload: [u64; N],
    ) -> Result<(), WriteError> {
        self.0
            .send_gpa_ranges(keep, ranges, transaction_id, payload)
    }

    /// See [`Producer::begin_gpa_direct`].
    #[inline(always)]
    pub fn begin_gpa_direct<const N: usize>(
        &self,
        keep: u32,
        range: GpaRangeHeader,
    ) -> Option<GpaDirectRoom<'_, N>> {
        self.0.begin_gpa_direct(keep, range)
    }

    /// See [`Producer::finish_gpa_direct`].
    #[inline(always)]
    pub fn finish_gpa_direct(&mut self, packet: Filled) {
        self.0.finish_gpa_direct(packet);
    }

    /// See [`Producer::send_gpa_direct`].
    ///
    /// # Errors
    /// See there.
    #[inline]
    pub fn send_gpa_direct(
        &mut self,
        range: GpaRangeHeader,
        pfns: impl IntoIterator<Item = u64>,
        payload: &[u8],
        transaction_id: u64,
    ) -> Result<(), WriteError> {
        self.0.send_gpa_direct(range, pfns, payload, transaction_id)
    }
}

/// How the bus calls a [`Handler`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallbackMode {
    /// In a tasklet, with the host's interrupts for the channel masked. The bus calls again until the ring is found empty
    /// after unmasking. For busy channels.
    Batched,
    /// In a tasklet, interrupts not masked: the host interrupts for each packet put into an empty ring.
    Direct,
    /// In the interrupt handler itself, interrupts not masked. For handlers that are short, or that mask interrupts and take
    /// care of the ring elsewhere. See [`Receiver::call_again`].
    Isr,
    /// In the interrupt handler itself, with the host's interrupts for the channel masked, and without the receiving side:
    /// [`Handler::on_signal`] has the ring read elsewhere, as NAPI does, with [`Endpoint::try_receiver`] and
    /// [`Receiver::mask_interrupts`] first and [`Receiver::finish`] in the end.
    Poll,
}

/// What a driver does when the host has put something into the channel's ring.
///
/// Dropped when the channel is closed, after the last call has returned.
pub trait Handler: Send + Sync {
    /// How to call it.
    const MODE: CallbackMode = CallbackMode::Batched;

    /// Called when packets may be waiting; there need not be any. In softirq context (interrupt context with
    /// [`CallbackMode::Isr`]): must not sleep, and must not drop the channel. Never called twice at a time.
    ///
    /// Take packets with [`rx.next_into()`](Receiver::next_into) or its like until it returns `None`; what is left stays in the ring and, in batched mode, makes the
    /// bus call again at once.
    ///
    /// After the host has taken the channel away there is one more call, in softirq context, in which
    /// [`rx.is_rescinded()`](Receiver::is_rescinded) is true: what is in the ring then is all that ever comes.
    ///
    /// Not called with [`CallbackMode::Poll`].
    fn on_channel(self: Pin<&Self>, rx: &mut Receiver<'_>) {
        let _ = rx;
    }

    /// With [`CallbackMode::Poll`]: the host has signalled, or has taken the channel away. Interrupt or softirq context.
    fn on_signal(self: Pin<&Self>) {}

    /// The open channel interrupts another CPU from now on. Process context; must neither open nor close a channel.
    fn on_moved(self: Pin<&Self>) {}
}

/// Takes the subchannels of a device; see [`Device::on_subchannels`](crate::device::Device::on_subchannels).
pub trait Subchannels: Send + Sync + 'static {
    /// The host offers a further channel of the device. Process context, may sleep and wait for the host; one call at a time.
    ///
    /// The channel is opened here or later, with a handler of its own, or dropped. When the host takes it away it is
    /// closed as the primary channel is, and the handle is of no more use.
    fn offered(&self, channel: Channel<Offered>);
}

/// Parameters of [`Channel::open`].
#[derive(Clone, Copy, Debug)]
pub struct OpenParams<'a> {
    /// Size in bytes of the outgoing ring, its header page included: a multiple of 4096, at least 8192.
    pub send_ring: usize,
    /// Likewise of the incoming ring.
    pub recv_ring: usize,
    /// Data for the host's device, at most 120 bytes.
    pub user_data: &'a [u8],
}

impl OpenParams<'_> {
    /// Two rings of `ring` bytes each, no user data.
    pub const fn new(ring: usize) -> Self {
        Self {
            send_ring: ring,
            recv_ring: ring,
            user_data: &[],
        }
    }

    pub(crate) fn check(&self) -> Result {
        let ring_ok = |size: usize| size % 4096 == 0 && (8192..=16 << 20).contains(&size);
        if ring_ok(self.send_ring)
            && ring_ok(self.recv_ring)
            && self.user_data.len() <= USER_DATA_SIZE
        {
            Ok(())
        } else {
            Err(EINVAL)
        }
    }
}

mod private {
    use super::{Arc, Chan};

    #[allow(private_interfaces)]
    pub trait State {
        /// Leaves the state, before it is dropped.
        fn leave(&mut self, chan: &Arc<Chan>);
    }
}

/// State of a [`Channel`]: on offer by the host, not open.
pub struct Offered(());

impl private::State for Offered {
    #[allow(private_interfaces)]
    fn leave(&mut self, _chan: &Arc<Chan>) {}
}

/// State of a [`Channel`]: open, with `H` called for what comes in.
pub struct Open<H> {
    core: Arc<OpenCore>,
    // Callbacks borrow it until `core` is closed, which `leave` sees to.
    handler: Pin<KBox<H>>,
}

impl<H> private::State for Open<H> {
    #[allow(private_interfaces)]
    fn leave(&mut self, chan: &Arc<Chan>) {
        chan.close(&self.core);
    }
}

/// The handle of a channel. See the [module's documentation](self).
///
/// Dropping an open channel closes it, which sleeps and waits for callbacks in progress: not allowed in a callback. When the
/// device is unbound the bus closes its channels in any case; a handle that still exists is inert from then on.
///
/// # Invariants
/// The only handle of `chan` in the device's binding `binding`.
pub struct Channel<S: private::State = Offered> {
    chan: Arc<Chan>,
    binding: u32,
    state: S,
}

impl Channel<Offered> {
    pub(crate) fn take(chan: &Arc<Chan>) -> Result<Self> {
        if chan.is_rescinded() {
            return Err(ENODEV);
        }
        let binding = chan.take_handle().ok_or(EBUSY)?;
        // INVARIANT: `take_handle` says yes to one at a time.
        Ok(Self {
            chan: chan.clone(),
            binding,
            state: Offered(()),
        })
    }

    /// Opens the channel: allocates the rings, shows them to the host (GPADL) and asks it to open. `handler` may be called
    /// for what comes in before this returns. Process context, sleeps; waits for the host's answers.
    ///
    /// # Errors
    /// `EINVAL` for sizes out of range, `ENOMEM`, `ENODEV` when the host took the channel away, `EIO` when it refused,
    /// `ETIMEDOUT` when it did not answer. The channel has then gone back to the device.
    #[doc(alias = "vmbus_open")]
    pub fn open<H>(
        self,
        params: &OpenParams<'_>,
        handler: impl PinInit<H, Error>,
    ) -> Result<Channel<Open<H>>>
    where
        H: Handler + 'static,
    {
        self.try_open(params, handler).map_err(|(e, _)| e)
    }

    /// As [`open`](Self::open), for who may want to try again.
    ///
    /// # Errors
    /// As there, with the channel.
    pub fn try_open<H>(
        self,
        params: &OpenParams<'_>,
        handler: impl PinInit<H, Error>,
    ) -> Result<Channel<Open<H>>, (Error, Self)>
    where
        H: Handler + 'static,
    {
        match self.open_core(params, handler) {
            Ok(open) => Ok(self.change(open)),
            Err(e) => Err((e, self)),
        }
    }

    fn open_core<H>(
        &self,
        params: &OpenParams<'_>,
        handler: impl PinInit<H, Error>,
    ) -> Result<Open<H>>
    where
        H: Handler + 'static,
    {
        params.check()?;
        let handler = KBox::pin_init(handler, GFP_KERNEL)?;
        let callback = Callback {
            mode: H::MODE,
            func: call_handler::<H>,
            signal: call_signal::<H>,
            moved: call_moved::<H>,
            ctx: core::ptr::from_ref(&*handler).cast(),
        };
        let core = self.chan.open(params, callback, self.binding)?;
        Ok(Open { core, handler })
    }
}

/// Calls a handler of type `H`.
///
/// # Safety
/// `ctx` points to a pinned `H`, which lives during the call.
unsafe fn call_handler<H: Handler>(ctx: *const (), rx: &mut Receiver<'_>) {
    // SAFETY: By the requirement.
    unsafe { Pin::new_unchecked(&*ctx.cast::<H>()) }.on_channel(rx);
}

/// Tells a handler of type `H` that the host has signalled.
///
/// # Safety
/// `ctx` points to a pinned `H`, which lives during the call.
unsafe fn call_signal<H: Handler>(ctx: *const ()) {
    // SAFETY: By the requirement.
    unsafe { Pin::new_unchecked(&*ctx.cast::<H>()) }.on_signal();
}

/// Tells a handler of type `H` that the channel has moved.
///
/// # Safety
/// `ctx` points to a pinned `H`, which lives during the call.
unsafe fn call_moved<H: Handler>(ctx: *const ()) {
    // SAFETY: By the requirement.
    unsafe { Pin::new_unchecked(&*ctx.cast::<H>()) }.on_moved();
}

impl<S: private::State> Channel<S> {
    /// Moves the handle into another state, without leaving the old one.
    fn change<T: private::State>(self, state: T) -> Channel<T> {
        let this = ManuallyDrop::new(self);
        // SAFETY: `this` is not dropped, so that its `chan` is moved, not copied.
        let chan = unsafe { core::ptr::read(&this.chan) };
        // INVARIANT: `this` is gone.
        Channel {
            chan,
            binding: this.binding,
            state,
        }
    }

    pub(crate) fn chan(&self) -> &Arc<Chan> {
        &self.chan
    }

    /// Number of the channel.
    pub fn relid(&self) -> Relid {
        self.chan.relid()
    }

    /// Which of the device's channels it is: 0 the primary one, others as the host counts them.
    pub fn index(&self) -> u16 {
        self.chan.offer.subchannel_index
    }

    /// CPU that the host interrupts for the channel.
    pub fn target_cpu(&self) -> u32 {
        self.chan.target_cpu()
    }

    /// Whether the host has taken the channel away.
    pub fn is_rescinded(&self) -> bool {
        self.chan.is_rescinded()
    }
}

impl<H> Channel<Open<H>> {
    /// The handler.
    pub fn handler(&self) -> Pin<&H> {
        self.state.handler.as_ref()
    }

    /// What sends into the channel.
    pub fn sender(&self) -> Sender<'_> {
        Sender {
            core: &self.state.core,
        }
    }

    /// A sender that may be kept anywhere; it fails with [`SendError::Closed`] once the channel is closed.
    pub fn shared_sender(&self) -> SharedSender {
        SharedSender {
            core: self.state.core.clone(),
        }
    }

    /// Both ends, to be kept anywhere.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            core: self.state.core.clone(),
        }
    }

    /// Closes the channel and gives back the handle, for opening it again. Process context, sleeps.
    #[doc(alias = "vmbus_close")]
    pub fn close(self) -> Channel<Offered> {
        let mut this = ManuallyDrop::new(self);
        let chan = this.chan.clone();
        private::State::leave(&mut this.state, &chan);
        drop(chan);
        // SAFETY: `this` is not dropped, so that both fields are moved out once.
        let (chan, state) = unsafe { (core::ptr::read(&this.chan), core::ptr::read(&this.state)) };
        let binding = this.binding;
        drop(state);
        // INVARIANT: `this` is gone.
        Channel {
            chan,
            binding,
            state: Offered(()),
        }
    }
}

impl<S: private::State> Drop for Channel<S> {
    fn drop(&mut self) {
        self.state.leave(&self.chan);
        self.chan.give_handle(self.binding);
    }
}

/// Puts packets into the outgoing ring of an open channel. Any context; a spinlock with interrupts off is held for the time
/// of the copy. The host is signalled when the ring was empty before, as the protocol wants.
#[derive(Clone, Copy)]
pub struct Sender<'a> {
    core: &'a OpenCore,
}

impl Sender<'_> {
    /// Sends `payload`. With `completion`, asks the host to answer with a completion packet that carries `transaction_id`.
    ///
    /// # Errors
    /// [`SendError::Full`]: try later, when the host has made room. Others: for good.
    #[doc(alias = "vmbus_sendpacket")]
    pub fn send_inband(
        &self,
        payload: &[u8],
        transaction_id: u64,
        completion: bool,
    ) -> Result<(), SendError> {
        self.core
            .send(|ring| ring.send_in_band(payload, transaction_id, completion))
    }

    /// Sends the completion of the host's packet `transaction_id`.
    ///
    /// # Errors
    /// As for [`send_inband`](Self::send_inband).
    pub fn send_completion(&self, transaction_id: u64, payload: &[u8]) -> Result<(), SendError> {
        self.core
            .send(|ring| ring.send_completion(transaction_id, payload))
    }

    /// Writes packets of any kind with `write`, which runs with interrupts off; all of them become visible to the host
    /// together, or none when it fails.
    ///
    /// # Errors
    /// As for [`send_inband`](Self::send_inband).
    #[inline]
    pub fn send_with(
        &self,
        write: impl FnOnce(&mut RingProducer<'_>) -> Result<(), WriteError>,
    ) -> Result<(), SendError> {
        self.core.send(|ring| write(&mut RingProducer(ring)))
    }

    /// As [`send_with`](Self::send_with), for a packet that stands for `value`, in the fewest instructions: `write` takes that when
    /// the packet is written, and gives it back when it is not.
    ///
    /// # Errors
    /// `value`, when nothing was sent: another way of sending tells why.
    #[inline(always)] // For the caller who sends much.
    pub fn try_send_value<T>(
        &self,
        value: T,
        write: impl FnOnce(&mut RingProducer<'_>, T) -> Result<(), T>,
    ) -> Result<(), T> {
        self.core
            .try_send_value(value, |ring, value| write(&mut RingProducer(ring), value))
    }

    /// As [`send_with`](Self::send_with), for a packet that stands for `value`: `write` takes it when the packet is written, and
    /// gives it back with the error when not; so does this.
    ///
    /// # Errors
    /// As for [`send_inband`](Self::send_inband).
    #[inline]
    pub fn send_value<T>(
        &self,
        value: T,
        write: impl FnOnce(&mut RingProducer<'_>, T) -> Result<(), (WriteError, T)>,
    ) -> Result<(), (SendError, T)> {
        self.core
            .send_value(value, |ring, value| write(&mut RingProducer(ring), value))
    }

    /// After [`SendError::Full`]: asks the host for a signal, and so for a call of the handler, once there is room. True
    /// when there is room already: try again at once, no signal will come.
    ///
    /// # Errors
    /// [`SendError`], but for `Full`.
    pub fn request_space(&self, needed: u32) -> Result<bool, SendError> {
        self.core.request_space(needed)
    }
}

impl<'a> Sender<'a> {
    /// Takes the outgoing ring, to write packets that become visible to the host together with [`Sending::commit`], and do not
    /// exist when the result is dropped before. With interrupts off, so for a short time. `None`: nothing may be sent; another way of
    /// sending tells why.
    #[inline(always)] // For the caller who sends much.
    pub fn begin(self) -> Option<Sending<'a>> {
        self.core.begin_send()
    }
}

impl Sender<'_> {
    /// Size in bytes of the outgoing ring's data area.
    pub fn ring_size(&self) -> u32 {
        self.core.view(true).data_size()
    }

    /// Bytes that are free in the outgoing ring, about: it changes at any time.
    pub fn free_bytes(&self) -> u32 {
        self.ring_size().saturating_sub(self.core.view(true).used())
    }

    /// CPU that the host interrupts for the channel.
    #[inline]
    pub fn target_cpu(&self) -> u32 {
        self.core.target_cpu()
    }

    /// Whether the host has taken the channel away.
    #[inline]
    pub fn is_rescinded(&self) -> bool {
        self.core.is_rescinded()
    }
}

/// A [`Sender`] that shares ownership of the channel's rings.
#[derive(Clone)]
pub struct SharedSender {
    core: Arc<OpenCore>,
}

impl SharedSender {
    /// The sender.
    #[inline]
    pub fn sender(&self) -> Sender<'_> {
        Sender { core: &self.core }
    }
}

/// As [`SharedSender`], with the receiving side: for drivers that do not leave that to the callback.
#[derive(Clone)]
pub struct Endpoint {
    core: Arc<OpenCore>,
}

impl Endpoint {
    /// The sender.
    #[inline]
    pub fn sender(&self) -> Sender<'_> {
        Sender { core: &self.core }
    }

    /// Whether both rings are empty at this moment.
    pub fn is_idle(&self) -> bool {
        self.core.view(true).used() == 0 && self.core.view(false).used() == 0
    }

    /// Takes the receiving side; `None` while it is in use. While it exists the handler is not called, so look with
    /// [`Receiver::finish`] before dropping it. Not after the channel was closed.
    #[inline]
    pub fn try_receiver(&self) -> Option<Receiver<'_>> {
        self.core.try_receiver()
    }

    /// Whether the host has taken the channel away.
    #[inline]
    pub fn is_rescinded(&self) -> bool {
        self.core.is_rescinded()
    }
}

/// A packet of which a part was copied; see [`Receiver::next_into`].
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// The checked descriptor.
    pub descriptor: PacketDescriptor,
    /// Bytes of payload that were copied.
    pub len: usize,
}

/// A packet in the incoming ring, whose descriptor was copied and checked. The host may change the rest at any time: copy each
/// byte once, and look at the copy.
#[derive(Clone, Copy)]
pub struct InRing<'a> {
    ring: &'a Consumer<RingView>,
    incoming: Incoming,
}

impl<'a> InRing<'a> {
    #[inline]
    pub(crate) fn new(ring: &'a Consumer<RingView>, incoming: Incoming) -> Self {
        Self { ring, incoming }
    }

    /// The checked descriptor.
    #[inline]
    pub fn descriptor(&self) -> &PacketDescriptor {
        &self.incoming.descriptor
    }

    /// `N` words of the packet, from `offset` (in bytes) within it on; `None` when there are not so many.
    #[inline]
    pub fn raw_words<const N: usize>(&self, offset: u32) -> Option<[u64; N]> {
        self.ring.copy_words(&self.incoming, offset)
    }

    /// Copies the payload, or as much of it as `out` takes; returns how much that was.
    pub fn copy_payload(&self, out: &mut [u8]) -> usize {
        let len = out.len().min(self.descriptor().payload_len() as usize);
        let Some(part) = out.get_mut(..len) else {
            return 0;
        };
        let offset = self.descriptor().payload_offset();
        if self.ring.copy(&self.incoming, offset, part) {
            len
        } else {
            0
        }
    }

    /// `N` words of the payload, from `offset` (in bytes) within it on; `None` when there are not so many.
    #[inline]
    pub fn words<const N: usize>(&self, offset: u32) -> Option<[u64; N]> {
        let start = self.descriptor().payload_offset().checked_add(offset)?;
        self.ring.copy_words(&self.incoming, start)
    }
}

/// Takes packets out of the incoming ring of an open channel.
///
/// # Invariants
/// The only receiver of `core`: it holds the receiving side.
pub struct Receiver<'a> {
    core: &'a OpenCore,
}

impl<'a> Receiver<'a> {
    /// # Safety
    /// The caller holds the receiving side of `core`, and gives it to the new receiver.
    pub(crate) unsafe fn new(core: &'a OpenCore) -> Self {
        // INVARIANT: By the requirement.
        Self { core }
    }

    /// The next packet, of which the first `N` bytes of payload are copied out of the ring into `payload`, and nothing else.
    /// `None` when there is none.
    ///
    /// The room that packets took is given back to the host when the receiver is dropped, which for a handler's is after it
    /// returns, or by [`commit`](Self::commit).
    ///
    /// # Errors
    /// When the host broke the rules of the ring: the channel can only be closed then. Logged once.
    #[inline]
    pub fn next_into<const N: usize>(
        &mut self,
        payload: &mut [u8; N],
    ) -> Result<Option<Received>, RecvError> {
        // SAFETY: This is the only receiver by the type's invariant.
        unsafe { self.core.recv_into(payload) }
    }

    /// See [`Consumer::take_completion`]; what goes wrong is left to [`next_with`](Self::next_with).
    #[inline]
    pub fn take_completion<const N: usize, R>(
        &mut self,
        payload: u32,
        take: impl FnOnce(u64, &[u64; N]) -> Option<R>,
    ) -> Option<R> {
        // SAFETY: This is the only receiver by the type's invariant.
        unsafe { self.core.recv_completion(payload, take) }
    }

    /// See [`Consumer::take`]; what goes wrong is left to [`next_with`](Self::next_with). The room that the packets took is given back
    /// with [`commit`](Self::commit) or [`finish`](Self::finish) alone: for who reads a limited number of packets at a time.
    #[inline(always)]
    pub fn take<R>(&mut self, take: impl FnOnce(&PacketView<'_>) -> Option<R>) -> Taken<R> {
        // SAFETY: This is the only receiver by the type's invariant.
        unsafe { self.core.recv_take(take) }
    }

    /// See [`Consumer::is_drained`].
    #[inline]
    pub fn is_drained(&self) -> bool {
        // SAFETY: This is the only receiver by the type's invariant.
        unsafe { self.core.is_drained() }
    }

    /// Shows the next packet to `take` where it lies in the ring, and moves on. `None` when there is none.
    ///
    /// # Errors
    /// When the host broke the rules of the ring: the channel can only be closed then. Logged once.
    #[inline]
    pub fn next_with<R>(
        &mut self,
        take: impl FnOnce(&InRing<'_>) -> R,
    ) -> Result<Option<R>, RecvError> {
        // SAFETY: This is the only receiver by the type's invariant.
        unsafe { self.core.recv_with(take) }
    }

    /// Has the handler called once more in softirq context, soon after it returned: for one that leaves packets in the ring
    /// since it was called for long enough.
    pub fn call_again(&self) {
        self.core.call_again();
    }

    /// Whether the host has taken the channel away: it puts nothing more into the ring.
    #[inline]
    pub fn is_rescinded(&self) -> bool {
        self.core.is_rescinded()
    }

    /// Gives the room of the packets read back to the host now, and signals it when it waits for that.
    #[inline]
    pub fn commit(&mut self) {
        // SAFETY: This is the only receiver by the type's invariant.
        unsafe { self.core.commit_read() };
    }

    /// Asks the host not to interrupt, until [`finish`](Self::finish). Batched mode does both by itself.
    #[inline]
    pub fn mask_interrupts(&mut self) {
        // SAFETY: This is the only receiver by the type's invariant.
        unsafe { self.core.mask() };
    }

    /// Commits, and lets the host interrupt again. True when packets came in meanwhile: read on, since the host will not
    /// interrupt for them.
    #[inline]
    #[must_use = "the host will not interrupt for packets that are there already"]
    pub fn finish(&mut self) -> bool {
        // SAFETY: This is the only receiver by the type's invariant.
        unsafe { self.core.finish_read() }
    }

    /// What sends into the same channel, to answer packets.
    #[inline]
    pub fn sender(&self) -> Sender<'a> {
        Sender { core: self.core }
    }
}

impl Drop for Receiver<'_> {
    #[inline]
    fn drop(&mut self) {
        self.commit();
        // SAFETY: The receiver holds the receiving side by the type's invariant, and is not used any more.
        unsafe { self.core.release_receiver() };
    }
}
