//! Which members of two sets differ, at the cost of the difference: a rateless invertible Bloom lookup table.
//!
//! ```text
//!  one side:    members ─▶ Sketcher ─▶ symbols 0, 1, 2 … as many as the other side asks for
//!  other side:  members ─▶ Difference ◀─ symbols; done when all cancels out: who is only here, who only there
//! ```
//! (Yang, Gilad, Alizadeh, "Practical Rateless Set Reconciliation", SIGCOMM 2024.) A symbol is the sum of the members
//! that fall into it, and each member falls into symbol 0 and then ever more rarely. Taking one side's symbols from the
//! other's leaves those of the difference; a symbol with one member left in it names that member, which is then taken
//! out of the others. About 1.4 to 1.8 symbols for each member that differs are enough, whatever the sets' sizes.
//!
//! Members are 64-bit keyed hashes, so that nobody who chooses names can choose hashes. Symbols are made in runs: each
//! run is one pass over the members, which costs less than a heap that finds the next one for each symbol.

/// Symbols one side makes at most. Fewer and sets that differ in more than half as many members are sent whole; more
/// and a peer may occupy more memory (24 bytes each, on both sides) and time here.
pub const SYMBOLS_MAX: usize = 1 << 16;

/// The sum of the members that fall into one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Symbol {
    /// Exclusive or of the members.
    pub sum: u64,
    /// Exclusive or of a second hash of each: says whether there is one member in it, or several.
    pub check: u32,
    /// How many there are; those of the other side count backwards.
    pub count: i32,
}

/// A member, and the next place it falls into.
#[derive(Debug, Clone, Copy)]
struct Walk {
    member: u64,
    dice: u64,
    place: u64,
}

/// Makes the symbols of a set, from the first on.
#[derive(Debug, Clone, Default)]
pub struct Sketcher {
    walks: Vec<Walk>,
    symbols: Vec<Symbol>,
}

/// Takes the symbols of another set in until it is known what differs.
#[derive(Debug, Clone)]
pub struct Difference {
    own: Sketcher,
    /// Their symbols, less ours, less what is known to differ.
    left: Vec<Symbol>,
    theirs: Vec<Walk>,
    ours: Vec<Walk>,
}

/// The symbols cannot be those of a set: more members came out of them than there are symbols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the symbols of a sketch do not belong to a set")]
pub struct NoSet;

impl Symbol {
    fn add(&mut self, member: u64, times: i32) {
        self.sum ^= member;
        self.check ^= check_of(member);
        self.count = self.count.wrapping_add(times);
    }

