//! Requests to the shadow service: never a panic, always one answer, and what is written makes the same hub again.
//! `cargo +nightly fuzz run shadow_json`

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    outpost_shadow::exercise::exercise(bytes);
});
