// SPDX-License-Identifier: GPL-2.0

//! Memory that a driver shares with the host beside the rings: buffers with a GPADL of their own.
//!
//! The host may read and write a buffer at any time until it has given it back, so its contents are never reached through a
//! Rust reference: they are copied in and out, each byte once, and only the copy is looked at.

use core::{marker::PhantomData, mem::ManuallyDrop, ptr, ptr::NonNull};
use kernel::{new_mutex, prelude::*, sync::Arc, sync::Mutex};
use vmbus_proto::{
    channel::Action,
    gpadl::{Building, CreateError, Gpadl, GpadlMessages, Live, TearingDown, MAX_PAGES},
    msg::{GpadlId, HostMessage, Status},
    net::packet::{MessageMemory, WordSink},
};

use crate::{
    chan::Chan,
    channel::{Channel, Open},
    ffi,
    hypercall::Wait,
    log::Show,
    memory::{SharedPage, SharedPages, PAGE},
    sync::{new_irq_lock, IrqLock},
    waiter::Waiter,
};

/// What the host is being asked.
enum Pending {
    Nothing,
    Create(Gpadl<Building>),
    TearDown(Gpadl<TearingDown>),
}

/// How that ended.
enum Answer {
    Created(Gpadl<Live>),
    Refused(Status),
    /// Torn down, or let go of with the channel.
    Free,
}

/// Where a channel asks the host about buffers: one question at a time.
#[pin_data]
pub(crate) struct Desk {
    /// Held over a question.
    #[pin]
    op: Mutex<()>,
    #[pin]
    pending: IrqLock<Pending>,
    #[pin]
    waiter: Waiter<Answer>,
}

impl Desk {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            op <- new_mutex!((), "hv_vmbus_rs::Desk::op"),
            pending <- new_irq_lock!(Pending::Nothing, c"hv_vmbus_rs::Desk::pending"),
            waiter <- Waiter::new(),
        })
    }

    /// Takes in a message that is not for the channel's rings. Any context but NMI.
    pub(crate) fn on_host_message(&self, message: &HostMessage) -> Action {
        let mut pending = self.pending.lock();
        match (message, core::mem::replace(&mut *pending, Pending::Nothing)) {
            (HostMessage::GpadlCreated(m), Pending::Create(gpadl)) => match gpadl.created(m) {
                Ok(live) => self.waiter.answer(Answer::Created(live)),
                Err(CreateError::Refused(status)) => self.waiter.answer(Answer::Refused(status)),
                Err(CreateError::NotMine(gpadl)) => {
                    *pending = Pending::Create(gpadl);
                    return Action::NotMine;
                }
            },
            (HostMessage::GpadlTorndown(m), Pending::TearDown(gpadl)) => match gpadl.torn_down(m) {
                Ok(()) => self.waiter.answer(Answer::Free),
                Err(gpadl) => {
                    *pending = Pending::TearDown(gpadl);
                    return Action::NotMine;
                }
            },
            (_, before) => {
                *pending = before;
                return Action::NotMine;
            }
        }
        Action::Late
    }

    /// The host has taken the channel away, and let go of its memory. Any context but NMI.
    pub(crate) fn on_rescind(&self) {
        let mut pending = self.pending.lock();
        match core::mem::replace(&mut *pending, Pending::Nothing) {
            Pending::Nothing => return,
            Pending::Create(gpadl) => gpadl.abandon(),
            // The answer may be on its way, and would be nobody's.
            tearing_down => *pending = tearing_down,
        }
        self.waiter.answer(Answer::Free);
    }
}

/// A buffer in memory of the guest that the host may use, from [`Channel::share_buffer`].
///
/// Dropping it takes it back from the host, which sleeps and waits for the host's answer. Tell the device first, by its own
/// protocol, and close the channel: devices hold on to their buffers until then.
pub struct Buffer {
    chan: Arc<Chan>,
    // Taken in `drop`.
    gpadl: Option<Gpadl<Live>>,
    /// The host may have the pages, for ever.
    held: bool,
    id: GpadlId,
    // INVARIANT: Maps all of `pages`.
    base: NonNull<u8>,
    len: usize,
    pages: ManuallyDrop<SharedPages>,
}

// SAFETY: Mapped kernel memory is the same from every thread; it is only copied from and to.
unsafe impl Send for Buffer {}
// SAFETY: As above.
unsafe impl Sync for Buffer {}

impl<H> Channel<Open<H>> {
    /// Shares a zeroed buffer of `bytes` bytes, rounded up to pages, with the host. Process context, sleeps; waits for the
    /// host's answer.
    ///
    /// # Errors
    /// `EINVAL` for none or more than 31.99 MiB, `ENOMEM`, `ENODEV` when the host took the channel away, `EIO` when it refused,
    /// `ETIMEDOUT` when it did not answer.
    #[doc(alias = "vmbus_establish_gpadl")]
    pub fn share_buffer(&self, bytes: usize) -> Result<Buffer> {
        Buffer::new(self.chan(), bytes)
    }
}

