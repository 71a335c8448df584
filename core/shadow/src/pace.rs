//! How fast a backlog is sent to a peer, by what the link to it is like.
//!
//! QUIC finds out by itself what a link carries. What is decided here is how much is handed to it ahead of that, because
//! what is written now queues behind it: a rate, how much may be under way, and how large one frame may be. What is written
//! now waits for none of these.

use outpost_flow::bytes_a_second;

/// Bytes of a backlog a second on the best of links. Lower: a peer that was away takes longer to catch up; higher: other
/// traffic of the link has less. Some twenty times what one core makes of shadows, so a good link is not held up by it.
/// `outpost_shadows_pace_bytes_per_second`
pub const PACE_BYTES_S_MAX: u64 = 10_000_000;
/// A longer round trip halves what may be under way.
const LONG_RTT_MS: u64 = 300;
/// With more loss a frame has [`LOSSY_FRAME_BYTES_MAX`] at most.
const LOSSY_PERCENT: f64 = 3.0;
/// Bytes of a frame on a link that loses much, before it is deflated, unless one shadow alone is larger. More: what is
/// written now waits longer for what is sent again; fewer: more frames, and more acknowledgements.
pub const LOSSY_FRAME_BYTES_MAX: usize = 64 << 10;

/// Bytes of a backlog under way to a peer whose link is not known. Less and a long link stands idle; more and what is
/// written now waits behind it. While it is full, further changes of one shadow are sent as one.
const WINDOW_BYTES: usize = 256 << 10;
/// The same where the link is known: never more than this. More: a peer that does not answer occupies more memory here.
/// `outpost_shadows_pace_bytes_per_second`
pub const WINDOW_BYTES_MAX: usize = 2 << 20;
/// And never less, so that a link that was idle is filled.
const WINDOW_BYTES_MIN: usize = 64 << 10;
/// What QUIC lets through in one round trip, so many times: an acknowledgement waits for the peer's disk as well.
const WINDOWS: usize = 4;

/// What may go at once after a pause, as time at the full rate. Shorter: timers that are late cost throughput; longer: a
/// backlog begins with more.
const BURST_US: u64 = 100_000;
/// Loss is told from this many packets at least: of few, one is a lot.
const PACKETS_MIN: u64 = 100;

/// What the link to a peer is like, as its connection says. Counts since it came up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Path {
    /// Round trip.
    pub rtt_ms: u64,
    /// Packets sent.
    pub sent: u64,
    /// Packets lost.
    pub lost: u64,
    /// Bytes that congestion control lets be under way.
    pub window_bytes: usize,
}

/// The pace towards one peer.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    path: Option<Path>,
    loss_percent: f64,
    /// `sent` and `lost` when the loss was last told.
    counted: (u64, u64),
    /// What was sent up to now has gone at the rate when this moment has come.
    due_us: u64,
}

impl Pace {
    /// The link is like this now.
    pub fn handle_path(&mut self, path: Path) {
        let sent = path.sent.saturating_sub(self.counted.0);
        if sent >= PACKETS_MIN {
            let lost = path.lost.saturating_sub(self.counted.1).min(sent);
            let percent = 100.0 * lost as f64 / sent as f64;
            let is_first = self.counted == (0, 0);
            // A burst that overflowed a queue once is not how the link is.
            self.loss_percent =
                if is_first { percent } else { (3.0 * self.loss_percent + percent) / 4.0 };
            self.counted = (path.sent, path.lost);
        }
        self.path = Some(path);
    }

    /// Bytes a second. `None`: as fast as acknowledgements come, as nothing is known of the link.
    pub fn bytes_s(&self) -> Option<u64> {
        self.path.map(|path| bytes_a_second(PACE_BYTES_S_MAX, path.rtt_ms, self.loss_percent))
    }

    /// Bytes of the backlog that may be under way.
    pub fn window_bytes(&self) -> usize {
        let Some(path) = self.path else { return WINDOW_BYTES };
        let window =
            path.window_bytes.saturating_mul(WINDOWS).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
        if path.rtt_ms > LONG_RTT_MS { window / 2 } else { window }
    }

    /// Bytes of a frame before it is deflated, unless one shadow alone is larger.
    pub fn frame_bytes_max(&self) -> usize {
        if self.loss_percent > LOSSY_PERCENT { LOSSY_FRAME_BYTES_MAX } else { usize::MAX }
    }

