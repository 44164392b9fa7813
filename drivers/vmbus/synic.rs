// SPDX-License-Identifier: GPL-2.0

//! The synthetic interrupt controller (SynIC): a message page and an event flags page per CPU, and the interrupt that
//! announces both.
//!
//! The pages of a CPU stay allocated from its first coming online until the module goes, so that the interrupt handler
//! can reach them without a lock.

use core::{
    ptr,
    sync::atomic::{AtomicPtr, AtomicU64, Ordering},
};
use kernel::{ffi::c_ulong, prelude::*};
use vmbus_proto::{
    msg::VMBUS_SINT,
    tlfs::{
        msr,
        synic::{
            message_slot_offset, HvMessage, MessageFlags, MessageType, Scontrol, Siefp, Simp, Sint,
            EVENT_FLAGS_COUNT, MESSAGE_SIZE,
        },
    },
};

use crate::{ffi, memory::SharedPage, tasklet::Tasklet};

/// Offset of VMBus' slot in the message page, and of its flags in the event page: both have 256 bytes for each SINT.
const SLOT: usize = match message_slot_offset(VMBUS_SINT) {
    Some(offset) => offset,
    None => panic!("no such SINT"),
};

/// Words of event flags of one SINT.
pub(crate) const EVENT_WORDS: usize = EVENT_FLAGS_COUNT / 64;

/// What one CPU has.
#[pin_data]
pub(crate) struct CpuSynic {
    messages: SharedPage,
    events: SharedPage,
    /// Takes messages out of the message page.
    #[pin]
    tasklet: Tasklet,
}

impl CpuSynic {
    fn new(cpu: u32, message_fn: unsafe extern "C" fn(c_ulong)) -> Result<Pin<KBox<Self>>> {
        // SAFETY: The CPU exists.
        let node = unsafe { ffi::hv_rs_cpu_to_node(cpu) };
        let (messages, events) = (SharedPage::new(node)?, SharedPage::new(node)?);
        KBox::pin_init(
            pin_init!(Self {
                messages,
                events,
                tasklet <- Tasklet::new(message_fn, |_| cpu as c_ulong),
            }),
            GFP_KERNEL,
        )
    }

    fn message_slot(&self) -> *mut HvMessage {
        // SAFETY: The slot is inside the page.
        unsafe { self.messages.as_ptr().add(SLOT) }.cast()
    }

    /// Word `index` (less than [`EVENT_WORDS`]) of the event flags.
    fn event_word(&self, index: usize) -> &AtomicU64 {
        debug_assert!(index < EVENT_WORDS);
        // SAFETY: The word is inside the page and aligned; both sides use atomic operations on it.
        unsafe { AtomicU64::from_ptr(self.events.as_ptr().add(SLOT).cast::<u64>().add(index)) }
    }

    /// Whether a message waits. Interrupt context.
    #[inline]
    pub(crate) fn has_message(&self) -> bool {
        // SAFETY: The slot is inside the page; the type comes first, and is read once.
        unsafe { self.message_slot().cast::<u32>().read_volatile() != 0 }
    }

    /// Takes the event flags of word `index`, clearing them. Interrupt context.
    #[inline]
    pub(crate) fn take_events(&self, index: usize) -> u64 {
        let word = self.event_word(index);
        if word.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        // Pairs with the hypervisor's atomic setting of the flag: what the host wrote before is seen after.
        word.swap(0, Ordering::AcqRel)
    }

    /// Whether any event flag is set that was not taken yet.
    pub(crate) fn has_events(&self) -> bool {
        (0..EVENT_WORDS).any(|i| self.event_word(i).load(Ordering::Relaxed) != 0)
    }

    /// Has the message function called in softirq context on this CPU.
    #[inline]
    pub(crate) fn schedule_messages(&self) {
        self.tasklet.schedule();
    }

    /// Copies the message in the slot, leaving it there; `None` when the slot is empty.
    pub(crate) fn peek_message(&self) -> Option<HvMessage> {
        let slot = self.message_slot();
        // SAFETY: The slot is inside the page; atomic, as the hypervisor fills it concurrently.
        let message_type = unsafe { core::sync::atomic::AtomicU32::from_ptr(slot.cast()) };
        // Acquire: the rest of the message was written before its type.
        let message_type = message_type.load(Ordering::Acquire);
        if message_type == MessageType::NONE.0 {
            return None;
        }
        // SAFETY: The slot is inside the page and aligned. Volatile, since the host may change it meanwhile; the copy is
        // private from here on.
        let mut copy = unsafe { slot.read_volatile() };
        copy.header.message_type = MessageType(message_type);
        Some(copy)
    }

    /// Empties the slot that [`peek_message`](Self::peek_message) found `message` in, and has the hypervisor deliver the
    /// next. On the CPU itself.
    pub(crate) fn finish_message(&self, message: &HvMessage) {
        let slot = self.message_slot();
        // SAFETY: The type comes first in the slot. SeqCst: the slot is empty before the pending flag is read; the
        // hypervisor sets the flag before it looks at the slot again.
        let emptied = unsafe { core::sync::atomic::AtomicU32::from_ptr(slot.cast()) }
            .compare_exchange(
                message.header.message_type.0,
                MessageType::NONE.0,
                Ordering::SeqCst,
                Ordering::SeqCst,
            );
        if emptied.is_err() {
            return;
        }
        // SAFETY: The flags are inside the slot.
        let flags = unsafe { (&raw const (*slot).header.flags).read_volatile() };
        if flags.contains(MessageFlags::PENDING) {
            // SAFETY: EOM exists when the SynIC does; writing it only starts delivery.
            unsafe { ffi::hv_set_msr(msr::EOM, 0) };
        }
    }

