//! How a verb ends when it does not end well: one line on standard error and an exit code.

use std::fmt;

/// What went wrong: the line for people and the code for scripts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// It did not work (exit code 1).
    pub fn new(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// It was asked in a way that cannot work (exit code 2).
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    /// The configuration is wrong (exit code 3).
    pub fn config(message: impl Into<String>) -> Self {
        Self { code: 3, message: message.into() }
    }

    /// Time was up (exit code 27, mosquitto_sub's).
    pub fn timeout() -> Self {
        Self { code: 27, message: String::new() }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}
