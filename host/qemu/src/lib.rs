// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Glue between QEMU and the host, a TCG plugin: the only unsafe code of the host.
//!
//! `qemu-system-x86_64 -accel tcg,thread=multi -plugin
//! libhv_host_qemu.so,control=SOCKET[,vmbus=6.0][,log=FILE][,profile=on]`

mod api;
mod args;
mod cpu;
mod loglimit;
mod machine;
mod memory;
mod profile;

use std::ffi::{c_char, c_int, c_uint, c_void, CStr};
use std::sync::{Arc, OnceLock};

use api::{Api, Info, Notifier, Variables};
use args::Args;
use hv_hypervisor::{Config, Hypervisor, Profiler};
use hv_vmbus_host::{HostConfig, LogLevelSetter};
use loglimit::LogLimit;
use machine::{QemuMachine, TscSample};
use memory::CodePages;
use parking_lot::Mutex;
use profile::Profile;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// The plugin interface version for which this plugin is built; QEMU looks for the symbol.
#[no_mangle]
pub static qemu_plugin_version: c_int = api::PLUGIN_VERSION;

/// The plugin, from its installation to the end of the process.
pub(crate) struct Plugin {
    pub(crate) api: Api,
    variables: Variables,
    args: Args,
    /// Taken by the VMBus half when it starts.
    set_log_level: Mutex<Option<LogLevelSetter>>,
    vp_count: u32,
    /// vCPUs that the machine may have.
    max_vcpus: i32,
    /// The TSC when the plugin was installed.
    installed: TscSample,
    pub(crate) profile: Option<Arc<Profile>>,
    /// Made when the machine is complete.
    pub(crate) host: OnceLock<Host>,
}

// SAFETY: pointers to functions and global variables of QEMU, which live as long as the process.
unsafe impl Send for Plugin {}
// SAFETY: as above; what changes is in `OnceLock`s and locks.
unsafe impl Sync for Plugin {}

/// The running host.
pub(crate) struct Host {
    pub(crate) hypervisor: Arc<Hypervisor>,
    pub(crate) code: Arc<CodePages>,
    /// Dropped when QEMU ends, which removes the control socket.
    vmbus: Mutex<Option<hv_vmbus_host::Host>>,
}

static PLUGIN: OnceLock<Plugin> = OnceLock::new();

pub(crate) fn plugin() -> Option<&'static Plugin> {
    PLUGIN.get()
}

/// Entry point, called by QEMU when it loads the plugin. Returns 0, or 1 after one line on standard
/// error.
///
/// # Safety
/// Called by QEMU with valid arguments (`qemu-plugin.h`, `qemu_plugin_install`).
#[no_mangle]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    info: *const Info,
    argc: c_int,
    argv: *mut *mut c_char,
) -> c_int {
    // SAFETY: as the caller promises.
    match unsafe { install(id, &*info, argc, argv) } {
        Ok(()) => 0,
        Err(sentence) => {
            eprintln!("hv-host: {sentence}");
            1
        }
    }
}

