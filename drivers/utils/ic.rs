// SPDX-License-Identifier: GPL-2.0

//! What all integration components have in common: a channel on which the host asks and the guest answers.

use core::marker::PhantomPinned;
use hv_vmbus::{
    channel::{CallbackMode, Channel, Handler, Open, OpenParams, PacketType, Receiver, SendError},
    device::Device,
    log::Show,
    ratelimited,
};
use kernel::{device::Core, new_spinlock, prelude::*, sync::SpinLock};
use vmbus_proto::ic::{Negotiated, Outcome};

/// Size of each ring in bytes, header page included (C: `HV_UTIL_RING_SEND_SIZE`: 12 KiB and the header).
pub(crate) const RING: usize = 4 * 4096;

/// One kind of integration component.
pub(crate) trait Service: Send + Sync + Sized + 'static {
    /// Name in log lines, as the C driver writes it.
    const NAME: &'static str;

    /// State of an open channel: begins anew at each open, since the host negotiates then.
    type Session: Send + Unpin;

    /// What a packet brings.
    type Event;

    /// The state of a channel that has just been opened.
    fn session(&self) -> Self::Session;

    /// Handles a packet and makes its answer of it. Softirq context.
    fn on_packet(&self, session: &mut Self::Session, packet: &mut [u8]) -> Outcome<Self::Event>;

    /// Acts on what a packet brought, after the answer was sent. Softirq context. Returns the versions if that was a
    /// negotiation.
    fn on_event(&self, event: Self::Event) -> Option<Negotiated>;
}

/// Largest message that is answered, in bytes; the bus takes no longer packets.
const MAX_MESSAGE: usize = 4096;

/// Callback of a service's channel.
#[pin_data]
pub(crate) struct Callback<S: Service> {
    service: S,
    // Taken in softirq context only, and never by two at a time.
    #[pin]
    open: SpinLock<OpenState<S>>,
    #[pin]
    _pin: PhantomPinned,
}

struct OpenState<S: Service> {
    session: S::Session,
    /// Where a request becomes its answer.
    message: KBox<[u8; MAX_MESSAGE]>,
}

impl<S: Service> Callback<S> {
    fn new(service: S) -> impl PinInit<Self, Error> {
        let session = service.session();
        try_pin_init!(Self {
            open <- new_spinlock!(
                OpenState {
                    session,
                    message: KBox::init(pin_init::init_zeroed(), GFP_KERNEL)?,
                },
                "hv_utils_rs::open"
            ),
            service,
            _pin: PhantomPinned,
        }? Error)
    }
}

impl<S: Service> Handler for Callback<S> {
    // A request needs an answer at once and seldom comes with others: masking interrupts would only cost.
    const MODE: CallbackMode = CallbackMode::Direct;

    fn on_channel(self: Pin<&Self>, rx: &mut Receiver<'_>) {
        let tx = rx.sender();
        let mut open = self.open.lock();
        let OpenState { session, message } = &mut *open;
        // A refused packet must not keep the ones behind it from being answered: the host signals only when it finds the
        // ring empty.
        while let Ok(Some(packet)) = rx.next_into(message) {
            if packet.descriptor.packet_type != PacketType::DATA_INBAND {
                ratelimited!(
                    pr_err,
                    "{} IC: packet of another kind than in-band\n",
                    S::NAME
                );
                continue;
            }
            let len = packet.descriptor.payload_len() as usize;
            let Some(message) = message.get_mut(..len) else {
                ratelimited!(pr_err, "{} IC: packet of {} bytes\n", S::NAME, len);
                continue;
            };
            let id = packet.descriptor.transaction_id;
            let Outcome { reply, event } = self.service.on_packet(session, message);
            if reply {
                match tx.send_inband(message, id, false) {
                    Ok(()) => {}
                    Err(SendError::Closed) => return,
                    // The host asks again; an answer that comes late is of no use to it.
                    Err(SendError::Full { .. }) => {
                        ratelimited!(pr_warn, "{} IC: no room for an answer\n", S::NAME);
                    }
                    Err(_) => return,
                }
            }
            match event {
                Ok(event) => {
                    if let Some(v) = self.service.on_event(event) {
                        let (major, minor) = (v.message.major(), v.message.minor());
                        ratelimited!(pr_info, "{} IC version {}.{}\n", S::NAME, major, minor);
                    }
                }
                Err(e) => {
                    ratelimited!(pr_err, "{} IC: {}\n", S::NAME, Show(e));
                }
            }
        }
    }
}

/// The open channel of a service; dropping it closes it.
pub(crate) type Ic<S> = Channel<Open<Callback<S>>>;

/// Opens the channel of `dev`. Process context, sleeps.
///
/// # Errors
///
/// As for [`Channel::open`].
pub(crate) fn open<S: Service>(dev: &Device<Core<'_>>, service: S) -> Result<Ic<S>> {
    dev.channel()?
        .open(&OpenParams::new(RING), Callback::new(service))
}
