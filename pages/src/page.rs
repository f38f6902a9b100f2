//! Page headers and page checksums, as storage/bufpage.h and storage/checksum_impl.h define them.

use protocol::Lsn;

/// Bytes in a page.
pub const BLOCK_SIZE: usize = 8192;

/// Blocks in a relation segment of 1 GiB: RELSEG_SIZE as every distribution builds it. The extension
/// holds both against the server's when it is built.
pub const SEGMENT_BLOCKS: u32 = 131_072;

/// pd_checksum's place in PageHeaderData.
const CHECKSUM_OFFSET: usize = 8;
/// pd_upper's place, zero in a page that was never initialized (PageIsNew).
const UPPER_OFFSET: usize = 14;

/// Checksums calculated side by side.
const LANES: usize = 32;
/// What all lanes take in one round.
const ROW: usize = LANES * 4;
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
    compare(page, block)
}

/// Verifies one page as [`verify`] does, but believes nothing that it says of itself: its LSN does not
/// excuse it, and it is new only if it is all zeroes. For a page that may have been damaged since it
/// was read, where `verify` is for one that is as it was read.
pub fn verify_any(page: &[u8], block: u32) -> Result<(), Mismatch> {
    if u16_at(page, UPPER_OFFSET) == 0 && page.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    compare(page, block)
}

fn compare(page: &[u8], block: u32) -> Result<(), Mismatch> {
    let calculated = checksum(page, block);
    let stored = u16_at(page, CHECKSUM_OFFSET);
    if calculated == stored { Ok(()) } else { Err(Mismatch { calculated, stored }) }
}

/// The checksum of a page, its own field taken as zero.
///
/// With the widest instructions that this processor has, found out when it runs: packages are built
/// for the oldest one.
pub fn checksum(page: &[u8], block: u32) -> u16 {
    assert_eq!(page.len(), BLOCK_SIZE);
    #[cfg(target_arch = "x86_64")]
    if let Some(sum) = x86::checksum(page, block) {
        return sum;
    }
    portable(page, block)
}

/// As [`checksum`], with what the compiler may take for granted where it is inlined.
#[inline(always)]
fn portable(page: &[u8], block: u32) -> u16 {
    let mut lanes = BASE_OFFSETS;
    let (first, rest) = page.split_at(ROW);
    let mut head = [0u8; ROW];
    head.copy_from_slice(first);
    // The field shares its word with pd_flags: only its two bytes count as zero.
    head[CHECKSUM_OFFSET..CHECKSUM_OFFSET + 2].fill(0);
    mix(&mut lanes, &head);
    for row in rest.as_chunks::<ROW>().0 {
        mix(&mut lanes, row);
    }
    mix(&mut lanes, &[0; ROW]);
    mix(&mut lanes, &[0; ROW]);
    let folded = lanes.into_iter().fold(0, |a, b| a ^ b);
    // Never zero; the remainder of 65535 fits.
    ((folded ^ block) % 65_535 + 1) as u16
}

/// One round of FNV-1a, as PostgreSQL has it, on every lane.
#[inline(always)]
fn mix(lanes: &mut [u32; LANES], row: &[u8; ROW]) {
    let (words, _) = row.as_chunks::<4>();
    for (sum, word) in lanes.iter_mut().zip(words) {
        let mixed = *sum ^ u32::from_ne_bytes(*word);
        *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    }
}

/// The same code, compiled for processors that have more.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86 {
    /// `None` on a processor that has nothing better than the portable code was compiled for.
    pub fn checksum(page: &[u8], block: u32) -> Option<u16> {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has what the function needs.
            return Some(unsafe { avx512(page, block) });
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return Some(unsafe { avx2(page, block) });
        }
        if is_x86_feature_detected!("sse4.1") {
            // SAFETY: as above. SSE2, which every one has, lacks the multiplication.
            return Some(unsafe { sse41(page, block) });
        }
        None
    }

    #[target_feature(enable = "avx512f")]
    fn avx512(page: &[u8], block: u32) -> u16 {
        super::portable(page, block)
    }

    #[target_feature(enable = "avx2")]
    pub fn avx2(page: &[u8], block: u32) -> u16 {
        super::portable(page, block)
    }

    #[target_feature(enable = "sse4.1")]
    pub fn sse41(page: &[u8], block: u32) -> u16 {
        super::portable(page, block)
    }
}

