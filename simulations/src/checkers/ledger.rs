//! The ledger adds up: every delivery owed was made, given up for a counted reason, or is still owed.

use outpost_actors::ledger::Drop;

use crate::world::World;

/// D7, for the present life of each process.
pub fn check(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    for node in &world.nodes {
        let Some(stats) = node.stats() else { continue };
        let ledger = &stats.ledger;
        let never_owed = ledger.dropped[Drop::Denied as usize];
        let settled = ledger.delivered + ledger.dropped_all() - never_owed;
        let open = stats.queued + stats.outbox as u64;
        if ledger.owed != settled + open {
            found.push(format!(
                "LEDGER of node {}: owed {}, settled {settled}, open {open}: {ledger:?}",
                node.index, ledger.owed
            ));
        }
    }
    found
}
