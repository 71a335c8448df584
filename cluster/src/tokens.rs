//! Join tokens and the names given out, in two small files beside the CA's key.
//!
//! A token works once, for a while, for one name or for any that was not given out yet. The file holds only SHA-256
//! hashes; tokens are 128 random bits, so hashing needs no salt. The files are locked (`flock`) while they are read and
//! written, because the command line makes tokens while the node redeems them.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::{constant_time, digest};
use outpost_security::identity;

use crate::ca::{self, CaError};

/// How many tokens may be open at once. Lower: larger fleets are joined in portions. Higher: more hashes to compare.
pub const TOKENS_MAX: usize = 1_000;
/// A token is valid for at most this long.
pub const TOKEN_VALID_MAX: Duration = Duration::from_hours(24 * 7);
/// Larger files are not read; it would not be one of ours.
const FILE_BYTES_MAX: u64 = 16 << 20;

const TOKENS_FILE: &str = "join-tokens";
const NAMES_FILE: &str = "names-issued";
const LOCK_FILE: &str = "join-lock";
const TOKEN_PREFIX: &str = "opj-";

/// Why a token did not work. The newcomer is told these words.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Unknown, used or expired; which of these is not told.
    #[error("the token is not valid")]
    Invalid,
    /// Made for another name.
    #[error("the token was made for another name")]
    OtherName,
    /// There is a certificate for that name already.
    #[error(
        "a node named {0:?} has joined before; make a token for this name to let it join again"
    )]
    NameTaken(String),
    /// Too many open tokens.
    #[error("{TOKENS_MAX} tokens are open; use them or let them expire")]
    TooMany,
    /// Not a node's name.
    #[error("{0:?} cannot be the name of a node")]
    BadName(String),
    /// The files.
    #[error("the list of tokens cannot be used: {0}")]
    File(#[from] CaError),
}

/// The tokens of one CA folder.
#[derive(Debug, Clone)]
pub struct Tokens {
    folder: PathBuf,
}

struct Token {
    hash: String,
    expires_s: u64,
    name: Option<String>,
}

impl Tokens {
    /// The tokens beside a CA's key.
    pub fn in_folder(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Makes a token, valid for so long, for a node of this name or, without one, for any new name.
    ///
    /// # Errors
    /// [`TokenError`]; no token was made.
    pub fn create(&self, name: Option<&str>, valid: Duration) -> Result<String, TokenError> {
        if let Some(name) = name.filter(|name| !identity::is_node_name(name)) {
            return Err(TokenError::BadName(name.to_owned()));
        }
        let _lock = self.lock()?;
        let mut tokens = self.read()?;
        if tokens.len() >= TOKENS_MAX {
            return Err(TokenError::TooMany);
        }
        let token =
            format!("{TOKEN_PREFIX}{:016x}{:016x}", crate::random_u64(), crate::random_u64());
        let expires_s = now_s() + valid.min(TOKEN_VALID_MAX).as_secs();
        tokens.push(Token { hash: hash(&token), expires_s, name: name.map(str::to_owned) });
        self.write(&tokens)?;
        Ok(token)
    }

    /// Uses a token up for a node of this name, and notes the name.
    ///
    /// # Errors
    /// [`TokenError`]; the token was not used up.
    pub fn redeem(&self, token: &str, name: &str) -> Result<(), TokenError> {
        if !identity::is_node_name(name) {
            return Err(TokenError::BadName(name.chars().take(100).collect()));
        }
        let _lock = self.lock()?;
        let mut tokens = self.read()?;
        let given = hash(token);
        // All are compared, whichever matches, in constant time each.
        let same = |t: &Token| {
            constant_time::verify_slices_are_equal(t.hash.as_bytes(), given.as_bytes()).is_ok()
        };
        let found = tokens
            .iter()
            .map(same)
            .enumerate()
            .fold(None, |found, (at, same)| if same { Some(at) } else { found });
        let token = tokens.remove(found.ok_or(TokenError::Invalid)?);
        if token.name.as_deref().is_some_and(|made_for| made_for != name) {
            return Err(TokenError::OtherName);
        }
        let mut names = self.read_text(NAMES_FILE)?;
        let given_before = names.lines().any(|line| line == name);
        if given_before && token.name.is_none() {
            return Err(TokenError::NameTaken(name.to_owned()));
        }
        self.write(&tokens)?;
        if !given_before {
            names.push_str(name);
            names.push('\n');
            ca::replace_file(&self.folder.join(NAMES_FILE), names.as_bytes(), 0o600)?;
        }
        Ok(())
    }

    /// Notes a name that got its certificate in another way than by a token.
    ///
    /// # Errors
    /// [`TokenError`] when the file cannot be written, or the name may not be.
    pub fn note_name(&self, name: &str) -> Result<(), TokenError> {
        if !identity::is_node_name(name) {
            return Err(TokenError::BadName(name.to_owned()));
        }
        let _lock = self.lock()?;
        let mut names = self.read_text(NAMES_FILE)?;
        if !names.lines().any(|line| line == name) {
            names.push_str(name);
            names.push('\n');
            ca::replace_file(&self.folder.join(NAMES_FILE), names.as_bytes(), 0o600)?;
        }
        Ok(())
    }

    /// The tokens that are not expired. A line that cannot be read is dropped, so nothing joins by it.
    fn read(&self) -> Result<Vec<Token>, TokenError> {
        let text = self.read_text(TOKENS_FILE)?;
        let one = |line: &str| {
            let mut words = line.split(' ');
            let (hash, expires_s, name) =
                (words.next()?, words.next()?.parse().ok()?, words.next()?);
            Some(Token {
                hash: hash.to_owned(),
                expires_s,
                name: (name != "*").then(|| name.to_owned()),
            })
        };
        let now_s = now_s();
        Ok(text.lines().filter_map(one).filter(|token| token.expires_s > now_s).collect())
    }

    fn write(&self, tokens: &[Token]) -> Result<(), TokenError> {
        let line = |t: &Token| {
            format!("{} {} {}\n", t.hash, t.expires_s, t.name.as_deref().unwrap_or("*"))
        };
        let text: String = tokens.iter().map(line).collect();
        Ok(ca::replace_file(&self.folder.join(TOKENS_FILE), text.as_bytes(), 0o600)?)
    }

    fn read_text(&self, file: &str) -> Result<String, TokenError> {
        let path = self.folder.join(file);
        let mut text = String::new();
        let read = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(text),
            opened => opened.and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text)),
        };
        read.map_err(|cause| CaError::File { what: "read", path, cause })?;
        Ok(text)
    }

    fn lock(&self) -> Result<File, TokenError> {
        let path = self.folder.join(LOCK_FILE);
        let locked = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .and_then(|file| {
                file.lock()?;
                Ok(file)
            });
        locked.map_err(|cause| CaError::File { what: "lock", path, cause }.into())
    }
}

