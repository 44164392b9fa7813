// SPDX-License-Identifier: GPL-2.0

//! Questions to the host and their answers: one at a time.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use hv_vmbus::{
    buffer::OutPage,
    channel::{Endpoint, GpaRangeHeader, PacketFlags, PacketType, SendError},
    log::Show,
    services::reply::Reply,
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{Mutex, MutexGuard},
    time::{delay::fsleep, Delta},
};
use vmbus_proto::net::{
    client::CONTROL_MESSAGE,
    nvsp::{NvspMessage, NvspStatus, MESSAGE_SIZE},
    rndis::{write_oid_request, HostMessage, RndisType},
    setup::Requests,
    Oid, RndisStatus,
};
use zerocopy::IntoBytes;

/// Ids of packets that are no frames. No place of a frame has them.
pub(crate) const NVSP_ID: u64 = u64::MAX;
pub(crate) const RNDIS_ID: u64 = u64::MAX - 1;
pub(crate) const NOTICE_ID: u64 = u64::MAX - 2;

/// Seconds after which a question without an answer is reported, and after which no answer is waited for.
const WARN_S: u32 = 30;
const GIVE_UP_S: u32 = 300;

/// Milliseconds for which a ring may be full that takes a question.
const FULL_MS: u32 = 10_000;

/// Payload of a completion.
#[derive(Clone, Copy)]
pub(crate) struct Payload {
    bytes: [u8; MESSAGE_SIZE],
    len: usize,
}

