// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! QEMU's functions, declared by hand.
//!
//! The `qemu_plugin_*` functions are the plugin interface, version 7 (QEMU 11,
//! `include/plugins/qemu-plugin.h`). The others are symbols that Debian's `qemu-system-x86_64`
//! exports but does not promise; their declarations are in QEMU's
//! `include/system/{memory,runstate,cpus}.h`, `include/hw/core/{cpu,sysemu-cpu-ops}.h`,
//! `include/exec/{cpu-common,translation-block}.h`, `include/qemu/{main-loop,notify,rcu}.h`,
//! `target/i386/tcg/helper-tcg.h` and `include/hw/i386/x86.h` of version 11.1. All are looked up
//! when the plugin is installed, so that a QEMU which lacks one is refused with its name.

use std::ffi::{c_char, c_int, c_uint, c_void, CStr};

/// `QEMU_PLUGIN_VERSION` that this plugin is written for.
pub const PLUGIN_VERSION: c_int = 7;

/// `enum qemu_plugin_cb_flags`: the callback reads and writes registers and sets the PC.
pub const CB_RW_REGS_PC: c_int = 3;
/// `enum qemu_plugin_op`: add.
pub const INLINE_ADD_U64: c_int = 0;
/// `enum qemu_plugin_op`: store.
pub const INLINE_STORE_U64: c_int = 1;
/// `enum qemu_plugin_discon_type`: interrupts.
pub const DISCON_INTERRUPT: c_int = 1;
/// `enum qemu_plugin_discon_type`: exceptions.
pub const DISCON_EXCEPTION: c_int = 2;
/// `RUN_STATE_PAUSED` (`qapi/run-state.json`).
pub const RUN_STATE_PAUSED: c_int = 4;
/// `SHUTDOWN_CAUSE_HOST_QMP_QUIT` (`qapi/run-state.json`).
pub const SHUTDOWN_HOST_QMP_QUIT: c_int = 2;
/// `SHUTDOWN_CAUSE_HOST_QMP_SYSTEM_RESET`.
pub const SHUTDOWN_HOST_QMP_SYSTEM_RESET: c_int = 3;
/// `EXCP0D_GPF` (`target/i386/cpu.h`).
pub const EXCP_GPF: c_int = 13;

/// `qemu_info_t`.
#[repr(C)]
pub struct Info {
    pub target_name: *const c_char,
    pub version_min: c_int,
    pub version_cur: c_int,
    pub system_emulation: bool,
    pub smp_vcpus: c_int,
    pub max_vcpus: c_int,
}

/// `qemu_plugin_reg_descriptor`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RegDescriptor {
    pub handle: *mut c_void,
    pub name: *const c_char,
    pub feature: *const c_char,
    pub is_readonly: bool,
}

/// GLib's `GArray`.
#[repr(C)]
pub struct GArray {
    pub data: *mut c_char,
    pub len: c_uint,
}

/// GLib's `GByteArray`.
#[repr(C)]
pub struct GByteArray {
    pub data: *mut u8,
    pub len: c_uint,
}

/// `qemu_plugin_u64`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PluginU64 {
    pub score: *mut c_void,
    pub offset: usize,
}

/// QEMU's `Notifier` (`include/qemu/notify.h`).
#[repr(C)]
pub struct Notifier {
    pub notify: Option<unsafe extern "C" fn(*mut Notifier, *mut c_void)>,
    pub next: *mut c_void,
    pub prev: *mut c_void,
}

/// QEMU's `VersionInfo` up to the micro number (`qapi/control.json`).
#[repr(C)]
pub struct VersionTriple {
    pub major: i64,
    pub minor: i64,
    pub micro: i64,
}

