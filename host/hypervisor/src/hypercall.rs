// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Hypercalls (TLFS, "Hypercall Interface").

use hv_partition::{HvStatus, VpIndex};

use crate::tlfs::{
    call, status, MESSAGE_PAYLOAD_MAX, MESSAGE_TYPE_HYPERVISOR, PAGE_SIZE, PARTITION_ID_SELF,
};
use crate::Shared;

/// The hypercall input value (TLFS "Hypercall Inputs"), taken apart.
#[derive(Clone, Copy, Debug)]
struct Control(u64);

impl Control {
    /// Bits 27..=31, 44..=47 and 60..=63. Bit 31 asks for the outermost of nested hypervisors, and
    /// there is only one.
    const RESERVED: u64 = 0xf000_f000_f800_0000;

    fn code(self) -> u16 {
        self.0 as u16
    }
    fn fast(self) -> bool {
        self.0 & 1 << 16 != 0
    }
    fn variable_header_qwords(self) -> u64 {
        self.0 >> 17 & 0x3ff
    }
    fn rep_count(self) -> usize {
        (self.0 >> 32 & 0xfff) as usize
    }
    fn rep_start(self) -> usize {
        (self.0 >> 48 & 0xfff) as usize
    }
}

/// A hypercall as the guest made it: the input value and the two parameter registers, which are
/// guest-physical addresses of input and output, or for a fast call 16 bytes of input.
#[derive(Clone, Copy, Debug)]
pub struct Hypercall {
    /// RCX (64-bit), EDX:EAX (32-bit).
    pub control: u64,
    /// RDX (64-bit), EBX:ECX (32-bit).
    pub input: u64,
    /// R8 (64-bit), EDI:ESI (32-bit).
    pub output: u64,
}

/// Status and completed repetitions, as the guest reads them.
struct Outcome {
    status: HvStatus,
    completed: usize,
}

impl From<HvStatus> for Outcome {
    fn from(status: HvStatus) -> Self {
        Self {
            status,
            completed: 0,
        }
    }
}

/// Codes of the TLFS that need a privilege which this partition does not have (leaf 0x40000003
/// EBX): partition and port management, memory deposit, VP registers, debugging, statistics, VSM.
const PRIVILEGED: &[std::ops::RangeInclusive<u16>] = &[
    0x000c..=0x0012,
    0x0040..=0x005b,
    0x005e..=0x0060,
    0x0069..=0x006d,
    0x0094..=0x0094,
    0x0099..=0x0099,
];

impl Shared {
    /// Performs a hypercall of `vp` and returns the result value. `None`: #UD, the guest has not
    /// established the interface.
    pub(crate) fn hypercall(&self, vp: VpIndex, hypercall: Hypercall) -> Option<u64> {
        if !self.hypercalls_enabled() {
            return None;
        }
        let control = Control(hypercall.control);
        if let Some(vp) = self.vps.get(vp.0 as usize) {
            vp.counters.hypercalls.add();
        }
        if control.fast() {
            self.counters.hypercall_fast.add();
        }
        let outcome = self.dispatch(vp, control, hypercall);
        if outcome.status != status::SUCCESS {
            self.counters.hypercall_failed.add();
            tracing::debug!(
                code = control.code(),
                status = outcome.status,
                vp = vp.0,
                "hypercall failed"
            );
        }
        Some(u64::from(outcome.status) | (outcome.completed as u64) << 32)
    }

    fn dispatch(&self, vp: VpIndex, control: Control, hypercall: Hypercall) -> Outcome {
        let counters = &self.counters;
        let (counter, rep) = match control.code() {
            call::POST_MESSAGE => (&counters.hypercall_post_message, false),
            call::SIGNAL_EVENT => (&counters.hypercall_signal_event, false),
            call::NOTIFY_LONG_SPIN_WAIT => (&counters.hypercall_notify_long_spin_wait, false),
            call::EXT_QUERY_CAPABILITIES => (&counters.hypercall_ext_query_capabilities, false),
            call::GET_VP_INDEX_FROM_APIC_ID => {
                (&counters.hypercall_get_vp_index_from_apic_id, true)
            }
            code => {
                counters.hypercall_other.add();
                let privileged = PRIVILEGED.iter().any(|codes| codes.contains(&code));
                return if privileged {
                    status::ACCESS_DENIED
                } else {
                    status::INVALID_HYPERCALL_CODE
                }
                .into();
            }
        };
        counter.add();
        let reps_wrong = if rep {
            control.rep_count() == 0 || control.rep_start() >= control.rep_count()
        } else {
            control.rep_count() != 0 || control.rep_start() != 0
        };
        if control.0 & Control::RESERVED != 0 || control.variable_header_qwords() != 0 || reps_wrong
        {
            return status::INVALID_HYPERCALL_INPUT.into();
        }
        match control.code() {
            call::POST_MESSAGE => self.post_message(vp, control, hypercall).into(),
            call::SIGNAL_EVENT => self.signal_event(vp, control, hypercall).into(),
            call::NOTIFY_LONG_SPIN_WAIT => self
                .input::<8>(control, hypercall, 0)
                .err()
                .unwrap_or(status::SUCCESS)
                .into(),
            call::EXT_QUERY_CAPABILITIES => self.query_capabilities(control, hypercall).into(),
            _ => self.vp_index_from_apic_id(control, hypercall),
        }
    }

