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
            let mut left =
                rows.keys().filter(|(its, key)| *its == space && !is_given_up(world, space, key));
            if let Some((_, first)) = left.next() {
                let count = left.count() + 1;
                found.push(format!(
                    "LEFT on the disk of node {}: {count} rows of {}, the first {}",
                    node.index,
                    space.name(),
                    first.escape_ascii()
                ));
            }
        }
    }
    found
}

/// The packet id of a QoS 2 publish that its client has given up: it was told that it has no session. It ends with the
/// session.
fn is_given_up(world: &World, space: Space, key: &[u8]) -> bool {
    let is_received_id = space == Space::Queues && key.get(8) == Some(&1);
    is_received_id && world.clients.iter().any(|client| !client.roaming.blurs.is_empty())
}
