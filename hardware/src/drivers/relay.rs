//! A relay: `on`, `off`, `toggle`, `pulse <milliseconds>`. Publishes `on` and `off`; falls back to its initial state.

use bytes::Bytes;

use crate::board::OutputLine;
use crate::driver::{Driver, DriverError, OpenDevice};

/// The longest pulse, an hour. Greater: a mistyped number opens a valve for days.
pub const PULSE_MS_MAX: u64 = 3_600_000;

/// The least time between two switchings. Smaller: contacts weld under a flood of commands; commands in between are
/// kept, the last one counts.
pub const SWITCHING_MS_MIN: u64 = 50;

const EXPECTED: &str = "on, off, toggle, pulse <1 to 3600000 ms>";

struct Relay {
    line: Box<dyn OutputLine>,
    initial: bool,
    on: bool,
    /// Before this the contacts rest.
    free_from_ms: u64,
    /// What it shall be then.
    postponed: Option<bool>,
    /// How long it shall stay on once it is.
    pulse_ms: Option<u64>,
    pulse_end_ms: Option<u64>,
}

/// Opens the line as an output.
///
/// # Errors
/// [`DriverError::Board`] when the line cannot be opened.
pub fn open(device: &OpenDevice<'_>) -> Result<Box<dyn Driver>, DriverError> {
    let initial = device.config.initial;
    let line = device.board.open_output(&device.line(), initial)?;
    Ok(Box::new(Relay {
        line,
        initial,
        on: initial,
        free_from_ms: 0,
        postponed: None,
        pulse_ms: None,
        pulse_end_ms: None,
    }))
}

impl Relay {
    fn switch(&mut self, on: bool, now_ms: u64) -> Result<(), DriverError> {
        self.line.set(on)?;
        if on != self.on {
            self.free_from_ms = now_ms + SWITCHING_MS_MIN;
        }
        self.on = on;
        self.postponed = None;
        self.pulse_end_ms =
            self.pulse_ms.take().map(|pulse_ms| now_ms + pulse_ms.max(SWITCHING_MS_MIN));
        Ok(())
    }
}

impl Driver for Relay {
    fn state(&mut self) -> Result<Bytes, DriverError> {
        Ok(Bytes::from_static(if self.on { b"on" } else { b"off" }))
    }

    fn handle_command(&mut self, command: &[u8], now_ms: u64) -> Result<(), DriverError> {
        let (on, pulse_ms) = match command {
            b"on" => (true, None),
            b"off" => (false, None),
            b"toggle" => (!self.postponed.unwrap_or(self.on), None),
            _ => {
                (true, Some(pulse_ms(command).ok_or(DriverError::Command { expected: EXPECTED })?))
            }
        };
        self.pulse_ms = pulse_ms;
        self.pulse_end_ms = None;
        if now_ms < self.free_from_ms && on != self.on {
            self.postponed = Some(on);
            return Ok(());
        }
        self.switch(on, now_ms)
    }

    fn poll_timeout(&self) -> Option<u64> {
        self.postponed.map(|_| self.free_from_ms).or(self.pulse_end_ms)
    }

    fn handle_timeout(&mut self, now_ms: u64) -> Result<(), DriverError> {
        match (self.poll_timeout(), self.postponed) {
            (Some(due_ms), postponed) if due_ms <= now_ms => {
                self.switch(postponed.unwrap_or(false), now_ms)
            }
            _ => Ok(()),
        }
    }

    fn stop(&mut self) {
        let _ = self.line.set(self.initial);
    }
}

fn pulse_ms(command: &[u8]) -> Option<u64> {
    let number = std::str::from_utf8(command).ok()?.strip_prefix("pulse ")?;
    number.parse().ok().filter(|ms| (1..=PULSE_MS_MAX).contains(ms))
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::board::simulated::SimulatedBoard;

    #[test]
    fn a_pulse_ends_by_itself_and_a_command_ends_it_too() {
        let (board, mut relay) = relay();
        command(&mut *relay, "pulse 500", 0);
        assert!(board.is_active(1));
        assert_eq!(relay.poll_timeout(), Some(500));
        wake(&mut *relay, 500);
        assert!(!board.is_active(1));

        command(&mut *relay, "pulse 500", 1_000);
        command(&mut *relay, "toggle", 1_100);
        assert!(!board.is_active(1));
        assert_eq!(relay.poll_timeout(), None);
    }

    #[test]
    fn contacts_rest_between_switchings_and_the_last_command_counts() {
        let (board, mut relay) = relay();
        command(&mut *relay, "on", 0);
        command(&mut *relay, "off", 10);
        command(&mut *relay, "on", 20);
        command(&mut *relay, "off", 30);
        assert_eq!((board.is_active(1), board.changes(1)), (true, 1));
        wake(&mut *relay, SWITCHING_MS_MIN);
        assert_eq!((board.is_active(1), board.changes(1)), (false, 2));
        for flood in 0..1_000 {
            command(&mut *relay, "toggle", 1_000 + flood);
            wake(&mut *relay, 1_000 + flood);
        }
        assert!(
            board.changes(1) <= 2 + 1_000 / SWITCHING_MS_MIN + 1,
            "{} switchings",
            board.changes(1)
        );
    }

    #[test]
    fn nonsense_changes_nothing() {
        let (board, mut relay) = relay();
        for bad in [&b""[..], b"ON", b"pulse", b"pulse 0", b"pulse 3600001", b"\xff"] {
            assert!(
                matches!(relay.handle_command(bad, 0), Err(DriverError::Command { .. })),
                "{bad:?}"
            );
        }
        assert_eq!(board.changes(1), 0);
    }

    fn relay() -> (SimulatedBoard, Box<dyn Driver>) {
        let board = SimulatedBoard::default();
        let config = toml::from_str("name='r'\ndriver='relay'\nline=1").expect("valid");
        let (edges, _) = mpsc::channel(1);
        let relay =
            open(&OpenDevice { config: &config, board: &board, edges }).expect("the line is free");
        (board, relay)
    }

    fn command(relay: &mut dyn Driver, text: &str, now_ms: u64) {
        relay.handle_command(text.as_bytes(), now_ms).expect("understood");
    }

    fn wake(relay: &mut dyn Driver, now_ms: u64) {
        relay.handle_timeout(now_ms).expect("the line is well");
    }
}
