// SPDX-License-Identifier: GPL-2.0

//! The services that a daemon in user space serves (KVP, backup, file copy): a channel on one side, a device node on the other,
//! and [`Machine`] between them.
//!
//! All of it runs in process context, under one mutex for each device. The channel's interrupt only schedules [`Desk::step`], which takes
//! one request at a time; what else the host sends stays in the ring meanwhile, with its interrupts masked.

use crate::ic::RING;
use core::{marker::PhantomPinned, ops::DerefMut};
use hv_vmbus::{
    channel::{
        CallbackMode,
        Channel,
        Endpoint,
        Handler,
        Open,
        OpenParams,
        PacketType,
        Receiver,
        SendError, //
    },
    device::Device,
    log::Show,
    new_deferred, ratelimited,
    services::{
        chardev::{Files, Node, Readiness, Signal},
        deferred::{Deferred, Run},
    },
};
use kernel::{
    device::Core,
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
    time::{Instant, Monotonic},
    uaccess::{UserSliceReader, UserSliceWriter},
};
use vmbus_proto::ic::exchange::{
    Buffers, Event, Fcopy, Kvp, Machine, Millis, Service, Step, Vss, WriteError, MAX_MESSAGE,
    MAX_PACKET,
};

#[cfg(CONFIG_KUNIT = "y")]
#[allow(unsafe_code)] // What `kunit_tests` makes of it.
#[path = "../../kunit/utils.rs"]
mod kunit;

/// After how long an answer that found no room is sent again.
const RETRY_MS: u32 = 2;

/// A service and its device node.
pub(crate) trait Daemon: Service + Send + Unpin + 'static {
    /// Path below `/dev`.
    const NODE: &'static CStr;

    /// A service without a daemon.
    fn start() -> Self;
}

impl Daemon for Kvp {
    const NODE: &'static CStr = c"vmbus/hv_kvp";

    fn start() -> Self {
        Self::new()
    }
}

impl Daemon for Vss {
    const NODE: &'static CStr = c"vmbus/hv_vss";

    fn start() -> Self {
        Self::new()
    }
}

impl Daemon for Fcopy {
    const NODE: &'static CStr = c"vmbus/hv_fcopy";

    fn start() -> Self {
        Self
    }
}

/// What is shared by channel, files and task.
#[pin_data]
pub(crate) struct Desk<S: Daemon> {
    #[pin]
    state: Mutex<State<S>>,
    signal: Signal,
    started: Instant<Monotonic>,
}

struct State<S: Daemon> {
    machine: Machine<S>,
    buffers: KBox<Buffers>,
    /// What a daemon writes, copied here before it is looked at.
    written: KBox<[u8; MAX_MESSAGE]>,
    /// The open channel.
    endpoint: Option<Endpoint>,
    /// An answer for which there was no room yet: its length and transaction id. It is still in the buffer, so that no further
    /// packet is taken.
    unsent: Option<(usize, u64)>,
    /// The device goes away.
    gone: bool,
}

impl<S: Daemon> Desk<S> {
    fn new() -> Result<Arc<Self>> {
        let state = State {
            machine: Machine::new(S::start()),
            buffers: KBox::init(zeroed_buffers(), GFP_KERNEL)?,
            written: KBox::init(pin_init::init_zeroed(), GFP_KERNEL)?,
            endpoint: None,
            unsent: None,
            gone: false,
        };
        let signal = Signal::new()?;
        Arc::pin_init(
            pin_init!(Self {
                state <- new_mutex!(state, "hv_utils_rs::Desk"),
                signal,
                started: Instant::now(),
            }),
            GFP_KERNEL,
        )
    }

    fn now(&self) -> Millis {
        Millis::try_from(self.started.elapsed().as_millis()).unwrap_or(0)
    }

    /// Carries out what the machine decided, and tells readers of the node.
    fn settle(&self, state: &mut State<S>, step: Step) {
        if step.reply.is_some() {
            state.unsent = step.reply;
            self.send(state);
        }
        match step.event {
            None | Some(Ok(Event::Asked | Event::Answered(_) | Event::NoDaemon)) => {}
            Some(Ok(Event::Negotiated(v))) => {
                let (major, minor) = (v.message.major(), v.message.minor());
                ratelimited!(pr_info, "{} IC version {}.{}\n", S::NAME, major, minor);
            }
            Some(Ok(Event::Registered)) => {
                ratelimited!(pr_info, "{}: userspace daemon connected\n", S::NAME);
            }
            Some(Ok(Event::TimedOut)) => {
                ratelimited!(
                    pr_warn,
                    "{}: timeout waiting for daemon to reply\n",
                    S::NAME
                );
            }
            Some(Err(e)) => ratelimited!(pr_err, "{}: {}\n", S::NAME, Show(e)),
        }
        let readiness = match state.machine.message(&state.buffers) {
            Some(_) => Readiness::Message,
            None => Readiness::Nothing,
        };
        self.signal.set(readiness);
    }

