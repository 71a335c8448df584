//! QoS 2 arrives at most once for each publish at each receiver; a will that was called off never does.

use std::collections::BTreeMap;

use outpost_model::QoS;

use crate::history::Delivered;
use crate::world::World;

/// D2, D9. A retained copy for a new subscription is a message of its own.
pub fn check(world: &World) -> Vec<String> {
    let history = &world.history;
    let mut counts: BTreeMap<(usize, u32, usize), u32> = BTreeMap::new();
    let mut found = Vec::new();
    for delivery in history.deliveries.iter().filter(|d| !d.retain) {
        if delivery.qos == QoS::ExactlyOnce {
            let count =
                counts.entry((delivery.client, delivery.session, delivery.number)).or_default();
            *count += 1;
            if *count == 2 && !is_blurred(world, delivery) {
                found.push(format!(
                    "TWICE m{} with QoS 2 at client-{}",
                    delivery.number, delivery.client
                ));
            }
        }
        if world.wills_off.contains(&delivery.number) {
            found.push(format!(
                "WILL m{} reached client-{} though it was called off",
                delivery.number, delivery.client
            ));
        }
    }
    found
}

/// Whether its receiver or its publisher may have been at two nodes at once: two nodes may have taken it, or owed it.
pub(super) fn is_blurred(world: &World, delivery: &Delivered) -> bool {
    let publish = &world.history.publishes[delivery.number];
    let sent = publish.sent.unwrap_or_default();
    let mut blurs = world.clients[delivery.client].roaming.blurs.iter();
    publish.is_doubled || blurs.any(|blur| blur.touches(sent, delivery.at))
}
