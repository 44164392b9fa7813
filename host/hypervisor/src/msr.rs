// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Synthetic MSRs: those of the partition, and the way to those of the VPs.

use std::sync::atomic::Ordering;

use hv_partition::VpIndex;
use vmbus_proto::tlfs::msr;
use vmbus_proto::tlfs::synic::HypercallMsr;

use zerocopy::IntoBytes;

use crate::overlay::Overlay;
use crate::vp::Fault;
use crate::Shared;
use crate::PAGE_SIZE;

/// The local APIC's timer runs at this rate in QEMU (`hw/intc/apic.c`: one count per nanosecond at
/// divide by 1).
const APIC_FREQUENCY: u64 = 1_000_000_000;

/// Local APIC registers: offsets in the APIC page. The ISR are eight registers of 32 vectors, 16
/// bytes apart.
const APIC_TPR: u16 = 0x80;
const APIC_EOI: u16 = 0xb0;
const APIC_ISR: u16 = 0x100;
const APIC_ICR_LOW: u16 = 0x300;
const APIC_ICR_HIGH: u16 = 0x310;

/// What the guest calls to make a hypercall: `vmmcall; ret`. QEMU's processors are AMD's.
const HYPERCALL_CODE: [u8; 4] = [0x0f, 0x01, 0xd9, 0xc3];

/// Lock bit of the hypercall MSR (TLFS, "Establishing the Hypercall Interface").
pub(crate) const HYPERCALL_LOCKED: u64 = 2;

/// Bytes of the sequence, which begins the reference TSC page.
const SEQUENCE_SIZE: u64 = 4;

/// Longest crash text that is read, one page (Linux `hv_kmsg_dump`).
const CRASH_TEXT_MAX: usize = PAGE_SIZE;

/// A crash that the guest reported through the crash MSRs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Crash {
    pub(crate) vp: u32,
    pub(crate) parameters: [u64; 5],
    pub(crate) control: u64,
    pub(crate) text: Option<String>,
    pub(crate) reference_time: u64,
}

/// MSRs that exist once per partition.
#[derive(Default)]
pub(crate) struct PartitionRegisters {
    pub(crate) guest_os_id: u64,
    pub(crate) hypercall: u64,
    hypercall_page: Overlay,
    reference_tsc: u64,
    reference_tsc_page: Overlay,
    crash_parameters: [u64; 5],
    crash_control: u64,
    /// Crash reports since the VM was started, across resets: a guest that panics usually resets
    /// next.
    pub(crate) crashes: Vec<Crash>,
}

impl PartitionRegisters {
    /// Forgets what the guest has set; crash reports are the host's and stay.
    pub(crate) fn reset(&mut self) {
        let crashes = std::mem::take(&mut self.crashes);
        *self = Self {
            crashes,
            ..Self::default()
        };
    }
}

/// Crash reports that are kept.
const CRASHES_KEPT: usize = 16;

impl Shared {
    /// The VP has just taken an interrupt: performs the EOI when the vector belongs to a SINT with
    /// auto-EOI.
    pub(crate) fn interrupt_taken(&self, vp: VpIndex) {
        let Some(state) = self.vps.get(vp.0 as usize) else {
            return;
        };
        // The vector in service is the highest bit of the ISR.
        let in_service = || {
            (0..8u16).rev().find_map(|n| {
                let bits = self.processors.apic_read(vp, APIC_ISR + 16 * n);
                (bits != 0).then(|| (32 * n + 31 - bits.leading_zeros() as u16) as u8)
            })
        };
        if state.auto_eoi(in_service) {
            self.counters.auto_eoi.add();
            self.processors.apic_write(vp, APIC_EOI, 0);
        }
    }

    pub(crate) fn read_msr(&self, vp: VpIndex, number: u32) -> Result<u64, Fault> {
        self.counters.msr_reads.add();
        self.read_msr_inner(vp, number).inspect_err(|_| {
            self.counters.msr_faults.add();
            tracing::warn!(vp = vp.0, "rdmsr {number:#x}: #GP");
        })
    }

    pub(crate) fn write_msr(&self, vp: VpIndex, number: u32, value: u64) -> Result<(), Fault> {
        self.counters.msr_writes.add();
        self.write_msr_inner(vp, number, value).inspect_err(|_| {
            self.counters.msr_faults.add();
            tracing::warn!(vp = vp.0, "wrmsr {number:#x} = {value:#x}: #GP");
        })
    }

    fn read_msr_inner(&self, vp: VpIndex, number: u32) -> Result<u64, Fault> {
        let state = self.vps.get(vp.0 as usize).ok_or(Fault)?;
        Ok(match number {
            msr::GUEST_OS_ID => self.registers.lock().guest_os_id,
            msr::HYPERCALL => self.registers.lock().hypercall,
            msr::VP_INDEX => vp.0.into(),
            msr::RESET => 0,
            msr::VP_RUNTIME => self.processors.runtime(vp),
            msr::TIME_REF_COUNT => self.now(),
            msr::REFERENCE_TSC => self.registers.lock().reference_tsc,
            msr::TSC_FREQUENCY => self.machine.tsc_frequency(),
            msr::APIC_FREQUENCY => APIC_FREQUENCY,
            msr::ICR => {
                let high = u64::from(self.processors.apic_read(vp, APIC_ICR_HIGH));
                (high << 32) | u64::from(self.processors.apic_read(vp, APIC_ICR_LOW))
            }
            msr::TPR => self.processors.apic_read(vp, APIC_TPR).into(),
            msr::CRASH_P0..=msr::CRASH_P4 => {
                self.registers.lock().crash_parameters[(number - msr::CRASH_P0) as usize]
            }
            // Reads tell what is supported (TLFS "Partition Crash Enlightenment").
            msr::CRASH_CTL => msr::CRASH_NOTIFY | msr::CRASH_NOTIFY_MSG,
            _ => state.read_msr(number)?,
        })
    }

