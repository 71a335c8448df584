//! What must hold once everything is healed and at rest. One file an invariant; each adds to the violations.

mod delivery;
mod exactly_once;
mod ledger;
mod leftovers;
mod matching;
mod order;
mod residence;
mod retained;
mod shadows;
mod shares;

use crate::world::World;

/// Violations of one invariant that are told; the others are the same story.
const TOLD_MAX: usize = 3;

/// Checks everything.
pub fn check(world: &mut World) {
    let checkers: [fn(&World) -> Vec<String>; 10] = [
        delivery::check,
        exactly_once::check,
        order::check,
        matching::check,
        retained::check,
        shadows::check,
        shares::check,
        residence::check,
        leftovers::check,
        ledger::check,
    ];
    let at = world.clock.now();
    for checker in checkers {
        let found = checker(world);
        let more = found.len().saturating_sub(TOLD_MAX);
        for text in found.into_iter().take(TOLD_MAX) {
            world.history.violation(at, text);
        }
        if more > 0 {
            world.history.violation(at, format!("… and {more} more of the kind"));
        }
    }
}
