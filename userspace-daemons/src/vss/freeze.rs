// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! FIFREEZE and FITHAW.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

/// What freezes file systems: the kernel, or a test's pretence.
pub trait Freezer {
    /// Writes everything out and lets no more changes through (`FIFREEZE`).
    ///
    /// # Errors
    ///
    /// `BUSY`: it is frozen already. `OPNOTSUPP`: this kind of file system cannot be frozen.
    fn freeze(&self, fd: BorrowedFd<'_>) -> Result<(), Errno>;

    /// Undoes that (`FITHAW`).
    ///
    /// # Errors
    ///
    /// `INVAL`: it is not frozen.
    fn thaw(&self, fd: BorrowedFd<'_>) -> Result<(), Errno>;
}

/// The kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernel;

impl Freezer for Kernel {
    fn freeze(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        calls::freeze(fd)
    }

    fn thaw(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        calls::thaw(fd)
    }
}

/// The two calls that no crate has.
#[allow(unsafe_code)]
mod calls {
    use super::{BorrowedFd, Errno};
    use rustix::ioctl::{ioctl, opcode, NoArg, Opcode};

    /// `FIFREEZE` of linux/fs.h: `_IOWR('X', 119, int)`. The kernel does not look at the argument.
    const FREEZE: Opcode = opcode::read_write::<i32>(b'X', 119);
    /// `FITHAW`: `_IOWR('X', 120, int)`.
    const THAW: Opcode = opcode::read_write::<i32>(b'X', 120);

    pub(super) fn freeze(fd: BorrowedFd<'_>) -> Result<(), Errno> {
        // SAFETY: `FIFREEZE` takes no argument (fs/ioctl.c, `ioctl_fsfreeze`), so none is a valid one.
        let call = unsafe { NoArg::<FREEZE>::new() };
        // SAFETY: The call passes no pointer, and works on any descriptor.
        unsafe { ioctl(fd, call) }
    }

    pub(super) fn thaw(fd: BorrowedFd<'_>) -> Result<(), Errno> {
        // SAFETY: `FITHAW` takes no argument (fs/ioctl.c, `ioctl_fsthaw`), so none is a valid one.
        let call = unsafe { NoArg::<THAW>::new() };
        // SAFETY: The call passes no pointer, and works on any descriptor.
        unsafe { ioctl(fd, call) }
    }

    const _: () = assert!(FREEZE == 0xC004_5877 && THAW == 0xC004_5878);
}
