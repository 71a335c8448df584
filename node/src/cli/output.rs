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

/// Rows with their columns below each other; the first row is the heading.
pub fn columns<const N: usize>(rows: &[[String; N]], paint: Paint) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let line = cells.join("  ");
        let line = line.trim_end();
        out.push_str(&if number == 0 { paint.strong(line) } else { line.to_owned() });
        out.push('\n');
    }
    out
}

/// Asks on standard error. Where nobody can be asked it is wrong usage: `flag` says yes beforehand.
///
/// # Errors
/// [`Failure`] when standard input is no terminal.
pub fn confirmed(question: &str, flag: &str) -> Result<bool, Failure> {
    use std::io::{BufRead, Write};
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!(
            "{question} Nobody can be asked here; {flag} says yes"
        )));
    }
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// A moment as people write it: `2026-01-31 23:59:59.123Z`.
pub fn utc(wall_ms: u64) -> String {
    let (days, day_ms) = (wall_ms / 86_400_000, wall_ms % 86_400_000);
    // Days since 1970 to a date: years begin in March, so that a leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (second, ms) = (day_ms / 1000, day_ms % 1000);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dates_in_utc() {
        assert_eq!(utc(0), "1970-01-01 00:00:00.000Z");
        assert_eq!(utc(951_782_400_123), "2000-02-29 00:00:00.123Z");
        assert_eq!(utc(1_798_761_599_999), "2026-12-31 23:59:59.999Z");
    }

    #[test]
    fn columns_stand_below_each_other() {
        let row = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        let text = columns(&[row("A", "B"), row("long", "1")], Paint::off());
        assert_eq!(text, "A     B\nlong  1\n");
    }
}
