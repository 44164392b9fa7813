// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Hypercalls (TLFS, "Hypercall Interface").

use hv_partition::VpIndex;
use vmbus_proto::tlfs::hypercall::{
    hypercall_result, HvStatus, HypercallCode, HypercallControl, PostMessageInput, SignalEventInput,
};
use vmbus_proto::tlfs::synic::MessageType;
use zerocopy::FromBytes;

use crate::{Shared, PAGE_SIZE};

/// HV_PARTITION_ID_SELF.
const PARTITION_ID_SELF: u64 = u64::MAX;
/// Message types with this bit belong to the hypervisor; guests may not post them.
const MESSAGE_TYPE_HYPERVISOR: u32 = 0x8000_0000;

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
    completed: u16,
}

impl From<Result<(), HvStatus>> for Outcome {
    fn from(result: Result<(), HvStatus>) -> Self {
        result.err().unwrap_or(HvStatus::SUCCESS).into()
    }
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
        let control = HypercallControl(hypercall.control);
        if let Some(vp) = self.vps.get(vp.0 as usize) {
            vp.counters.hypercalls.add();
        }
        if control.is_fast() {
            self.counters.hypercall_fast.add();
        }
        let outcome = self.dispatch(vp, control, hypercall);
        if outcome.status != HvStatus::SUCCESS {
            self.counters.hypercall_failed.add();
            tracing::debug!(
                code = ?control.code(),
                status = ?outcome.status,
                vp = vp.0,
                "hypercall failed"
            );
        }
        Some(hypercall_result(outcome.status, outcome.completed))
    }

    fn dispatch(&self, vp: VpIndex, control: HypercallControl, hypercall: Hypercall) -> Outcome {
        let counters = &self.counters;
        let (counter, rep) = match control.code() {
            HypercallCode::POST_MESSAGE => (&counters.hypercall_post_message, false),
            HypercallCode::SIGNAL_EVENT => (&counters.hypercall_signal_event, false),
            HypercallCode::NOTIFY_LONG_SPIN_WAIT => {
                (&counters.hypercall_notify_long_spin_wait, false)
            }
            HypercallCode::EXT_QUERY_CAPABILITIES => {
                (&counters.hypercall_ext_query_capabilities, false)
            }
            HypercallCode::GET_VP_INDEX_FROM_APIC_ID => {
                (&counters.hypercall_get_vp_index_from_apic_id, true)
            }
            code => {
                counters.hypercall_other.add();
                let privileged = PRIVILEGED.iter().any(|codes| codes.contains(&code.0));
                return if privileged {
                    HvStatus::ACCESS_DENIED
                } else {
                    HvStatus::INVALID_HYPERCALL_CODE
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
        // The nested bit asks for the outermost of several hypervisors, and there is only one.
        let malformed = control.has_reserved() || control.is_nested();
        if malformed || control.variable_header_qwords() != 0 || reps_wrong {
            return HvStatus::INVALID_HYPERCALL_INPUT.into();
        }
        match control.code() {
            HypercallCode::POST_MESSAGE => self.post_message(vp, control, hypercall).into(),
            HypercallCode::SIGNAL_EVENT => self.signal_event(vp, control, hypercall).into(),
            // The input is the number of spins, which is of no use here.
            HypercallCode::NOTIFY_LONG_SPIN_WAIT => {
                self.input::<8>(control, hypercall, 0).map(|_| ()).into()
            }
            HypercallCode::EXT_QUERY_CAPABILITIES => {
                self.query_capabilities(control, hypercall).into()
            }
            _ => self.vp_index_from_apic_id(control, hypercall),
        }
    }

    /// `N` bytes of input at `offset` of the parameter list. An input of a fast call must fit its
    /// 16 bytes.
    fn input<const N: usize>(
        &self,
        control: HypercallControl,
        hypercall: Hypercall,
        offset: usize,
    ) -> Result<[u8; N], HvStatus> {
        let mut bytes = [0; N];
        if control.is_fast() {
            let mut registers = [0; 16];
            registers[..8].copy_from_slice(&hypercall.input.to_le_bytes());
            registers[8..].copy_from_slice(&hypercall.output.to_le_bytes());
            let source = registers
                .get(offset..offset + N)
                .ok_or(HvStatus::INVALID_HYPERCALL_INPUT)?;
            bytes.copy_from_slice(source);
            return Ok(bytes);
        }
        check_list(hypercall.input, offset + N)?;
        self.ram
            .read(hypercall.input + offset as u64, &mut bytes)
            .map_err(|_| HvStatus::INVALID_ALIGNMENT)?;
        Ok(bytes)
    }

    /// Writes output at `offset` of the output list. Fast calls have no output here (the feature is
    /// not offered).
    fn output(
        &self,
        control: HypercallControl,
        hypercall: Hypercall,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), HvStatus> {
        if control.is_fast() {
            return Err(HvStatus::INVALID_HYPERCALL_INPUT);
        }
        check_list(hypercall.output, offset + bytes.len())?;
        self.ram
            .write(hypercall.output + offset as u64, bytes)
            .map_err(|_| HvStatus::INVALID_ALIGNMENT)
    }

    fn post_message(
        &self,
        vp: VpIndex,
        control: HypercallControl,
        hypercall: Hypercall,
    ) -> Result<(), HvStatus> {
        const SIZE: usize = size_of::<PostMessageInput>();
        let bytes: [u8; SIZE] = self.input(control, hypercall, 0)?;
        let input = PostMessageInput::read_from_bytes(&bytes)
            .map_err(|_| HvStatus::INVALID_HYPERCALL_INPUT)?;
        let payload = input
            .payload
            .get(..input.payload_size as usize)
            .ok_or(HvStatus::INVALID_PARAMETER)?;
        let kind = input.message_type;
        if kind == MessageType::NONE.0 || kind & MESSAGE_TYPE_HYPERVISOR != 0 {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        let sink = self.sink.get().ok_or(HvStatus::INVALID_CONNECTION_ID)?;
        check(HvStatus(sink.post_message(
            vp,
            input.connection_id.0,
            kind,
            payload,
        )))
    }

    fn signal_event(
        &self,
        vp: VpIndex,
        control: HypercallControl,
        hypercall: Hypercall,
    ) -> Result<(), HvStatus> {
        let input = u64::from_le_bytes(self.input(control, hypercall, 0)?);
        let input = SignalEventInput::from_u64(input);
        let sink = self.sink.get().ok_or(HvStatus::INVALID_CONNECTION_ID)?;
        check(HvStatus(sink.signal_event(
            vp,
            input.connection_id.0,
            input.flag,
        )))
    }

    /// HvExtCallQueryCapabilities: 64 bits of output. None of the extended calls is offered.
    fn query_capabilities(
        &self,
        control: HypercallControl,
        hypercall: Hypercall,
    ) -> Result<(), HvStatus> {
        self.output(control, hypercall, 0, &[0; 8])
    }

    /// HvCallGetVpIndexFromApicId: partition id, target VTL, 7 reserved; per repetition a 32-bit
    /// APIC id in and a 32-bit VP index out.
    fn vp_index_from_apic_id(&self, control: HypercallControl, hypercall: Hypercall) -> Outcome {
        let header = self.input::<16>(control, hypercall, 0).and_then(|header| {
            let (partition, vtl) = header.split_at(8);
            if partition != PARTITION_ID_SELF.to_le_bytes() {
                return Err(HvStatus::ACCESS_DENIED);
            }
            if vtl.iter().any(|byte| *byte != 0) {
                return Err(HvStatus::INVALID_PARAMETER);
            }
            Ok(())
        });
        if header.is_err() {
            return header.into();
        }
        // In the result, repetitions done count from the start of the list (TLFS "Hypercall
        // Outputs").
        for rep in control.rep_start()..control.rep_count() {
            let at = 4 * usize::from(rep);
            let result = self
                .input::<4>(control, hypercall, 16 + at)
                .and_then(|apic_id| {
                    let apic_id = u32::from_le_bytes(apic_id);
                    let vp = (0..self.vps.len() as u32)
                        .find(|vp| self.processors.apic_id(VpIndex(*vp)) == apic_id)
                        .ok_or(HvStatus::INVALID_PARAMETER)?;
                    self.output(control, hypercall, at, &vp.to_le_bytes())
                });
            if let Err(status) = result {
                return Outcome {
                    status,
                    completed: rep,
                };
            }
        }
        Outcome {
            status: HvStatus::SUCCESS,
            completed: control.rep_count(),
        }
    }
}

/// A parameter list must be 8-byte aligned and must not cross a page.
fn check_list(gpa: u64, len: usize) -> Result<(), HvStatus> {
    let within = (gpa % PAGE_SIZE as u64) as usize;
    if gpa % 8 != 0 || within + len > PAGE_SIZE {
        return Err(HvStatus::INVALID_ALIGNMENT);
    }
    Ok(())
}

fn check(status: HvStatus) -> Result<(), HvStatus> {
    if status.is_success() {
        Ok(())
    } else {
        Err(status)
    }
}

#[cfg(test)]
#[path = "hypercall_tests.rs"]
mod tests;
