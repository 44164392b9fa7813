// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The instructions that are the hypervisor's: found when QEMU translates, answered when a vCPU
//! executes them.

use std::cell::RefCell;
use std::ffi::{c_uint, c_void, CStr};
use std::sync::atomic::{AtomicUsize, Ordering};

use hv_hypervisor::{tlfs, Hypercall, Hypervisor};
use hv_partition::VpIndex;

use crate::api::{self, Api, GByteArray, RegDescriptor};
use crate::Plugin;

/// Longest instruction of interest: prefixes and three bytes.
const INSN_MAX: usize = 8;

/// The instructions that are intercepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Intercept {
    Cpuid,
    Rdmsr,
    Wrmsr,
    Hypercall,
}

impl Intercept {
    /// Recognises an instruction by its bytes: prefixes without meaning for it, then the opcode.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let opcode = bytes.iter().position(|byte| *byte == 0x0f)?;
        let prefixes_only = bytes[..opcode]
            .iter()
            .all(|byte| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf2..=0xf3));
        match &bytes[opcode + 1..] {
            _ if !prefixes_only => None,
            [0xa2] => Some(Self::Cpuid),
            [0x32] => Some(Self::Rdmsr),
            [0x30] => Some(Self::Wrmsr),
            // vmmcall, vmcall
            [0x01, 0xd9 | 0xc1] => Some(Self::Hypercall),
            _ => None,
        }
    }

    fn from_bits(bits: usize) -> Option<Self> {
        [Self::Cpuid, Self::Rdmsr, Self::Wrmsr, Self::Hypercall]
            .into_iter()
            .find(|kind| *kind as usize == bits)
    }
}

/// What an execution callback is told, packed into its pointer-sized argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Site {
    kind: Intercept,
    /// Bytes of the instruction.
    len: u8,
    /// Instructions of the block behind this one, which will not execute in this run of it.
    skipped: u16,
    /// Profile slot of the block.
    slot: u32,
}

impl Site {
    fn pack(self) -> *mut c_void {
        let bits = self.kind as usize
            | (usize::from(self.len) << 8)
            | (usize::from(self.skipped) << 16)
            | ((self.slot as usize) << 32);
        bits as *mut c_void
    }

    fn unpack(pointer: *mut c_void) -> Option<Self> {
        let bits = pointer as usize;
        Some(Self {
            kind: Intercept::from_bits(bits & 0xff)?,
            len: (bits >> 8) as u8,
            skipped: (bits >> 16) as u16,
            slot: (bits >> 32) as u32,
        })
    }
}

/// Registers by their names in QEMU's `gdb-xml/i386-64bit.xml`.
#[derive(Clone, Copy)]
#[repr(usize)]
enum Reg {
    Rax,
    Rbx,
    Rcx,
    Rdx,
    Rsi,
    Rdi,
    Rbp,
    Rsp,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
    Rip,
    Cs,
    Efer,
}

const REG_NAMES: [&str; 19] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rip", "cs", "efer",
];

/// `EFER.LMA`: long mode is active.
const EFER_LMA: u64 = 1 << 10;

thread_local! {
    /// The registers of this thread's vCPU and its buffer for them.
    static VCPU: RefCell<Option<Vcpu>> = const { RefCell::new(None) };
}

#[derive(Clone, Copy)]
struct Vcpu {
    handles: [*mut c_void; REG_NAMES.len()],
    buffer: *mut GByteArray,
    cpu: *mut c_void,
}

/// Distance of the architectural state from `CPUState`, once found; 0 before.
static ENV_OFFSET: AtomicUsize = AtomicUsize::new(0);

/// Prepares the calling vCPU thread.
///
/// # Safety
/// Only from the vCPU initialisation callback.
pub unsafe fn init_vcpu(api: &Api, index: c_uint) -> Result<(), String> {
    // SAFETY: in a vCPU's context, as the interface asks.
    let list = unsafe { (api.qemu_plugin_get_registers)() };
    if list.is_null() {
        return Err("QEMU tells no registers".to_owned());
    }
    // SAFETY: QEMU returned a valid array of descriptors.
    let descriptors = unsafe {
        std::slice::from_raw_parts((*list).data.cast::<RegDescriptor>(), (*list).len as usize)
    };
    let mut handles = [std::ptr::null_mut(); REG_NAMES.len()];
    for (handle, name) in handles.iter_mut().zip(REG_NAMES) {
        let found = descriptors.iter().find(|d| {
            // SAFETY: names are interned, NUL-terminated strings.
            unsafe { CStr::from_ptr(d.name) }.to_bytes() == name.as_bytes()
        });
        *handle = found
            .ok_or_else(|| format!("QEMU's processor has no register '{name}'"))?
            .handle;
    }
    // SAFETY: the array is ours to free; the buffer is kept for the life of the thread; the CPU of
    // this index exists.
    let (buffer, cpu) = unsafe {
        (api.g_array_free)(list, 1);
        ((api.g_byte_array_new)(), (api.qemu_get_cpu)(index as i32))
    };
    VCPU.with(|vcpu| {
        *vcpu.borrow_mut() = Some(Vcpu {
            handles,
            buffer,
            cpu,
        })
    });
    Ok(())
}

