//! The only place where the node throws dice.

use std::hash::{BuildHasher, RandomState};

/// A number nobody can foresee, from the operating system's entropy.
pub fn random_u64() -> u64 {
    RandomState::new().hash_one(std::process::id())
}
