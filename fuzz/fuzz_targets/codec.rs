//! Bytes of an MQTT stream, in every version and role: never a panic, and what is decoded survives being written.
//! `cargo +nightly fuzz run codec`

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    outpost_mqtt::exercise::exercise(bytes);
});
