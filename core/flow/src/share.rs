//! Fair shares of a turn: who sends little is read from at once, and who sends much in rotation.
//!
//! ```text
//!  ready ──▶ light? ──▶ read at once
//!              └ no ──▶ turn used up? ── no ──▶ read at once
//!                           └ yes ──▶ waits ──▶ next turns, one quantum each, round and round
//! ```
//! So whoever sends a message now and then waits for one turn, however many others flood. A turn that is not used up costs
//! nothing: one client alone gets all of it.

/// Packets read in a turn from which on it is used up. Fewer: more turns, each with its writes; more: whoever sends little
/// waits for longer while others flood. A thousand take about a millisecond.
pub const TURN_PACKETS_MAX: usize = 1_024;

/// Bytes, the same.
pub const TURN_BYTES_MAX: usize = 1 << 20;

/// Packets taken from one connection at a time. Fewer: what a client sends at once is handed in by parts; more: a client of
/// tiny packets takes a turn of many milliseconds for itself.
pub const QUANTUM_PACKETS_MAX: usize = 1_024;

/// A client that sends no more than this at a time is light. Fewer: clients with a window of some messages wait behind
/// floods; more: a flood in small portions counts as no flood.
pub const LIGHT_PACKETS_MAX: usize = 16;

/// Bytes, the same.
pub const LIGHT_BYTES_MAX: usize = 16 << 10;

/// What was read in the present turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TurnShare {
    packets: usize,
    bytes: usize,
}

impl TurnShare {
    /// With what was read now.
    #[must_use]
    pub fn with(self, packets: usize, bytes: usize) -> Self {
        Self {
            packets: self.packets.saturating_add(packets),
            bytes: self.bytes.saturating_add(bytes),
        }
    }

    /// Whether only light clients are read from before the next turn.
    pub fn is_used_up(self) -> bool {
        self.packets >= TURN_PACKETS_MAX || self.bytes >= TURN_BYTES_MAX
    }
}

/// How much is taken from a connection at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantum {
    /// Packets.
    pub packets: usize,
    /// Bytes read.
    pub bytes: usize,
}

impl Quantum {
    /// A whole one, or what is left for a light client in a turn that is used up.
    pub fn of(whole: bool) -> Self {
        if whole {
            Self { packets: QUANTUM_PACKETS_MAX, bytes: usize::MAX }
        } else {
            Self { packets: LIGHT_PACKETS_MAX, bytes: LIGHT_BYTES_MAX }
        }
    }
}

/// Whether a client that sent this at once is one that has to wait for its turn.
pub fn is_heavy(packets: usize, bytes: usize) -> bool {
    packets > LIGHT_PACKETS_MAX || bytes > LIGHT_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_used_up_by_packets_or_by_bytes() {
        let turn = TurnShare::default();
        assert!(!turn.is_used_up());
        assert!(!turn.with(TURN_PACKETS_MAX - 1, TURN_BYTES_MAX - 1).is_used_up());
        assert!(turn.with(TURN_PACKETS_MAX - 1, 0).with(1, 0).is_used_up());
        assert!(turn.with(1, TURN_BYTES_MAX).is_used_up());
        assert!(turn.with(usize::MAX, usize::MAX).with(1, 1).is_used_up());
    }

    #[test]
    fn a_window_of_some_messages_is_light_and_a_full_buffer_is_not() {
        assert!(!is_heavy(10, 800) && !is_heavy(1, LIGHT_BYTES_MAX));
        assert!(is_heavy(64, 4_000) && is_heavy(4, 64 << 10));
    }
}
