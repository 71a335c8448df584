//! Nothing acknowledged is lost: whoever was durably subscribed when a message was sent has it.

use std::collections::BTreeSet;

use outpost_model::QoS;
use outpost_model::topic::pattern_matches;

use crate::history::{Published, Subscribed};
use crate::world::World;

/// D1, D8 and, by the probes at the end, that interest is known everywhere.
pub fn check(world: &World) -> Vec<String> {
    let history = &world.history;
    let got: BTreeSet<(usize, usize)> =
        history.deliveries.iter().map(|delivery| (delivery.client, delivery.number)).collect();
    let mut found = Vec::new();
    for (number, publish) in history.publishes.iter().enumerate() {
        for subscription in &history.subscriptions {
            let key = (subscription.client, number);
            if is_due(publish, subscription)
                && !got.contains(&key)
                && !history.mistaken.contains(&key)
            {
                found.push(format!(
                    "LOST m{number} on {} (QoS {}, sent by client-{} at node {}, acked {:?}) for client-{} at node {} with {:?}",
                    publish.topic,
                    publish.qos as u8,
                    publish.client,
                    publish.sendings.first().map_or(0, |sending| sending.node),
                    publish.acked,
                    subscription.client,
                    world.clients[subscription.client].profile.node,
                    subscription.filter,
                ));
            }
        }
    }
    found
}

/// Whether this subscriber must have got this message.
fn is_due(publish: &Published, subscription: &Subscribed) -> bool {
    let (Some(sent), Some(_), Some(granted)) = (publish.sent, publish.acked, subscription.granted)
    else {
        return false;
    };
    if publish.clears
        || publish.qos == QoS::AtMostOnce
        || granted >= sent
        || subscription.ended.is_some()
    {
        return false;
    }
    if !pattern_matches(&subscription.filter, &publish.topic) {
        return false;
    }
    if publish.probe {
        return true; // everybody is connected, nothing breaks any more
    }
    if !subscription.durable || subscription.qos == QoS::AtMostOnce {
        return false;
    }
    publish.is_after_news_of(subscription)
}
