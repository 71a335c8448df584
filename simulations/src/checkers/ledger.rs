//! The ledger adds up: every delivery owed was made, given up for a counted reason, or is still owed.

use crate::world::World;

/// D7, for the present life of each process.
pub fn check(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    for node in &world.nodes {
        let Some(stats) = node.stats() else { continue };
        let ledger = &stats.ledger;
        if stats.missing() != 0 {
            found.push(format!(
                "LEDGER of node {}: {} deliveries are missing, queued {}, outbox {}: {ledger:?}",
                node.index,
                stats.missing(),
                stats.queued,
                stats.outbox
            ));
        }
        let sorted = ledger.wanted + ledger.unwanted + ledger.kept + ledger.requests;
        if ledger.accepted != sorted {
            found.push(format!("LEDGER of node {}: {sorted} of accepted: {ledger:?}", node.index));
        }
    }
    found
}
