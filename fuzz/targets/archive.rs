//! Archives, compressed or not, by their first byte.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| client::fuzzing::archive(data));
