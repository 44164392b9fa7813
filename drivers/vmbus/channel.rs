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
use vmbus_proto::msg::{Relid, USER_DATA_SIZE};

use crate::{
    chan::Chan,
    open::{Callback, OpenCore},
};

mod receive;
mod send;

pub use crate::open::{Sending, Signal};
pub use receive::{InRing, Received, Receiver};
pub use send::{RingProducer, Sender};
pub use vmbus_proto::{
    packet::{PacketDescriptor, PacketFlags, PacketKind, PacketType},
    range::{GpaRangeHeader, GpaRun},
    ring::{
        load_word, Filled, GpaDirectRoom, PacketView, PacketWriter, PutRanges, Shown, Step,
        WriteError,
    },
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