/// `qemu_plugin_vcpu_udata_cb_t`.
pub type VcpuCallback = unsafe extern "C" fn(c_uint, *mut c_void);
/// `VMChangeStateHandler`: opaque, running, state.
pub type RunStateCallback = unsafe extern "C" fn(*mut c_void, bool, c_int);
/// `qemu_plugin_udata_cb_t`.
pub type Callback = unsafe extern "C" fn(*mut c_void);
/// `qemu_plugin_vcpu_tb_trans_cb_t` as QEMU 11.1 calls it: block, user data (the released version
/// 7; versions between had a plugin id).
pub type TranslateCallback = unsafe extern "C" fn(*mut c_void, *mut c_void);
/// `qemu_plugin_vcpu_discon_cb_t` as QEMU 11.1 calls it: vCPU, type, from, to, user data.
pub type DisconCallback = unsafe extern "C" fn(c_uint, c_int, u64, u64, *mut c_void);

macro_rules! api {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ty),* $(,)?) $(-> $ret:ty)?;)*) => {
        /// Functions of QEMU and GLib, under their own names.
        #[derive(Clone, Copy)]
        pub struct Api { $($(#[$doc])* pub $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)* }

        impl Api {
            /// Looks every function up.
            ///
            /// # Errors
            /// The names that QEMU lacks.
            pub fn load() -> Result<Self, Vec<&'static str>> {
                let mut missing = Vec::new();
                $(let $name = symbol(concat!(stringify!($name), "\0"));
                if $name.is_null() { missing.push(stringify!($name)); })*
                if !missing.is_empty() {
                    return Err(missing);
                }
                // SAFETY: each pointer is non-null and is the function of that name, whose C
                // declaration is the one given.
                Ok(unsafe {
                    Self { $($name: std::mem::transmute::<
                        *mut c_void,
                        unsafe extern "C" fn($($arg),*) $(-> $ret)?,
                    >($name),)* }
                })
            }
        }
    };
}

/// The address of a symbol of the process, null when it has none. `name` ends with a NUL.
pub fn symbol(name: &'static str) -> *mut c_void {
    let Ok(name) = CStr::from_bytes_with_nul(name.as_bytes()) else {
        return std::ptr::null_mut();
    };
    // SAFETY: the name is NUL-terminated and lives for ever.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
}

api! {
    // Plugin interface.
    fn qemu_plugin_register_vcpu_init_cb(u64, VcpuCallback, *mut c_void);
    fn qemu_plugin_register_vcpu_tb_trans_cb(u64, TranslateCallback, *mut c_void);
    fn qemu_plugin_register_vcpu_discon_cb(u64, c_int, DisconCallback, *mut c_void);
    fn qemu_plugin_register_vcpu_insn_exec_cb(*mut c_void, VcpuCallback, c_int, *mut c_void);
    fn qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(*mut c_void, c_int, PluginU64, u64);
    fn qemu_plugin_register_atexit_cb(u64, Callback, *mut c_void);
    fn qemu_plugin_tb_n_insns(*const c_void) -> usize;
    fn qemu_plugin_tb_vaddr(*const c_void) -> u64;
    fn qemu_plugin_tb_get_insn(*const c_void, usize) -> *mut c_void;
    fn qemu_plugin_insn_data(*const c_void, *mut c_void, usize) -> usize;
    fn qemu_plugin_insn_size(*const c_void) -> usize;
    fn qemu_plugin_insn_vaddr(*const c_void) -> u64;
    fn qemu_plugin_insn_haddr(*const c_void) -> *mut c_void;
    fn qemu_plugin_get_registers() -> *mut GArray;
    fn qemu_plugin_read_register(*mut c_void, *mut GByteArray) -> bool;
    fn qemu_plugin_write_register(*mut c_void, *mut GByteArray) -> bool;
    fn qemu_plugin_set_pc(u64) -> !;
    fn qemu_plugin_translate_vaddr(u64, *mut u64) -> bool;
    fn qemu_plugin_scoreboard_new(usize) -> *mut c_void;
    fn qemu_plugin_scoreboard_find(*mut c_void, c_uint) -> *mut c_void;
    // GLib.
    fn g_byte_array_new() -> *mut GByteArray;
    fn g_byte_array_set_size(*mut GByteArray, c_uint) -> *mut GByteArray;
    fn g_array_free(*mut GArray, c_int) -> *mut c_char;
    // QEMU's own.
    fn qemu_add_machine_init_done_notifier(*mut Notifier);
    fn qemu_register_reset(unsafe extern "C" fn(*mut c_void), *mut c_void);
    fn qemu_add_vm_change_state_handler(RunStateCallback, *mut c_void) -> *mut c_void;
    fn qemu_system_reset_request(c_int);
    fn qemu_system_shutdown_request(c_int);
    fn qemu_system_vmstop_request_prepare();
    fn qemu_system_vmstop_request(c_int);
    fn qemu_get_aio_context() -> *mut c_void;
    fn aio_bh_schedule_oneshot_full(*mut c_void, Callback, *mut c_void, *const c_char);
    fn vm_start();
    fn qemu_tcg_mttcg_enabled() -> bool;
    fn qemu_get_cpu(c_int) -> *mut c_void;
    fn cpus_get_elapsed_ticks() -> i64;
    /// Address space, address, length (in and out), whether for writing, attributes.
    fn address_space_map(*mut c_void, u64, *mut u64, bool, u64) -> *mut c_void;
    fn address_space_unmap(*mut c_void, *mut c_void, u64, bool, u64);
    fn address_space_write(*mut c_void, u64, u64, *const c_void, u64) -> c_uint;
    fn address_space_read_full(*mut c_void, u64, u64, *mut c_void, u64) -> c_uint;
    fn qemu_ram_addr_from_host(*mut c_void) -> u64;
    /// CPU (may be null), first and last RAM address.
    fn tb_invalidate_phys_range(*mut c_void, u64, u64);
    fn cpu_restore_state(*mut c_void, usize) -> bool;
    fn raise_exception_err_ra(*mut c_void, c_int, c_int, usize) -> !;
    fn rcu_register_thread();
    fn rcu_unregister_thread();
    fn x86_cpu_apic_id_from_index(*mut c_void, c_uint) -> u32;
}

/// Variables of QEMU: their addresses.
#[derive(Clone, Copy)]
pub struct Variables {
    /// `AddressSpace address_space_memory`.
    pub address_space_memory: *mut c_void,
    /// `MachineState *current_machine`.
    pub current_machine: *mut *mut c_void,
}

impl Variables {
    /// Looks the variables up.
    ///
    /// # Errors
    /// The name that QEMU lacks.
    pub fn load() -> Result<Self, Vec<&'static str>> {
        let memory = symbol("address_space_memory\0");
        let machine = symbol("current_machine\0");
        let missing: Vec<_> = [
            (memory, "address_space_memory"),
            (machine, "current_machine"),
        ]
        .into_iter()
        .filter_map(|(address, name)| address.is_null().then_some(name))
        .collect();
        if missing.is_empty() {
            Ok(Self {
                address_space_memory: memory,
                current_machine: machine.cast(),
            })
        } else {
            Err(missing)
        }
    }
}

/// QEMU's version, "?" when it cannot be told.
pub fn qemu_version() -> String {
    let query = symbol("qmp_query_version\0");
    if query.is_null() {
        return "?".to_owned();
    }
    // SAFETY: `VersionInfo *qmp_query_version(Error **errp)`: allocates and cannot fail.
    let info = unsafe {
        let query: unsafe extern "C" fn(*mut c_void) -> *const *const VersionTriple =
            std::mem::transmute(query);
        query(std::ptr::null_mut())
    };
    if info.is_null() {
        return "?".to_owned();
    }
    // SAFETY: the first member of `VersionInfo` is `VersionTriple *qemu`, never null; what was
    // allocated is not freed.
    let triple = unsafe { &**info };
    format!("{}.{}.{}", triple.major, triple.minor, triple.micro)
}
