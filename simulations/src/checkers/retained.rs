//! Every node has the same retained messages, and none that an acknowledged later write of the same node replaced.

use std::collections::BTreeMap;

use outpost_actors::record::decode_retained;
use outpost_store::Space;

use crate::client::number_in;
use crate::world::World;

type Slots = BTreeMap<String, (u64, u64, Option<Vec<u8>>)>;

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
                Ok((entry, _)) => {
                    let payload = entry.message.map(|message| message.payload.to_vec());
                    slots.insert(entry.topic, (entry.stamp.0, entry.node.0, payload));
                }
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
        let Some((_, _, kept)) = slots.get(&publish.topic) else {
            found.push(format!(
                "RETAINED m{number} on {} was acknowledged and is nowhere",
                publish.topic
            ));
            continue;
        };
        let winner =
            kept.as_deref().and_then(number_in).and_then(|number| history.publishes.get(number));
        if let Some(winner) = winner
            && winner.node == publish.node
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
