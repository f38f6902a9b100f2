//! Compressed files: no input makes the decoder write more than it was told there would be. What looks at a stream that is
//! passed on is stricter: it takes only frames as the server makes them.
#![no_main]

use arbitrary::Arbitrary;
use compression::{Decoder, Outline};
use libfuzzer_sys::fuzz_target;
use protocol::frame::Compression;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    is_zstd: bool,
    long: bool,
    length: u16,
    pieces: Vec<&'a [u8]>,
}

fuzz_target!(|input: Input<'_>| {
    let algorithm = if input.is_zstd { Compression::Zstd } else { Compression::Lz4 };
    let length = u64::from(input.length);
    let mut decoder = Decoder::new(input.long);
    if decoder.begin(algorithm, length).is_err() {
        return;
    }
    let mut outline = Outline::new(algorithm, length, input.long);
    let mut output = vec![0; 1 << 16];
    let mut produced = 0;
    let mut decodes = true;
    let mut has_outline = true;
    'pieces: for piece in &input.pieces {
        has_outline = has_outline && outline.push(piece).is_ok();
        let mut rest = *piece;
        loop {
            match decoder.decode(rest, &mut output) {
                Ok(decoded) => {
                    produced += decoded.filled as u64;
                    assert!(produced <= length);
                    rest = &rest[decoded.taken..];
                    if rest.is_empty() && decoded.filled == 0 {
                        break;
                    }
                    if decoded.taken == 0 && decoded.filled == 0 {
                        break 'pieces;
                    }
                }
                Err(_) => {
                    decodes = false;
                    break 'pieces;
                }
            }
        }
    }
    if decodes && decoder.end().is_ok() {
        assert_eq!(produced, length);
    }
    if has_outline {
        let _ = outline.end();
    }
});
