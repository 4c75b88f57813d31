//! What a peer answers, line by line, and what one is asked.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    jitune::compare::fuzz_lines(data);
    let _ = serde_json::from_slice::<jitune_peer::Ask>(data);
});