unsafe fn install(id: u64, info: &Info, argc: c_int, argv: *mut *mut c_char) -> Result<(), String> {
    let words = (0..usize::try_from(argc).unwrap_or(0))
        .map(|i| {
            // SAFETY: `argv` has `argc` NUL-terminated strings.
            let word = unsafe { CStr::from_ptr(*argv.add(i)) };
            word.to_str()
                .map_err(|_| "arguments must be UTF-8".to_owned())
        })
        .collect::<Result<Vec<_>, _>>()?;
    let args = Args::parse(words)?;
    let installed = TscSample::now();
    // SAFETY: a NUL-terminated string of QEMU's.
    let target = unsafe { CStr::from_ptr(info.target_name) };
    if !info.system_emulation || target.to_bytes() != b"x86_64" {
        return Err(format!(
            "needs qemu-system-x86_64, this QEMU emulates {}",
            target.to_string_lossy()
        ));
    }
    if info.version_cur < api::PLUGIN_VERSION {
        return Err(format!(
            "needs QEMU 11 or newer (plugin interface {}), this is QEMU {} (interface {})",
            api::PLUGIN_VERSION,
            api::qemu_version(),
            info.version_cur
        ));
    }
    let lacks = |names: Vec<&str>| {
        format!(
            "QEMU {} lacks {}: this plugin is made for QEMU 11.1",
            api::qemu_version(),
            names.join(", ")
        )
    };
    let api = Api::load().map_err(lacks)?;
    let variables = Variables::load().map_err(lacks)?;
    let set_log_level = Mutex::new(Some(init_log(&args)?));
    tracing::info!(
        "QEMU {}, {} vCPUs, arguments {args:?}",
        api::qemu_version(),
        info.smp_vcpus
    );
    let vp_count = u32::try_from(info.smp_vcpus).map_err(|_| "no vCPUs".to_owned())?;
    machine::mark_qemu_thread();
    let profile = args.profile.then(|| Arc::new(Profile::new(api, vp_count)));
    let profiling = profile.is_some();
    if PLUGIN
        .set(Plugin {
            api,
            variables,
            args,
            set_log_level,
            vp_count,
            max_vcpus: info.max_vcpus,
            installed,
            profile,
            host: OnceLock::new(),
        })
        .is_err()
    {
        return Err("loaded twice".to_owned());
    }
    let notifier = Box::leak(Box::new(Notifier {
        notify: Some(on_machine_done),
        next: std::ptr::null_mut(),
        prev: std::ptr::null_mut(),
    }));
    // SAFETY: called on the main thread while QEMU starts, as these functions ask; the callbacks
    // have the types declared in `qemu-plugin.h` and QEMU's headers; the notifier lives for ever.
    unsafe {
        (api.qemu_plugin_register_vcpu_init_cb)(id, on_vcpu_init, std::ptr::null_mut());
        (api.qemu_plugin_register_vcpu_tb_trans_cb)(id, on_translate, std::ptr::null_mut());
        (api.qemu_plugin_register_vcpu_discon_cb)(
            id,
            api::DISCON_INTERRUPT,
            on_interrupt,
            std::ptr::null_mut(),
        );
        if profiling {
            (api.qemu_plugin_register_vcpu_discon_cb)(
                id,
                api::DISCON_EXCEPTION,
                on_exception,
                std::ptr::null_mut(),
            );
        }
        (api.qemu_plugin_register_atexit_cb)(id, on_exit, std::ptr::null_mut());
        (api.qemu_add_machine_init_done_notifier)(notifier);
    }
    Ok(())
}

/// Log lines go to the file, or warnings to standard error. What is returned changes the level.
fn init_log(args: &Args) -> Result<LogLevelSetter, String> {
    let (level, writer) = match &args.log {
        Some(path) => {
            let file = std::fs::File::create(path)
                .map_err(|error| format!("log file {}: {error}", path.display()))?;
            (
                LevelFilter::DEBUG,
                BoxMakeWriter::new(std::sync::Mutex::new(file)),
            )
        }
        None => (LevelFilter::WARN, BoxMakeWriter::new(std::io::stderr)),
    };
    let (filter, handle) = reload::Layer::new(level);
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_thread_names(true)
        .with_writer(writer);
    tracing_subscriber::registry()
        .with(filter)
        .with(LogLimit::default())
        .with(lines)
        .try_init()
        .map_err(|error| format!("log: {error}"))?;
    Ok(Box::new(move |level| {
        let level: LevelFilter = level
            .parse()
            .map_err(|_| format!("{level:?} is not error, warn, info, debug or trace"))?;
        handle.reload(level).map_err(|error| error.to_string())
    }))
}

unsafe extern "C" fn on_vcpu_init(index: c_uint, _: *mut c_void) {
    machine::mark_qemu_thread();
    let Some(plugin) = plugin() else { return };
    // SAFETY: this is the vCPU initialisation callback.
    if let Err(sentence) = unsafe { cpu::init_vcpu(&plugin.api, index) } {
        fail(&sentence);
    }
}

unsafe extern "C" fn on_translate(tb: *mut c_void, _: *mut c_void) {
    if let Some(plugin) = plugin() {
        // SAFETY: this is the translation callback, and `tb` its block.
        unsafe { cpu::on_translate(plugin, tb) }
    }
}

unsafe extern "C" fn on_exception(vcpu: c_uint, _: c_int, from: u64, _to: u64, _: *mut c_void) {
    if let Some(profile) = plugin().and_then(|plugin| plugin.profile.as_ref()) {
        profile.exception(vcpu, from);
    }
}

unsafe extern "C" fn on_interrupt(vcpu: c_uint, _: c_int, _from: u64, _to: u64, _: *mut c_void) {
    if let Some(host) = plugin().and_then(|plugin| plugin.host.get()) {
        host.hypervisor.interrupt_taken(hv_partition::VpIndex(vcpu));
    }
}

