//! The digest of a file's bytes.

use protocol::DigestAlgorithm;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

/// A digest being made.
#[derive(Debug)]
pub enum FileDigest {
    /// None was asked for.
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

impl FileDigest {
    /// Begins a digest.
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

    /// Takes more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::None => {}
            Self::Crc32c(crc) => *crc = crc32c::crc32c_append(*crc, bytes),
            Self::Sha224(hash) => hash.update(bytes),
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha384(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The digest's bytes, as an end frame carries them.
    pub fn finish(self) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            // As backup_manifest prints it on little-endian machines.
            Self::Crc32c(crc) => crc.to_le_bytes().to_vec(),
            Self::Sha224(hash) => hash.finalize().to_vec(),
            Self::Sha256(hash) => hash.finalize().to_vec(),
            Self::Sha384(hash) => hash.finalize().to_vec(),
            Self::Sha512(hash) => hash.finalize().to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::id::to_hex;

    #[test]
    fn known_answers() {
        for (algorithm, expected) in [
            (DigestAlgorithm::None, ""),
            // 0xE3069283, the check value of CRC-32C.
            (DigestAlgorithm::Crc32c, "839206e3"),
            (DigestAlgorithm::Sha224, "9b3e61bf29f17c75572fae2e86e17809a4513d07c8a18152acf34521"),
            (DigestAlgorithm::Sha256, "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
        ] {
            let mut digest = FileDigest::new(algorithm);
            digest.update(b"1234");
            digest.update(b"56789");
            assert_eq!(to_hex(&digest.finish()), expected);
        }
    }

    #[test]
    fn every_digest_has_its_length() {
        for algorithm in DigestAlgorithm::ALL {
            assert_eq!(FileDigest::new(algorithm).finish().len(), algorithm.len());
        }
    }
}
