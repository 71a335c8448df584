//! At rest each client is one client: one node has its session, and all nodes say so.

use std::collections::BTreeMap;

use outpost_actors::record::{StateRecord, decode};
use outpost_store::Space;

use crate::world::World;

/// Before the keys of small state.
const STATE: &[u8] = b"state/";

type Entries = BTreeMap<Vec<u8>, (u64, u64, Option<Vec<u8>>)>;

/// That sessions are where their clients are is part of being at rest.
pub fn check(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    let all: Vec<Entries> =
        (0..world.nodes.len()).map(|node| entries(world, node, &mut found)).collect();
    for (node, entries) in all.iter().enumerate() {
        if *entries != all[0] {
            let mut keys = entries.keys().chain(all[0].keys());
            let key = keys.find(|key| entries.get(*key) != all[0].get(*key));
            let key = key.map(|key| key.escape_ascii().to_string()).unwrap_or_default();
            found.push(format!("DIRECTORY of node {node} differs from node 0's at {key}"));
        }
    }
    found
}

fn entries(world: &World, node: usize, found: &mut Vec<String>) -> Entries {
    let mut entries = Entries::new();
    for ((space, key), row) in world.nodes[node].disk.rows() {
        if space != Space::Meta || !key.starts_with(STATE) {
            continue;
        }
        match decode::<StateRecord>("state", &row) {
            Ok(record) => {
                if record.value.is_none() {
                    let key = key.escape_ascii();
                    found.push(format!("DIRECTORY of node {node} still has that {key} is gone"));
                }
                let value = record.value.map(Into::into);
                entries.insert(key.to_vec(), (record.stamp, record.node, value));
            }
            Err(error) => found.push(error.to_string()),
        }
    }
    entries
}
