//! What one client publishes on one topic arrives in the order it was published, apart from copies.

use std::collections::{BTreeMap, BTreeSet};

use outpost_model::QoS;
use outpost_model::topic::pattern_matches;

use crate::clock::{Micros, SECOND};
use crate::history::Delivered;
use crate::world::World;

/// Receiver and its session, publisher and its node, topic, QoS as published.
type Flow<'a> = (usize, u32, (usize, usize), &'a str, QoS);

/// D4 (MQTT 5, §4.6), for QoS 1 and 2: first copies come in the order in which their publisher sent them. A message it sent
/// more than once may be the one of any sending: the first was refused, or lost in a crash before it was acknowledged, and
/// later ones came through.
pub fn check(world: &World) -> Vec<String> {
    let history = &world.history;
    let mut flows: BTreeMap<Flow<'_>, (BTreeSet<usize>, u64)> = BTreeMap::new();
    let mut found = Vec::new();
    for delivery in history.deliveries.iter().filter(|d| !d.retain) {
        let publish = &history.publishes[delivery.number];
        if publish.is_will || publish.qos == QoS::AtMostOnce || !was_there(world, delivery) {
            continue;
        }
        // A publisher that went on at another node has two ways to its receivers.
        let Some(node) = publish.only_node().filter(|_| !is_on_its_way(world, delivery)) else {
            continue;
        };
        let from = (publish.client, node);
        let flow = (delivery.client, delivery.session, from, &*publish.topic, publish.qos);
        let (seen, newest) = flows.entry(flow).or_default();
        // A copy may come late. One with QoS 0 may be missing, but it was a first one all the same; it does not queue, so
        // after a change of subscription it may pass what was granted with a higher QoS before.
        let is_first = seen.insert(delivery.number);
        if !is_first || delivery.qos == QoS::AtMostOnce {
            continue;
        }
        let sending = publish.sendings.iter().find(|s| s.place > *newest && s.at <= delivery.at);
        match sending {
            Some(sending) => *newest = sending.place,
            None => found.push(format!(
                "ORDER client-{} got m{} after a later one on {} (QoS {})",
                delivery.client, delivery.number, publish.topic, publish.qos as u8
            )),
        }
    }
    found
}

/// Whether the receiver was subscribed before the message was sent, and not as a member of a share group: those only get
/// some, and what another member leaves comes late.
fn was_there(world: &World, delivery: &Delivered) -> bool {
    let sent = world.history.publishes[delivery.number].sent.unwrap_or_default();
    world.history.subscriptions.iter().any(|subscription| {
        subscription.client == delivery.client
            && subscription.granted.is_some_and(|granted| granted < sent)
            && subscription.ended.is_none_or(|ended| ended > delivery.at)
            && pattern_matches(&subscription.filter, &delivery.topic)
    })
}

/// From one node to another where nothing is broken, with room for slow disks.
const TRANSIT: Micros = SECOND;

/// Whether it was published while its receiver's session was on its way, or was itself on its way to where that was: it may
/// come before what was published earlier, or after what was published later. What was queued then may come in another order
/// when the client went on before it had all.
fn is_on_its_way(world: &World, delivery: &Delivered) -> bool {
    let publish = &world.history.publishes[delivery.number];
    let sent = publish.sent.unwrap_or_default();
    // Its node took it somewhere in between.
    let taken = publish.acked.map_or(delivery.at, |acked| acked + TRANSIT);
    world.clients[delivery.client].roaming.moves.iter().any(|span| {
        let until = if span.went_on { delivery.at } else { taken };
        span.touches(sent, until)
    })
}