    fn is_one(&self) -> bool {
        matches!(self.count, 1 | -1) && check_of(self.sum) == self.check
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Walk {
    fn new(member: u64) -> Self {
        Self { member, dice: mixed(member) | 1, place: 0 }
    }

    /// Goes to the next place: after place `i` it is `i + g` away with probability falling as `(1.5 + i) / g³` does.
    fn step(&mut self) {
        self.dice = self.dice.wrapping_mul(0xda94_2042_e4dd_58b5);
        let near = (self.dice as f64 / 2f64.powi(64)).sqrt().max(f64::MIN_POSITIVE);
        let gap = ((self.place as f64 + 1.5) * (1.0 / near - 1.0)).ceil().max(1.0);
        self.place = self.place.saturating_add(gap as u64); // the cast saturates too
    }

    /// Falls into the symbols from where it is, to the end.
    fn fall(&mut self, symbols: &mut [Symbol], first: usize, times: i32) {
        while let Some(symbol) =
            (self.place as usize).checked_sub(first).and_then(|at| symbols.get_mut(at))
        {
            symbol.add(self.member, times);
            self.step();
        }
    }
}

impl Sketcher {
    /// Of a set without repeated members.
    pub fn new(members: impl Iterator<Item = u64>) -> Self {
        Self { walks: members.map(Walk::new).collect(), symbols: Vec::new() }
    }

    /// Its first `count` symbols, at most [`SYMBOLS_MAX`].
    pub fn symbols(&mut self, count: usize) -> &[Symbol] {
        let count = count.min(SYMBOLS_MAX);
        let first = self.symbols.len();
        if first < count {
            self.symbols.resize(count, Symbol::default());
            for walk in &mut self.walks {
                walk.fall(&mut self.symbols[first..], first, 1);
            }
        }
        &self.symbols[..count]
    }
}

impl Difference {
    /// Between this set and one whose symbols will come.
    pub fn new(members: impl Iterator<Item = u64>) -> Self {
        let own = Sketcher::new(members);
        Self { own, left: Vec::new(), theirs: Vec::new(), ours: Vec::new() }
    }

    /// Members only the other set has, as far as they are known.
    pub fn theirs(&self) -> impl ExactSizeIterator<Item = u64> {
        self.theirs.iter().map(|walk| walk.member)
    }

    /// Members only this set has, as far as they are known.
    pub fn ours(&self) -> impl ExactSizeIterator<Item = u64> {
        self.ours.iter().map(|walk| walk.member)
    }

    /// How many symbols, all in all, will most likely be enough.
    pub fn wanted(&self) -> usize {
        let came = self.left.len();
        let guess = (self.estimate() + self.theirs.len() + self.ours.len()) as f64 * 1.4;
        (guess as usize + 12).max(came + came / 8 + 4)
    }

    /// How many members differ beside those that are known, by how the counts spread. Symbol `i` holds a member with
    /// probability `1 / (1 + i / 2)`, and the first one holds all.
    fn estimate(&self) -> usize {
        let Some(all) = self.left.first() else { return 0 };
        let (mut sum, mut weight) = (0.0, 0.0);
        for (at, symbol) in self.left.iter().enumerate().skip(2) {
            let share = 1.0 / (1.0 + at as f64 / 2.0);
            let mean = f64::from(all.count) * share;
            sum += (f64::from(symbol.count) - mean).powi(2);
            weight += share * (1.0 - share);
        }
        let spread = if weight > 0.0 { sum / weight } else { 0.0 };
        spread.max(f64::from(all.count.unsigned_abs())).min(SYMBOLS_MAX as f64) as usize
    }

    /// Takes the next symbols of the other set in. True when the whole difference is known.
    ///
    /// # Errors
    /// [`NoSet`]; what is known so far is worth nothing then.
    pub fn add(&mut self, symbols: &[Symbol]) -> Result<bool, NoSet> {
        let first = self.left.len();
        let count = first + symbols.len();
        let own = self.own.symbols(count);
        if own.len() < count {
            return Err(NoSet);
        }
        self.left.extend(symbols.iter().zip(&own[first..]).map(|(theirs, own)| Symbol {
            sum: theirs.sum ^ own.sum,
            check: theirs.check ^ own.check,
            count: theirs.count.wrapping_sub(own.count),
        }));
        for walk in &mut self.theirs {
            walk.fall(&mut self.left[first..], first, -1);
        }
        for walk in &mut self.ours {
            walk.fall(&mut self.left[first..], first, 1);
        }
        self.peel(first)?;
        Ok(self.left.first().is_some_and(Symbol::is_empty))
    }

    /// Takes out members that are alone in a symbol, until there is none.
    fn peel(&mut self, first: usize) -> Result<(), NoSet> {
        let mut alone: Vec<usize> =
            (first..self.left.len()).filter(|at| self.left[*at].is_one()).collect();
        while let Some(at) = alone.pop() {
            let symbol = self.left[at];
            if !symbol.is_one() {
                continue;
            }
            if self.theirs.len() + self.ours.len() >= self.left.len() {
                return Err(NoSet);
            }
            let mut walk = Walk::new(symbol.sum);
            while let Some(left) = self.left.get_mut(walk.place as usize) {
                left.add(walk.member, -symbol.count);
                if left.is_one() {
                    alone.push(walk.place as usize);
                }
                walk.step();
            }
            if symbol.count == 1 { self.theirs.push(walk) } else { self.ours.push(walk) }
        }
        Ok(())
    }
}

/// A second hash of a member.
fn check_of(member: u64) -> u32 {
    (mixed(member ^ 0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

/// splitmix64's last step: each bit of the input moves half of the output's.
fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const FIRST_RUN: usize = 48;

    fn members(seed: u64, count: u64) -> impl Iterator<Item = u64> {
        (0..count).map(move |n| mixed(seed.wrapping_mul(0x1234_5678_9abc_def1) ^ (n + 1)))
    }

    /// Sends as many symbols as are asked for; how many it took.
    fn reconcile(there: &[u64], here: &[u64]) -> (Difference, usize) {
        let mut sketcher = Sketcher::new(there.iter().copied());
        let mut difference = Difference::new(here.iter().copied());
        let (mut sent, mut upto) = (0, 1);
        loop {
            let symbols = sketcher.symbols(upto)[sent..].to_vec();
            assert!(!symbols.is_empty(), "as many symbols as there may be were not enough");
            sent = upto;
            if difference.add(&symbols).expect("honest symbols") {
                return (difference, sent);
            }
            upto = if sent == 1 { FIRST_RUN } else { difference.wanted() };
        }
    }

    fn check(shared: u64, only_there: u64, only_here: u64, seed: u64) -> usize {
        let common: Vec<u64> = members(seed, shared).collect();
        let there: BTreeSet<u64> = members(seed + 1_000_000, only_there).collect();
        let here: BTreeSet<u64> = members(seed + 2_000_000, only_here).collect();
        let all =
            |own: &BTreeSet<u64>| [&common[..], &own.iter().copied().collect::<Vec<_>>()].concat();
        let (difference, symbols) = reconcile(&all(&there), &all(&here));
        assert_eq!(difference.theirs().collect::<BTreeSet<_>>(), there);
        assert_eq!(difference.ours().collect::<BTreeSet<_>>(), here);
        symbols
    }

    #[test]
    fn equal_sets_cost_one_symbol() {
        for size in [0, 1, 5_000] {
            assert_eq!(check(size, 0, 0, size + 1), 1);
        }
    }

    #[test]
    fn sets_of_any_shape_come_apart_into_exactly_what_differs() {
        for seed in 1..300 {
            check(seed * 7 % 211, seed % 13, (seed * 5) % 17, seed);
        }
        check(0, 500, 0, 1);
        check(0, 0, 500, 2);
        check(20_000, 300, 200, 3);
    }

    #[test]
    fn what_it_costs_follows_the_difference() {
        let total: usize = (0..20).map(|seed| check(2_000, 100, 100, 50 + seed)).sum();
        let each = total as f64 / (20.0 * 200.0);
        assert!(each < 2.0, "{each} symbols for each member that differs, the last run included");
    }

    #[test]
    fn symbols_of_no_set_end_in_an_error_or_in_nothing_but_not_in_a_panic() {
        let mut bits = 7u64;
        for round in 0..2_000 {
            let mut difference = Difference::new(members(round, 50));
            for _ in 0..8 {
                let symbols: Vec<Symbol> = (0..16)
                    .map(|_| {
                        bits = mixed(bits.wrapping_add(round + 1));
                        let sum = bits;
                        // Each looks as if one member was left in it.
                        Symbol { sum, check: check_of(sum), count: [1, -1][(bits & 1) as usize] }
                    })
                    .collect();
                match difference.add(&symbols) {
                    Ok(_) => assert!(
                        difference.theirs().len() + difference.ours().len()
                            <= difference.left.len()
                    ),
                    Err(NoSet) => break,
                }
            }
        }
    }

    #[test]
    fn more_symbols_than_there_may_be_are_refused() {
        let mut difference = Difference::new(std::iter::empty());
        let symbol = Symbol { sum: 1, check: 0, count: 5 };
        assert_eq!(difference.add(&vec![symbol; SYMBOLS_MAX]), Ok(false));
        assert_eq!(difference.add(&[symbol]), Err(NoSet));
        assert_eq!(Sketcher::new(members(1, 3)).symbols(usize::MAX).len(), SYMBOLS_MAX);
    }
}
