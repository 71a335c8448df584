//! What is done with QoS 0 for a client that reads too slowly: how much may wait for it, and what goes when that is full.

/// The least and the greatest share of its memory a buffer may take, in thousandths.
const SHARE_PERMILLE: (i64, i64) = (100, 300);

/// The share of a buffer that has just been emptied, or has just begun to fill.
const EVEN_PERMILLE: i64 = 200;

/// What a second of lag adds, and a second of idleness takes away.
const PER_SECOND_PERMILLE: i64 = 50;

/// Messages that wait behind a full write buffer where the policy lets them. Fewer: shorter pauses of a client are seen by
/// others; more: memory for each client that is slow.
pub const RING_MAX: usize = 256;

/// The share of its memory that a client's buffer may take, in thousandths: `min(0.3, max(0.1, 0.2 + lag × 0.05))`, where
/// `lag_ms` is for how long it has been behind, or, negative, for how long it has kept up. So it grows to its most within
/// two seconds of lag, and shrinks to its least within two seconds without.
pub fn share_permille(lag_ms: i64) -> u64 {
    let share = EVEN_PERMILLE + lag_ms.clamp(-60_000, 60_000) * PER_SECOND_PERMILLE / 1_000;
    share.clamp(SHARE_PERMILLE.0, SHARE_PERMILLE.1).cast_unsigned()
}

/// Bytes a client's buffer may take of at most so many.
pub fn buffer_bytes(most: usize, lag_ms: i64) -> usize {
    let share = u128::from(share_permille(lag_ms));
    (most as u128 * share / u128::from(SHARE_PERMILLE.1.cast_unsigned())) as usize
}

/// What is done with a QoS 0 message when the client's buffer is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overload {
    /// It is dropped: what waits already arrives in order and old.
    #[default]
    DropNew,
    /// It waits, and the oldest that waits is dropped beyond [`RING_MAX`]: what arrives is new.
    DropOld,
    /// It waits, and its publisher is read at ten messages a second meanwhile.
    Block,
    /// The client is disconnected (0x97): it is to come back and start afresh.
    Disconnect,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_follows_the_formula_and_shrinks_too() {
        let at = |lag_ms| share_permille(lag_ms);
        assert_eq!([0, 500, 1_000, 2_000, 2_001, 600_000].map(at), [200, 225, 250, 300, 300, 300]);
        assert_eq!([-500, -1_000, -2_000, -600_000].map(at), [175, 150, 100, 100]);
        assert_eq!((at(i64::MIN), at(i64::MAX)), (100, 300));
    }

    #[test]
    fn a_ramp_of_lag_up_and_down_is_followed_without_a_jump() {
        let ramp = (-4_000..4_000).chain((-4_000..4_000).rev());
        let sizes: Vec<usize> = ramp.map(|lag_ms| buffer_bytes(3_000_000, lag_ms)).collect();
        assert_eq!((sizes[0], sizes.iter().max()), (1_000_000, Some(&3_000_000)));
        assert_eq!(sizes.last(), Some(&1_000_000));
        let jump = sizes.windows(2).map(|w| w[0].abs_diff(w[1])).max();
        assert!(jump <= Some(10_000), "{jump:?}");
    }
}