fn hash(token: &str) -> String {
    let digest = digest::digest(&digest::SHA256, token.as_bytes());
    digest.as_ref().iter().fold(String::with_capacity(64), |mut hex, byte| {
        for half in [byte >> 4, byte & 15] {
            hex.push(char::from_digit(u32::from(half), 16).expect("below 16"));
        }
        hex
    })
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn a_token_works_once_and_a_name_is_given_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let tokens = Tokens::in_folder(folder.path());
        let token = tokens.create(None, HOUR).expect("made");
        assert!(matches!(tokens.redeem("opj-0", "edge-2"), Err(TokenError::Invalid)));
        tokens.redeem(&token, "edge-2").expect("right");
        assert!(matches!(tokens.redeem(&token, "edge-3"), Err(TokenError::Invalid)));
        let next = tokens.create(None, HOUR).expect("made");
        assert!(matches!(tokens.redeem(&next, "edge-2"), Err(TokenError::NameTaken(_))));
        tokens.redeem(&next, "edge-3").expect("a refusal does not use it up");
    }

    #[test]
    fn a_token_for_a_name_lets_exactly_that_node_join_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let tokens = Tokens::in_folder(folder.path());
        tokens.note_name("edge-1").expect("noted");
        let token = tokens.create(Some("edge-1"), HOUR).expect("made");
        assert!(matches!(tokens.redeem(&token, "edge-2"), Err(TokenError::OtherName)));
        tokens.redeem(&token, "edge-1").expect("made for it");
        assert!(matches!(tokens.create(Some("Edge"), HOUR), Err(TokenError::BadName(_))));
    }

    #[test]
    fn an_expired_token_and_a_damaged_line_let_nobody_in() {
        let folder = tempfile::tempdir().expect("a folder");
        let tokens = Tokens::in_folder(folder.path());
        let token = tokens.create(None, Duration::ZERO).expect("made");
        assert!(matches!(tokens.redeem(&token, "edge-2"), Err(TokenError::Invalid)));
        std::fs::write(folder.path().join(TOKENS_FILE), "nonsense\n\n a b c d\n").expect("written");
        assert!(matches!(tokens.redeem("", "edge-2"), Err(TokenError::Invalid)));
    }

    #[test]
    fn the_file_does_not_hold_the_token() {
        let folder = tempfile::tempdir().expect("a folder");
        let token = Tokens::in_folder(folder.path()).create(None, HOUR).expect("made");
        let text = std::fs::read_to_string(folder.path().join(TOKENS_FILE)).expect("there");
        assert!(!text.contains(token.trim_start_matches(TOKEN_PREFIX)));
    }
}
