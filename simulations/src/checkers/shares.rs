//! A share group gets each message once, wherever its members are.

use std::collections::BTreeMap;

use outpost_model::topic::pattern_matches;
use outpost_model::{QoS, TopicFilter};

use crate::clock::Micros;
use crate::history::{Published, Subscribed};
use crate::workload::{SHARED, is_of_group};
use crate::world::World;

/// Exactly once where nothing breaks; with QoS 2 never twice; and never not at all while somebody's session waits.
pub fn check(world: &World) -> Vec<String> {
    SHARED.into_iter().flat_map(|filter| check_group(world, filter)).collect()
}

fn check_group(world: &World, filter: &str) -> Vec<String> {
    let history = &world.history;
    let pattern = TopicFilter::pattern_of(filter);
    let of_group = |client: usize| {
        world.clients[client].profile.group.is_some_and(|group| is_of_group(filter, group))
    };
    let members: Vec<&Subscribed> =
        history.subscriptions.iter().filter(|s| s.filter == filter).collect();
    let mut counts: BTreeMap<usize, u32> = BTreeMap::new();
    for delivery in &history.deliveries {
        if of_group(delivery.client) && pattern_matches(pattern, &delivery.topic) {
            *counts.entry(delivery.number).or_default() += 1;
        }
    }
    let mut found = Vec::new();
    for (number, publish) in history.publishes.iter().enumerate() {
        if publish.clears
            || publish.qos == QoS::AtMostOnce
            || !pattern_matches(pattern, &publish.topic)
        {
            continue;
        }
        let count = counts.get(&number).copied().unwrap_or(0);
        let is_blurred = publish.is_doubled
            || members.iter().any(|member| {
                let mut blurs = world.clients[member.client].roaming.blurs.iter();
                blurs.any(|blur| blur.touches(publish.sent.unwrap_or_default(), Micros::MAX))
            });
        let most = if is_blurred { u32::MAX } else { most(publish, &members) };
        if count > most || (count == 0 && is_due(publish, &members)) {
            found.push(format!(
                "SHARED m{number} on {} (QoS {}, by client-{} at {:?}, acked {:?}) came {count} times to {filter}",
                publish.topic, publish.qos as u8, publish.client, publish.only_node(), publish.acked
            ));
        }
    }
    found
}

/// How often it may come. A QoS 1 copy is allowed wherever something breaks.
fn most(publish: &Published, members: &[&Subscribed]) -> u32 {
    let twice = publish.qos.min(members.first().map_or(QoS::AtMostOnce, |m| m.qos));
    if publish.probe || twice == QoS::ExactlyOnce { 1 } else { u32::MAX }
}

/// Whether a member must have got it.
fn is_due(publish: &Published, members: &[&Subscribed]) -> bool {
    let (Some(sent), Some(_)) = (publish.sent, publish.acked) else { return false };
    let waits = |member: &&&Subscribed| {
        let known = publish.probe || publish.is_after_news_of(member);
        known && member.granted.is_some_and(|granted| granted < sent) && member.ended.is_none()
    };
    if !members.iter().any(|member| waits(&member)) {
        return false;
    }
    // A member that is not kept takes with it what it was given when its node crashes; and what one of QoS 2 may have
    // received is nobody else's when its session ends (MQTT-4.8.2-5).
    let kept = members.iter().all(|member| member.durable);
    let twice = publish.qos == QoS::ExactlyOnce && members[0].qos == QoS::ExactlyOnce;
    publish.probe || (kept && !(twice && members.iter().any(|member| member.ended.is_some())))
}
