//! Paths of files in a backup.

use std::fmt;
use std::iter::once;

use memchr::{memchr, memchr_iter};

use crate::id::hex_value;

/// A path relative to the data directory: one or more components with `/` between, none of them
/// empty, `.` or `..`, and no NUL. File names are bytes; as text they are percent-encoded, and
/// every path has exactly one spelling.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupPath(Vec<u8>);

/// Why a text or a byte string is no path of a backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Nothing at all.
    #[error("path is empty")]
    Empty,
    /// It begins with a slash.
    #[error("path is absolute")]
    Absolute,
    /// An empty, `.` or `..` component.
    #[error("path has an empty, \".\" or \"..\" component")]
    Component,
    /// A NUL byte, which no file name has.
    #[error("path contains a NUL byte")]
    Nul,
    /// A percent sign without two upper-case hex digits, or one that encodes what stands for itself.
    #[error("path contains an invalid percent sequence")]
    Percent,
    /// A byte that has to be percent-encoded.
    #[error("path contains a byte that must be percent-encoded")]
    Unencoded,
}

impl BackupPath {
    /// Reads the percent-encoded form that commands and result sets carry.
    pub fn parse(text: &[u8]) -> Result<Self, PathError> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text;
        loop {
            // Most names have none.
            let percent = memchr(b'%', rest);
            let (plain, encoded) = rest.split_at(percent.unwrap_or(rest.len()));
            if !plain.iter().all(|byte| stands_for_itself(*byte)) {
                return Err(PathError::Unencoded);
            }
            bytes.extend_from_slice(plain);
            if percent.is_none() {
                return Self::from_bytes(bytes);
            }
            let (&[_, high, low], tail) = encoded.split_first_chunk().ok_or(PathError::Percent)?;
            rest = tail;
            bytes.push(decode(high, low)?);
        }
    }

    /// Takes the raw bytes of a relative path, as frames and the file system have them.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<Self, PathError> {
        let bytes = bytes.into();
        match bytes.first() {
            None => return Err(PathError::Empty),
            Some(b'/') => return Err(PathError::Absolute),
            Some(_) => {}
        }
        if memchr(0, &bytes).is_some() {
            return Err(PathError::Nul);
        }
        if components(&bytes).any(|component| matches!(component, b"" | b"." | b"..")) {
            return Err(PathError::Component);
        }
        Ok(Self(bytes))
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The components, at least one.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> + Clone {
        components(&self.0)
    }

    /// The percent-encoded form.
    pub fn encoded(&self) -> String {
        encode(&self.0)
    }
}

impl fmt::Display for BackupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.encoded())
    }
}

impl fmt::Debug for BackupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackupPath({self})")
    }
}

/// The byte that two hex digits stand for behind a `%`.
fn decode(high: u8, low: u8) -> Result<u8, PathError> {
    if high.is_ascii_lowercase() || low.is_ascii_lowercase() {
        return Err(PathError::Percent);
    }
    let (high, low) = hex_value(high).zip(hex_value(low)).ok_or(PathError::Percent)?;
    match high << 4 | low {
        0 => Err(PathError::Nul),
        // A second spelling of the same name would defeat every comparison of paths.
        decoded if stands_for_itself(decoded) => Err(PathError::Percent),
        decoded => Ok(decoded),
    }
}

/// What stands between slashes, at least one part, which may be empty.
pub fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    let mut begin = 0;
    memchr_iter(b'/', path).chain(once(path.len())).map(move |end| {
        let component = &path[begin..end];
        begin = end + 1;
        component
    })
}

/// Percent-encodes any byte string: messages use it too, for names that may be no UTF-8.
pub fn encode(bytes: &[u8]) -> String {
    use fmt::Write;
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if stands_for_itself(byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// Bytes 0x21 to 0x7E but for `%`: what no encoding conversion and no quoting can change.
fn stands_for_itself(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b'%'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_spelling() {
        for byte in 1..=255u8 {
            if byte == b'/' || byte == b'.' {
                continue;
            }
            let path = BackupPath::from_bytes([byte]).unwrap();
            let text = path.encoded();
            assert!(text.bytes().all(|b| (0x21..=0x7e).contains(&b)), "{text}");
            assert_eq!(BackupPath::parse(text.as_bytes()).unwrap(), path);
            let other = format!("%{byte:02X}");
            assert_eq!(BackupPath::parse(other.as_bytes()).is_ok(), other == text, "{other}");
        }
    }

    #[test]
    fn malformed_paths() {
        for (text, error) in [
            (&b""[..], PathError::Empty),
            (b"/etc/passwd", PathError::Absolute),
            (b"base//1", PathError::Component),
            (b"base/", PathError::Component),
            (b"./base", PathError::Component),
            (b"base/../x", PathError::Component),
            (b"..", PathError::Component),
            (b"a%00b", PathError::Nul),
            (b"a%", PathError::Percent),
            (b"a%2", PathError::Percent),
            (b"a%2g", PathError::Percent),
            (b"a%c3", PathError::Percent),
            (b"%2E%2E/x", PathError::Percent),
            (b"%2Fetc", PathError::Percent),
            (b"a b", PathError::Unencoded),
            (b"a\nb", PathError::Unencoded),
            (b"\xc3\xa9", PathError::Unencoded),
        ] {
            assert_eq!(BackupPath::parse(text), Err(error), "{}", encode(text));
        }
    }

    #[test]
    fn components_of_a_path() {
        let path = BackupPath::parse(b"base/5/a%20%25'\"%0A%FF").unwrap();
        assert_eq!(path.as_bytes(), b"base/5/a %'\"\n\xff");
        assert_eq!(path.components().count(), 3);
        assert_eq!(path.to_string(), "base/5/a%20%25'\"%0A%FF");
    }
}