/// pd_lsn: two halves, the high one first, each in the machine's byte order.
fn lsn(page: &[u8]) -> Lsn {
    let half = |at: usize| u32::from_ne_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
    Lsn(u64::from(half(0)) << 32 | u64::from(half(4)))
}

fn u16_at(page: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([page[at], page[at + 1]])
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
        for at in (16..BLOCK_SIZE).step_by(if cfg!(miri) { 1999 } else { 101 }) {
            let mut damaged = page.to_vec();
            damaged[at] ^= 0x40;
            let mismatch = verify(&damaged, Lsn(u64::MAX), block).unwrap_err();
            assert_eq!(mismatch.stored, u16_at(page, CHECKSUM_OFFSET));
            assert_ne!(mismatch.calculated, mismatch.stored);
        }
    }

    #[test]
    fn any_flipped_bit_is_noticed_where_nothing_is_excused() {
        let new = vec![0u8; BLOCK_SIZE];
        assert_eq!(verify_any(&new, 7), Ok(()));
        for (page, block) in [(PAGES[0].0, PAGES[0].1), (PAGES[1].0, PAGES[1].1), (&new, 7)] {
            assert_eq!(verify_any(page, block), Ok(()));
            // The whole header, and some of the rest; less of both under Miri, which takes a second for a page.
            let (header, rest, bits) = if cfg!(miri) { (5, 1999, 1) } else { (1, 97, 8) };
            for at in (0..24).step_by(header).chain((24..BLOCK_SIZE).step_by(rest)) {
                for bit in (0..bits).map(|bit| (at + bit) % 8) {
                    let mut damaged = page.to_vec();
                    damaged[at] ^= 1 << bit;
                    assert!(verify_any(&damaged, block).is_err(), "byte {at}, bit {bit}");
                }
            }
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

    #[test]
    fn every_processor_gives_the_same() {
        let mut state = 1u64;
        let mut page = vec![0u8; BLOCK_SIZE + 1];
        for block in [0, 1, 131_071, u32::MAX] {
            for byte in &mut page {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (state >> 56) as u8;
            }
            // At an odd address too: pages lie anywhere in what a socket gave.
            for page in [&page[..BLOCK_SIZE], &page[1..]] {
                let expected = by_the_book(page, block);
                assert_eq!(checksum(page, block), expected);
                assert_eq!(portable(page, block), expected);
                #[cfg(target_arch = "x86_64")]
                narrower_instructions(page, block, expected);
            }
        }
    }

    /// What this processor has and would not choose.
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    fn narrower_instructions(page: &[u8], block: u32, expected: u16) {
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has what the function needs.
            assert_eq!(unsafe { x86::avx2(page, block) }, expected);
        }
        if is_x86_feature_detected!("sse4.1") {
            // SAFETY: as above.
            assert_eq!(unsafe { x86::sse41(page, block) }, expected);
        }
    }

    /// checksum_impl.h, word by word.
    fn by_the_book(page: &[u8], block: u32) -> u16 {
        let mut page = page.to_vec();
        page[CHECKSUM_OFFSET] = 0;
        page[CHECKSUM_OFFSET + 1] = 0;
        let round = |sum: u32, word: u32| (sum ^ word).wrapping_mul(FNV_PRIME) ^ ((sum ^ word) >> 17);
        let mut sums = BASE_OFFSETS;
        for row in 0..BLOCK_SIZE / ROW {
            for (lane, sum) in sums.iter_mut().enumerate() {
                let at = row * ROW + lane * 4;
                *sum = round(*sum, u32::from_ne_bytes(page[at..at + 4].try_into().unwrap()));
            }
        }
        let folded = sums.iter().map(|sum| round(round(*sum, 0), 0)).fold(0, |a, b| a ^ b);
        ((folded ^ block) % 65_535 + 1) as u16
    }

    /// `cargo test --release -p pg_parallel_backup_pages -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement"]
    fn speed() {
        let page = PAGES[0].0;
        let run = |name: &str, sum: fn(&[u8], u32) -> u16| {
            let begun = std::time::Instant::now();
            let rounds = 300_000u32;
            let all = (0..rounds).fold(0u64, |all, block| {
                all + u64::from(sum(std::hint::black_box(page), std::hint::black_box(block)))
            });
            let bytes = f64::from(rounds) * BLOCK_SIZE as f64;
            println!("{name}: {:.1} GB/s ({all})", bytes / begun.elapsed().as_secs_f64() / 1e9);
        };
        run("chosen", checksum);
        run("portable", portable);
    }
}
