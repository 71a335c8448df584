//! What verbs say on standard error, and colour: only on a terminal, never with `NO_COLOR`.

use std::io::IsTerminal;

use super::failure::Failure;
use super::mqtt::Event;

/// Says things on standard error.
#[derive(Debug, Clone, Copy)]
pub struct Say {
    debug: bool,
    quiet: bool,
}

impl Say {
    /// With or without `--debug` and `--quiet`.
    pub fn new(debug: bool, quiet: bool) -> Self {
        Self { debug, quiet }
    }

    /// Worth knowing while looking for a fault.
    pub fn debug(self, text: &str) {
        if self.debug && !self.quiet {
            eprintln!("{text}");
        }
    }

    /// Not as wanted, but it goes on.
    pub fn warn(self, text: &str) {
        if !self.quiet {
            eprintln!("outpost: {text}");
        }
    }

    /// An event nobody waits for.
    pub fn event(self, event: &Event) {
        if self.debug {
            self.debug(&format!("{event:?}"));
        }
    }
}

/// Colours for standard output, or none.
#[derive(Debug, Clone, Copy)]
pub struct Paint(bool);

impl Paint {
    /// On when standard output is a terminal and `NO_COLOR` is not set.
    pub fn for_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self(!refused && std::io::stdout().is_terminal())
    }

    /// Never.
    #[cfg(test)]
    pub fn off() -> Self {
        Self(false)
    }

    /// As it should be.
    pub fn good(self, text: &str) -> String {
        self.wrap(text, "32")
    }

    /// Needs a look.
    pub fn bad(self, text: &str) -> String {
        self.wrap(text, "31")
    }

    /// Between the two.
    pub fn fair(self, text: &str) -> String {
        self.wrap(text, "33")
    }

    /// A heading.
    pub fn strong(self, text: &str) -> String {
        self.wrap(text, "1")
    }

    /// Less important.
    pub fn faint(self, text: &str) -> String {
        self.wrap(text, "2")
    }

    fn wrap(self, text: &str, code: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Prints to standard output; a reader that has gone away (`| head`) ends the verb quietly.
pub fn print(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// A runtime for a verb: one thread is enough for a client.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|why| Failure::new(format!("cannot start the runtime: {why}")))
}