impl Buffer {
    fn new(chan: &Arc<Chan>, bytes: usize) -> Result<Self> {
        let count = bytes.div_ceil(PAGE);
        if count == 0 || count > MAX_PAGES {
            return Err(EINVAL);
        }
        // SAFETY: `target_cpu` exists.
        let node = unsafe { ffi::hv_rs_cpu_to_node(chan.target_cpu()) };
        let pages = SharedPages::new(node, count)?;
        let base = pages.map_all()?;
        let id = chan.conn.new_gpadl_id();
        // From here on dropped with care: without `gpadl` the pages are freed, and the mapping undone.
        let mut buffer = Self {
            chan: chan.clone(),
            gpadl: None,
            held: false,
            id,
            base,
            len: count * PAGE,
            pages: ManuallyDrop::new(pages),
        };
        buffer.create()?;
        Ok(buffer)
    }

    /// Shows the pages to the host. Where the host may have them after a failure they are never freed.
    fn create(&mut self) -> Result {
        let chan = self.chan.clone();
        let desk = &chan.desk;
        let _op = desk.op.lock();
        let relid = self.chan.relid();
        let messages = GpadlMessages::new(relid, self.id, 0, self.len as u32, self.pages.pfns())
            .map_err(|_| EINVAL)?;
        desk.waiter.expect();
        *desk.pending.lock() = Pending::Create(Gpadl::new(relid, self.id));
        // After `pending` was set: a rescind from now on ends the wait.
        if self.chan.is_rescinded() {
            desk.forget();
            return Err(ENODEV);
        }
        let mut begun = false;
        for message in messages {
            if let Err(e) = self.chan.conn.post_bytes(message.as_bytes(), Wait::Sleep) {
                desk.forget();
                if begun {
                    self.held = true;
                }
                return Err(e);
            }
            begun = true;
        }
        match desk.waiter.wait(&"GPADL_HEADER") {
            Some(Answer::Created(gpadl)) => {
                self.gpadl = Some(gpadl);
                Ok(())
            }
            Some(Answer::Refused(status)) => {
                pr_err!(
                    "channel {}: the host refuses a buffer: {:?}\n",
                    Show(relid),
                    status
                );
                Err(EIO)
            }
            Some(Answer::Free) => Err(ENODEV),
            None => {
                desk.forget();
                self.held = true;
                Err(ETIMEDOUT)
            }
        }
    }

    /// Number by which the host knows the buffer.
    pub fn id(&self) -> GpadlId {
        self.id
    }

    /// Size in bytes: whole pages.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes, which no buffer has.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The `len` bytes from `offset` on; `None` when they are not all in the buffer.
    #[inline]
    pub fn slice(&self, offset: usize, len: usize) -> Option<BufferSlice<'_>> {
        if offset > self.len || len > self.len - offset {
            return None;
        }
        // SAFETY: Inside the mapping, as just checked.
        let start = unsafe { self.base.add(offset) };
        // INVARIANT: As just checked; the buffer is borrowed.
        Some(BufferSlice {
            start,
            len,
            _buffer: PhantomData,
        })
    }

    /// Takes the buffer back from the host. Process context, sleeps. True when the memory is ours again.
    fn take_back(&self, gpadl: Gpadl<Live>) -> bool {
        let desk = &self.chan.desk;
        let _op = desk.op.lock();
        if self.chan.is_rescinded() {
            gpadl.abandon();
            return true;
        }
        desk.waiter.expect();
        let (gpadl, message) = gpadl.tear_down();
        *desk.pending.lock() = Pending::TearDown(gpadl);
        // After `pending` was set: a rescind from now on ends the wait.
        if self.chan.is_rescinded() {
            return true;
        }
        let answer = match self.chan.conn.post(&message) {
            Ok(()) => desk.waiter.wait(&"GPADL_TEARDOWN"),
            Err(_) => None,
        };
        if answer.is_none() {
            desk.forget();
            pr_err!(
                "channel {}: the host does not give a buffer back; its memory is not freed\n",
                Show(self.chan.relid())
            );
        }
        answer.is_some()
    }
}

impl Desk {
    fn forget(&self) {
        *self.pending.lock() = Pending::Nothing;
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(gpadl) = self.gpadl.take() {
            self.held = !self.take_back(gpadl);
        }
        // SAFETY: `base` came from `vmap`, and nobody uses it after this.
        unsafe { ffi::hv_rs_vunmap(self.base.as_ptr().cast()) };
        // SAFETY: Taken here and nowhere else.
        let pages = unsafe { ManuallyDrop::take(&mut self.pages) };
        if self.held {
            pages.leak();
        }
    }
}

