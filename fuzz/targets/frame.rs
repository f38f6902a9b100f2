//! Frames: what is read is written again to the same bytes, but for those of later versions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::frame::Frame;

fuzz_target!(|data: &[u8]| {
    if let Ok(frame) = Frame::decode(data) {
        if !matches!(frame, Frame::Unknown(_)) {
            let mut again = Vec::new();
            frame.encode(&mut again);
            assert_eq!(again, data);
        }
    }
});
