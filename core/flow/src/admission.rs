//! How fast a listener takes new connections: all of them together, and those from one address.
//!
//! What is too fast for the listener waits where it is, in the kernel's queue; what is too fast for its address is turned
//! away.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::limits::{Bucket, Rate};

/// Addresses remembered at once. Fewer: under an attack from many, strangers share one bucket sooner; more: memory for
/// each listener (40 bytes an address).
pub const ADDRESSES_MAX: usize = 4_096;

/// A pause lets an address come with so many times its rate at once: sites whose devices share an address lose power
/// together.
const ADDRESS_BURST: u64 = 10;

/// Rates of one listener, new connections a second. 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AdmissionLimits {
    /// From everywhere, after a burst of as many.
    pub all: u64,
    /// From one address, after a burst of ten times as many.
    pub address: u64,
}

/// The buckets of one listener.
#[derive(Debug, Clone, Default)]
pub struct Admission {
    limits: AdmissionLimits,
    all: Bucket,
    addresses: BTreeMap<IpAddr, Bucket>,
    /// For addresses there is no room to remember.
    others: Bucket,
}

impl Admission {
    /// With full buckets.
    pub fn new(limits: AdmissionLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// One more connection is to be taken: 0, or after how many milliseconds to ask again.
    pub fn wait_ms(&mut self, now_ms: u64) -> u64 {
        if self.limits.all == 0 {
            return 0;
        }
        let rate = Rate { per_second: self.limits.all, burst: self.limits.all };
        self.all.take(rate, 1, now_ms).map_or_else(|fast| fast.wait_ms, |()| 0)
    }

    /// Whether it makes a difference where a connection comes from.
    pub fn counts_addresses(&self) -> bool {
        self.limits.address > 0
    }

    /// Whether a connection from this address may stay.
    pub fn admits(&mut self, address: IpAddr, now_ms: u64) -> bool {
        if self.limits.address == 0 {
            return true;
        }
        let rate = self.limits.address;
        let rate = Rate { per_second: rate, burst: rate.saturating_mul(ADDRESS_BURST) };
        if self.addresses.len() >= ADDRESSES_MAX && !self.addresses.contains_key(&address) {
            self.addresses.retain(|_, bucket| !bucket.is_full(now_ms));
        }
        let bucket = if self.addresses.len() < ADDRESSES_MAX {
            self.addresses.entry(address).or_default()
        } else {
            self.addresses.get_mut(&address).unwrap_or(&mut self.others)
        };
        bucket.take(rate, 1, now_ms).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    #[test]
    fn a_storm_of_ten_thousand_is_taken_at_the_rate_and_nobody_is_turned_away() {
        let mut door = Admission::new(AdmissionLimits { all: 2_000, address: 0 });
        let (mut now_ms, mut taken) = (1_000, 0);
        while taken < 10_000 {
            match door.wait_ms(now_ms) {
                0 => taken += 1,
                wait_ms => now_ms += wait_ms,
            }
            assert!(door.admits(address(1), now_ms));
        }
        assert!((3_990..=4_010).contains(&(now_ms - 1_000)), "it took {} ms", now_ms - 1_000);
    }

    #[test]
    fn one_address_that_is_too_fast_is_turned_away_and_others_are_not() {
        let mut door = Admission::new(AdmissionLimits { all: 0, address: 5 });
        let stay = (0..1_000).filter(|_| door.admits(address(1), 0)).count();
        assert_eq!(stay, 50);
        assert!(door.admits(address(2), 0));
        assert!(!door.admits(address(1), 199) && door.admits(address(1), 200));
        assert_eq!(door.wait_ms(0), 0);
    }

    #[test]
    fn more_addresses_than_can_be_remembered_share_a_bucket_until_some_are_idle() {
        let mut door = Admission::new(AdmissionLimits { all: 0, address: 1 });
        let many = ADDRESSES_MAX as u32;
        assert!((0..many).all(|n| door.admits(address(n), 0)));
        let stay = (many..2 * many).filter(|n| door.admits(address(*n), 0)).count();
        assert_eq!(stay, 10, "all of them together, like one");
        assert!((many..2 * many).all(|n| door.admits(address(n), 60_000)), "the old ones are idle");
        assert!(door.addresses.len() <= ADDRESSES_MAX);
    }
}