    /// `N` bytes of input at `offset` of the parameter list. An input of a fast call must fit its
    /// 16 bytes.
    fn input<const N: usize>(
        &self,
        control: Control,
        hypercall: Hypercall,
        offset: usize,
    ) -> Result<[u8; N], HvStatus> {
        let mut bytes = [0; N];
        if control.fast() {
            let mut registers = [0; 16];
            registers[..8].copy_from_slice(&hypercall.input.to_le_bytes());
            registers[8..].copy_from_slice(&hypercall.output.to_le_bytes());
            let source = registers
                .get(offset..offset + N)
                .ok_or(status::INVALID_HYPERCALL_INPUT)?;
            bytes.copy_from_slice(source);
            return Ok(bytes);
        }
        check_list(hypercall.input, offset + N)?;
        self.ram
            .read(hypercall.input + offset as u64, &mut bytes)
            .map_err(|_| status::INVALID_ALIGNMENT)?;
        Ok(bytes)
    }

    /// Writes output at `offset` of the output list. Fast calls have no output here (the feature is
    /// not offered).
    fn output(
        &self,
        control: Control,
        hypercall: Hypercall,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), HvStatus> {
        if control.fast() {
            return Err(status::INVALID_HYPERCALL_INPUT);
        }
        check_list(hypercall.output, offset + bytes.len())?;
        self.ram
            .write(hypercall.output + offset as u64, bytes)
            .map_err(|_| status::INVALID_ALIGNMENT)
    }

    /// HvCallPostMessage: connection id, reserved, message type, payload size, 240 bytes of
    /// payload.
    fn post_message(&self, vp: VpIndex, control: Control, hypercall: Hypercall) -> HvStatus {
        const SIZE: usize = 16 + MESSAGE_PAYLOAD_MAX;
        let input: [u8; SIZE] = match self.input(control, hypercall, 0) {
            Ok(input) => input,
            Err(status) => return status,
        };
        let connection = word(&input, 0);
        let kind = word(&input, 8);
        let Some(payload) = (word(&input, 12) as usize)
            .checked_add(16)
            .and_then(|end| input.get(16..end))
        else {
            return status::INVALID_PARAMETER;
        };
        if kind == 0 || kind & MESSAGE_TYPE_HYPERVISOR != 0 {
            return status::INVALID_PARAMETER;
        }
        match self.sink.get() {
            Some(sink) => sink.post_message(vp, connection, kind, payload),
            None => status::INVALID_CONNECTION_ID,
        }
    }

    /// HvCallSignalEvent: connection id, flag number (16 bits), reserved.
    fn signal_event(&self, vp: VpIndex, control: Control, hypercall: Hypercall) -> HvStatus {
        let input: [u8; 8] = match self.input(control, hypercall, 0) {
            Ok(input) => input,
            Err(status) => return status,
        };
        let connection = word(&input, 0);
        let flag = word(&input, 4) as u16;
        match self.sink.get() {
            Some(sink) => sink.signal_event(vp, connection, flag),
            None => status::INVALID_CONNECTION_ID,
        }
    }

    /// HvExtCallQueryCapabilities: 64 bits of output. None of the extended calls is offered.
    fn query_capabilities(&self, control: Control, hypercall: Hypercall) -> HvStatus {
        self.output(control, hypercall, 0, &[0; 8])
            .err()
            .unwrap_or(status::SUCCESS)
    }

    /// HvCallGetVpIndexFromApicId: partition id, target VTL, 7 reserved; per repetition a 32-bit
    /// APIC id in and a 32-bit VP index out.
    fn vp_index_from_apic_id(&self, control: Control, hypercall: Hypercall) -> Outcome {
        let header: [u8; 16] = match self.input(control, hypercall, 0) {
            Ok(header) => header,
            Err(status) => return status.into(),
        };
        if u64::from_le_bytes(header[..8].try_into().unwrap_or_default()) != PARTITION_ID_SELF {
            return status::ACCESS_DENIED.into();
        }
        if header[8..].iter().any(|byte| *byte != 0) {
            return status::INVALID_PARAMETER.into();
        }
        // In the result, repetitions completed count from the start of the list (TLFS "Hypercall
        // Outputs").
        for rep in control.rep_start()..control.rep_count() {
            let result = self
                .input::<4>(control, hypercall, 16 + 4 * rep)
                .and_then(|apic_id| {
                    let apic_id = u32::from_le_bytes(apic_id);
                    let vp = (0..self.vps.len() as u32)
                        .find(|vp| self.processors.apic_id(VpIndex(*vp)) == apic_id);
                    let vp = vp.ok_or(status::INVALID_PARAMETER)?;
                    self.output(control, hypercall, 4 * rep, &vp.to_le_bytes())
                });
            if let Err(status) = result {
                return Outcome {
                    status,
                    completed: rep,
                };
            }
        }
        Outcome {
            status: status::SUCCESS,
            completed: control.rep_count(),
        }
    }
}

/// A parameter list must be 8-byte aligned and must not cross a page.
fn check_list(gpa: u64, len: usize) -> Result<(), HvStatus> {
    let within = (gpa % PAGE_SIZE as u64) as usize;
    if gpa % 8 != 0 || within + len > PAGE_SIZE {
        return Err(status::INVALID_ALIGNMENT);
    }
    Ok(())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
#[path = "hypercall_tests.rs"]
mod tests;
