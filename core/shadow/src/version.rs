//! Version numbers that never stand for two different states, also not on two sides of a partition.
//!
//! Of each block of 1024 numbers the home node deals out 0 to 959, one by one; a node with slot `s` deals out only
//! 960 + s. Numbers given out on two sides are therefore never equal, ordinary operation shows 1, 2, 3, and only a
//! write accepted away from the home node costs a jump (of at most 1024).

use crate::planted::{Bug, is};

/// Numbers in a block.
pub const BLOCK: u64 = 1024;
/// The first number in a block that belongs to a slot.
pub const SLOT_BASE: u64 = 960;
/// How many slots there are, and with it how many nodes can write apart from the home node.
pub const SLOTS: u8 = 64;
/// AWS SDKs read versions as signed 32-bit integers.
pub const VERSION_MAX: u64 = i32::MAX as u64;

/// Names a visible state. Eight bytes: it stands in front of every shadow on the wire, and what two states with one print
/// would get is one version number.
pub type Print = [u8; 8];

/// Whose numbers a node takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The home node's.
    Owner,
    /// Those of one slot.
    Slot(u8),
}

/// What a node knows of a shadow at a moment: a print of everything a client can see, and the number it stands under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Print of the visible state.
    pub print: Print,
    /// Its number.
    pub version: u64,
}

/// The next number of a class above `above`; stays at [`VERSION_MAX`] when there is none left.
pub fn next(above: u64, class: Class) -> u64 {
    let wanted = match class {
        Class::Owner if (above + 1) % BLOCK >= SLOT_BASE => (above / BLOCK + 1) * BLOCK,
        Class::Owner => above + 1,
        Class::Slot(slot) => {
            let here = above / BLOCK * BLOCK + SLOT_BASE + u64::from(slot % SLOTS);
            if here > above { here } else { here + BLOCK }
        }
    };
    wanted.min(VERSION_MAX)
}

/// The number after a merge: equal states take the higher number, nothing new keeps its own higher number, and
/// anything else gets a fresh one above both.
pub fn merged(before: Known, after: Print, theirs: Known, class: Class) -> u64 {
    if is(Bug::MergeTakesHigherNumber) {
        return before.version.max(theirs.version);
    }
    let unchanged = before.print == after;
    if after == theirs.print && (unchanged || theirs.version > before.version) {
        before.version.max(theirs.version)
    } else if unchanged && theirs.version < before.version {
        before.version
    } else {
        next(before.version.max(theirs.version), class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r5_the_owner_counts_by_one_and_leaves_the_slots_out() {
        assert_eq!(next(0, Class::Owner), 1);
        assert_eq!(next(958, Class::Owner), 959);
        assert_eq!(next(959, Class::Owner), 1024);
        assert_eq!(next(970, Class::Owner), 1024);
    }

    #[test]
    fn r5_a_slot_takes_only_its_own_number_of_each_block() {
        assert_eq!(next(5, Class::Slot(3)), 963);
        assert_eq!(next(963, Class::Slot(3)), 1987);
        assert_eq!(next(962, Class::Slot(3)), 963);
        assert_eq!(next(1023, Class::Slot(63)), 2047);
        assert_eq!(next(VERSION_MAX, Class::Owner), VERSION_MAX);
    }

    #[test]
    fn r6_a_merge_keeps_takes_or_renews_the_number() {
        let known = |print: u8, version| Known { print: [print; 8], version };
        let merge = |before, after: u8, theirs| merged(before, [after; 8], theirs, Class::Owner);
        assert_eq!(merge(known(1, 5), 1, known(1, 9)), 9, "equal states take the higher number");
        assert_eq!(merge(known(1, 9), 1, known(1, 5)), 9);
        assert_eq!(merge(known(1, 9), 1, known(2, 5)), 9, "nothing new, own number is higher");
        assert_eq!(merge(known(1, 5), 2, known(2, 6)), 6, "what they have is what I have now");
        assert_eq!(merge(known(1, 5), 2, known(2, 4)), 6, "their number is used up here");
        assert_eq!(merge(known(1, 5), 3, known(2, 7)), 8, "a third state needs a third number");
        assert_eq!(merge(known(1, 5), 1, known(2, 7)), 8, "their number stands for something else");
    }
}
