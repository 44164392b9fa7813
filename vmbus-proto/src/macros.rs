// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Macros that write the repetitive part of wire types.

/// Defines a newtype over an integer that the peer chooses: known values are constants, unknown
/// values are kept. `name()` gives the constant's name, `Debug` prints it.
macro_rules! open_enum {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident($repr:ty) {
            $( $(#[$vmeta:meta])* $variant:ident = $value:expr, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default,
            zerocopy_derive::FromBytes, zerocopy_derive::IntoBytes,
            zerocopy_derive::KnownLayout, zerocopy_derive::Immutable,
        )]
        #[repr(transparent)]
        $vis struct $name(pub $repr);

        impl $name {
            $( $(#[$vmeta])* pub const $variant: Self = Self($value); )*

            /// The name of the value, if it is a known one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                #[allow(unreachable_patterns)]
                match self {
                    $( Self::$variant => Some(stringify!($variant)), )*
                    _ => None,
                }
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, concat!(stringify!($name), "({:#x})"), self.0),
                }
            }
        }
    };
}

/// Defines flags of which the peer may set any bit: unknown bits are kept (`from_bits_retain`).
macro_rules! wire_flags {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident($repr:ty) {
            $( $(#$vmeta:tt)* const $variant:ident = $value:expr; )*
        }
    ) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, PartialEq, Eq, Hash, Default,
            zerocopy_derive::FromBytes, zerocopy_derive::IntoBytes,
            zerocopy_derive::KnownLayout, zerocopy_derive::Immutable,
        )]
        #[repr(transparent)]
        $vis struct $name($repr);

        bitflags::bitflags! {
            impl $name: $repr {
                $( $(#$vmeta)* const $variant = $value; )*
                // Bits that this crate does not know stay as they came.
                const _ = !0;
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.bits())
            }
        }
    };
}

/// Asserts at compile time the size of a wire struct and the offset of each field named.
macro_rules! assert_layout {
    ($t:ty, size = $size:expr $(, $field:ident = $off:expr)* $(,)?) => {
        static_assertions::const_assert_eq!(core::mem::size_of::<$t>(), $size);
        $( static_assertions::const_assert_eq!(core::mem::offset_of!($t, $field), $off); )*
    };
}
