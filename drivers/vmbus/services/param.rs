// SPDX-License-Identifier: GPL-2.0

//! Module parameters that can be changed at run time. Those of `kernel::module!` are read once and not shown in sysfs.

use kernel::sync::atomic::{Atomic, Relaxed};

/// The value of a parameter made by [`module_param_bool!`](crate::module_param_bool).
///
/// # Invariants
///
/// Holds 0 or 1: `param_set_bool()` writes nothing else.
#[repr(transparent)]
pub struct BoolParam(Atomic<i8>);

impl BoolParam {
    #[doc(hidden)]
    pub const fn new(default: bool) -> Self {
        Self(Atomic::new(default as i8))
    }

    /// The value now. Writers in sysfs are not waited for: a plain byte that the kernel writes at any time.
    pub fn get(&self) -> bool {
        self.0.load(Relaxed) != 0
    }

    #[doc(hidden)]
    pub const fn as_ptr(&self) -> *mut kernel::ffi::c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}

/// The value of a parameter made by [`module_param_int!`](crate::module_param_int): of type `int` or `uint`.
#[repr(transparent)]
pub struct IntParam(Atomic<i32>);

impl IntParam {
    #[doc(hidden)]
    pub const fn new(default: i32) -> Self {
        Self(Atomic::new(default))
    }

    /// The value now.
    pub fn get(&self) -> i32 {
        self.0.load(Relaxed)
    }

    /// The value now of a parameter of type `uint`.
    pub fn get_unsigned(&self) -> u32 {
        self.get() as u32
    }

    /// Changes the value, as a write to the file in sysfs does.
    pub fn set(&self, value: i32) {
        self.0.store(value, Relaxed);
    }

    #[doc(hidden)]
    pub const fn as_ptr(&self) -> *mut kernel::ffi::c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}

#[doc(hidden)]
pub const fn modinfo<const N: usize>(text: &str) -> [u8; N] {
    let text = text.as_bytes();
    let mut bytes = [0; N];
    let mut i = 0;
    while i < N {
        bytes[i] = text[i];
        i += 1;
    }
    bytes
}

/// Defines a module parameter of type bool, off by default, which root can change in `/sys/module/MODULE/parameters`
/// (mode 0644).
///
/// ```ignore
/// module_param_bool!(verbose, "Tell more");
/// if verbose.get() { … }
/// ```
#[macro_export]
macro_rules! module_param_bool {
    ($name:ident, $description:literal) => {
        #[allow(non_upper_case_globals)]
        pub(crate) static $name: $crate::services::param::BoolParam =
            $crate::services::param::BoolParam::new(false);

        $crate::__module_param!($name, "bool", param_ops_bool, 0o644, $description);
    };
}

/// Defines a module parameter of type `int` or `uint`, with its default and the mode of its file in
/// `/sys/module/MODULE/parameters`.
///
/// ```ignore
/// module_param_int!(ring_size, int, 131072, 0o444, "Size of the rings in bytes");
/// let size = ring_size.get();
/// ```
#[macro_export]
macro_rules! module_param_int {
    ($name:ident, int, $default:expr, $mode:expr, $description:literal) => {
        $crate::module_param_int!(@ $name, "int", param_ops_int, $default, $mode, $description);
    };
    ($name:ident, uint, $default:expr, $mode:expr, $description:literal) => {
        $crate::module_param_int!(@ $name, "uint", param_ops_uint, $default, $mode, $description);
    };
    (@ $name:ident, $type:literal, $ops:ident, $default:expr, $mode:expr, $description:literal) => {
        #[allow(non_upper_case_globals)]
        pub(crate) static $name: $crate::services::param::IntParam =
            $crate::services::param::IntParam::new($default);

        $crate::__module_param!($name, $type, $ops, $mode, $description);
    };
}

/// Tells the kernel of the parameter whose value is the static `$name`.
#[doc(hidden)]
#[macro_export]
macro_rules! __module_param {
    ($name:ident, $type:literal, $ops:ident, $mode:expr, $description:literal) => {
        const _: () = {
            const PARM: &str = concat!("parm=", stringify!($name), ":", $description, "\0");
            const TYPE: &str = concat!("parmtype=", stringify!($name), ":", $type, "\0");

            #[link_section = ".modinfo"]
            #[used]
            static __PARM: [u8; PARM.len()] = $crate::services::param::modinfo(PARM);

            #[link_section = ".modinfo"]
            #[used]
            static __TYPE: [u8; TYPE.len()] = $crate::services::param::modinfo(TYPE);

            #[link_section = "__param"]
            #[used]
            static __PARAM: ::kernel::module_param::KernelParam =
                ::kernel::module_param::KernelParam::new(::kernel::bindings::kernel_param {
                    name: concat!(stringify!($name), "\0").as_ptr().cast(),
                    // Exists as long as this static does.
                    mod_: (&raw const ::kernel::bindings::__this_module).cast_mut(),
                    // SAFETY: Only the address is taken of a static of the kernel, which is never written.
                    ops: unsafe { ::core::ptr::from_ref(&::kernel::bindings::$ops) },
                    perm: $mode,
                    level: -1,
                    flags: 0,
                    __bindgen_anon_1: ::kernel::bindings::kernel_param__bindgen_ty_1 {
                        arg: $name.as_ptr(),
                    },
                });
        };
    };
}