/// The machine is complete: RAM, processors and their APIC ids are known, and nothing has run yet.
unsafe extern "C" fn on_machine_done(_: *mut Notifier, _: *mut c_void) {
    let Some(plugin) = plugin() else { return };
    match start(plugin) {
        Ok(host) => {
            let _ = plugin.host.set(host);
            // SAFETY: on the main thread, which holds QEMU's lock; the callbacks have the declared
            // types.
            unsafe {
                (plugin.api.qemu_register_reset)(on_reset, std::ptr::null_mut());
                (plugin.api.qemu_add_vm_change_state_handler)(on_run_state, std::ptr::null_mut());
            }
        }
        Err(sentence) => fail(&sentence),
    }
}

fn start(plugin: &'static Plugin) -> Result<Host, String> {
    // Our threads use atomics on memory that the guest uses atomics on, too (rings, event flags). QEMU compiles guest
    // atomics and barriers as such only with a thread per vCPU and a machine that may have several
    // (`tcg-accel-ops-mttcg.c`, `mttcg_cpu_thread_fn` and `tcg_cpu_init_cflags`); otherwise events would be lost now and
    // then. Besides, without it QEMU compiles the index of the translating vCPU into blocks that all of them execute
    // (`plugin-gen.c`, `gen_cpu_index`).
    // SAFETY: no arguments; valid once the accelerator is configured, as it is now.
    if !unsafe { (plugin.api.qemu_tcg_mttcg_enabled)() } {
        return Err("needs -accel tcg,thread=multi, and no -icount".to_owned());
    }
    if plugin.max_vcpus < 2 {
        return Err(
            "one vCPU needs -smp 1,maxcpus=2: QEMU leaves out guest atomics otherwise".to_owned(),
        );
    }
    let machine = Arc::new(QemuMachine::new(
        plugin.api,
        plugin.variables,
        plugin.vp_count,
        plugin.installed,
    ));
    let (ram, code) = memory::map(plugin.api, plugin.variables)?;
    let profiler = plugin
        .profile
        .clone()
        .map(|profile| profile as Arc<dyn Profiler>);
    let config = Config {
        machine: machine.clone(),
        processors: machine.clone(),
        vp_count: plugin.vp_count,
        ram,
        profiler,
    };
    // Our threads inherit the mask of this one: signals are QEMU's.
    let blocked = BlockedSignals::new();
    let hypervisor = Hypervisor::new(config);
    let defaults = HostConfig::default();
    let vmbus = hv_vmbus_host::Host::start(
        HostConfig {
            max_version: plugin.args.vmbus.unwrap_or(defaults.max_version),
            control: plugin.args.control.clone(),
            devices: plugin.args.devices.clone().unwrap_or(defaults.devices),
            makers: vec![hv_storvsp::make, hv_netvsp::make],
            set_log_level: plugin.set_log_level.lock().take(),
        },
        hypervisor.clone(),
        machine,
    )
    .map_err(|error| error.to_string())?;
    drop(blocked);
    hypervisor.set_sink(vmbus.sink());
    Ok(Host {
        hypervisor,
        code,
        vmbus: Mutex::new(Some(vmbus)),
    })
}

unsafe extern "C" fn on_reset(_: *mut c_void) {
    if let Some(host) = plugin().and_then(|plugin| plugin.host.get()) {
        tracing::info!("machine reset");
        host.hypervisor.reset();
    }
}

unsafe extern "C" fn on_run_state(_: *mut c_void, running: bool, state: c_int) {
    if let Some(host) = plugin().and_then(|plugin| plugin.host.get()) {
        tracing::info!(running, state, "run state");
        host.hypervisor.set_running(running);
    }
}

/// QEMU ends: the control socket goes.
unsafe extern "C" fn on_exit(_: *mut c_void) {
    if let Some(host) = plugin().and_then(|plugin| plugin.host.get()) {
        drop(host.vmbus.lock().take());
    }
}

/// Ends QEMU with one line: there is no way to report an error after the installation.
fn fail(sentence: &str) -> ! {
    eprintln!("hv-host: {sentence}");
    std::process::exit(1)
}

/// All signals blocked in this thread while it lives.
struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn new() -> Self {
        // SAFETY: both sets are valid for writing; a zeroed sigset_t is a valid value.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
            Self(before)
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the mask that was in force before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}
