// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! File copy: the host writes a file in the guest, piece by piece.
//!
//! [`START`](Operation::START) names the file, each [`WRITE`](Operation::WRITE) brings up to 6 KiB, [`COMPLETE`](Operation::COMPLETE) or
//! [`CANCEL`](Operation::CANCEL) ends it. Each is answered before the next is sent.
//!
//! Through `/dev/vmbus/hv_fcopy` the daemon writes its version ([`DEVICE_VERSION`], 4 bytes), reads the driver's (4 bytes), then reads
//! [`Start`], [`Data`] or [`Header`] by operation, with the names in UTF-8, and writes a [`Status`](super::Status) (4 bytes).
//!
//! Sources: Linux `include/uapi/linux/hyperv.h` (`struct hv_start_fcopy`, `struct hv_do_fcopy`), `tools/hv/hv_fcopy_uio_daemon.c`; for the device
//! Linux up to 6.9, `drivers/hv/hv_fcopy.c`.

use super::field::FieldError;
use super::text::{read_utf8, write_utf16, TextError, Utf16};
use super::IcVersion;
use core::mem::size_of;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};
use zerocopy_derive::{
    FromBytes as FromBytesDerive, Immutable as ImmutableDerive, IntoBytes as IntoBytesDerive,
    KnownLayout as KnownLayoutDerive, Unaligned as UnalignedDerive,
};

/// File copy 1.1 of Windows Server 2012 R2 (Linux: `WIN8_SRV_VERSION` of hv_fcopy).
pub const VERSION_1_1: IcVersion = IcVersion::new(1, 1);
/// What we speak.
pub const VERSIONS: &[IcVersion] = &[VERSION_1_1];

/// Version of the device's interface, which driver and daemon tell each other (Linux: `FCOPY_CURRENT_VERSION`).
pub const DEVICE_VERSION: u32 = 1;
/// The same of daemons that get no answer to it (Linux: `FCOPY_VERSION_0`).
pub const DEVICE_VERSION_OLD: u32 = 0;

/// Bytes of a name's field: 260 UTF-16 units (Linux: `W_MAX_PATH`).
pub const NAME_SIZE: usize = 520;
/// The most bytes of a file in one message (Linux: `DATA_FRAGMENT`).
pub const DATA_SIZE: usize = 6 * 1024;

open_enum! {
    /// What is asked for (Linux: `enum hv_fcopy_op`).
    pub struct Operation(u32) {
        /// Creates the file.
        START = 0,
        /// Writes a piece of it.
        WRITE = 1,
        /// Closes it.
        COMPLETE = 2,
        /// Removes what was written.
        CANCEL = 3,
    }
}

wire_flags! {
    /// How to create the file.
    pub struct CopyFlags(u32) {
        /// Replaces a file that exists.
        const OVERWRITE = 1;
        /// Creates the directories on the way.
        const CREATE_PATH = 2;
    }
}

impl CopyFlags {
    /// The flags that are defined.
    pub const KNOWN: Self = Self::OVERWRITE.union(Self::CREATE_PATH);
}

/// Start of every body (Linux: `struct hv_fcopy_hdr`).
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytesDerive,
    IntoBytesDerive,
    ImmutableDerive,
    KnownLayoutDerive,
    UnalignedDerive,
)]
pub struct Header {
    /// [`Operation`].
    pub operation: U32,
    /// Not used.
    pub service_ids: [[u8; 16]; 2],
}
assert_layout!(Header, size = 36, service_ids = 4);

impl Header {
    /// A header of `operation`.
    pub const fn new(operation: Operation) -> Self {
        Self {
            operation: U32::new(operation.0),
            service_ids: [[0; 16]; 2],
        }
    }

    /// What is asked for.
    pub const fn operation(&self) -> Operation {
        Operation(self.operation.get())
    }
}

