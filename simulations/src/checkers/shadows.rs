//! Shadows are the same everywhere, and every accepted write is there.

use outpost_shadow::ShadowKey;
use serde_json::Value;

use crate::world::World;

/// H1 and that nothing accepted is lost. H2 (versions) is watched while it runs.
pub fn check(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    let prints: Vec<_> =
        world.nodes.iter().map(|node| node.hub().map(outpost_shadow::Hub::fingerprint)).collect();
    if prints.iter().any(|print| *print != prints[0]) {
        found.push(format!(
            "SHADOWS differ: {:?}",
            prints.iter().map(|p| p.map(|p| p[0])).collect::<Vec<_>>()
        ));
    }
    for write in world.history.shadow_writes.values().filter(|write| write.accepted) {
        for node in &world.nodes {
            let key = ShadowKey::classic(&write.thing);
            let document = node.hub().and_then(|hub| hub.document(&key, world.now_at(node.index)));
            let document: Value =
                document.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default();
            if document["state"][write.section].get(&write.key).is_none() {
                found.push(format!(
                    "SHADOW {} at node {}: accepted {} {} is not there",
                    write.thing, node.index, write.section, write.key
                ));
            }
        }
    }
    found
}
