//! The only place where the node throws dice.

use std::hash::{BuildHasher, RandomState};

/// A number nobody can foresee, from the operating system's entropy.
pub fn random_u64() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// Text nobody can foresee, of letters and digits, for a challenge.
pub fn nonce() -> String {
    let mut bytes = [0; 18];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system has entropy");
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from_digit(digit.into(), 16).expect("below 16")).collect()
}