/// Body of START (Linux: `struct hv_start_fcopy`). Names are UTF-16 on the wire, UTF-8 on the device.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    FromBytesDerive,
    IntoBytesDerive,
    ImmutableDerive,
    KnownLayoutDerive,
    UnalignedDerive,
)]
pub struct Start {
    /// START.
    pub header: Header,
    /// Name of the file.
    pub file: [u8; NAME_SIZE],
    /// Directory for it.
    pub directory: [u8; NAME_SIZE],
    /// [`CopyFlags`].
    pub flags: U32,
    /// Bytes that the file will have.
    pub size: U64,
}
assert_layout!(
    Start,
    size = 1088,
    file = 36,
    directory = 556,
    flags = 1076,
    size = 1080
);

/// Body of WRITE (Linux: `struct hv_do_fcopy`), the same on wire and device.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    FromBytesDerive,
    IntoBytesDerive,
    ImmutableDerive,
    KnownLayoutDerive,
    UnalignedDerive,
)]
pub struct Data {
    /// WRITE.
    pub header: Header,
    /// Zero.
    pub padding: U32,
    /// Where in the file.
    pub offset: U64,
    /// How many bytes of `data` count.
    pub size: U32,
    /// The bytes.
    pub data: [u8; DATA_SIZE],
}
assert_layout!(Data, size = 6196, offset = 40, size = 48, data = 52);

/// The longest body, and the longest message of the device.
pub const MAX_BODY: usize = size_of::<Data>();

/// A request as the daemon reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Create a file.
    Start {
        /// Its name, not empty.
        file: &'a str,
        /// Its directory, not empty.
        directory: &'a str,
        /// How; no unknown flags.
        flags: CopyFlags,
        /// Bytes that it will have.
        size: u64,
    },
    /// Write a piece.
    Write {
        /// Where; `offset + data.len()` is at most `i64::MAX`.
        offset: u64,
        /// What.
        data: &'a [u8],
    },
    /// The file is complete.
    Complete,
    /// Remove what was written.
    Cancel,
}

fn body_of<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    body: &[u8],
) -> Result<&T, FieldError> {
    T::ref_from_prefix(body)
        .map(|(t, _)| t)
        .map_err(|_| FieldError::TooShort {
            need: size_of::<T>(),
            have: body.len(),
        })
}

fn flags_of(start: &Start) -> Result<CopyFlags, FieldError> {
    let flags = CopyFlags::from_bits_retain(start.flags.get());
    if CopyFlags::KNOWN.contains(flags) {
        Ok(flags)
    } else {
        Err(FieldError::CopyFlags(flags.bits()))
    }
}

fn piece(body: &Data) -> Result<(u64, &[u8]), FieldError> {
    let (offset, size) = (body.offset.get(), body.size.get());
    let data = usize::try_from(size)
        .ok()
        .and_then(|n| body.data.get(..n))
        .ok_or(FieldError::DataSize(size))?;
    match offset.checked_add(u64::from(size)) {
        Some(end) if i64::try_from(end).is_ok() => Ok((offset, data)),
        _ => Err(FieldError::Offset(offset)),
    }
}

