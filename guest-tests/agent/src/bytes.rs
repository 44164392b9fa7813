// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Bytes in JSON: a plain string when they are UTF-8, else base64.

use base64::{engine::general_purpose::STANDARD, Engine};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes that travel in JSON as a string when they are valid UTF-8 without control characters
/// beyond tab and newline, and as `{"b64": "…"}` otherwise. Lossless either way.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Bytes(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Wire {
    Text(String),
    Base64 { b64: String },
}

impl Bytes {
    /// The bytes as text; bytes that are not UTF-8 become U+FFFD.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl From<&str> for Bytes {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text)
                if !text
                    .chars()
                    .any(|c| c.is_control() && c != '\n' && c != '\t') =>
            {
                Wire::Text(text.to_owned())
            }
            _ => Wire::Base64 {
                b64: STANDARD.encode(&self.0),
            },
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Wire::deserialize(deserializer)? {
            Wire::Text(text) => Ok(Self(text.into_bytes())),
            Wire::Base64 { b64 } => STANDARD
                .decode(b64)
                .map(Self)
                .map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(bytes: &[u8]) -> String {
        let json = serde_json::to_string(&Bytes(bytes.to_vec())).unwrap();
        let back: Bytes = serde_json::from_str(&json).unwrap();
        assert_eq!(back.0, bytes);
        json
    }

    #[test]
    fn text_stays_text() {
        assert_eq!(round_trip(b"6.0\n"), r#""6.0\n""#);
    }

    #[test]
    fn binary_and_control_characters_go_as_base64() {
        assert!(round_trip(b"\x00\xff").contains("b64"));
        assert!(round_trip(b"a\rb").contains("b64"));
    }

    #[test]
    fn wrong_base64_is_an_error() {
        assert!(serde_json::from_str::<Bytes>(r#"{"b64": "%"}"#).is_err());
    }
}