    /// When the next frame of the backlog may go, in monotonic milliseconds.
    pub fn due_ms(&self) -> u64 {
        self.due_us.div_ceil(1_000)
    }

    /// A frame of the backlog leaves.
    pub fn note_sent(&mut self, bytes: usize, now_ms: u64) {
        let Some(rate) = self.bytes_s() else { return };
        let from = self.due_us.max((now_ms * 1_000).saturating_sub(BURST_US));
        self.due_us = from + bytes as u64 * 1_000_000 / rate.max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pace of a link with this round trip and loss.
    fn pace(rtt_ms: u64, loss_permille: u64) -> Pace {
        let mut pace = Pace::default();
        pace.handle_path(Path { rtt_ms, sent: 1_000, lost: loss_permille, window_bytes: 80 << 10 });
        pace
    }

    #[test]
    fn the_rate_in_bytes_a_second_falls_with_round_trip_and_loss() {
        assert_eq!(pace(0, 0).bytes_s(), Some(10_000_000));
        assert_eq!(pace(100, 10).bytes_s(), Some(7_200_000));
        assert_eq!(pace(300, 30).bytes_s(), Some(2_800_000));
        assert_eq!(pace(350, 0).bytes_s(), Some(3_000_000), "the floor");
        assert_eq!(pace(5_000, 900).bytes_s(), Some(600_000), "never nothing");
        assert_eq!(Pace::default().bytes_s(), None, "of an unknown link nothing is said");
    }

    #[test]
    fn a_long_round_trip_halves_what_is_under_way_and_loss_makes_frames_smaller() {
        assert_eq!(pace(300, 0).window_bytes(), 320 << 10);
        assert_eq!(pace(301, 0).window_bytes(), 160 << 10);
        assert_eq!(pace(100, 30).frame_bytes_max(), usize::MAX);
        assert_eq!(pace(100, 31).frame_bytes_max(), 64 << 10);
    }

    #[test]
    fn what_is_under_way_follows_what_the_link_carries_within_limits() {
        let window = |window_bytes| {
            let mut pace = Pace::default();
            pace.handle_path(Path { rtt_ms: 40, window_bytes, ..Path::default() });
            pace.window_bytes()
        };
        assert_eq!(window(2_400), WINDOW_BYTES_MIN);
        assert_eq!(window(50_000), 200_000);
        assert_eq!(window(usize::MAX), WINDOW_BYTES_MAX);
        assert_eq!(Pace::default().window_bytes(), WINDOW_BYTES);
    }

    #[test]
    fn loss_is_told_from_many_packets_and_forgets_what_was() {
        let mut pace = Pace::default();
        let path = |sent, lost| Path { sent, lost, ..Path::default() };
        pace.handle_path(path(12, 3));
        assert_eq!(pace.bytes_s(), Some(10_000_000), "three of twelve say nothing");
        pace.handle_path(path(100, 4));
        assert_eq!(pace.bytes_s(), Some(6_000_000), "four of a hundred");
        pace.handle_path(path(1_100, 4));
        assert_eq!(pace.bytes_s(), Some(7_000_000), "none since");
        (2..20).for_each(|n| pace.handle_path(path(1_000 * n + 100, 4)));
        assert!(pace.bytes_s() > Some(9_900_000));
    }

    #[test]
    fn frames_are_spread_at_the_rate_after_a_short_burst() {
        let mut pace = pace(300, 30);
        let (mut bytes, mut now_ms) = (0, 50_000);
        let begun_ms = now_ms;
        while now_ms < begun_ms + 10_000 {
            while pace.due_ms() <= now_ms {
                pace.note_sent(48 << 10, now_ms);
                bytes += 48 << 10;
            }
            now_ms = pace.due_ms();
        }
        let per_s = bytes / 10;
        assert!((2_800_000..2_900_000).contains(&per_s), "{per_s} bytes a second");
        // A pause is not saved up.
        now_ms += 3_600_000;
        let mut at_once = 0;
        while pace.due_ms() <= now_ms {
            pace.note_sent(48 << 10, now_ms);
            at_once += 48 << 10;
        }
        assert!(at_once < 340_000, "{at_once} bytes at once after an hour");
    }
}