impl Payload {
    pub(crate) fn new(from: &[u8]) -> Self {
        let mut bytes = [0; MESSAGE_SIZE];
        let len = from.len().min(MESSAGE_SIZE);
        for (to, from) in bytes.iter_mut().zip(from) {
            *to = *from;
        }
        Self { bytes, len }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// What belongs to who asks.
pub(crate) struct Desk {
    pub(crate) requests: Requests,
    page: OutPage,
    /// Where questions are written before they go into the page.
    pub(crate) out: KVec<u8>,
}

/// Where questions are asked.
#[pin_data]
pub(crate) struct Control {
    #[pin]
    desk: Mutex<Desk>,
    #[pin]
    nvsp: Reply<Result<Payload>>,
    #[pin]
    rndis: Reply<Result<KVec<u8>>>,
    nvsp_awaited: AtomicBool,
    /// Id of the RNDIS request that awaits an answer, or 0.
    rndis_awaited: AtomicU32,
    /// No answers come any more.
    gone: AtomicBool,
}

impl Control {
    pub(crate) fn new() -> Result<impl PinInit<Self>> {
        let mut out = KVec::with_capacity(OutPage::SIZE, GFP_KERNEL)?;
        out.resize(OutPage::SIZE, 0, GFP_KERNEL)?;
        let desk = Desk {
            requests: Requests::default(),
            page: OutPage::new()?,
            out,
        };
        Ok(pin_init!(Self {
            desk <- new_mutex!(desk, "hv_netvsc_rs::Control::desk"),
            nvsp <- Reply::new(),
            rndis <- Reply::new(),
            nvsp_awaited: AtomicBool::new(false),
            rndis_awaited: AtomicU32::new(0),
            gone: AtomicBool::new(false),
        }))
    }

    /// Waits for the turn to ask. May sleep.
    pub(crate) fn turn<'a>(&'a self, endpoint: &'a Endpoint) -> Turn<'a> {
        Turn {
            control: self,
            endpoint,
            desk: self.desk.lock(),
        }
    }

    /// Ends all waits: nothing is answered any more. Any context but NMI.
    pub(crate) fn set_gone(&self) {
        self.gone.store(true, Ordering::SeqCst);
        if self.nvsp_awaited.swap(false, Ordering::SeqCst) {
            self.nvsp.answer(Err(ENODEV));
        }
        if self.rndis_awaited.swap(0, Ordering::SeqCst) != 0 {
            self.rndis.answer(Err(ENODEV));
        }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// A completion of a packet that is no frame. Softirq context. False: of nothing that is known.
    pub(crate) fn on_completion(&self, id: u64, payload: &[u8]) -> bool {
        match id {
            NVSP_ID if self.nvsp_awaited.swap(false, Ordering::AcqRel) => {
                self.nvsp.answer(Ok(Payload::new(payload)));
                true
            }
            // The answer is a message of its own, but when the host does not take the question.
            RNDIS_ID => {
                let refused = matches!(
                    vmbus_proto::net::nvsp::Completion::parse(payload),
                    Ok(vmbus_proto::net::nvsp::Completion::Rndis(status)) if status != NvspStatus::SUCCESS
                );
                if refused && self.rndis_awaited.swap(0, Ordering::AcqRel) != 0 {
                    self.rndis.answer(Err(EIO));
                }
                true
            }
            NOTICE_ID => true,
            _ => false,
        }
    }

    /// An answer from the host: `bytes`, a private copy of `message`. Softirq context. False: to nothing that was asked.
    pub(crate) fn on_answer(&self, message: &HostMessage<'_>, bytes: &[u8]) -> bool {
        let awaited = self.rndis_awaited.load(Ordering::Acquire);
        let mine = match message {
            HostMessage::ResetComplete(_) => awaited != 0,
            other => awaited != 0 && other.request_id() == Some(awaited),
        };
        let taken = mine
            && self
                .rndis_awaited
                .compare_exchange(awaited, 0, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok();
        if taken {
            let mut copy = KVec::new();
            let copied = copy.extend_from_slice(bytes, GFP_ATOMIC);
            self.rndis
                .answer(copied.map(|()| copy).map_err(Error::from));
        }
        taken
    }
}

/// The turn to ask; see [`Control::turn`].
pub(crate) struct Turn<'a> {
    control: &'a Control,
    endpoint: &'a Endpoint,
    pub(crate) desk: MutexGuard<'a, Desk>,
}

impl Turn<'_> {
    /// Sends an NVSP message that is not answered.
    pub(crate) fn notice(&self, message: &NvspMessage) -> Result {
        self.send_inband(message, NOTICE_ID, false)
    }

    /// Sends an NVSP message, and waits for the payload of its completion.
    pub(crate) fn request(&self, message: &NvspMessage) -> Result<Payload> {
        let control = self.control;
        control.nvsp.expect();
        control.nvsp_awaited.store(true, Ordering::SeqCst);
        let sent = self.send_inband(message, NVSP_ID, true);
        let answer = sent.and_then(|()| self.wait(&control.nvsp, "NVSP"));
        control.nvsp_awaited.store(false, Ordering::Release);
        answer
    }

    /// Sends the first `len` bytes of `desk.out`, an RNDIS message that is not answered.
    pub(crate) fn send(&mut self, len: usize) -> Result {
        self.send_rndis(len)
    }

    /// Sends the first `len` bytes of `desk.out`, an RNDIS message, and waits for the answer.
    pub(crate) fn ask(&mut self, len: usize) -> Result<KVec<u8>> {
        // Of all questions the id is the first field of the body.
        let id = self
            .desk
            .out
            .get(8..12)
            .and_then(|id| id.try_into().ok())
            .map(u32::from_le_bytes)
            .ok_or(EINVAL)?;
        let control = self.control;
        control.rndis.expect();
        control.rndis_awaited.store(id, Ordering::SeqCst);
        let sent = self.send_rndis(len);
        let answer = sent.and_then(|()| self.wait(&control.rndis, "RNDIS"));
        control.rndis_awaited.store(0, Ordering::Release);
        answer
    }

    /// Sets `oid` to `info`.
    ///
    /// # Errors
    /// `EIO` when the host refuses, which is logged.
    pub(crate) fn set(&mut self, oid: Oid, info: &[u8]) -> Result {
        let desk = &mut *self.desk;
        let id = desk.requests.begin();
        let len = write_oid_request(&mut desk.out, RndisType::SET, id, oid, info).ok_or(EINVAL)?;
        let answer = self.ask(len)?;
        match HostMessage::parse(&answer) {
            Ok(HostMessage::SetComplete(done)) if done.status == RndisStatus::SUCCESS => Ok(()),
            Ok(HostMessage::SetComplete(done)) => {
                pr_err!("{:?} was refused: {:?}\n", oid, done.status);
                Err(EIO)
            }
            _ => Err(EIO),
        }
    }

    fn send_inband(&self, message: &NvspMessage, id: u64, completion: bool) -> Result {
        self.retry(|| {
            self.endpoint
                .sender()
                .send_inband(message.as_bytes(), id, completion)
        })
    }

    fn send_rndis(&mut self, len: usize) -> Result {
        let desk = &mut *self.desk;
        let message = desk.out.get(..len).ok_or(EINVAL)?;
        if !desk.page.write(message) {
            return Err(EINVAL);
        }
        let range = GpaRangeHeader {
            byte_count: len as u32,
            byte_offset: 0,
        };
        let pfn = desk.page.pfn();
        let words = CONTROL_MESSAGE.words();
        self.retry(|| {
            self.endpoint.sender().send_with(|ring| {
                let mut packet = ring.begin(
                    PacketType::DATA_USING_GPA_DIRECT,
                    PacketFlags::COMPLETION_REQUESTED,
                    RNDIS_ID,
                    24,
                    MESSAGE_SIZE,
                )?;
                packet.put_u64(1 << 32)?;
                packet.put_u64(range.to_u64())?;
                packet.put_u64(pfn)?;
                packet.put(words.as_bytes())?;
                packet.finish()
            })
        })
    }

    /// Sends, again and again while the ring is full.
    fn retry(&self, mut send: impl FnMut() -> Result<(), SendError>) -> Result {
        const STEP_MS: u32 = 5;
        let mut waited = 0;
        loop {
            if self.control.is_gone() {
                return Err(ENODEV);
            }
            match send() {
                Err(SendError::Full { .. }) if waited < FULL_MS => {
                    fsleep(Delta::from_millis(STEP_MS.into()));
                    waited += STEP_MS;
                }
                result => return Ok(result?),
            }
        }
    }

    fn wait<T: Send>(&self, reply: &Reply<Result<T>>, what: &str) -> Result<T> {
        // After it was said that an answer is awaited: who sets it ends the wait.
        if self.control.is_gone() || self.endpoint.is_rescinded() {
            return Err(ENODEV);
        }
        let mut seconds = 0;
        loop {
            if let Some(answer) = reply.wait(1000) {
                return answer;
            }
            if self.endpoint.is_rescinded() || self.control.is_gone() {
                return Err(ENODEV);
            }
            seconds += 1;
            if seconds % WARN_S == 0 {
                pr_warn!(
                    "the host has not answered ({}) for {} s\n",
                    Show(what),
                    seconds
                );
            }
            if seconds >= GIVE_UP_S {
                return Err(ETIMEDOUT);
            }
        }
    }
}
