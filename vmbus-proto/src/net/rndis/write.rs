// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Writing messages.

use super::{Indicate, Oid, OidRequest, QueryComplete, RndisStatus, RndisType, RNDIS_HEADER_SIZE};
use zerocopy::{Immutable, IntoBytes};

/// Writes a message with a body of one of this module's types, `info` behind it, and returns its size. `None` when
/// `out` is too small.
#[must_use]
pub fn write_message<T: IntoBytes + Immutable>(
    out: &mut [u8],
    message_type: RndisType,
    body: &T,
    info: &[u8],
) -> Option<usize> {
    let header = RNDIS_HEADER_SIZE as usize;
    let info_at = header.checked_add(core::mem::size_of::<T>())?;
    let len = info_at.checked_add(info.len())?;
    let out = out.get_mut(..len)?;
    [message_type.0, u32::try_from(len).ok()?]
        .write_to_prefix(out)
        .ok()?;
    body.write_to(out.get_mut(header..info_at)?).ok()?;
    out.get_mut(info_at..)?.copy_from_slice(info);
    Some(len)
}

/// Writes QUERY or SET with its data and returns its size. `None` when `out` is too small.
#[must_use]
pub fn write_oid_request(
    out: &mut [u8],
    message_type: RndisType,
    request_id: u32,
    oid: Oid,
    info: &[u8],
) -> Option<usize> {
    let request = OidRequest {
        request_id,
        oid,
        info_len: u32::try_from(info.len()).ok()?,
        info_offset: core::mem::size_of::<OidRequest>() as u32,
        vc_handle: 0,
    };
    write_message(out, message_type, &request, info)
}

/// Writes QUERY_C and returns its size. `None` when `out` is too small.
#[must_use]
pub fn write_query_complete(
    out: &mut [u8],
    request_id: u32,
    status: RndisStatus,
    info: &[u8],
) -> Option<usize> {
    let answer = QueryComplete {
        request_id,
        status,
        info_len: u32::try_from(info.len()).ok()?,
        info_offset: core::mem::size_of::<QueryComplete>() as u32,
    };
    write_message(out, RndisType::QUERY_C, &answer, info)
}

/// Writes INDICATE and returns its size. `None` when `out` is too small.
#[must_use]
pub fn write_indicate(out: &mut [u8], status: RndisStatus, buffer: &[u8]) -> Option<usize> {
    let indicate = Indicate {
        status,
        buffer_len: u32::try_from(buffer.len()).ok()?,
        buffer_offset: if buffer.is_empty() {
            0
        } else {
            core::mem::size_of::<Indicate>() as u32
        },
    };
    write_message(out, RndisType::INDICATE, &indicate, buffer)
}
