//! A server's answers to commands that were sent together, in pieces as they may come.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|pieces: Vec<&[u8]>| client::fuzzing::results(&pieces));
