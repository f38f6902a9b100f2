//! Both directions against each other, and what a hostile or damaged stream can be.

use protocol::compression::{Method, Specification, WireCompression};
use protocol::frame::Compression;

use crate::{DecodeError, Decoder, Encoder, Step};

const ALGORITHMS: [Compression; 2] = [Compression::Lz4, Compression::Zstd];

fn asked(algorithm: Compression, level: Option<i32>, long: bool) -> WireCompression {
    WireCompression { algorithm, level, long }
}

/// Bytes that compress, though not to nothing.
fn text(length: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut bytes = Vec::with_capacity(length + 32);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(format!("row {} of table {};", state % 9973, state % 7).as_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(length)
    .collect()
}

/// As the server does it: the first part is flushed, the rest comes in chunks.
fn frame(encoder: &mut Encoder, bytes: &[u8]) -> Vec<u8> {
    encoder.begin(bytes.len() as u64).unwrap();
    let sample = bytes.len().min(128 * 1024);
    if sample == bytes.len() {
        return encoder.encode(bytes, Step::End).unwrap().to_vec();
    }
    let mut output = encoder.encode(&bytes[..sample], Step::Flush).unwrap().to_vec();
    let mut chunks = bytes[sample..].chunks(256 * 1024).peekable();
    while let Some(chunk) = chunks.next() {
        let step = if chunks.peek().is_some() { Step::Continue } else { Step::End };
        output.extend_from_slice(encoder.encode(chunk, step).unwrap());
    }
    output
}

fn frame_of(compression: WireCompression, bytes: &[u8]) -> Vec<u8> {
    frame(&mut Encoder::new(&compression).unwrap().unwrap(), bytes)
}

/// What comes out, given in pieces of one size and taken in buffers of another.
fn read(
    decoder: &mut Decoder,
    algorithm: Compression,
    frame: &[u8],
    length: u64,
    piece: usize,
    buffer: usize,
) -> Result<Vec<u8>, DecodeError> {
    decoder.begin(algorithm, length)?;
    let mut output = Vec::new();
    let mut room = vec![0; buffer];
    for mut input in frame.chunks(piece) {
        loop {
            let done = decoder.decode(input, &mut room)?;
            output.extend_from_slice(&room[..done.filled]);
            input = &input[done.taken..];
            if done.filled < room.len() {
                assert!(input.is_empty());
                break;
            }
        }
    }
    decoder.end()?;
    Ok(output)
}

fn read_once(algorithm: Compression, frame: &[u8], length: usize) -> Result<Vec<u8>, DecodeError> {
    read(&mut Decoder::new(false), algorithm, frame, length as u64, 8192, 65536)
}

#[test]
fn what_goes_in_comes_out() {
    for algorithm in ALGORITHMS {
        // One of each for all files, as in a transfer.
        let mut encoder = Encoder::new(&asked(algorithm, None, false)).unwrap().unwrap();
        let mut decoder = Decoder::new(false);
        for length in [0, 1, 8192, 131_071, 131_072, 131_073, 262_144, 1_000_000, 3 << 20] {
            for bytes in [text(length), noise(length), vec![0; length]] {
                let frame = frame(&mut encoder, &bytes);
                for (piece, buffer) in [(8192, 8192), (8191, 100_000), (1 << 20, 4096), (7, 1 << 18)] {
                    let read = read(&mut decoder, algorithm, &frame, length as u64, piece, buffer);
                    assert!(read.as_ref() == Ok(&bytes), "{algorithm:?} of {length}: {:?}", read.err());
                }
            }
        }
    }
}

#[test]
fn every_level_stays_within_its_window() {
    // The header says the same of all files that are larger.
    let mut bytes = text(100_000);
    bytes.resize(9 << 20, 0);
    let levels = |algorithm| match algorithm {
        Compression::Lz4 => vec![0, 1, 3, 9, 12],
        _ => vec![-131_072, -5, 0, 1, 3, 19, 20, 22],
    };
    for algorithm in ALGORITHMS {
        for level in levels(algorithm) {
            let frame = frame_of(asked(algorithm, Some(level), false), &bytes);
            assert!(read_once(algorithm, &frame, bytes.len()).unwrap() == bytes, "{algorithm:?}:{level}");
        }
    }
}

#[test]
fn a_long_window_only_where_it_was_asked_for() {
    let bytes = [noise(12 << 20), noise(12 << 20)].concat();
    let frame = frame_of(asked(Compression::Zstd, Some(1), true), &bytes);
    assert!(frame.len() < 13 << 20, "the second half is found in the first");
    assert_eq!(read_once(Compression::Zstd, &frame, bytes.len()), Err(DecodeError::Window));
    let mut decoder = Decoder::new(true);
    assert!(read(&mut decoder, Compression::Zstd, &frame, bytes.len() as u64, 8192, 65536).unwrap() == bytes);
}

#[test]
fn a_frame_says_its_length() {
    // Magic, descriptor; then 8 bytes of length for lz4, as many as it needs for zstd.
    let lz4 = frame_of(asked(Compression::Lz4, None, false), &text(300_000));
    assert_eq!(lz4[..4], 0x184D_2204_u32.to_le_bytes());
    assert_eq!(lz4[6..14], 300_000_u64.to_le_bytes());
    let zstd = frame_of(asked(Compression::Zstd, None, false), &text(300_000));
    assert_eq!(zstd_safe::get_frame_content_size(&zstd).unwrap(), Some(300_000));
}

#[test]
fn a_frame_that_was_begun_is_forgotten() {
    for algorithm in ALGORITHMS {
        let bytes = text(500_000);
        let mut encoder = Encoder::new(&asked(algorithm, None, false)).unwrap().unwrap();
        encoder.begin(1 << 30).unwrap();
        encoder.encode(&noise(200_000), Step::Flush).unwrap();
        assert!(read_once(algorithm, &frame(&mut encoder, &bytes), bytes.len()).unwrap() == bytes);
        encoder.begin(7).unwrap();
        assert!(read_once(algorithm, &frame(&mut encoder, &bytes), bytes.len()).unwrap() == bytes);

        let mut decoder = Decoder::new(false);
        let whole = frame(&mut encoder, &bytes);
        decoder.begin(algorithm, 1 << 30).unwrap();
        decoder.decode(&whole[..20_000], &mut [0; 100]).unwrap();
        assert!(read(&mut decoder, algorithm, &whole, 500_000, 8192, 8192).unwrap() == bytes);
        // After an error too.
        assert!(read(&mut decoder, algorithm, &noise(500), 500_000, 8192, 8192).is_err());
        assert!(read(&mut decoder, algorithm, &whole, 500_000, 8192, 8192).unwrap() == bytes);
    }
}

#[test]
fn a_file_that_is_not_as_long_as_it_was_begun_makes_no_frame() {
    for algorithm in ALGORITHMS {
        let mut encoder = Encoder::new(&asked(algorithm, None, false)).unwrap().unwrap();
        encoder.begin(200_000).unwrap();
        encoder.encode(&text(100_000), Step::Flush).unwrap();
        assert!(encoder.encode(&text(99_999), Step::End).is_err(), "{algorithm:?}");
    }
}

#[test]
fn a_frame_cut_anywhere_is_short() {
    for algorithm in ALGORITHMS {
        let bytes = text(100_000);
        let frame = frame_of(asked(algorithm, None, false), &bytes);
        for end in (0..64).chain((64..frame.len()).step_by(997)).chain(frame.len() - 5..frame.len()) {
            let result = read_once(algorithm, &frame[..end], bytes.len());
            assert_eq!(result, Err(DecodeError::Short), "{algorithm:?} cut at {end}");
        }
    }
}

#[test]
fn nothing_may_follow_a_frame() {
    for algorithm in ALGORITHMS {
        let bytes = text(100_000);
        let frame = frame_of(asked(algorithm, None, false), &bytes);
        for more in [&b"\0"[..], &frame] {
            let longer = [&frame, more].concat();
            for piece in [frame.len(), 8192, 1 << 20] {
                let mut decoder = Decoder::new(false);
                let result = read(&mut decoder, algorithm, &longer, bytes.len() as u64, piece, 65536);
                assert_eq!(result, Err(DecodeError::Trailing), "{algorithm:?}");
            }
        }
    }
}

#[test]
fn a_file_has_its_announced_length() {
    for algorithm in ALGORITHMS {
        let bytes = text(100_000);
        let frame = frame_of(asked(algorithm, None, false), &bytes);
        assert_eq!(read_once(algorithm, &frame, bytes.len() + 1), Err(DecodeError::Short));
        assert_eq!(read_once(algorithm, &frame, bytes.len() - 1), Err(DecodeError::TooLong));
        assert_eq!(read_once(algorithm, &frame, 0), Err(DecodeError::TooLong));
    }
}

#[test]
fn a_bomb_does_not_go_off() {
    // A gigabyte of zeroes in a few kilobytes, announced as one page.
    for algorithm in ALGORITHMS {
        let mut encoder = Encoder::new(&asked(algorithm, None, false)).unwrap().unwrap();
        let zeroes = vec![0; 1 << 20];
        encoder.begin(1 << 30).unwrap();
        let mut frame = Vec::new();
        for at in 0..1024 {
            let step = if at == 1023 { Step::End } else { Step::Continue };
            frame.extend_from_slice(encoder.encode(&zeroes, step).unwrap());
        }
        let mut decoder = Decoder::new(false);
        decoder.begin(algorithm, 8192).unwrap();
        let mut room = vec![0; 65536];
        let mut filled = 0;
        let error = loop {
            match decoder.decode(&frame, &mut room) {
                Ok(done) => filled += done.filled,
                Err(error) => break error,
            }
            assert!(filled <= 8192);
        };
        assert_eq!(error, DecodeError::TooLong);
    }
}

#[test]
fn a_frame_does_not_go_on_for_ever_without_a_byte() {
    // zstd: magic, no single segment, a window of 1 KiB; then raw blocks of nothing, none of them the last.
    let endless = [&[0x28, 0xB5, 0x2F, 0xFD, 0x00, 0x00][..], &[0; 30_000]].concat();
    assert_eq!(read_once(Compression::Zstd, &endless, 8192), Err(DecodeError::TooLong));
}

#[test]
fn windows_are_limited() {
    // zstd: a window of 16 MiB in the header.
    let wide = [0x28, 0xB5, 0x2F, 0xFD, 0x00, (24 - 10) << 3, 0, 0, 0];
    assert_eq!(read_once(Compression::Zstd, &wide, 8192), Err(DecodeError::Window));
    // lz4: blocks of 4 MB.
    let mut frame = frame_of(asked(Compression::Lz4, None, false), &text(8192));
    frame[5] = 7 << 4;
    for piece in [1, 8192] {
        let mut decoder = Decoder::new(false);
        assert_eq!(read(&mut decoder, Compression::Lz4, &frame, 8192, piece, 8192), Err(DecodeError::Window));
    }
}

#[test]
fn one_kind_is_not_the_other() {
    let bytes = text(8192);
    let lz4 = frame_of(asked(Compression::Lz4, None, false), &bytes);
    let zstd = frame_of(asked(Compression::Zstd, None, false), &bytes);
    assert!(matches!(read_once(Compression::Zstd, &lz4, 8192), Err(DecodeError::Damaged(_))));
    assert!(matches!(read_once(Compression::Lz4, &zstd, 8192), Err(DecodeError::Damaged(_))));
    // Frames to be skipped have nothing of a file.
    for magic in [0x184D_2A50_u32, 0x184D_2A5F] {
        let skippable = [&magic.to_le_bytes()[..], &16_u32.to_le_bytes(), &[0; 16]].concat();
        for algorithm in ALGORITHMS {
            assert!(read_once(algorithm, &skippable, 8192).is_err());
        }
    }
    assert!(Decoder::new(false).begin(Compression::None, 8192).is_err());
}

#[test]
fn flipped_bits_are_an_error_or_other_bytes_and_nothing_worse() {
    for algorithm in ALGORITHMS {
        let bytes = text(200_000);
        let frame = frame_of(asked(algorithm, None, false), &bytes);
        let mut decoder = Decoder::new(false);
        for at in (0..32).chain((32..frame.len()).step_by(311)) {
            for bit in [1, 0x10, 0x80] {
                let mut damaged = frame.clone();
                damaged[at] ^= bit;
                if let Ok(read) = read(&mut decoder, algorithm, &damaged, 200_000, 8192, 65536) {
                    assert_eq!(read.len(), bytes.len());
                }
            }
        }
        assert!(read(&mut decoder, algorithm, &frame, 200_000, 8192, 65536).unwrap() == bytes);
    }
}

#[test]
fn levels_are_those_of_the_library() {
    let accepts = |level: i32| Specification::parse(Method::Zstd, Some(&level.to_string())).is_ok();
    assert!(accepts(zstd_safe::min_c_level()) && !accepts(zstd_safe::min_c_level() - 1));
    assert!(accepts(zstd_safe::max_c_level()) && !accepts(zstd_safe::max_c_level() + 1));
    assert_eq!(Method::Zstd.default_level(), zstd_safe::CLEVEL_DEFAULT);
}

/// Bytes of memory for a file of at least the largest window, as docs/protocol.md has them: zstd's levels from one on
/// up to the next, MiB without and with the long window.
const MEMORY: [(i32, usize, usize); 11] = [
    (-131_072, 2, 138),
    (2, 4, 138),
    (4, 6, 148),
    (7, 8, 151),
    (9, 15, 156),
    (10, 25, 166),
    (12, 69, 226),
    (16, 90, 274),
    (20, 106, 354),
    (21, 138, 514),
    (22, 138, 834),
];

#[test]
fn memory_is_as_documented() {
    let memory = |level, long| {
        let mut encoder = Encoder::new(&asked(Compression::Zstd, Some(level), long)).unwrap().unwrap();
        encoder.begin(1 << 30).unwrap();
        encoder.encode(&text(128 * 1024), Step::Flush).unwrap();
        encoder.memory().unwrap().div_ceil(1 << 20)
    };
    let ends = MEMORY.iter().skip(1).map(|(next, ..)| *next).chain([23]);
    for (&(first, near, long), end) in MEMORY.iter().zip(ends) {
        let levels: Vec<_> =
            [-131_072, -5].into_iter().chain(1..=22).filter(|level| (first..end).contains(level)).collect();
        let most = |is_long| levels.iter().map(|level| memory(*level, is_long)).max();
        assert_eq!((most(false), most(true)), (Some(near), Some(long)), "levels {levels:?}");
    }
}
