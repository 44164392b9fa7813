// SPDX-License-Identifier: GPL-2.0

//! The differences between the kernel versions that the modules build for. Nothing outside this file asks which version
//! it is built for; Kbuild sets `kernel_7_3` for Linux 7.3 and later.

use kernel::{bindings, error::Error, ffi::c_int};

use crate::driver::{DeviceId, IdTable};

/// Error codes for which 7.2 has no names.
macro_rules! errors {
    ($($name:ident = $code:ident;)*) => { $(
        pub(crate) fn $name() -> Error {
            Error::from_errno(-(bindings::$code as c_int))
        }
    )* };
}

errors! {
    eopnotsupp = EOPNOTSUPP;
    econnrefused = ECONNREFUSED;
    eproto = EPROTO;
}

/// Implements `RawDeviceIdIndex` for a bus' id type: 7.3 stores a pointer to the entry's information in the table, 7.2 the
/// entry's index.
macro_rules! impl_device_id_index {
    ($id:ty, $raw:ty, $field:ident) => {
        // SAFETY: The offset is that of a field as wide as a pointer.
        unsafe impl kernel::device_id::RawDeviceIdIndex for $id {
            const DRIVER_DATA_OFFSET: usize = core::mem::offset_of!($raw, $field);

            #[cfg(not(kernel_7_3))]
            fn index(&self) -> usize {
                self.0.$field
            }
        }
    };
}
pub(crate) use impl_device_id_index;

/// The information that belongs to entry `id` of `table`; `None` for a null `id`.
///
/// # Safety
/// `id` is null or points into `table`.
#[cfg(kernel_7_3)]
pub(crate) unsafe fn id_info<T>(table: IdTable<T>, id: *const DeviceId) -> Option<&'static T> {
    use kernel::device_id::RawDeviceIdIndex;

    let _ = table;
    // SAFETY: By the requirement, `id` is stored in an `IdArray` and lives for ever.
    unsafe { id.as_ref().and_then(|id| id.info_unchecked_opt::<T>()) }
}

/// The information that belongs to entry `id` of `table`; `None` for a null `id`.
///
/// # Safety
/// `id` is null or points into `table`.
#[cfg(not(kernel_7_3))]
pub(crate) unsafe fn id_info<T>(table: IdTable<T>, id: *const DeviceId) -> Option<&'static T> {
    use kernel::device_id::RawDeviceIdIndex;

    // SAFETY: By the requirement, `id` lives for ever when it is not null.
    let id = unsafe { id.as_ref() }?;
    Some(table.info(id.index()))
}

/// Makes the id table of a driver and its module aliases (`vmbus:…`): name, type of the information kept with each
/// entry, entries.
///
/// ```ignore
/// hv_vmbus::vmbus_device_table!(
///     ID_TABLE,
///     <HeartbeatDriver as hv_vmbus::driver::Driver>::IdInfo,
///     [(hv_vmbus::driver::DeviceId::new(class::HEARTBEAT), ())]
/// );
/// ```
#[cfg(kernel_7_3)]
#[macro_export]
macro_rules! vmbus_device_table {
    ($($tt:tt)*) => {
        ::kernel::module_device_table!("vmbus", $crate::driver::DeviceId, $($tt)*);
    };
}

/// Makes the id table of a driver and its module aliases (`vmbus:…`): name, type of the information kept with each
/// entry, entries.
#[cfg(not(kernel_7_3))]
#[macro_export]
macro_rules! vmbus_device_table {
    ($table:ident, $info_type:ty, [$(($id:expr, $info:expr $(,)?)),* $(,)?]) => {
        const $table: ::kernel::device_id::IdArray<
            $crate::driver::DeviceId,
            $info_type,
            { <[$crate::driver::DeviceId]>::len(&[$($id,)*]) },
        > = ::kernel::device_id::IdArray::new([$(($id, $info),)*]);

        const _: () = {
            ::kernel::module_device_table!("vmbus", MODULE_TABLE, $table);
        };
    };
}

/// The module that this is written in, as `&'static ThisModule`: what C calls `THIS_MODULE`.
#[cfg(kernel_7_3)]
#[allow(clippy::crate_in_macro_def)] // That is the point of it.
#[macro_export]
macro_rules! this_module {
    () => {
        ::kernel::module::this_module::<crate::LocalModule>()
    };
}

/// The module that this is written in, as `&'static ThisModule`: what C calls `THIS_MODULE`.
#[cfg(not(kernel_7_3))]
#[allow(clippy::crate_in_macro_def)] // That is the point of it.
#[macro_export]
macro_rules! this_module {
    () => {
        &crate::THIS_MODULE
    };
}