    /// Sends the answer that waits. A host may ask again before it has given back the room of the last answer, and two
    /// long ones are more than a ring: the task tries again.
    fn send(&self, state: &mut State<S>) {
        let (Some((len, id)), Some(endpoint)) = (state.unsent, &state.endpoint) else {
            state.unsent = None;
            return;
        };
        let sent = match state.buffers.packet.get(..len) {
            Some(packet) => endpoint.sender().send_inband(packet, id, false),
            None => Ok(()),
        };
        if !matches!(sent, Err(SendError::Full { .. })) {
            state.unsent = None;
        }
    }

    /// Takes packets from the ring as long as the machine wants them.
    fn receive(&self, state: &mut State<S>) {
        let Some(endpoint) = state.endpoint.clone() else {
            return;
        };
        // In use means that the bus is about to signal again.
        let Some(mut rx) = endpoint.try_receiver() else {
            return;
        };
        rx.mask_interrupts();
        while state.machine.wants_packet() && state.unsent.is_none() {
            match self.next(state, &mut rx) {
                Ok(true) => {}
                Ok(false) => {
                    if !rx.finish() {
                        break;
                    }
                    rx.mask_interrupts();
                }
                // The channel is of no more use.
                Err(()) => break,
            }
        }
    }

    /// Handles the next packet; false when there is none.
    fn next(&self, state: &mut State<S>, rx: &mut Receiver<'_>) -> core::result::Result<bool, ()> {
        let received = match rx.next_into::<MAX_PACKET>(&mut state.buffers.packet) {
            Ok(Some(received)) => received,
            Ok(None) => return Ok(false),
            Err(_) => return Err(()),
        };
        rx.commit();
        let descriptor = received.descriptor;
        if descriptor.packet_type != PacketType::DATA_INBAND
            || descriptor.payload_len() as usize > MAX_PACKET
        {
            ratelimited!(
                pr_err,
                "{}: packet of another kind, or of {} bytes\n",
                S::NAME,
                descriptor.payload_len()
            );
            return Ok(true);
        }
        let State {
            machine, buffers, ..
        } = state;
        let step = machine.on_packet(self.now(), received.len, descriptor.transaction_id, buffers);
        self.settle(state, step);
        Ok(true)
    }

    /// The channel is open.
    fn attach(&self, endpoint: Endpoint) {
        self.state.lock().endpoint = Some(endpoint);
    }

    /// The channel is about to be closed.
    fn detach(&self) {
        let mut state = self.state.lock();
        let State {
            machine,
            buffers,
            endpoint,
            ..
        } = state.deref_mut();
        *endpoint = None;
        machine.on_channel_closed(buffers);
        state.unsent = None;
        self.settle(&mut state, Step::NONE);
    }

    /// The device goes away.
    fn leave(&self) {
        self.detach();
        self.state.lock().gone = true;
        self.signal.set(Readiness::Gone);
    }
}

fn zeroed_buffers() -> impl Init<Buffers> {
    // Two fields, since the type itself cannot derive the kernel's traits.
    init!(Buffers {
        packet <- pin_init::init_zeroed(),
        message <- pin_init::init_zeroed(),
    })
}

/// What the task of a device does.
struct Work<S: Daemon>(Arc<Desk<S>>);

impl<S: Daemon> Run for Work<S> {
    fn run(&self) -> Option<u32> {
        let desk = &self.0;
        let mut state = desk.state.lock();
        let now = desk.now();
        let State {
            machine, buffers, ..
        } = state.deref_mut();
        let step = machine.on_time(now, buffers);
        desk.settle(&mut state, step);
        desk.send(&mut state);
        desk.receive(&mut state);
        if state.unsent.is_some() {
            return Some(RETRY_MS);
        }
        let until = state.machine.deadline()?;
        // One more, so that the time is over then.
        u32::try_from(until.saturating_sub(desk.now()).saturating_add(1)).ok()
    }
}

/// What happens on the node.
struct Front<S: Daemon> {
    desk: Arc<Desk<S>>,
    task: Arc<Deferred<Work<S>>>,
}

impl<S: Daemon> Files for Front<S> {
    fn open(&self) -> Result {
        let mut state = self.desk.state.lock();
        if state.gone {
            return Err(EBADF);
        }
        state.machine.on_open().map_err(|_| EBUSY)
    }