impl Vcpu {
    fn get(&self, api: &Api, reg: Reg) -> u64 {
        // SAFETY: in an execution callback that may read registers; handle and buffer are valid.
        unsafe {
            (api.g_byte_array_set_size)(self.buffer, 0);
            if !(api.qemu_plugin_read_register)(self.handles[reg as usize], self.buffer) {
                return 0;
            }
            let bytes = std::slice::from_raw_parts(
                (*self.buffer).data,
                ((*self.buffer).len as usize).min(8),
            );
            bytes
                .iter()
                .rev()
                .fold(0, |value, byte| (value << 8) | u64::from(*byte))
        }
    }

    fn set(&self, api: &Api, reg: Reg, value: u64) {
        // SAFETY: as `get`, in a callback that may write registers; general registers have 8 bytes.
        unsafe {
            (api.g_byte_array_set_size)(self.buffer, 8);
            std::ptr::copy_nonoverlapping(value.to_le_bytes().as_ptr(), (*self.buffer).data, 8);
            (api.qemu_plugin_write_register)(self.handles[reg as usize], self.buffer);
        }
    }

    fn pair(&self, api: &Api, high: Reg, low: Reg) -> u64 {
        (self.get(api, high) << 32) | self.get(api, low) & 0xffff_ffff
    }

    fn set_pair(&self, api: &Api, high: Reg, low: Reg, value: u64) {
        self.set(api, low, value & 0xffff_ffff);
        self.set(api, high, value >> 32);
    }

    /// The architectural state (`CPUX86State`), which begins with the general registers in their
    /// encoding order (`target/i386/cpu.h`). QEMU exports no function for it; it follows `CPUState`
    /// in the same allocation, and is recognised by the register values.
    fn env(&self, api: &Api) -> Option<*mut c_void> {
        use Reg::*;
        let order = [
            Rax, Rcx, Rdx, Rbx, Rsp, Rbp, Rsi, Rdi, R8, R9, R10, R11, R12, R13, R14, R15,
        ];
        let values = order.map(|reg| self.get(api, reg));
        let matches = |offset: usize| {
            (0..values.len()).all(|i| {
                // SAFETY: callers stay within the CPU's allocation, see below.
                let word = unsafe {
                    self.cpu
                        .cast::<u8>()
                        .add(offset + 8 * i)
                        .cast::<u64>()
                        .read_volatile()
                };
                word == values[i]
            })
        };
        let known = ENV_OFFSET.load(Ordering::Relaxed);
        if known != 0 {
            return matches(known).then(|| self.cpu.cast::<u8>().wrapping_add(known).cast());
        }
        // The state lies behind at least one page of `CPUState` (its TLBs) and the search ends at
        // it; the stack pointer of a guest that executes RDMSR is not zero, so that zeroed memory
        // does not match.
        let found = (0..ENV_SEARCH)
            .step_by(16)
            .find(|offset| matches(*offset))?;
        ENV_OFFSET.store(found, Ordering::Relaxed);
        Some(self.cpu.cast::<u8>().wrapping_add(found).cast())
    }
}

/// Bytes behind the start of `CPUState` in which the architectural state must begin.
const ENV_SEARCH: usize = 0x1_0000;

// QEMU's helpers find out which guest instruction called them from their return address, and so
// must a callback that leaves the block: this entry passes that address on as the third argument.
std::arch::global_asm!(
    ".globl hv_insn_entry",
    ".hidden hv_insn_entry",
    ".type hv_insn_entry, @function",
    "hv_insn_entry:",
    "mov rdx, [rsp]",
    "jmp {handler}",
    ".size hv_insn_entry, . - hv_insn_entry",
    handler = sym on_insn,
);

extern "C" {
    /// Execution callback, see above.
    fn hv_insn_entry(index: c_uint, userdata: *mut c_void);
}

