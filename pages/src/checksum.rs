//! Checksums of file bytes, in the form in which end frames and the manifest have them.

use crc_fast::CrcAlgorithm::Crc32Iscsi;
use protocol::ChecksumAlgorithm;
use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};

/// A checksum under way.
#[derive(Debug, Clone)]
pub enum Checksum {
    /// None wanted.
    None,
    /// CRC-32C.
    Crc32c(crc_fast::Digest),
    /// SHA-224.
    Sha224(Sha224),
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-384.
    Sha384(Sha384),
    /// SHA-512.
    Sha512(Sha512),
}

impl Checksum {
    /// Of nothing so far.
    pub fn new(algorithm: ChecksumAlgorithm) -> Self {
        match algorithm {
            ChecksumAlgorithm::None => Self::None,
            ChecksumAlgorithm::Crc32c => Self::Crc32c(crc_fast::Digest::new(Crc32Iscsi)),
            ChecksumAlgorithm::Sha224 => Self::Sha224(Sha224::new()),
            ChecksumAlgorithm::Sha256 => Self::Sha256(Sha256::new()),
            ChecksumAlgorithm::Sha384 => Self::Sha384(Sha384::new()),
            ChecksumAlgorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    /// Of some bytes.
    pub fn of(algorithm: ChecksumAlgorithm, bytes: &[u8]) -> Vec<u8> {
        let mut checksum = Self::new(algorithm);
        checksum.update(bytes);
        checksum.finish()
    }

    /// More bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::None => {}
            Self::Crc32c(crc) => crc.update(bytes),
            Self::Sha224(sha) => sha.update(bytes),
            Self::Sha256(sha) => sha.update(bytes),
            Self::Sha384(sha) => sha.update(bytes),
            Self::Sha512(sha) => sha.update(bytes),
        }
    }

    /// The checksum.
    pub fn finish(self) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            // The manifest prints the bytes as they lie in memory on a little-endian machine.
            Self::Crc32c(crc) => from_crc(narrow(crc.finalize())),
            Self::Sha224(sha) => sha.finalize().to_vec(),
            Self::Sha256(sha) => sha.finalize().to_vec(),
            Self::Sha384(sha) => sha.finalize().to_vec(),
            Self::Sha512(sha) => sha.finalize().to_vec(),
        }
    }
}

/// The CRC-32C that a checksum stands for.
pub fn to_crc(checksum: &[u8]) -> u32 {
    checksum.try_into().map_or(0, u32::from_le_bytes)
}

/// A CRC-32C as a checksum.
pub fn from_crc(crc: u32) -> Vec<u8> {
    crc.to_le_bytes().to_vec()
}

/// The CRC-32C of bytes and others that follow them, from those of both: the first is multiplied by x to the number
/// of bits that follow. The crate's own does the same with matrices, and takes some fifty microseconds.
pub fn combine_crcs(mut crc: u32, next: u32, next_length: u64) -> u32 {
    for (bit, shift) in SHIFTS.iter().enumerate() {
        if next_length >> bit & 1 == 1 {
            crc = multiply(crc, *shift);
        }
    }
    crc ^ next
}

/// The polynomial of CRC-32C (RFC 3720), without x^32; the highest bit is the coefficient of x^0.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// x^8, and every next is the square of the one before: what 1, 2, 4 and so on bytes multiply by.
static SHIFTS: [u32; 64] = {
    let mut shifts = [1 << (31 - 8); 64];
    let mut at = 1;
    while at < shifts.len() {
        shifts[at] = multiply(shifts[at - 1], shifts[at - 1]);
        at += 1;
    }
    shifts
};

/// The product of two polynomials, modulo that of CRC-32C.
const fn multiply(one: u32, mut other: u32) -> u32 {
    let mut product = 0;
    let mut power = 0;
    while power < 32 {
        if one << power & 1 << 31 != 0 {
            product ^= other;
        }
        // Times x.
        other = if other & 1 == 0 { other >> 1 } else { other >> 1 ^ POLYNOMIAL };
        power += 1;
    }
    product
}

/// The crate counts every CRC as 64 bits.
fn narrow(crc: u64) -> u32 {
    u32::try_from(crc).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_and_lengths() {
        // The check value of CRC-32C, RFC 3720: E3069283.
        assert_eq!(Checksum::of(ChecksumAlgorithm::Crc32c, b"123456789"), [0x83, 0x92, 0x06, 0xe3]);
        for algorithm in ChecksumAlgorithm::ALL {
            assert_eq!(Checksum::of(algorithm, b"x").len(), algorithm.len());
        }
    }

    #[test]
    fn crcs_of_parts() {
        let bytes: Vec<u8> = (0..10_000u32).map(|at| (at % 251) as u8).collect();
        let crc = |bytes: &[u8]| to_crc(&Checksum::of(ChecksumAlgorithm::Crc32c, bytes));
        for cut in [0, 1, 4096, 9999, 10_000] {
            let (one, other) = bytes.split_at(cut);
            assert_eq!(combine_crcs(crc(one), crc(other), other.len() as u64), crc(&bytes), "{cut}");
        }
        for (one, other) in [(0_u32, 0_u32), (1, u32::MAX), (0x1234_5678, 0x9abc_def0), (u32::MAX, 7)] {
            for length in [0, 1, 8192, 8 << 20, 123_456_789, 1 << 30, 1 << 32, (1 << 40) + 1] {
                let expected = crc_fast::checksum_combine(Crc32Iscsi, one.into(), other.into(), length);
                assert_eq!(u64::from(combine_crcs(one, other, length)), expected, "{length}");
            }
        }
    }
}
