// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Text in messages: UTF-16LE towards the host, NUL-terminated UTF-8 towards the daemons, fields of fixed size on both sides.

use core::fmt;

/// Why a text was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextError {
    /// Not a whole number of UTF-16 units.
    OddSize,
    /// Surrogates without partner, or bytes that are no UTF-8.
    Encoding,
    /// More than the field, or the peer's field, holds.
    TooLong,
    /// No NUL within the field.
    NotTerminated,
    /// No characters where some are needed.
    Empty,
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OddSize => "odd size",
            Self::Encoding => "encoding",
            Self::TooLong => "too long",
            Self::NotTerminated => "not terminated",
            Self::Empty => "empty",
        })
    }
}

/// A text of the host: UTF-16LE that ends at the first NUL or with the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Utf16<'a>(&'a [u8]);

impl<'a> Utf16<'a> {
    /// The text at the start of `bytes`.
    ///
    /// # Errors
    ///
    /// [`TextError::OddSize`].
    pub fn new(bytes: &'a [u8]) -> Result<Self, TextError> {
        if bytes.len() % 2 != 0 {
            return Err(TextError::OddSize);
        }
        Ok(Self(bytes))
    }

    /// Its characters, with an error in place of an unpaired surrogate.
    pub fn chars(self) -> impl Iterator<Item = Result<char, TextError>> + 'a {
        let units = self
            .0
            .chunks_exact(2)
            .map(|pair| match pair {
                [low, high] => u16::from_le_bytes([*low, *high]),
                _ => 0,
            })
            .take_while(|unit| *unit != 0);
        char::decode_utf16(units).map(|c| c.map_err(|_| TextError::Encoding))
    }

    /// Whether there are no characters.
    pub fn is_empty(self) -> bool {
        self.chars().next().is_none()
    }

    /// Writes the text as UTF-8 with a terminating NUL to the start of `field`, fills the rest with zeros, and returns
    /// the bytes of the text without its NUL. On an error the field is left empty.
    ///
    /// # Errors
    ///
    /// [`TextError::Encoding`]; [`TextError::TooLong`] if the field cannot hold it. Nothing is cut: half a name would be another name.
    pub fn to_utf8(self, field: &mut [u8]) -> Result<usize, TextError> {
        field.fill(0);
        let mut end = 0usize;
        for c in self.chars() {
            let done = c.and_then(|c| put_utf8(field, end, c));
            match done {
                Ok(next) => end = next,
                Err(e) => {
                    field.fill(0);
                    return Err(e);
                }
            }
        }
        Ok(end)
    }
}

/// Writes `c` at `at`, leaving room for a NUL behind it; where the next one goes.
fn put_utf8(field: &mut [u8], at: usize, c: char) -> Result<usize, TextError> {
    // A buffer of which the compiler sees that it is large enough: with the field itself a panic would be left in the code.
    let mut bytes = [0; 4];
    let bytes = c.encode_utf8(&mut bytes).as_bytes();
    let next = at.saturating_add(bytes.len());
    if next >= field.len() {
        return Err(TextError::TooLong);
    }
    let place = field.get_mut(at..next).ok_or(TextError::TooLong)?;
    place.copy_from_slice(bytes);
    Ok(next)
}

/// Writes `text` as UTF-16LE with a terminating NUL to the start of `field`, fills the rest with zeros, and returns the
/// bytes written, NUL included.
///
/// # Errors
///
/// [`TextError::TooLong`]; the field is left empty then.
pub fn write_utf16(text: &str, field: &mut [u8]) -> Result<usize, TextError> {
    let (bytes, whole) = write_utf16_cut(text, field);
    if whole {
        return Ok(bytes);
    }
    field.fill(0);
    Err(TextError::TooLong)
}

/// [`write_utf16`] that cuts a text that is too long after the last character that fits. Returns the bytes written, NUL included,
/// and whether that is all of it.
pub fn write_utf16_cut(text: &str, field: &mut [u8]) -> (usize, bool) {
    field.fill(0);
    let mut at = 0usize;
    let mut whole = true;
    for c in text.chars() {
        let end = at.saturating_add(c.len_utf16().saturating_mul(2));
        // The NUL needs two bytes more.
        if end.saturating_add(2) > field.len() {
            whole = false;
            break;
        }
        let mut units = [0u16; 2];
        let Some(place) = field.get_mut(at..end) else {
            whole = false;
            break;
        };
        for (to, unit) in place.chunks_exact_mut(2).zip(c.encode_utf16(&mut units)) {
            to.copy_from_slice(&unit.to_le_bytes());
        }
        at = end;
    }
    (at.saturating_add(2).min(field.len()), whole)
}

/// The NUL-terminated UTF-8 text in `field`.
///
/// # Errors
///
/// [`TextError::NotTerminated`], [`TextError::Encoding`].
pub fn read_utf8(field: &[u8]) -> Result<&str, TextError> {
    let end = field
        .iter()
        .position(|b| *b == 0)
        .ok_or(TextError::NotTerminated)?;
    let text = field.get(..end).ok_or(TextError::NotTerminated)?;
    core::str::from_utf8(text).map_err(|_| TextError::Encoding)
}

/// Writes `text` with a terminating NUL to the start of `field`, fills the rest with zeros, and returns the bytes written, NUL
/// included.
///
/// # Errors
///
/// [`TextError::TooLong`]; [`TextError::Encoding`] for a text that holds a NUL. The field is left empty then.
pub fn write_utf8(text: &str, field: &mut [u8]) -> Result<usize, TextError> {
    field.fill(0);
    let bytes = text.as_bytes();
    if bytes.contains(&0) {
        return Err(TextError::Encoding);
    }
    if bytes.len() >= field.len() {
        return Err(TextError::TooLong);
    }
    field
        .get_mut(..bytes.len())
        .ok_or(TextError::TooLong)?
        .copy_from_slice(bytes);
    Ok(bytes.len().saturating_add(1))
}

/// [`write_utf8`] that cuts a text that is too long after the last character that fits.
///
/// # Errors
///
/// [`TextError::Encoding`] for a text that holds a NUL.
pub fn write_utf8_cut(text: &str, field: &mut [u8]) -> Result<usize, TextError> {
    let mut end = text.len().min(field.len().saturating_sub(1));
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    write_utf8(text.get(..end).unwrap_or_default(), field)
}