/// What the vCPU does after a callback.
enum Then {
    /// The instruction is done: go on behind it.
    Skip,
    /// The instruction is not ours: QEMU executes it.
    Original,
    /// The instruction raises #GP(0).
    Fault,
}

/// Execution callback. Leaves by `longjmp` unless the instruction is QEMU's: no value with a
/// destructor is alive then.
unsafe extern "C" fn on_insn(index: c_uint, userdata: *mut c_void, return_address: usize) {
    let Some(plugin) = crate::plugin() else {
        return;
    };
    let (Some(host), Some(site)) = (plugin.host.get(), Site::unpack(userdata)) else {
        return;
    };
    let Some(mut vcpu) = VCPU.with(|vcpu| *vcpu.borrow()) else {
        return;
    };
    let api = &plugin.api;
    // With `thread=single` all vCPUs share this thread.
    // SAFETY: the vCPU that executes exists.
    vcpu.cpu = unsafe { (api.qemu_get_cpu)(index as i32) };
    match perform(api, &vcpu, &host.hypervisor, VpIndex(index), site.kind) {
        Then::Original => (),
        Then::Skip => {
            if let Some(profile) = &plugin.profile {
                profile.leave(index, site.slot, site.skipped);
            }
            // SAFETY: the return address lies in the translated block that called; this brings
            // instruction pointer and condition code state up to date, as before any exit from
            // within a block. `qemu_plugin_set_pc` may be called in a callback with this flag; it
            // does not return, and nothing here has a destructor.
            unsafe {
                (api.cpu_restore_state)(vcpu.cpu, return_address);
                let next = vcpu.get(api, Reg::Rip).wrapping_add(site.len.into());
                (api.qemu_plugin_set_pc)(next)
            }
        }
        Then::Fault => {
            if let Some(profile) = &plugin.profile {
                profile.leave(index, site.slot, site.skipped);
            }
            // SAFETY: as above.
            unsafe { (api.cpu_restore_state)(vcpu.cpu, return_address) };
            if let Some(env) = vcpu.env(api) {
                // SAFETY: `env` is this vCPU's state; raises the exception as QEMU's own RDMSR and
                // WRMSR do, and does not return.
                unsafe { (api.raise_exception_err_ra)(env, api::EXCP_GPF, 0, return_address) }
            }
            tracing::error!(
                "cannot raise #GP: architectural state not found; the instruction is ignored"
            );
            let next = vcpu.get(api, Reg::Rip).wrapping_add(site.len.into());
            // SAFETY: as for `Then::Skip`.
            unsafe { (api.qemu_plugin_set_pc)(next) }
        }
    }
}

fn perform(api: &Api, vcpu: &Vcpu, hypervisor: &Hypervisor, vp: VpIndex, kind: Intercept) -> Then {
    use Reg::*;
    match kind {
        Intercept::Cpuid => {
            let Some([a, b, c, d]) = hypervisor.cpuid(vcpu.get(api, Rax) as u32) else {
                return Then::Original;
            };
            for (reg, value) in [(Rax, a), (Rbx, b), (Rcx, c), (Rdx, d)] {
                vcpu.set(api, reg, value.into());
            }
            Then::Skip
        }
        Intercept::Rdmsr | Intercept::Wrmsr => {
            let msr = vcpu.get(api, Rcx) as u32;
            // In user mode QEMU's own instruction raises the #GP.
            if !(tlfs::msr::FIRST..=tlfs::msr::LAST).contains(&msr) || vcpu.get(api, Cs) & 3 != 0 {
                return Then::Original;
            }
            let result = if kind == Intercept::Rdmsr {
                hypervisor
                    .read_msr(vp, msr)
                    .map(|value| vcpu.set_pair(api, Rdx, Rax, value))
            } else {
                hypervisor.write_msr(vp, msr, vcpu.pair(api, Rdx, Rax))
            };
            match result {
                Ok(()) => Then::Skip,
                Err(_) => Then::Fault,
            }
        }
        Intercept::Hypercall => {
            // Only the most privileged mode may; QEMU's own instruction raises the #UD.
            if vcpu.get(api, Cs) & 3 != 0 {
                return Then::Original;
            }
            // TLFS "Hypercall Inputs": registers of 64-bit and of 32-bit callers. Compatibility
            // mode at CPL 0 is not distinguished.
            let long = vcpu.get(api, Efer) & EFER_LMA != 0;
            let call = if long {
                Hypercall {
                    control: vcpu.get(api, Rcx),
                    input: vcpu.get(api, Rdx),
                    output: vcpu.get(api, R8),
                }
            } else {
                Hypercall {
                    control: vcpu.pair(api, Rdx, Rax),
                    input: vcpu.pair(api, Rbx, Rcx),
                    output: vcpu.pair(api, Rdi, Rsi),
                }
            };
            let Some(result) = hypervisor.hypercall(vp, call) else {
                return Then::Original;
            };
            if long {
                vcpu.set(api, Rax, result);
            } else {
                vcpu.set_pair(api, Rdx, Rax, result);
            }
            Then::Skip
        }
    }
}

