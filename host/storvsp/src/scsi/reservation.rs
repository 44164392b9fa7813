// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Persistent reservations (SPC-4, 5.12 and 6.15). A guest is the only initiator of its disks, so a
//! reservation never keeps anyone out; keys and reservations are kept and reported, and the rules of the
//! commands are observed. They end with the disk.

use super::sense::{Failure, Sense};

/// Types of reservations: write exclusive (1), exclusive access (3), and each for registrants only (5, 6)
/// and all registrants (7, 8).
const TYPES: [u8; 6] = [1, 3, 5, 6, 7, 8];
const ALL_REGISTRANTS: [u8; 2] = [7, 8];
/// Bytes of the parameter list.
const LIST: usize = 24;

/// Keys and reservation of a logical unit.
#[derive(Debug, Default)]
pub(super) struct Reservations {
    generation: u32,
    key: Option<u64>,
    held: Option<u8>,
}

fn be64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, b| (n << 8) | u64::from(*b))
}

impl Reservations {
    /// Answer to PERSISTENT RESERVE IN.
    pub(super) fn report(&self, action: u8) -> Result<Vec<u8>, Sense> {
        let mut data = self.generation.to_be_bytes().to_vec();
        match action {
            // READ KEYS
            0 => {
                let keys: Vec<u8> = self.key.iter().flat_map(|k| k.to_be_bytes()).collect();
                data.extend((keys.len() as u32).to_be_bytes());
                data.extend(keys);
            }
            // READ RESERVATION
            1 => match self.held {
                None => data.extend([0; 4]),
                Some(kind) => {
                    data.extend(16u32.to_be_bytes());
                    let key = match kind {
                        k if ALL_REGISTRANTS.contains(&k) => 0,
                        _ => self.key.unwrap_or(0),
                    };
                    data.extend(key.to_be_bytes());
                    data.extend([0, 0, 0, 0, 0, kind, 0, 0]);
                }
            },
            // REPORT CAPABILITIES: types are given, all six.
            2 => data = vec![0, 8, 0, 0x80, 0xea, 0x01, 0, 0],
            _ => return Err(Sense::INVALID_FIELD_IN_CDB),
        }
        Ok(data)
    }

    /// Carries out PERSISTENT RESERVE OUT.
    pub(super) fn change(
        &mut self,
        action: u8,
        scope_type: u8,
        list: &[u8],
    ) -> Result<(), Failure> {
        if list.len() != LIST {
            return Err(Sense::PARAMETER_LIST_LENGTH.into());
        }
        let (given, new) = (be64(&list[..8]), be64(&list[8..16]));
        // SPEC_I_PT, APTPL: other ports and power loss are not for this target.
        if list[20] & 0x09 != 0 {
            return Err(Sense::INVALID_FIELD_IN_LIST.into());
        }
        let registered = self.key == Some(given) && given != 0;
        let kind = scope_type & 0x0f;
        let valid = scope_type >> 4 == 0 && TYPES.contains(&kind);
        match action {
            // REGISTER, REGISTER AND IGNORE EXISTING KEY
            0 | 6 => {
                if action == 0 && self.key.unwrap_or(0) != given {
                    return Err(Failure::ReservationConflict);
                }
                self.key = (new != 0).then_some(new);
                if self.key.is_none() {
                    self.held = None;
                }
                self.generation = self.generation.wrapping_add(1);
            }
            _ if !registered => return Err(Failure::ReservationConflict),
            // RESERVE
            1 if valid => match self.held {
                Some(other) if other != kind => return Err(Failure::ReservationConflict),
                _ => self.held = Some(kind),
            },
            // RELEASE
            2 if valid => match self.held {
                Some(other) if other != kind => return Err(Sense::INVALID_RELEASE.into()),
                _ => self.held = None,
            },
            // CLEAR
            3 => {
                *self = Self {
                    generation: self.generation.wrapping_add(1),
                    ..Self::default()
                };
            }
            // PREEMPT, PREEMPT AND ABORT: there is nobody else.
            4 | 5 if valid => {
                if self.key != Some(new) {
                    return Err(Failure::ReservationConflict);
                }
                self.held = Some(kind);
                self.generation = self.generation.wrapping_add(1);
            }
            _ => return Err(Sense::INVALID_FIELD_IN_CDB.into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(given: u64, new: u64) -> Vec<u8> {
        let mut list = given.to_be_bytes().to_vec();
        list.extend(new.to_be_bytes());
        list.extend([0; 8]);
        list
    }

    #[test]
    fn a_key_is_needed_to_reserve_and_both_are_reported() {
        let mut r = Reservations::default();
        assert_eq!(
            r.change(1, 5, &list(7, 0)),
            Err(Failure::ReservationConflict)
        );
        assert_eq!(
            r.change(0, 0, &list(1, 7)),
            Err(Failure::ReservationConflict)
        );
        assert_eq!(r.change(0, 0, &list(0, 7)), Ok(()));
        assert_eq!(r.report(0).expect("keys")[..8], [0, 0, 0, 1, 0, 0, 0, 8]);
        assert_eq!(r.change(1, 5, &list(7, 0)), Ok(()));
        assert_eq!(
            r.change(1, 3, &list(7, 0)),
            Err(Failure::ReservationConflict)
        );
        assert_eq!(
            r.report(1).expect("reservation")[8..24],
            [0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 5, 0, 0]
        );
        assert_eq!(
            r.change(2, 1, &list(7, 0)),
            Err(Sense::INVALID_RELEASE.into())
        );
        assert_eq!(r.change(2, 5, &list(7, 0)), Ok(()));
        assert_eq!(r.report(1).expect("reservation").len(), 8);
        assert_eq!(r.change(3, 0, &list(7, 0)), Ok(()));
        assert_eq!(r.report(0).expect("keys"), [0, 0, 0, 2, 0, 0, 0, 0]);
    }

    #[test]
    fn malformed_lists_and_actions_are_refused() {
        let mut r = Reservations::default();
        assert_eq!(
            r.change(0, 0, &[0; 23]),
            Err(Sense::PARAMETER_LIST_LENGTH.into())
        );
        r.change(0, 0, &list(0, 7)).expect("registers");
        assert_eq!(
            r.change(1, 2, &list(7, 0)),
            Err(Sense::INVALID_FIELD_IN_CDB.into())
        );
        assert_eq!(
            r.change(1, 0x15, &list(7, 0)),
            Err(Sense::INVALID_FIELD_IN_CDB.into())
        );
        assert_eq!(
            r.change(9, 5, &list(7, 0)),
            Err(Sense::INVALID_FIELD_IN_CDB.into())
        );
        assert_eq!(r.report(9), Err(Sense::INVALID_FIELD_IN_CDB));
    }
}
