//! A server's bytes during a transfer, in pieces as they may come: nothing is handed on that was not asked for.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|pieces: Vec<&[u8]>| client::fuzzing::transfer(&pieces));
