//! Passwords: kept as Argon2 strings (RFC 9106, PHC format), checked by a plain function.
//!
//! One check takes tens of milliseconds and megabytes on purpose: never call it on a shard.

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{self, CustomizedPasswordHasher, PasswordVerifier};
use argon2::{Argon2, Params};

/// The longest password looked at. Greater: a client makes the node hash what it likes.
pub const PASSWORD_BYTES_MAX: usize = 1_024;

/// The most memory a stored string may ask for, in KiB. Smaller: strings made elsewhere with generous costs are
/// refused; greater: a few logins at once exhaust a small gateway.
pub const MEMORY_KIB_MAX: u32 = 256 * 1_024;

/// The most passes over the memory a stored string may ask for. Greater: one login takes seconds.
pub const PASSES_MAX: u32 = 32;

/// Why a password was not checked. It has not been accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// Not an Argon2 string in PHC format.
    #[error(
        "the stored password is not an Argon2 string ($argon2id$…): {0}; nobody is let in with it"
    )]
    Stored(password_hash::Error),
    /// It asks for more memory or passes than the limits allow.
    #[error(
        "the stored password asks for {memory_kib} KiB and {passes} passes, above {MEMORY_KIB_MAX} KiB or {PASSES_MAX}; nobody is let in with it"
    )]
    TooCostly {
        /// Memory it asks for.
        memory_kib: u32,
        /// Passes it asks for.
        passes: u32,
    },
    /// The password itself is too long.
    #[error("the password is longer than {PASSWORD_BYTES_MAX} bytes; it was refused unseen")]
    TooLong,
    /// The hash function failed, for example for want of memory.
    #[error("the password could not be hashed: {0}; it was refused")]
    Hash(password_hash::Error),
}

/// Whether `password` is the one `stored` was made from. `Ok(false)` is a wrong password.
///
/// # Errors
/// [`PasswordError`]; treat every one as a refusal.
pub fn verify(stored: &str, password: &[u8]) -> Result<bool, PasswordError> {
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(PasswordError::TooLong);
    }
    let stored = PasswordHash::new(stored)
        .map_err(|_| PasswordError::Stored(password_hash::Error::EncodingInvalid))?;
    if !stored.algorithm.as_str().starts_with("argon2") {
        return Err(PasswordError::Stored(password_hash::Error::Algorithm));
    }
    if stored.hash.is_none() || stored.salt.is_none() {
        return Err(PasswordError::Stored(password_hash::Error::EncodingInvalid));
    }
    let params = Params::try_from(&stored).map_err(PasswordError::Stored)?;
    if params.m_cost() > MEMORY_KIB_MAX || params.t_cost() > PASSES_MAX {
        return Err(PasswordError::TooCostly {
            memory_kib: params.m_cost(),
            passes: params.t_cost(),
        });
    }
    match Argon2::default().verify_password(password, &stored) {
        Ok(()) => Ok(true),
        Err(password_hash::Error::PasswordInvalid) => Ok(false),
        Err(error) => Err(PasswordError::Hash(error)),
    }
}

/// The Argon2id string to store for `password` (19 MiB, 2 passes). `salt`: 16 random bytes, new for each password.
///
/// # Errors
/// [`PasswordError`] when the password is too long or the salt is not of 8 to 48 bytes.
pub fn hash(password: &[u8], salt: &[u8]) -> Result<String, PasswordError> {
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(PasswordError::TooLong);
    }
    Argon2::default()
        .hash_password_customized(password, salt, None, None, Params::DEFAULT)
        .map(|made| made.to_string())
        .map_err(PasswordError::Hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_password_fits_and_a_wrong_one_does_not() {
        let stored = hash(b"correct horse", b"sixteen bytes ..").expect("within the limits");
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        assert_eq!(verify(&stored, b"correct horse"), Ok(true));
        assert_eq!(verify(&stored, b"correct horsf"), Ok(false));
        assert_eq!(verify(&stored, b""), Ok(false));
    }

    #[test]
    fn a_string_made_by_the_reference_program_is_understood() {
        // phc-winner-argon2, test.c: version 0x13, t=2, m=2^16, p=1, "password", "somesalt".
        let stored = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        assert_eq!(verify(stored, b"password"), Ok(true));
        assert_eq!(verify(stored, b"differentpassword"), Ok(false));
    }

    #[test]
    fn what_is_no_argon2_string_lets_nobody_in() {
        for stored in [
            "",
            "secret",
            "$",
            "$2b$12$abcdefghijklmnopqrstuu",
            "$argon2id$v=19$m=19456,t=2,p=1",
            "$scrypt$ln=16$c29tZXNhbHQ",
        ] {
            assert!(
                matches!(verify(stored, b"secret"), Err(PasswordError::Stored(_))),
                "{stored:?}"
            );
        }
    }

    #[test]
    fn a_string_that_asks_for_gigabytes_is_refused_before_any_is_taken() {
        let stored = "$argon2id$v=19$m=4294967295,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        assert_eq!(
            verify(stored, b"x"),
            Err(PasswordError::TooCostly { memory_kib: u32::MAX, passes: 2 })
        );
        assert_eq!(verify(stored, &[b'x'; 1_025]), Err(PasswordError::TooLong));
    }
}
