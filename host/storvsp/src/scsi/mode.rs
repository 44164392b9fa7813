// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Mode pages: the caching page, as Hyper-V has it (OpenVMM `scsidisk`, `handle_mode_sense`), with a write
//! cache that can be turned off.

use super::sense::Sense;

const CACHING: u8 = 0x08;
const ALL: u8 = 0x3f;
const ALL_SUBPAGES: u8 = 0xff;
/// Bytes of the caching page.
const CACHING_LEN: usize = 20;
/// WCE in byte 2 of the caching page.
const WRITE_CACHE: u8 = 0x04;
/// In the device-specific parameter.
const WRITE_PROTECT: u8 = 0x80;
/// In the device-specific parameter: DPO and FUA bits are understood.
const DPO_FUA: u8 = 0x10;

fn caching_page(flags: u8) -> [u8; CACHING_LEN] {
    let mut page = [0; CACHING_LEN];
    page[0] = CACHING;
    page[1] = (CACHING_LEN - 2) as u8;
    page[2] = flags;
    page
}

/// Answer to MODE SENSE.
///
/// # Errors
/// [`Sense::SAVING_NOT_SUPPORTED`], [`Sense::INVALID_FIELD_IN_CDB`].
pub fn sense(
    long: bool,
    control: u8,
    page: u8,
    subpage: u8,
    read_only: bool,
    write_cache: bool,
) -> Result<Vec<u8>, Sense> {
    if control == 3 {
        return Err(Sense::SAVING_NOT_SUPPORTED);
    }
    if !matches!((page, subpage), (CACHING | ALL, 0) | (ALL, ALL_SUBPAGES)) {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    let flags = match control {
        0 if !write_cache => 0,
        _ => WRITE_CACHE,
    };
    let device = DPO_FUA | if read_only { WRITE_PROTECT } else { 0 };
    let header = if long { 8 } else { 4 };
    let mut data = vec![0; header];
    // Length of what follows the length field.
    if long {
        data[1] = (header + CACHING_LEN - 2) as u8;
        data[3] = device;
    } else {
        data[0] = (header + CACHING_LEN - 1) as u8;
        data[2] = device;
    }
    data.extend(caching_page(flags));
    Ok(data)
}

/// Takes the list of MODE SELECT; the new state of the write cache, if the list says so.
///
/// # Errors
/// [`Sense::PARAMETER_LIST_LENGTH`], [`Sense::INVALID_FIELD_IN_LIST`].
pub fn select(long: bool, list: &[u8]) -> Result<Option<bool>, Sense> {
    if list.is_empty() {
        return Ok(None);
    }
    let header = if long { 8 } else { 4 };
    let descriptors = match (long, list) {
        (false, [_, _, _, n, ..]) => usize::from(*n),
        (true, [_, _, _, _, _, _, high, low, ..]) => usize::from(u16::from_be_bytes([*high, *low])),
        _ => return Err(Sense::PARAMETER_LIST_LENGTH),
    };
    let mut rest = list
        .get(header + descriptors..)
        .ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    // Block descriptors, if any, are ignored: the block size cannot be changed.
    let mut write_cache = None;
    while let [code, len, ..] = *rest {
        let (page, after) = rest
            .split_at_checked(2 + usize::from(len))
            .ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        if code & 0x7f != CACHING || page.len() != CACHING_LEN {
            return Err(Sense::INVALID_FIELD_IN_LIST);
        }
        // What is not changeable must be as it is.
        if page[2] & !WRITE_CACHE != 0 || page[3..].iter().any(|b| *b != 0) {
            return Err(Sense::INVALID_FIELD_IN_LIST);
        }
        write_cache = Some(page[2] & WRITE_CACHE != 0);
        rest = after;
    }
    if !rest.is_empty() {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    Ok(write_cache)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sense_gives_select_takes() {
        for long in [false, true] {
            for write_cache in [false, true] {
                let data = sense(long, 0, ALL, 0, false, write_cache).expect("page");
                assert_eq!(select(long, &data), Ok(Some(write_cache)));
                let header = if long { 8 } else { 4 };
                let stated = if long {
                    usize::from(data[1]) + 2
                } else {
                    usize::from(data[0]) + 1
                };
                assert_eq!(stated, data.len());
                for cut in 1..header + CACHING_LEN {
                    let expected = match cut {
                        n if n == header => Ok(None),
                        _ => Err(Sense::PARAMETER_LIST_LENGTH),
                    };
                    assert_eq!(select(long, &data[..cut]), expected, "{cut} bytes");
                }
            }
        }
    }

    #[test]
    fn only_the_write_cache_can_be_changed() {
        let changeable = sense(false, 1, CACHING, 0, true, false).expect("page");
        assert_eq!(changeable[2], WRITE_PROTECT | DPO_FUA);
        assert_eq!(changeable[6], WRITE_CACHE);
        let mut data = sense(false, 0, CACHING, 0, false, true).expect("page");
        data[7] = 1;
        assert_eq!(select(false, &data), Err(Sense::INVALID_FIELD_IN_LIST));
        assert_eq!(
            sense(false, 3, ALL, 0, false, true),
            Err(Sense::SAVING_NOT_SUPPORTED)
        );
        assert_eq!(
            sense(false, 0, 0x1c, 0, false, true),
            Err(Sense::INVALID_FIELD_IN_CDB)
        );
    }
}
