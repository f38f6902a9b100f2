//! Digests of what was received, in the form in which end frames and the manifest have them.

use protocol::DigestAlgorithm;
use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};

/// A digest under way.
#[derive(Debug, Clone)]
pub enum Digest {
    /// None wanted.
    None,
    /// CRC-32C.
    Crc32c(u32),
    /// SHA-224.
    Sha224(Sha224),
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-384.
    Sha384(Sha384),
    /// SHA-512.
    Sha512(Sha512),
}

impl Digest {
    /// Of nothing so far.
    pub fn new(algorithm: DigestAlgorithm) -> Self {
        match algorithm {
            DigestAlgorithm::None => Self::None,
            DigestAlgorithm::Crc32c => Self::Crc32c(0),
            DigestAlgorithm::Sha224 => Self::Sha224(Sha224::new()),
            DigestAlgorithm::Sha256 => Self::Sha256(Sha256::new()),
            DigestAlgorithm::Sha384 => Self::Sha384(Sha384::new()),
            DigestAlgorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    /// Of some bytes.
    pub fn of(algorithm: DigestAlgorithm, bytes: &[u8]) -> Vec<u8> {
        let mut digest = Self::new(algorithm);
        digest.update(bytes);
        digest.finish()
    }

    /// More bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::None => {}
            Self::Crc32c(crc) => *crc = crc32c::crc32c_append(*crc, bytes),
            Self::Sha224(sha) => sha.update(bytes),
            Self::Sha256(sha) => sha.update(bytes),
            Self::Sha384(sha) => sha.update(bytes),
            Self::Sha512(sha) => sha.update(bytes),
        }
    }

    /// The digest.
    pub fn finish(self) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            // The manifest prints the bytes as they lie in memory on a little-endian machine.
            Self::Crc32c(crc) => crc.to_le_bytes().to_vec(),
            Self::Sha224(sha) => sha.finalize().to_vec(),
            Self::Sha256(sha) => sha.finalize().to_vec(),
            Self::Sha384(sha) => sha.finalize().to_vec(),
            Self::Sha512(sha) => sha.finalize().to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_and_lengths() {
        // The check value of CRC-32C, RFC 3720: E3069283.
        assert_eq!(Digest::of(DigestAlgorithm::Crc32c, b"123456789"), [0x83, 0x92, 0x06, 0xe3]);
        for algorithm in DigestAlgorithm::ALL {
            assert_eq!(Digest::of(algorithm, b"x").len(), algorithm.len());
        }
    }
}
