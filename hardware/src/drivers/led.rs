//! A lamp: `on`, `off`, `toggle`, `blink <milliseconds>`. Publishes `on` and `off`.

use bytes::Bytes;

use crate::board::OutputLine;
use crate::driver::{Driver, DriverError, OpenDevice};

/// The fastest blinking. Smaller: each change is a message, and a device with a blink of 1 ms floods the node.
pub const BLINK_MS_MIN: u64 = 20;
/// The slowest blinking, an hour.
pub const BLINK_MS_MAX: u64 = 3_600_000;

const EXPECTED: &str = "on, off, toggle, blink <20 to 3600000 ms>";

struct Led {
    line: Box<dyn OutputLine>,
    initial: bool,
    on: bool,
    blink: Option<Blink>,
}

struct Blink {
    every_ms: u64,
    next_ms: u64,
}

/// Opens the line as an output.
///
/// # Errors
/// [`DriverError::Board`] when the line cannot be opened.
pub fn open(device: &OpenDevice<'_>) -> Result<Box<dyn Driver>, DriverError> {
    let initial = device.config.initial;
    let line = device.board.open_output(&device.line(), initial)?;
    Ok(Box::new(Led { line, initial, on: initial, blink: None }))
}

impl Led {
    fn set(&mut self, on: bool) -> Result<(), DriverError> {
        self.line.set(on)?;
        self.on = on;
        Ok(())
    }
}

impl Driver for Led {
    fn state(&mut self) -> Result<Bytes, DriverError> {
        Ok(Bytes::from_static(if self.on { b"on" } else { b"off" }))
    }

    fn handle_command(&mut self, command: &[u8], now_ms: u64) -> Result<(), DriverError> {
        let blink = match command {
            b"on" | b"off" | b"toggle" => None,
            _ => Some(blink_ms(command).ok_or(DriverError::Command { expected: EXPECTED })?),
        };
        self.blink = blink.map(|every_ms| Blink { every_ms, next_ms: now_ms + every_ms });
        match command {
            b"on" => self.set(true),
            b"off" => self.set(false),
            _ => self.set(!self.on),
        }
    }

    fn poll_timeout(&self) -> Option<u64> {
        self.blink.as_ref().map(|blink| blink.next_ms)
    }

    fn handle_timeout(&mut self, now_ms: u64) -> Result<(), DriverError> {
        match &mut self.blink {
            Some(blink) if blink.next_ms <= now_ms => {
                // On the beat, unless a whole beat was slept through.
                blink.next_ms = (blink.next_ms + blink.every_ms).max(now_ms + 1);
                self.set(!self.on)
            }
            _ => Ok(()),
        }
    }

    fn stop(&mut self) {
        let _ = self.set(self.initial);
    }
}

fn blink_ms(command: &[u8]) -> Option<u64> {
    let number = std::str::from_utf8(command).ok()?.strip_prefix("blink ")?;
    number.parse().ok().filter(|ms| (BLINK_MS_MIN..=BLINK_MS_MAX).contains(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sensible_blinking_is_understood() {
        assert_eq!(blink_ms(b"blink 500"), Some(500));
        for bad in [
            &b"blink"[..],
            b"blink ",
            b"blink 19",
            b"blink 3600001",
            b"blink -5",
            b"blink 1e3",
            b"\xff\xfe",
        ] {
            assert_eq!(blink_ms(bad), None, "{bad:?}");
        }
    }
}