    fn release(&self) {
        let mut state = self.desk.state.lock();
        let State {
            machine, buffers, ..
        } = state.deref_mut();
        let step = machine.on_close(buffers);
        self.desk.settle(&mut state, step);
        drop(state);
        self.task.schedule();
    }

    fn read(&self, to: &mut UserSliceWriter) -> Result<usize> {
        let mut state = self.desk.state.lock();
        if state.gone {
            return Err(EBADF);
        }
        let State {
            machine, buffers, ..
        } = state.deref_mut();
        let message = machine.message(buffers).ok_or(EAGAIN)?;
        let len = message.len();
        if to.len() < len {
            return Err(EINVAL);
        }
        to.write_slice(message)?;
        let step = machine.on_read(self.desk.now(), buffers);
        self.desk.settle(&mut state, step);
        drop(state);
        // A request may have waited for this daemon, and others behind it.
        self.task.schedule();
        Ok(len)
    }

    fn write(&self, from: &mut UserSliceReader) -> Result<usize> {
        let mut state = self.desk.state.lock();
        if state.gone {
            return Err(EBADF);
        }
        let whole = from.len();
        let len = whole.min(MAX_MESSAGE);
        let State {
            machine,
            buffers,
            written,
            ..
        } = state.deref_mut();
        let bytes = written.get_mut(..len).ok_or(EINVAL)?;
        from.read_slice(bytes)?;
        let step = match machine.on_write(self.desk.now(), bytes, buffers) {
            Ok(step) => step,
            Err(e) => {
                if let WriteError::Registration(e) = e {
                    ratelimited!(pr_info, "{}: incompatible daemon: {}\n", S::NAME, Show(e));
                }
                return Err(EINVAL);
            }
        };
        self.desk.settle(&mut state, step);
        drop(state);
        self.task.schedule();
        Ok(whole)
    }
}

/// Callback of the channel.
#[pin_data]
pub(crate) struct Bell<S: Daemon> {
    task: Arc<Deferred<Work<S>>>,
    #[pin]
    _pin: PhantomPinned,
}

impl<S: Daemon> Handler for Bell<S> {
    const MODE: CallbackMode = CallbackMode::Poll;

    fn on_signal(self: Pin<&Self>) {
        self.task.schedule();
    }
}

/// The channel of a device, while it is open.
type ChannelLock<S> = Mutex<Option<Channel<Open<Bell<S>>>>>;

/// A bound device. Dropping it tells the daemon that the device is gone, and closes the channel.
pub(crate) struct Exchange<S: Daemon> {
    channel: Pin<KBox<ChannelLock<S>>>,
    desk: Arc<Desk<S>>,
    // After the channel, which may still signal.
    task: Arc<Deferred<Work<S>>>,
    // Files that are open keep desk and task.
    _node: Node<Front<S>>,
}

impl<S: Daemon> Exchange<S> {
    /// Opens the channel of `dev` and makes the node.
    ///
    /// # Errors
    ///
    /// As for [`Channel::open`] and [`Node::register`].
    pub(crate) fn new(dev: &Device<Core<'_>>) -> Result<Self> {
        let desk = Desk::<S>::new()?;
        let task = Arc::new(
            new_deferred!(Work(desk.clone()), c"hv_utils_rs::exchange")?,
            GFP_KERNEL,
        )?;
        let front = Front {
            desk: desk.clone(),
            task: task.clone(),
        };
        let node = Node::register(
            S::NODE,
            hv_vmbus::this_module!(),
            &desk.signal,
            Arc::new(front, GFP_KERNEL)?,
        )?;
        let this = Self {
            channel: KBox::pin_init(new_mutex!(None, "hv_utils_rs::channel"), GFP_KERNEL)?,
            desk,
            task,
            _node: node,
        };
        this.open(dev)?;
        Ok(this)
    }

    /// Opens the channel; also after hibernation.
    ///
    /// # Errors
    ///
    /// As for [`Channel::open`].
    pub(crate) fn open(&self, dev: &Device<Core<'_>>) -> Result {
        let params = OpenParams::new(RING);
        let task = self.task.clone();
        let channel = dev.channel()?.open(
            &params,
            pin_init!(Bell {
                task,
                _pin: PhantomPinned,
            }? Error),
        )?;
        self.desk.attach(channel.endpoint());
        // The host may have signalled before there was an endpoint.
        self.task.schedule();
        *self.channel.lock() = Some(channel);
        Ok(())
    }

    /// Closes the channel, for hibernation.
    pub(crate) fn suspend(&self) {
        self.desk.detach();
        *self.channel.lock() = None;
    }
}

impl<S: Daemon> Drop for Exchange<S> {
    fn drop(&mut self) {
        self.desk.leave();
        *self.channel.lock() = None;
    }
}
