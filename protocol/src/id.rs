//! The name of a running backup.

use std::fmt;
use std::str::FromStr;

/// A backup's name: 16 bytes from a strong random source, written as 32 lower-case hex digits.
/// A name, not a secret: the server checks the role of whoever uses it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BackupId([u8; 16]);

/// The text is not 32 hex digits, so no backup can have this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("backup identifiers have 32 hexadecimal digits")]
pub struct BackupIdError;

impl BackupId {
    /// Wraps bytes from a strong random source.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for BackupId {
    type Err = BackupIdError;

    fn from_str(text: &str) -> Result<Self, BackupIdError> {
        let digits = text.as_bytes();
        if digits.len() != 32 {
            return Err(BackupIdError);
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let high = hex_value(pair[0]).ok_or(BackupIdError)?;
            let low = hex_value(pair[1]).ok_or(BackupIdError)?;
            *byte = high << 4 | low;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackupId({self})")
    }
}

/// Lower-case hex, two digits a byte: how identifiers, checksums and pg_control travel as text.
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        .map(char::from)
        .collect()
}

/// The reverse of [`to_hex`]; either case is read. `None` where the text is no hex.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks_exact(2).map(|pair| Some(hex_value(pair[0])? << 4 | hex_value(pair[1])?)).collect()
}

pub(crate) fn hex_value(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let id: BackupId = "00112233445566778899aabbccddeeff".parse().unwrap();
        assert_eq!(id.as_bytes()[15], 0xff);
        assert_eq!(id.to_string(), "00112233445566778899aabbccddeeff");
    }

    #[test]
    fn refuses_what_is_no_identifier() {
        for text in ["", "0011", "g0112233445566778899aabbccddeeff", "00112233445566778899aabbccddeeff0"] {
            assert_eq!(text.parse::<BackupId>(), Err(BackupIdError), "{text}");
        }
    }

    #[test]
    fn hex_both_ways() {
        assert_eq!(to_hex(&[0x00, 0xa5, 0xff]), "00a5ff");
        assert_eq!(from_hex("00A5ff"), Some(vec![0x00, 0xa5, 0xff]));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("zz"), None);
    }
}
