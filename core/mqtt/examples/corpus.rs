//! Writes the seeds of the fuzz target `codec` into `fuzz/corpus/codec/`: `good-…` holds packets, `bad-…` is refused or
//! incomplete in every version and role. `tests/corpus.rs` replays them.

use std::path::Path;

/// Name and hex digits of each seed.
const SEEDS: &[(&str, &str)] = &[
    ("good-connect-31", "10 0F 0006 4D5149736470 03 02 000A 0001 70"),
    ("good-connect-31-with-flags", "14 0F 0006 4D5149736470 03 03 000A 0001 70"),
    ("good-connect-311", "10 0D 0004 4D515454 04 02 000A 0001 70"),
    (
        "good-connect-311-will-login",
        "10 1C 0004 4D515454 04 EE 000A 0001 70 0003 612F62 0001 00 0001 75 0002 0000",
    ),
    ("good-connect-5", "10 0E 0004 4D515454 05 02 000A 00 0001 70"),
    (
        "good-connect-5-all-properties",
        "10 31 0004 4D515454 05 02 000A 23 11FFFFFFFF 210014 2700010000 22000A 1901 1700 15000170 16000100 26000161000162 0001 70",
    ),
    (
        "good-connect-5-will-properties",
        "10 31 0004 4D515454 05 06 000A 00 0001 70 1D 1800000005 0101 0200000009 03000161 08000162 09000163 260000 0000 0001 70 0000",
    ),
    ("good-connack-311", "20 02 01 00"),
    ("good-connack-311-refusal", "20 02 00 05"),
    ("good-connack-5", "20 0D 00 00 0A 22000A 210014 2400 2900"),
    ("good-publish-qos0", "30 05 0001 70 6869"),
    ("good-publish-qos1-dup-retain", "3B 07 0001 70 0001 6869"),
    ("good-publish-qos2-empty", "34 05 0001 70 0001"),
    ("good-publish-5-no-properties", "32 08 0001 70 0001 00 6869"),
    (
        "good-publish-5-message-properties",
        "30 20 0001 70 1A 0101 0200000009 03000161 08000162 09000163 26000161000162 6869",
    ),
    ("good-publish-5-alias", "30 08 0001 70 03 230001 68 30 07 0000 03 230001 68"),
    ("good-publish-5-subscription-ids", "30 0B 0001 70 07 0B01 0BFFFFFF7F"),
    ("good-puback-short", "40 02 0001"),
    ("good-puback-reason", "40 03 0001 10"),
    ("good-pubrec-properties", "50 0F 0001 97 0B 1F000170 26000161000162"),
    ("good-pubrel", "62 02 FFFF"),
    ("good-pubcomp-not-found", "70 04 0001 92 00"),
    ("good-subscribe-311", "82 0E 1234 0001 23 00 0001 2B 01 0001 70 02"),
    ("good-subscribe-5-id-options", "82 0C 1234 03 0B8001 0003 612F23 2E"),
    ("good-subscribe-shared", "82 10 1234 00 000A 2473686172652F672F74 01"),
    ("good-suback", "90 05 0001 00 01 80"),
    ("good-unsubscribe", "A2 08 1234 0001 70 0001 71"),
    ("good-unsuback-311", "B0 02 0001"),
    ("good-unsuback-5", "B0 05 0001 00 00 11"),
    ("good-pings", "C0 00 C0 00 D0 00"),
    ("good-disconnect", "E0 00"),
    ("good-disconnect-5-expiry", "E0 07 00 05 1100000000"),
    ("good-auth-5", "F0 0A 18 08 15000170 16000101"),
    ("bad-type-0", "00 00"),
    ("bad-remaining-length-five-bytes", "10 FF FF FF FF 01"),
    ("bad-remaining-length-overlong", "C0 80 00"),
    ("bad-remaining-length-lies", "30 FF FF FF 7F 0001 70"),
    ("bad-property-length-five-bytes", "20 08 00 00 FFFFFFFF01 00"),
    ("bad-publish-ends-after-topic", "32 03 0001 70"),
    ("bad-publish-qos3", "36 07 0001 70 0001 6869"),
    ("bad-publish-dup-qos0", "38 05 0001 70 6869"),
    ("bad-publish-wildcard", "30 05 0001 23 6869"),
    ("bad-publish-nul", "30 05 0001 00 6869"),
    ("bad-publish-surrogate", "30 07 0003 EDA080 6869"),
    ("bad-publish-id-0", "32 07 0001 70 0000 6869"),
    ("bad-subscribe-empty", "82 02 1234"),
    ("bad-subscribe-ends-before-options", "82 05 1234 0001 70"),
    ("bad-subscribe-id-0", "82 06 0000 0001 70 00"),
    ("bad-subscribe-share-without-filter", "82 0D 1234 0008 24736861 72652F67 00"),
    ("bad-suback-no-codes", "90 02 0001"),
    ("bad-puback-cut", "40 01 00"),
    ("bad-connack-reserved-flags", "20 02 02 00"),
    ("bad-connect-name", "10 0D 0004 4D515455 04 02 000A 0001 70"),
    ("bad-connect-level-6", "10 0D 0004 4D515454 06 02 000A 0001 70"),
    ("bad-connect-reserved-flag", "10 0D 0004 4D515454 04 03 000A 0001 70"),
    ("bad-connect-will-qos3", "10 13 0004 4D515454 04 1E 000A 0001 70 0001 70 0001 70"),
    ("bad-connect-trailing", "10 10 0004 4D515454 04 02 000A 0001 70 0001 70"),
    ("bad-connect-5-receive-max-0", "10 11 0004 4D515454 05 02 000A 03 210000 0001 70"),
    ("bad-connect-5-duplicate-property", "10 14 0004 4D515454 05 02 000A 06 210001 210001 0001 70"),
    ("bad-disconnect-trailing", "E0 03 00 00 00"),
];

fn main() -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/codec");
    std::fs::create_dir_all(&folder)?;
    for (name, digits) in SEEDS {
        std::fs::write(folder.join(name), bytes_of(digits))?;
    }
    println!("{} seeds in {}", SEEDS.len(), folder.display());
    Ok(())
}

fn bytes_of(digits: &str) -> Vec<u8> {
    let digits: Vec<u32> = digits
        .chars()
        .filter(|c| *c != ' ')
        .map(|c| c.to_digit(16).expect("a hex digit"))
        .collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}
