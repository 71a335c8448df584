//! At rest nothing is owed any more, in memory and on disk: what remains would remain for ever.

use outpost_store::Space;

use crate::world::World;

/// C5, and that rows go when their last receiver is done.
pub fn check(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    for node in &world.nodes {
        let Some(stats) = node.stats() else { continue };
        if stats.outbox + stats.bodies > 0 || stats.queued > 0 || stats.queues_full > 0 {
            found.push(format!(
                "LEFT at node {}: outbox {}, bodies {}, queued {}, full queues {}",
                node.index, stats.outbox, stats.bodies, stats.queued, stats.queues_full
            ));
        }
        let rows = node.disk.rows();
        for space in [Space::Messages, Space::Queues, Space::Outbox] {
            let count = rows.keys().filter(|(its, _)| *its == space).count();
            if count > 0 {
                found.push(format!(
                    "LEFT on the disk of node {}: {count} rows of {}",
                    node.index,
                    space.name()
                ));
            }
        }
    }
    found
}
