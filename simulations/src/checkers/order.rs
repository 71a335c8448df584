//! What one client publishes on one topic arrives in the order it was published, apart from copies.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use outpost_model::QoS;
use outpost_model::topic::pattern_matches;

use crate::history::Delivered;
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
        if publish.is_will || !was_there(world, delivery) {
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

/// Whether the receiver was subscribed before the message was sent. Else the first copy may have come too early for it,
/// and it only sees the one a publisher sends again after a crash.
fn was_there(world: &World, delivery: &Delivered) -> bool {
    let sent = world.history.publishes[delivery.number].sent.unwrap_or_default();
    world.history.subscriptions.iter().any(|subscription| {
        subscription.client == delivery.client
            && subscription.granted.is_some_and(|granted| granted < sent)
            && subscription.ended.is_none_or(|ended| ended > delivery.at)
            && pattern_matches(&subscription.filter, &delivery.topic)
    })
}
