// SPDX-License-Identifier: GPL-2.0

//! VMBus: how a Hyper-V guest finds and talks to the devices of its host.
//!
//! The crate is the module `hv_vmbus_rs`, which keeps the connection with the host and a Linux bus named `vmbus`, and the
//! interface by which device drivers in other modules use that bus:
//!
//! | module | holds |
//! | --- | --- |
//! | [`driver`] | the [`Driver`](driver::Driver) trait, [`module_vmbus_driver!`] |
//! | [`device`] | a device on the bus |
//! | [`channel`] | opening a device's channel, sending and receiving packets |
//! | [`buffer`] | memory shared with the host beside the rings |
//! | [`services`] | what drivers need of the kernel and `kernel` does not have |
//! | [`log`] | printing what the host can cause |
//!
//! `docs/drivers.md` tells how it works inside.

use kernel::{prelude::*, sync::Arc};
use vmbus_proto::version::VmbusVersion;

pub mod buffer;
mod bus;
mod chan;
pub mod channel;
mod compat;
mod connection;
mod cpus;
pub mod device;
pub mod driver;
mod ffi;
mod hypercall;
mod inbox;
#[cfg(CONFIG_KUNIT = "y")]
#[path = "../../kunit/vmbus.rs"]
mod kunit;
pub mod log;
mod memory;
mod offers;
mod open;
mod platform;
mod power;
mod ring;
pub mod services;
mod sync;
mod synic;
mod sysfs;
mod tasklet;
mod waiter;
mod workqueue;

use connection::Connection;

module! {
    type: Vmbus,
    name: "hv_vmbus_rs",
    authors: ["hyperv-rs contributors"],
    description: "VMBus client for Hyper-V guests",
    license: "GPL",
}

crate::module_param_int!(
    max_version,
    uint,
    VmbusVersion::V6_0.0 as i32,
    0o444,
    "Newest VMBus protocol version to offer the host: major << 16 | minor"
);

/// Everything that module exit undoes, in the order of the fields.
#[pin_data]
struct Vmbus {
    #[pin]
    _handlers: power::Handlers,
    _session: Session,
    _cpus: CpuCallbacks,
    _interrupt: Interrupt,
    _bus: bus::Registration,
    _platform: platform::Registration,
    _conn: Arc<Connection>,
}

/// The connection with the host; on drop devices are unregistered and the host lets go.
struct Session(Arc<Connection>);

impl Drop for Session {
    fn drop(&mut self) {
        self.0.remove_all();
        self.0.unload();
        self.0.finish();
    }
}

/// The SynICs being on; off on drop.
struct CpuCallbacks(());

impl Drop for CpuCallbacks {
    fn drop(&mut self) {
        cpus::remove();
    }
}

/// The interrupt handler being set; on drop it and the tasklets are stopped.
struct Interrupt(Arc<Connection>);

impl Drop for Interrupt {
    fn drop(&mut self) {
        ffi::hv_remove_vmbus_handler();
        Connection::clear_global();
        self.0.synic.kill_tasklets();
        // What came after the devices were removed. The items hold references: the connection must not go from inside one of
        // its own queues, nor the module while one runs.
        self.0.queues.flush();
    }
}

/// Whether the module can work here; says why not.
fn check() -> Result<ffi::Features> {
    let mut features = ffi::Features::default();
    // SAFETY: `features` is writable.
    unsafe { ffi::hv_rs_features(&raw mut features) };
    if !features.hyperv {
        pr_err!("not loaded: this machine is not a Hyper-V guest; nothing to do\n");
        return Err(ENODEV);
    }
    if ffi::hv_rs_c_bus_exists() {
        pr_err!("not loaded: the kernel's own VMBus driver has the bus; boot with initcall_blacklist=hv_acpi_init to leave it to this module\n");
        return Err(EBUSY);
    }
    if features.root_partition && !features.nested {
        pr_err!(
            "not loaded: this is the root partition, which has no VMBus client; nothing to do\n"
        );
        return Err(ENODEV);
    }
    if cfg!(CONFIG_PREEMPT_RT) {
        pr_err!("not loaded: PREEMPT_RT kernels are not supported; use the kernel's own driver\n");
        return Err(compat::eopnotsupp());
    }
    if features.isolated {
        pr_err!("not loaded: confidential VMs are not supported; use the kernel's own driver\n");
        return Err(compat::eopnotsupp());
    }
    Ok(features)
}

impl Vmbus {
    #[allow(clippy::type_complexity)]
    fn start(
        module: &'static ThisModule,
    ) -> Result<(
        Session,
        CpuCallbacks,
        Interrupt,
        bus::Registration,
        platform::Registration,
        Arc<Connection>,
    )> {
        let features = check()?;
        // Dropped in reverse order when a later step fails.
        let conn = Connection::new(features, VmbusVersion(max_version.get_unsigned()))?;
        let platform = platform::Registration::new(&conn, module).inspect_err(|_| {
            pr_err!("not loaded: the firmware has no VMBus device; nothing to do\n")
        })?;
        let bus = bus::Registration::new()?;
        Connection::set_global(&conn);
        // SAFETY: The handler stays until `Interrupt` is dropped.
        unsafe { ffi::hv_setup_vmbus_handler(connection::interrupt_handler) };
        let interrupt = Interrupt(conn.clone());
        cpus::setup()?;
        let cpus = CpuCallbacks(());
        // Before, so that memory which the host may hold is kept when it does not answer.
        let session = Session(conn.clone());
        conn.connect()?;
        Ok((session, cpus, interrupt, bus, platform, conn))
    }
}

impl kernel::InPlaceModule for Vmbus {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let (session, cpus, interrupt, bus, platform, conn) = Vmbus::start(module)?;
            let asked = conn.clone();
            Ok::<_, Error>(
                try_pin_init!(Self {
                    _handlers <- power::Handlers::new(),
                    _session: session,
                    _cpus: cpus,
                    _interrupt: interrupt,
                    _bus: bus,
                    _platform: platform,
                    _conn: conn,
                })
                .pin_chain(move |_| asked.request_offers()),
            )
        })
    }
}
