//! How many requests of each connection are under way. AWS IoT refuses the eleventh.

use std::collections::BTreeMap;
use std::sync::Arc;

/// See the module. It holds as many entries as there are connections with requests under way.
#[derive(Debug, Default)]
pub struct InFlight {
    counts: BTreeMap<Arc<str>, usize>,
}

impl InFlight {
    /// A request comes in. `false`: there are `max` under way, and it does not count.
    pub fn enter(&mut self, client: &Arc<str>, max: usize) -> bool {
        let count = self.counts.entry(Arc::clone(client)).or_default();
        let fits = *count < max.max(1);
        *count += usize::from(fits);
        fits
    }

    /// A request that counted has been answered.
    pub fn leave(&mut self, client: &str) {
        let Some(count) = self.counts.get_mut(client) else { return };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eleventh_waits_for_an_answer_of_its_own_connection() {
        let mut in_flight = InFlight::default();
        let (lamp, pump) = (Arc::from("lamp"), Arc::from("pump"));
        assert!((0..10).all(|_| in_flight.enter(&lamp, 10)));
        assert!(!in_flight.enter(&lamp, 10));
        assert!(in_flight.enter(&pump, 10), "another connection has its own ten");
        in_flight.leave("lamp");
        assert!(in_flight.enter(&lamp, 10));
        assert!(!in_flight.enter(&lamp, 10));
        (0..10).for_each(|_| in_flight.leave("lamp"));
        in_flight.leave("pump");
        in_flight.leave("never seen");
        assert!(in_flight.counts.is_empty());
    }
}
