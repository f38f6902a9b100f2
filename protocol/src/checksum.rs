//! The checksums that a file can end with: those of `backup_manifest`.

use std::str::FromStr;

/// A checksum algorithm of FILE_CHECKSUM. The byte in an end frame is the discriminant, the same
/// number as PostgreSQL's `pg_checksum_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum ChecksumAlgorithm {
    /// No checksum.
    #[default]
    None = 0,
    /// CRC-32C, four bytes, least significant first, as backup_manifest prints it.
    Crc32c = 1,
    /// SHA-224.
    Sha224 = 2,
    /// SHA-256.
    Sha256 = 3,
    /// SHA-384.
    Sha384 = 4,
    /// SHA-512.
    Sha512 = 5,
}

impl ChecksumAlgorithm {
    /// Every algorithm, in the order of its byte.
    pub const ALL: [Self; 6] =
        [Self::None, Self::Crc32c, Self::Sha224, Self::Sha256, Self::Sha384, Self::Sha512];

    /// The name in FILE_CHECKSUM and in backup_manifest.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Crc32c => "CRC32C",
            Self::Sha224 => "SHA224",
            Self::Sha256 => "SHA256",
            Self::Sha384 => "SHA384",
            Self::Sha512 => "SHA512",
        }
    }

    /// The checksum's length in bytes.
    pub const fn len(self) -> usize {
        match self {
            Self::None => 0,
            Self::Crc32c => 4,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// Whether there is no checksum at all.
    pub const fn is_empty(self) -> bool {
        matches!(self, Self::None)
    }

    /// The algorithm of an end frame's byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| *algorithm as u8 == byte)
    }
}

impl FromStr for ChecksumAlgorithm {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(text)).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bytes_lead_back() {
        for (byte, algorithm) in (0u8..).zip(ChecksumAlgorithm::ALL) {
            assert_eq!(ChecksumAlgorithm::from_byte(byte), Some(algorithm));
            assert_eq!(algorithm.name().to_lowercase().parse(), Ok(algorithm));
        }
        assert_eq!(ChecksumAlgorithm::from_byte(6), None);
        assert!("MD5".parse::<ChecksumAlgorithm>().is_err());
    }
}
