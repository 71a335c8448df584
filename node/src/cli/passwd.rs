//! `outpost passwd NAME`: the lines of a configuration for one user, with the password hashed.

use std::io::{IsTerminal, Read};

use clap::Args;
use outpost_security::password;
use outpost_security::scram::{self, Verifier};

use super::failure::Failure;
use super::output;

/// Bytes of salt (RFC 9106, §3.1 recommends 16).
const SALT_BYTES: usize = 16;

/// Hash a password (read from standard input) for the configuration
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  outpost passwd ann < password.txt >> conf.d/users.toml")]
pub struct Passwd {
    /// The user name
    name: String,
    /// Only the hash and the verifier, for password_file
    #[arg(long)]
    hash_only: bool,
}

impl Passwd {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] when the password cannot be read or hashed.
    pub fn run(self) -> Result<(), Failure> {
        if std::io::stdin().is_terminal() {
            eprintln!("Password (it is shown as you type; end with Enter and Ctrl-D):");
        }
        let mut text = String::new();
        std::io::stdin().lock().take(64 << 10).read_to_string(&mut text)?;
        let password = text.lines().next().unwrap_or_default();
        if password.is_empty() {
            return Err(Failure::usage("the password is empty"));
        }
        let hash = password::hash(password.as_bytes(), &salt()?)
            .map_err(|why| Failure::new(why.to_string()))?;
        // For clients that prove the password instead of sending it; some passwords have no such form.
        let verifier = Verifier::new(password, &salt()?, scram::ITERATIONS);
        if let Err(why) = &verifier {
            eprintln!("no login by SCRAM-SHA-256: {why}");
        }
        output::print(&match (self.hash_only, verifier) {
            (true, Ok(verifier)) => format!("{hash}\n{verifier}\n"),
            (true, Err(_)) => format!("{hash}\n"),
            (false, verifier) => {
                let scram = verifier.map_or(String::new(), |v| format!("scram = \"{v}\"\n"));
                let name = &self.name;
                format!("[[security.user]]\nname = {name:?}\npassword = {hash:?}\n{scram}")
            }
        })
    }
}

fn salt() -> std::io::Result<[u8; SALT_BYTES]> {
    let mut salt = [0; SALT_BYTES];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut salt)?;
    Ok(salt)
}
