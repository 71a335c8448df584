//! Nobody gets what he did not ask for.

use outpost_model::TopicFilter;
use outpost_model::topic::pattern_matches;

use crate::history::{Delivered, Subscribed};
use crate::world::World;

/// D3, D6: a subscription matches, the QoS is not raised, topic and message belong together.
pub fn check(world: &World) -> Vec<String> {
    let history = &world.history;
    let mut found = Vec::new();
    for delivery in &history.deliveries {
        let publish = &history.publishes[delivery.number];
        let sent = publish.sent.unwrap_or_default();
        let is_good = |s: &&Subscribed| {
            s.client == delivery.client
                && s.asked <= delivery.at
                && (s.end_confirmed.is_none_or(|end| sent <= end) || is_split(world, s, delivery))
                && pattern_matches(TopicFilter::pattern_of(&s.filter), &delivery.topic)
        };
        let most = history.subscriptions.iter().filter(is_good).map(|s| s.qos).max();
        if publish.topic != delivery.topic
            || most.is_none_or(|qos| delivery.qos > qos.min(publish.qos))
        {
            found.push(text(delivery, &publish.topic));
        }
    }
    found
}

/// Whether the receiver may have been at two nodes at once: what it ended at one may have gone on at the other.
fn is_split(world: &World, subscription: &Subscribed, delivery: &Delivered) -> bool {
    let mut blurs = world.clients[delivery.client].roaming.blurs.iter();
    blurs.any(|blur| blur.touches(subscription.asked, delivery.at))
}

fn text(delivery: &Delivered, topic: &str) -> String {
    format!(
        "UNASKED m{} published on {topic} reached client-{} on {} with QoS {}",
        delivery.number, delivery.client, delivery.topic, delivery.qos as u8
    )
}
