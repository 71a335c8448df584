//! Every node has the same retained messages, none that an acknowledged later write of the same node replaced, and no trace
//! of those that were removed: all have heard of it.

use std::collections::BTreeMap;

use outpost_actors::record::decode_retained;
use outpost_store::Space;

use crate::client::number_in;
use crate::history::Published;
use crate::world::World;

type Slots = BTreeMap<String, (u64, u64, Vec<u8>)>;

/// T1, T2.
pub fn check(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    let all: Vec<Slots> =
        (0..world.nodes.len()).map(|node| slots(world, node, &mut found)).collect();
    for (node, slots) in all.iter().enumerate().skip(1) {
        if *slots != all[0] {
            let topic = slots
                .keys()
                .chain(all[0].keys())
                .find(|topic| slots.get(*topic) != all[0].get(*topic));
            let topic = topic.cloned().unwrap_or_default();
            found.push(format!(
                "RETAINED {topic} differs: node 0 has {:?}, node {node} has {:?}",
                all[0].get(&topic),
                slots.get(&topic)
            ));
        }
    }
    found.extend(replaced(world, &all[0]));
    found
}

fn slots(world: &World, node: usize, found: &mut Vec<String>) -> Slots {
    let mut slots = Slots::new();
    for ((space, key), value) in world.nodes[node].disk.rows() {
        if space == Space::Retained {
            match decode_retained(&key, &value) {
                Ok((entry, _)) => match entry.message {
                    Some(message) => {
                        let payload = message.payload.to_vec();
                        slots.insert(entry.topic, (entry.stamp.0, entry.node.0, payload));
                    }
                    None => found.push(format!(
                        "RETAINED node {node} still remembers that {} was removed",
                        entry.topic
                    )),
                },
                Err(error) => found.push(error.to_string()),
            }
        }
    }
    slots
}

fn replaced(world: &World, slots: &Slots) -> Vec<String> {
    let history = &world.history;
    let mut found = Vec::new();
    for (number, publish) in history.publishes.iter().enumerate() {
        let (true, Some(sent), Some(_)) =
            (publish.retain && !publish.clears, publish.sent, publish.acked)
        else {
            continue;
        };
        // Whoever cleared it afterwards, acknowledged or not.
        let is_removal = |other: &Published| {
            let before = is_of_one_node(other, publish) && other.acked.is_some_and(|at| at < sent);
            other.clears && other.topic == publish.topic && other.sent.is_some() && !before
        };
        let Some((_, _, kept)) = slots.get(&publish.topic) else {
            if history.publishes.iter().any(is_removal) {
                continue;
            }
            found.push(format!(
                "RETAINED m{number} on {} was acknowledged and is nowhere",
                publish.topic
            ));
            continue;
        };
        let winner = number_in(kept).and_then(|number| history.publishes.get(number));
        if let Some(winner) = winner
            && is_of_one_node(winner, publish)
            && winner.acked.is_some_and(|acked| acked < sent)
        {
            found.push(format!(
                "RETAINED m{number} on {} was acknowledged and lost to an older one",
                publish.topic
            ));
        }
    }
    found
}

/// Whether both were taken by the same node: those of different ones are ordered by clocks.
fn is_of_one_node(one: &Published, other: &Published) -> bool {
    one.only_node().is_some_and(|node| other.only_node() == Some(node))
}