/// A part of a [`Buffer`]. Both sides may write it at any time.
///
/// # Invariants
/// `start` to `start + len` is inside the mapping of a buffer that lives for `'a`.
#[derive(Clone, Copy)]
pub struct BufferSlice<'a> {
    start: NonNull<u8>,
    len: usize,
    _buffer: PhantomData<&'a Buffer>,
}

// SAFETY: As for `Buffer`.
unsafe impl Send for BufferSlice<'_> {}
// SAFETY: As for `Buffer`.
unsafe impl Sync for BufferSlice<'_> {}

impl<'a> BufferSlice<'a> {
    /// Size in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is of no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it starts, for layers that copy by other means. Valid for reads and writes of [`len`](Self::len) bytes as long as
    /// the buffer lives; no reference may be made of it.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The `len` bytes from `offset` on; `None` when they are not all in this part.
    #[inline]
    pub fn slice(&self, offset: usize, len: usize) -> Option<BufferSlice<'a>> {
        if offset > self.len || len > self.len - offset {
            return None;
        }
        // SAFETY: Inside the part, as just checked.
        let start = unsafe { self.start.add(offset) };
        // INVARIANT: A part of a part.
        Some(BufferSlice {
            start,
            len,
            _buffer: PhantomData,
        })
    }

    /// Copies the first bytes out; false, with `out` unchanged, when there are not so many. What lies there may change between
    /// two copies: look at each byte once.
    #[inline]
    #[must_use]
    pub fn read(&self, out: &mut [u8]) -> bool {
        if out.len() > self.len {
            return false;
        }
        // SAFETY: The source is mapped by the type's invariant. The host may write it meanwhile: then the copy holds rubbish,
        // which is all that can happen. `out` is ours alone.
        unsafe { ptr::copy_nonoverlapping(self.as_ptr(), out.as_mut_ptr(), out.len()) };
        true
    }

    /// Copies `bytes` in, from the start on; false, with nothing changed, when there is no room for all.
    #[inline]
    #[must_use]
    pub fn write(&self, bytes: &[u8]) -> bool {
        if bytes.len() > self.len {
            return false;
        }
        // SAFETY: The destination is mapped by the type's invariant; no reference to it exists.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.as_ptr(), bytes.len()) };
        true
    }
}

/// A page of the guest that the host is shown by its address, in a GPA-direct packet.
///
/// The owner keeps it until the host has completed the packet.
pub struct OutPage(SharedPage);

impl OutPage {
    /// Bytes in a page.
    pub const SIZE: usize = PAGE;

    /// A zeroed page. May sleep.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        Ok(Self(SharedPage::new(-1)?))
    }

    /// Page frame number.
    pub fn pfn(&self) -> u64 {
        self.0.gpa() >> PAGE.trailing_zeros()
    }

    /// Copies `bytes` to the start of the page; false, with nothing changed, when they are too many.
    #[must_use]
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > PAGE {
            return false;
        }
        // SAFETY: The page is owned; no reference to its contents exists.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.as_ptr(), bytes.len()) };
        true
    }
}

impl MessageMemory for BufferSlice<'_> {
    #[inline]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u64; N]> {
        let part = self.slice(offset as usize, N * 8)?;
        let mut words = [0u64; N];
        // SAFETY: Source and destination are of that many bytes. The host may write the source meanwhile: then the copy holds
        // rubbish. `words` is ours alone, and takes any bytes.
        unsafe { ptr::copy_nonoverlapping(part.as_ptr(), words.as_mut_ptr().cast::<u8>(), N * 8) };
        Some(words)
    }
}

/// Writes words into a [`BufferSlice`], from its start on. What does not fit is dropped.
pub struct BufferWriter<'a> {
    left: BufferSlice<'a>,
}

impl<'a> BufferWriter<'a> {
    /// Writes into `to`.
    #[inline]
    pub fn new(to: BufferSlice<'a>) -> Self {
        Self { left: to }
    }

    /// What was not written yet.
    #[inline]
    pub fn rest(self) -> BufferSlice<'a> {
        self.left
    }
}

impl WordSink for BufferWriter<'_> {
    #[inline(always)]
    fn put<const N: usize>(&mut self, words: [u32; N]) {
        let len = N * size_of::<u32>();
        let Some(after) = self.left.len.checked_sub(len) else {
            return;
        };
        // SAFETY: `len` bytes are left by the type's invariant; no reference to them exists.
        unsafe {
            ptr::copy_nonoverlapping(
                words.map(u32::to_le).as_ptr().cast::<u8>(),
                self.left.as_ptr(),
                len,
            );
        }
        // SAFETY: Not beyond the end, as just checked.
        self.left.start = unsafe { self.left.start.add(len) };
        // INVARIANT: A part of what was left.
        self.left.len = after;
    }
}
