//! What one client publishes on one topic arrives in the order it was published, apart from copies.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use outpost_model::QoS;

use crate::world::World;

/// Receiver and its session, publisher, topic, QoS as published.
type Flow<'a> = (usize, u32, usize, &'a str, QoS);

/// D4 (MQTT 5, §4.6), for QoS 1 and 2.
pub fn check(world: &World) -> Vec<String> {
    let history = &world.history;
    let mut newest: BTreeMap<Flow<'_>, (usize, Vec<usize>)> = BTreeMap::new();
    let mut found = Vec::new();
    for delivery in history.deliveries.iter().filter(|d| !d.retain && d.qos > QoS::AtMostOnce) {
        let publish = &history.publishes[delivery.number];
        if publish.is_will {
            continue;
        }
        let key = (delivery.client, delivery.session, publish.client, &*publish.topic, publish.qos);
        match newest.entry(key) {
            Entry::Vacant(place) => drop(place.insert((delivery.number, vec![delivery.number]))),
            Entry::Occupied(mut place) => {
                let (last, seen) = place.get_mut();
                if delivery.number > *last {
                    *last = delivery.number;
                    seen.push(delivery.number);
                } else if seen.binary_search(&delivery.number).is_err() {
                    found.push(format!(
                        "ORDER client-{} got m{} after m{last} on {} (QoS {})",
                        delivery.client, delivery.number, publish.topic, publish.qos as u8
                    ));
                }
            }
        }
    }
    found
}