    fn write_msr_inner(&self, vp: VpIndex, number: u32, value: u64) -> Result<(), Fault> {
        let state = self.vps.get(vp.0 as usize).ok_or(Fault)?;
        match number {
            msr::GUEST_OS_ID => {
                let mut registers = self.registers.lock();
                registers.guest_os_id = value;
                // TLFS: an identity of zero disables the hypercall page.
                if value == 0 && registers.hypercall & HypercallMsr::ENABLE != 0 {
                    self.hypercalls_enabled.store(false, Ordering::Release);
                    registers.hypercall &= !HypercallMsr::ENABLE;
                    registers
                        .hypercall_page
                        .place(&self.ram, None)
                        .map_err(|_| Fault)?;
                }
            }
            msr::HYPERCALL => self.write_hypercall(value)?,
            msr::RESET => {
                if value & 1 != 0 {
                    tracing::info!(vp = vp.0, "reset requested through HV_X64_MSR_RESET");
                    self.machine.reset();
                }
            }
            msr::REFERENCE_TSC => self.write_reference_tsc(value)?,
            msr::EOI => self.processors.apic_write(vp, APIC_EOI, value as u32),
            msr::ICR => {
                self.processors
                    .apic_write(vp, APIC_ICR_HIGH, (value >> 32) as u32);
                self.processors.apic_write(vp, APIC_ICR_LOW, value as u32);
            }
            msr::TPR => self.processors.apic_write(vp, APIC_TPR, value as u32),
            msr::CRASH_P0..=msr::CRASH_P4 => {
                self.registers.lock().crash_parameters[(number - msr::CRASH_P0) as usize] = value;
            }
            msr::CRASH_CTL => self.write_crash_control(vp, value),
            _ => {
                let timer = (msr::STIMER0_CONFIG..=msr::STIMER3_COUNT).contains(&number);
                let vectors =
                    state.write_msr(number, value, self.now(), &self.ram, &self.counters)?;
                if timer {
                    self.timers_changed(state);
                }
                self.raise(vp, vectors);
            }
        }
        Ok(())
    }

    fn write_hypercall(&self, value: u64) -> Result<(), Fault> {
        let mut registers = self.registers.lock();
        if registers.hypercall & HYPERCALL_LOCKED != 0 {
            return Err(Fault);
        }
        // TLFS: the page cannot be enabled before the guest has identified itself.
        let value = if registers.guest_os_id == 0 {
            value & !HypercallMsr::ENABLE
        } else {
            value
        };
        let (enable, gpa) = (HypercallMsr(value).enabled(), HypercallMsr(value).gpa());
        if !enable {
            self.hypercalls_enabled.store(false, Ordering::Release);
        }
        registers
            .hypercall_page
            .place(&self.ram, enable.then_some(gpa))
            .map_err(|_| Fault)?;
        if enable {
            self.ram.write(gpa, &HYPERCALL_CODE).map_err(|_| Fault)?;
            self.hypercalls_enabled.store(true, Ordering::Release);
            self.counters.hypercall_page_enabled.add();
        }
        registers.hypercall = value;
        tracing::info!(
            enable,
            "hypercall page at {gpa:#x}, guest OS id {:#x}",
            registers.guest_os_id
        );
        Ok(())
    }

    fn write_reference_tsc(&self, value: u64) -> Result<(), Fault> {
        let mut registers = self.registers.lock();
        let (enable, gpa) = (HypercallMsr(value).enabled(), HypercallMsr(value).gpa());
        registers
            .reference_tsc_page
            .place(&self.ram, enable.then_some(gpa))
            .map_err(|_| Fault)?;
        if enable {
            // Sequence 0 means "use the MSR"; scale and offset never change while the guest runs,
            // so 1 stays. It is written last.
            let page = self.clock().page(1);
            let bytes = page.as_bytes();
            self.ram
                .write(gpa + SEQUENCE_SIZE, &bytes[SEQUENCE_SIZE as usize..])
                .and_then(|()| self.ram.store_u32(gpa, page.sequence, Ordering::Release))
                .map_err(|_| Fault)?;
        }
        registers.reference_tsc = value;
        Ok(())
    }

    fn write_crash_control(&self, vp: VpIndex, value: u64) {
        let reference_time = self.now();
        let mut registers = self.registers.lock();
        registers.crash_control = value;
        if value & msr::CRASH_NOTIFY == 0 {
            return;
        }
        self.counters.crashes.add();
        let parameters = registers.crash_parameters;
        let text = (value & msr::CRASH_NOTIFY_MSG != 0)
            .then(|| self.crash_text(parameters[3], parameters[4]))
            .flatten();
        tracing::error!(vp = vp.0, "guest crash: {parameters:x?}");
        if registers.crashes.len() < CRASHES_KEPT {
            registers.crashes.push(Crash {
                vp: vp.0,
                parameters,
                control: value,
                text,
                reference_time,
            });
        }
        drop(registers);
        if let Some(sink) = self.sink.get() {
            sink.guest_crashed();
        }
    }

    /// The text at `gpa`, at most a page of it; `None` when the guest names no RAM.
    fn crash_text(&self, gpa: u64, len: u64) -> Option<String> {
        let mut bytes = vec![0; len.min(CRASH_TEXT_MAX as u64) as usize];
        self.ram.read(gpa, &mut bytes).ok()?;
        Some(
            String::from_utf8_lossy(&bytes)
                .trim_end_matches('\0')
                .to_owned(),
        )
    }
}
