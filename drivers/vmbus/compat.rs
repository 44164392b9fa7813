// SPDX-License-Identifier: GPL-2.0

//! The differences between the kernel versions that the modules build for. Nothing outside this file asks which version
//! it is built for; Kbuild sets `kernel_7_3` for Linux 7.3 and later.

use crate::driver::{DeviceId, IdTable};

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
