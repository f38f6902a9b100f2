//! Page headers and page checksums, as storage/bufpage.h and storage/checksum_impl.h define them.

use protocol::Lsn;

/// Bytes in a page.
pub const BLOCK_SIZE: usize = 8192;

/// Blocks in a relation segment of 1 GiB: RELSEG_SIZE as every distribution builds it, checked
/// against the server's at load time together with [`BLOCK_SIZE`].
pub const SEGMENT_BLOCKS: u32 = 131_072;

/// pd_checksum's place in PageHeaderData.
const CHECKSUM_OFFSET: usize = 8;
/// pd_upper's place, zero in a page that was never initialized (PageIsNew).
const UPPER_OFFSET: usize = 14;

/// Checksums calculated side by side.
const LANES: usize = 32;
/// The multiplier of FNV-1a.
const FNV_PRIME: u32 = 16_777_619;
/// The lanes' initial states.
const BASE_OFFSETS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// A page whose checksum is not the one in its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mismatch {
    /// What the page's bytes give.
    pub calculated: u16,
    /// What its header says.
    pub stored: u16,
}

/// Verifies one page, as `verify_page_checksum` (basebackup.c) does: a new page has no checksum,
/// and one that was modified since the backup started may be torn and is replaced from WAL.
///
/// `block` is the block number in the fork, `page` [`BLOCK_SIZE`] bytes.
pub fn verify(page: &[u8], start_lsn: Lsn, block: u32) -> Result<(), Mismatch> {
    if u16_at(page, UPPER_OFFSET) == 0 || lsn(page) >= start_lsn {
        return Ok(());
    }
    let calculated = checksum(page, block);
    let stored = u16_at(page, CHECKSUM_OFFSET);
    if calculated == stored { Ok(()) } else { Err(Mismatch { calculated, stored }) }
}

/// The checksum of a page, its own field taken as zero.
pub fn checksum(page: &[u8], block: u32) -> u16 {
    debug_assert_eq!(page.len(), BLOCK_SIZE);
    let mut lanes = BASE_OFFSETS;
    let mut first = true;
    for row in page.chunks_exact(LANES * 4) {
        for (lane, (sum, word)) in lanes.iter_mut().zip(row.chunks_exact(4)).enumerate() {
            let mut word = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
            // The field shares its word with pd_flags: only its two bytes count as zero.
            if first && lane == CHECKSUM_OFFSET / 4 {
                let mut bytes = word.to_ne_bytes();
                bytes[0] = 0;
                bytes[1] = 0;
                word = u32::from_ne_bytes(bytes);
            }
            *sum = round(*sum, word);
        }
        first = false;
    }
    let folded = lanes.into_iter().map(|sum| round(round(sum, 0), 0)).fold(0, |a, b| a ^ b);
    // Never zero; the remainder of 65535 fits.
    ((folded ^ block) % 65_535 + 1) as u16
}

/// pd_lsn: two halves, the high one first, each in the machine's byte order.
fn lsn(page: &[u8]) -> Lsn {
    let half = |at: usize| u32::from_ne_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
    Lsn(u64::from(half(0)) << 32 | u64::from(half(4)))
}

fn u16_at(page: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([page[at], page[at + 1]])
}

#[inline(always)]
fn round(sum: u32, word: u32) -> u32 {
    let mixed = sum ^ word;
    mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages that a PostgreSQL 18 server wrote, with the blocks they are: made by
    /// tests/data/README's recipe.
    const PAGES: [(&[u8], u32); 2] = [
        (include_bytes!("../../tests/data/page_heap_block_0"), 0),
        (include_bytes!("../../tests/data/page_btree_block_3"), 3),
    ];

    #[test]
    fn pages_of_a_real_server() {
        for (page, block) in PAGES {
            assert_eq!(checksum(page, block), u16_at(page, CHECKSUM_OFFSET));
            assert_eq!(verify(page, Lsn(u64::MAX), block), Ok(()));
            assert!(verify(page, Lsn(u64::MAX), block + 1).is_err(), "a transposed page goes unnoticed");
        }
    }

    #[test]
    fn any_flipped_byte_is_noticed() {
        let (page, block) = PAGES[0];
        for at in (16..BLOCK_SIZE).step_by(101) {
            let mut damaged = page.to_vec();
            damaged[at] ^= 0x40;
            let mismatch = verify(&damaged, Lsn(u64::MAX), block).unwrap_err();
            assert_eq!(mismatch.stored, u16_at(page, CHECKSUM_OFFSET));
            assert_ne!(mismatch.calculated, mismatch.stored);
        }
    }

    #[test]
    fn new_and_recent_pages_are_not_checked() {
        let mut page = vec![0u8; BLOCK_SIZE];
        assert_eq!(verify(&page, Lsn(u64::MAX), 0), Ok(()));
        page[UPPER_OFFSET] = 1;
        assert!(verify(&page, Lsn(1), 0).is_err());
        assert_eq!(verify(&page, Lsn(0), 0), Ok(()), "a page at the start LSN is not checked");
    }
}
