//! For links that cannot carry a path (3.1.1): what was sent lately, so that its echo is known when it comes back.
//!
//! Each message sent is noted by its topic and payload; a message that comes in and matches a note uses the note up. So
//! as many are taken for echoes as were sent, whatever their order.

use std::collections::{HashMap, VecDeque};

use xxhash_rust::xxh3::Xxh3;

/// Messages that are remembered. Lower: on a busy link an echo comes too late to be known; higher costs some 50 bytes each.
pub const NOTES_MAX: usize = 16_384;

/// How long an echo may take. Shorter: over a slow link it is taken for a new message, once round; longer: a message of
/// somebody else with the same topic and payload may be taken for an echo when the true one never came.
pub const ECHO_MS_MAX: u64 = 10_000;

/// What was sent lately.
#[derive(Debug, Clone, Default)]
pub struct Echo {
    counts: HashMap<u64, u32>,
    order: VecDeque<(u64, u64)>,
}

impl Echo {
    /// A message was sent.
    pub fn sent(&mut self, topic: &str, payload: &[u8], now_ms: u64) {
        self.forget(now_ms);
        if self.order.len() >= NOTES_MAX {
            self.forget_oldest();
        }
        let note = note_of(topic, payload);
        self.order.push_back((note, now_ms));
        *self.counts.entry(note).or_default() += 1;
    }

    /// A message came in: whether it is one that was sent. Its note is used up.
    pub fn take(&mut self, topic: &str, payload: &[u8], now_ms: u64) -> bool {
        self.forget(now_ms);
        let note = note_of(topic, payload);
        let Some(count) = self.counts.get_mut(&note) else { return false };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(&note);
        }
        // The oldest of its kind: the others are younger and stay as long as they would have.
        if let Some(at) = self.order.iter().position(|(other, _)| *other == note) {
            self.order.remove(at);
        }
        true
    }

    fn forget(&mut self, now_ms: u64) {
        while self.order.front().is_some_and(|(_, at_ms)| now_ms > at_ms + ECHO_MS_MAX) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((note, _)) = self.order.pop_front() else { return };
        if let Some(count) = self.counts.get_mut(&note) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&note);
            }
        }
    }
}

fn note_of(topic: &str, payload: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&(topic.len() as u32).to_be_bytes());
    hash.update(topic.as_bytes());
    hash.update(payload);
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_come_back_as_were_sent() {
        let mut echo = Echo::default();
        echo.sent("t", b"on", 0);
        echo.sent("t", b"on", 5);
        echo.sent("t", b"off", 6);
        assert!(echo.take("t", b"on", 7) && echo.take("t", b"on", 8));
        assert!(!echo.take("t", b"on", 9), "somebody else's");
        assert!(!echo.take("u", b"off", 9) && echo.take("t", b"off", 9));
        assert!(echo.order.is_empty() && echo.counts.is_empty());
    }

    #[test]
    fn notes_end_with_time_and_with_their_number() {
        let mut echo = Echo::default();
        echo.sent("t", b"late", 0);
        assert!(!echo.take("t", b"late", ECHO_MS_MAX + 1));
        for n in 0..=NOTES_MAX {
            echo.sent("t", &n.to_be_bytes(), 1);
        }
        assert_eq!((echo.order.len(), echo.counts.len()), (NOTES_MAX, NOTES_MAX));
        assert!(!echo.take("t", &0_usize.to_be_bytes(), 1), "the oldest went first");
    }
}
