//! Load averages: how often something happens a minute, over the last 1, 5 and 15 minutes, as Unix and Mosquitto count.

/// The windows, in seconds.
pub const WINDOWS_S: [u32; 3] = [60, 300, 900];

/// Exponential moving averages of one counter, in events a minute, one for each of [`WINDOWS_S`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LoadAverage {
    per_minute: [f64; 3],
    seen: u64,
}

impl LoadAverage {
    /// The counter stands at `count`, `elapsed_ms` after it was looked at last. Nothing happens when no time has passed.
    pub fn observe(&mut self, count: u64, elapsed_ms: u64) {
        if elapsed_ms == 0 {
            return;
        }
        let new = count.saturating_sub(std::mem::replace(&mut self.seen, count));
        let elapsed_s = elapsed_ms as f64 / 1000.0;
        let rate = new as f64 * 60.0 / elapsed_s;
        for (average, window_s) in self.per_minute.iter_mut().zip(WINDOWS_S) {
            let weight = (-elapsed_s / f64::from(window_s)).exp();
            *average = rate + weight * (*average - rate);
        }
    }

    /// The averages, in the order of [`WINDOWS_S`].
    pub fn per_minute(&self) -> [f64; 3] {
        self.per_minute
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_is_reached_by_the_short_window_first() {
        let mut load = LoadAverage::default();
        (1..=30).for_each(|step| load.observe(step * 100, 10_000));
        let [one, five, fifteen] = load.per_minute();
        assert!((590.0..600.0).contains(&one), "600 a minute for 5 minutes: {one}");
        assert!((375.0..385.0).contains(&five), "1 - 1/e of it: {five}");
        assert!((165.0..175.0).contains(&fifteen), "{fifteen}");
    }

    #[test]
    fn silence_lets_it_sink_and_a_moment_changes_nothing() {
        let mut load = LoadAverage::default();
        load.observe(600, 60_000);
        let before = load.per_minute();
        load.observe(700, 0);
        assert_eq!(load.per_minute().map(f64::to_bits), before.map(f64::to_bits));
        load.observe(600, 60_000);
        assert!(load.per_minute()[0] < before[0] / 2.0);
    }
}