/// Guest: checks a request and writes it as the daemon gets it to `out`; its length.
///
/// # Errors
///
/// The field that is out of range. `out` holds nothing of use then.
pub fn to_device(body: &[u8], out: &mut [u8; MAX_BODY]) -> Result<usize, FieldError> {
    let header: &Header = body_of(body)?;
    out.fill(0);
    let too_short = |()| FieldError::TooShort {
        need: MAX_BODY,
        have: body.len(),
    };
    match header.operation() {
        Operation::START => {
            let from: &Start = body_of(body)?;
            let (to, _) = Start::mut_from_prefix(out.as_mut_slice()).map_err(|_| too_short(()))?;
            to.header = Header::new(Operation::START);
            for (name, from, to) in [
                ("file name", &from.file, &mut to.file),
                ("directory", &from.directory, &mut to.directory),
            ] {
                let bad = |e| FieldError::Text(name, e);
                let len = Utf16::new(from).and_then(|t| t.to_utf8(to)).map_err(bad)?;
                if len == 0 {
                    return Err(bad(TextError::Empty));
                }
            }
            to.flags = U32::new(flags_of(from)?.bits());
            to.size = from.size;
            Ok(size_of::<Start>())
        }
        Operation::WRITE => {
            let from: &Data = body_of(body)?;
            let (offset, data) = piece(from)?;
            let (to, _) = Data::mut_from_prefix(out.as_mut_slice()).map_err(|_| too_short(()))?;
            to.header = Header::new(Operation::WRITE);
            to.offset = U64::new(offset);
            to.size = from.size;
            for (to, from) in to.data.iter_mut().zip(data) {
                *to = *from;
            }
            Ok(size_of::<Data>())
        }
        operation @ (Operation::COMPLETE | Operation::CANCEL) => {
            Header::new(operation)
                .write_to_prefix(out.as_mut_slice())
                .map_err(|_| too_short(()))?;
            Ok(size_of::<Header>())
        }
        other => Err(FieldError::Operation(other.0)),
    }
}

/// Daemon: the request that was read from the device.
///
/// # Errors
///
/// The field that is out of range.
pub fn parse_device(message: &[u8]) -> Result<Request<'_>, FieldError> {
    let header: &Header = body_of(message)?;
    match header.operation() {
        Operation::START => {
            let start: &Start = body_of(message)?;
            let name = |name, field| match read_utf8(field) {
                Ok("") => Err(FieldError::Text(name, TextError::Empty)),
                other => other.map_err(|e| FieldError::Text(name, e)),
            };
            Ok(Request::Start {
                file: name("file name", &start.file)?,
                directory: name("directory", &start.directory)?,
                flags: flags_of(start)?,
                size: start.size.get(),
            })
        }
        Operation::WRITE => {
            let (offset, data) = piece(body_of(message)?)?;
            Ok(Request::Write { offset, data })
        }
        Operation::COMPLETE => Ok(Request::Complete),
        Operation::CANCEL => Ok(Request::Cancel),
        other => Err(FieldError::Operation(other.0)),
    }
}

/// Host: writes the body of `request`; its length.
///
/// # Errors
///
/// A name or a piece that is too long.
pub fn write(request: &Request<'_>, out: &mut [u8; MAX_BODY]) -> Result<usize, FieldError> {
    out.fill(0);
    let small = |()| FieldError::DataSize(0);
    let body = out.as_mut_slice();
    match request {
        Request::Start {
            file,
            directory,
            flags,
            size,
        } => {
            let (to, _) = Start::mut_from_prefix(body).map_err(|_| small(()))?;
            to.header = Header::new(Operation::START);
            write_utf16(file, &mut to.file).map_err(|e| FieldError::Text("file name", e))?;
            write_utf16(directory, &mut to.directory)
                .map_err(|e| FieldError::Text("directory", e))?;
            to.flags = U32::new(flags.bits());
            to.size = U64::new(*size);
            Ok(size_of::<Start>())
        }
        Request::Write { offset, data } => {
            let (to, _) = Data::mut_from_prefix(body).map_err(|_| small(()))?;
            to.header = Header::new(Operation::WRITE);
            to.offset = U64::new(*offset);
            let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
            to.size = U32::new(size);
            to.data
                .get_mut(..data.len())
                .ok_or(FieldError::DataSize(size))?
                .copy_from_slice(data);
            Ok(size_of::<Data>())
        }
        Request::Complete | Request::Cancel => {
            let operation = match request {
                Request::Complete => Operation::COMPLETE,
                _ => Operation::CANCEL,
            };
            Header::new(operation)
                .write_to_prefix(body)
                .map_err(|_| small(()))?;
            Ok(size_of::<Header>())
        }
    }
}
