//! How fast a link to somewhere far is used, by its round trip and its loss.

/// Bytes a second at a round trip of `rtt_ms` and a loss of `loss_percent`, of `top` on a good link: less with the round
/// trip, down to 30 % from 350 ms on, and less with loss, down to 20 % from 8 % on.
pub fn bytes_a_second(top: u64, rtt_ms: u64, loss_percent: f64) -> u64 {
    let by_rtt = (1.0 - rtt_ms as f64 / 500.0).max(0.3);
    let by_loss = (1.0 - loss_percent / 10.0).max(0.2);
    (top as f64 * by_rtt * by_loss) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_falls_with_round_trip_and_loss_to_a_floor() {
        let rate = |rtt_ms, loss| bytes_a_second(10_000_000, rtt_ms, loss);
        assert_eq!(rate(100, 1.0), 7_200_000);
        assert_eq!(rate(300, 3.0), 2_800_000);
        assert_eq!((rate(0, 0.0), rate(350, 0.0)), (10_000_000, 3_000_000));
        assert_eq!((rate(5_000, 0.0), rate(5_000, 90.0)), (3_000_000, 600_000), "never nothing");
    }
}