/// Translation callback: notes pages that hold code, counts, and intercepts.
///
/// # Safety
/// Only from QEMU's translation callback, with its block.
pub unsafe fn on_translate(plugin: &Plugin, tb: *mut c_void) {
    let api = &plugin.api;
    // SAFETY: `tb` is valid during the callback, and so are its instructions.
    let count = unsafe { (api.qemu_plugin_tb_n_insns)(tb) };
    let slot = plugin
        .profile
        .as_ref()
        .map_or(0, |profile| profile.block(api, tb, count));
    let mut last_page = 0;
    for i in 0..count {
        // SAFETY: as above; `i` is within the block.
        let insn = unsafe { (api.qemu_plugin_tb_get_insn)(tb, i) };
        // SAFETY: as above.
        let (host, size) = unsafe {
            (
                (api.qemu_plugin_insn_haddr)(insn) as usize,
                (api.qemu_plugin_insn_size)(insn),
            )
        };
        if let Some(code) = plugin.host.get().map(|host| &host.code) {
            if host != 0 && host >> 12 != last_page {
                last_page = host >> 12;
                code.note(host);
            }
            if host != 0 && (host + size - 1) >> 12 != host >> 12 {
                note_next_page(api, code, insn, size);
            }
        }
        if !(2..=INSN_MAX).contains(&size) {
            continue;
        }
        let mut bytes = [0; INSN_MAX];
        // SAFETY: the buffer has the length that is told.
        let len = unsafe { (api.qemu_plugin_insn_data)(insn, bytes.as_mut_ptr().cast(), INSN_MAX) };
        let Some(kind) = Intercept::decode(&bytes[..len.min(INSN_MAX)]) else {
            continue;
        };
        let site = Site {
            kind,
            len: size as u8,
            skipped: (count - 1 - i).min(0xffff) as u16,
            slot,
        };
        // SAFETY: the callback has the type asked for but for a third argument that it takes from
        // its own return address.
        unsafe {
            (api.qemu_plugin_register_vcpu_insn_exec_cb)(
                insn,
                hv_insn_entry,
                api::CB_RW_REGS_PC,
                site.pack(),
            );
        }
    }
}

/// Notes the second page of an instruction that spans two, for which QEMU tells no host address.
fn note_next_page(api: &Api, code: &crate::memory::CodePages, insn: *mut c_void, size: usize) {
    let mut gpa = 0;
    // SAFETY: in a vCPU's context; `gpa` is valid for writing.
    let known = unsafe {
        let end = (api.qemu_plugin_insn_vaddr)(insn).wrapping_add(size as u64 - 1);
        (api.qemu_plugin_translate_vaddr)(end, &mut gpa)
    };
    if known {
        code.note_gpa(gpa);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_the_four_and_nothing_else() {
        assert_eq!(Intercept::decode(&[0x0f, 0xa2]), Some(Intercept::Cpuid));
        assert_eq!(Intercept::decode(&[0x0f, 0x32]), Some(Intercept::Rdmsr));
        assert_eq!(
            Intercept::decode(&[0x66, 0x48, 0x0f, 0x30]),
            Some(Intercept::Wrmsr)
        );
        assert_eq!(
            Intercept::decode(&[0x0f, 0x01, 0xd9]),
            Some(Intercept::Hypercall)
        );
        assert_eq!(
            Intercept::decode(&[0x0f, 0x01, 0xc1]),
            Some(Intercept::Hypercall)
        );
        for other in [
            &[0x0f, 0x31][..],
            &[0xb8, 0x0f, 0xa2],
            &[0x0f, 0x01, 0xd0],
            &[0x0f],
            &[0x90],
            &[0x0f, 0xa2, 0x00],
            &[],
        ] {
            assert_eq!(Intercept::decode(other), None, "{other:x?}");
        }
    }

    #[test]
    fn a_site_survives_its_pointer() {
        let site = Site {
            kind: Intercept::Wrmsr,
            len: 2,
            skipped: 511,
            slot: 0xfedc_ba98,
        };
        assert_eq!(Site::unpack(site.pack()), Some(site));
        assert_eq!(Site::unpack(9 as *mut c_void), None);
    }
}
