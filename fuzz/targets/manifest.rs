//! backup_manifest, with a checksum that fits so that more than that is looked at.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| client::fuzzing::manifest(data));
