//! backup_index.json: what is read leads nowhere else, and is written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| client::fuzzing::index(data));
