//! What a worker writes to its parent, and a parent to its worker.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| jitune::worker::fuzz_frames(data));