    /// Turns the SynIC of the current CPU on.
    fn enable(&self, vector: u8, auto_eoi: bool) {
        // SAFETY: The registers exist on Hyper-V. The pages stay allocated while their addresses are there: `disable` comes
        // before they are freed.
        unsafe {
            let simp = Simp(ffi::hv_get_msr(msr::SIMP)).with_page(self.messages.gpa(), true);
            ffi::hv_set_msr(msr::SIMP, simp.0);
            let siefp = Siefp(ffi::hv_get_msr(msr::SIEFP)).with_page(self.events.gpa(), true);
            ffi::hv_set_msr(msr::SIEFP, siefp.0);
            let sint = Sint(ffi::hv_get_msr(SINT_MSR)).with(vector, false, auto_eoi);
            ffi::hv_set_msr(SINT_MSR, sint.0);
            let scontrol = Scontrol(ffi::hv_get_msr(msr::SCONTROL)).with_enabled(true);
            ffi::hv_set_msr(msr::SCONTROL, scontrol.0);
        }
    }
}

const SINT_MSR: u32 = msr::SINT0 + VMBUS_SINT as u32;

/// Turns the SynIC of the current CPU off. Any context.
pub(crate) fn disable_this_cpu() {
    // SAFETY: The registers exist on Hyper-V; without pages the hypervisor delivers nothing.
    unsafe {
        let sint = Sint(ffi::hv_get_msr(SINT_MSR));
        ffi::hv_set_msr(SINT_MSR, sint.with(sint.vector(), true, sint.auto_eoi()).0);
        let simp = Simp(ffi::hv_get_msr(msr::SIMP)).with_page(0, false);
        ffi::hv_set_msr(msr::SIMP, simp.0);
        let siefp = Siefp(ffi::hv_get_msr(msr::SIEFP)).with_page(0, false);
        ffi::hv_set_msr(msr::SIEFP, siefp.0);
        let scontrol = Scontrol(ffi::hv_get_msr(msr::SCONTROL)).with_enabled(false);
        ffi::hv_set_msr(msr::SCONTROL, scontrol.0);
    }
}

/// The SynICs of all CPUs.
///
/// # Invariants
/// Each pointer is null or came from `KBox::into_raw` of a pinned box, and stays until drop.
pub(crate) struct Synic {
    cpus: KVec<AtomicPtr<CpuSynic>>,
    vector: u8,
    auto_eoi: bool,
    message_fn: unsafe extern "C" fn(c_ulong),
}

impl Synic {
    /// Room for all CPUs; nothing is turned on. `message_fn` is called with the number of a CPU on which a message waits,
    /// in softirq context on that CPU.
    pub(crate) fn new(
        vector: u8,
        auto_eoi: bool,
        message_fn: unsafe extern "C" fn(c_ulong),
    ) -> Result<Self> {
        let count = ffi::hv_rs_nr_cpu_ids() as usize;
        let mut cpus = KVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            cpus.push(AtomicPtr::new(ptr::null_mut()), GFP_KERNEL)?;
        }
        const { assert!(SLOT == SLOT / MESSAGE_SIZE * MESSAGE_SIZE) };
        // INVARIANT: All null.
        Ok(Self {
            cpus,
            vector,
            auto_eoi,
            message_fn,
        })
    }

    /// What CPU `cpu` has; `None` when it was never online. Any context.
    #[inline]
    pub(crate) fn cpu(&self, cpu: u32) -> Option<&CpuSynic> {
        let slot = self.cpus.get(cpu as usize)?;
        // SAFETY: By the type's invariant. Acquire pairs with the release in `enable_this_cpu`.
        unsafe { slot.load(Ordering::Acquire).as_ref() }
    }

    /// Turns the SynIC of the current CPU on, allocating its pages the first time. Process context, bound to the CPU, one
    /// call per CPU at a time (CPU hotplug callback).
    pub(crate) fn enable_this_cpu(&self, cpu: u32) -> Result {
        let slot = self.cpus.get(cpu as usize).ok_or(EINVAL)?;
        if slot.load(Ordering::Acquire).is_null() {
            let new = CpuSynic::new(cpu, self.message_fn)?;
            // SAFETY: The box stays pinned: it is only turned back to be dropped.
            let raw = KBox::into_raw(unsafe { Pin::into_inner_unchecked(new) });
            // INVARIANT: `raw` is from a pinned box. Release pairs with the acquire in `cpu`.
            slot.store(raw, Ordering::Release);
        }
        self.cpu(cpu)
            .ok_or(EINVAL)?
            .enable(self.vector, self.auto_eoi);
        Ok(())
    }

    /// Waits until no message function runs, and none will. The SynIC is off on all CPUs. Process context.
    pub(crate) fn kill_tasklets(&self) {
        for cpu in 0..self.cpus.len() {
            if let Some(cpu) = self.cpu(cpu as u32) {
                cpu.tasklet.kill();
            }
        }
    }
}

impl Drop for Synic {
    fn drop(&mut self) {
        for slot in &self.cpus {
            let raw = slot.load(Ordering::Relaxed);
            if !raw.is_null() {
                // SAFETY: By the type's invariant; nobody else can see it any more.
                drop(unsafe { Pin::new_unchecked(KBox::from_raw(raw)) });
            }
        }
    }
}
