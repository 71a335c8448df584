//! What devices and applications do: subscribe, publish numbered messages, set and clear retained ones, write shadows.

use std::collections::BTreeMap;

use bytes::Bytes;
use outpost_model::topic::pattern_matches;
use outpost_model::{QoS, TopicFilter};
use outpost_mqtt::packet::Version;

use crate::client::{Client, Profile, Wish, payload_of};
use crate::clock::{MS, Micros};
use crate::dice::Dice;
use crate::history::{Published, ShadowWrite, Subscribed};
use crate::world::{Happening, NODES, Stage, World};

/// Topics of ordinary messages.
const TOPICS: [&str; 6] =
    ["plant/1/temp", "plant/1/state", "plant/2/temp", "yard/gate", "yard/gate/log", "alarm"];
/// Filters drawn from.
const FILTERS: [&str; 9] = [
    "plant/1/temp",
    "plant/+/temp",
    "plant/#",
    "yard/#",
    "yard/gate",
    "alarm",
    "#",
    "+/+/temp",
    "will/#",
];
/// Filters of share groups. Within a group they have no topic in common, so a message is due once to each.
pub const SHARED: [&str; 4] =
    ["$share/w/plant/#", "$share/w/alarm", "$share/v/plant/1/+", "$share/v/yard/gate"];
/// The groups.
const GROUPS: [&str; 2] = ["w", "v"];
/// Topics of retained messages.
const RETAINED: [&str; 4] = ["keep/a", "keep/b", "keep/c/d", "plant/1/config"];
/// Things with a shadow.
const THINGS: [&str; 3] = ["lamp", "pump", "door"];
/// Writes to shadows in a run: each adds a key, and a shadow holds 8 KB.
const SHADOW_WRITES_MAX: usize = 60;

/// The workload of a run.
#[derive(Debug)]
pub struct Workload {
    dice: Dice,
    actions: u64,
    pause: Micros,
    shadow_writes: usize,
    burst_max: u64,
    /// What the members of each group ask for.
    share_qos: [QoS; GROUPS.len()],
}

impl Workload {
    /// Draws how much there is to do.
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed, 4);
        let (actions, pause) = (dice.range(20, 90), dice.range(10, 400) * MS);
        let burst_max = if dice.permille(100) { 400 } else { dice.range(2, 40) };
        let share_qos = [(); GROUPS.len()]
            .map(|()| if dice.permille(500) { QoS::AtLeastOnce } else { QoS::ExactlyOnce });
        Self { dice, actions, pause, shadow_writes: 0, burst_max, share_qos }
    }

    /// Nothing more will be wanted.
    pub fn is_done(&self) -> bool {
        self.actions == 0
    }
}

impl World {
    pub(crate) fn prepare_clients(&mut self) {
        let count = self.workload.dice.range(4, 10) as usize;
        for index in 0..count {
            let dice = &mut self.workload.dice;
            let profile = Profile {
                index,
                node: dice.index(NODES),
                version: if dice.permille(500) { Version::V5 } else { Version::V4 },
                durable: dice.permille(750),
                keep_alive_s: if dice.permille(500) { 2 } else { 0 },
                has_will: dice.permille(300),
                group: None,
            };
            self.add_client(profile);
        }
        self.prepare_members();
    }

    /// Members of share groups: in most runs all of them keep their sessions.
    fn prepare_members(&mut self) {
        let count = self.workload.dice.range(0, 6) as usize;
        let all_durable = self.workload.dice.permille(700);
        for _ in 0..count {
            let dice = &mut self.workload.dice;
            let profile = Profile {
                index: self.clients.len(),
                node: dice.index(NODES),
                version: Version::V5,
                durable: dice.permille(750) || all_durable,
                keep_alive_s: if dice.permille(500) { 2 } else { 0 },
                has_will: false,
                group: Some(GROUPS[dice.index(GROUPS.len())]),
            };
            self.add_client(profile);
        }
    }

    fn add_client(&mut self, profile: Profile) {
        let index = profile.index;
        self.clients.push(Client::new(profile));
        for _ in 0..self.workload.dice.range(0, 4) {
            self.wish_subscription(index);
        }
        let delay = self.workload.dice.range(0, 200 * MS);
        self.plan_connect(index, delay);
    }

    /// The will of a client's next connection.
    pub(crate) fn new_will(&mut self, client: usize) -> Option<usize> {
        if !self.clients[client].profile.has_will {
            return None;
        }
        let topic = format!("will/client-{client}");
        let qos = QoS::from_bits(client as u8 % 3).unwrap_or_default();
        let number = self.new_message(client, &topic, qos, false);
        self.history.publishes[number].is_will = true;
        self.history.publishes[number].sent = Some(self.clock.now());
        Some(number)
    }

    pub(crate) fn work(&mut self) {
        if self.stage > Stage::Break {
            self.workload.actions = 0;
        }
        if self.workload.actions == 0 {
            return;
        }
        self.workload.actions -= 1;
        let client = self.workload.dice.index(self.clients.len());
        match self.workload.dice.range(0, 100) {
            0..60 => self.wish_burst(client),
            60..72 => self.wish_retained(client),
            72..84 => self.wish_shadow(client),
            84..94 => self.wish_subscription(client),
            _ => self.wish_end_of_subscription(client),
        }
        self.let_send(client);
        let delay = self.workload.dice.range(MS, self.workload.pause * 2);
        self.clock.after(delay, Happening::Work);
    }

    /// At the end everybody publishes everywhere, to see that everybody hears.
    pub(crate) fn probe(&mut self) {
        for client in 0..self.clients.len() {
            for topic in TOPICS {
                self.wish_publish(client, topic, QoS::AtLeastOnce);
            }
            self.let_send(client);
        }
    }

    fn new_message(&mut self, client: usize, topic: &str, qos: QoS, retain: bool) -> usize {
        self.history.publishes.push(Published {
            client,
            topic: topic.to_owned(),
            qos,
            retain,
            sent: None,
            acked: None,
            uncertain: false,
            sendings: Vec::new(),
            is_doubled: false,
            is_will: false,
            clears: false,
            probe: self.stage >= Stage::Probe,
        });
        self.history.publishes.len() - 1
    }

    fn wish_publish(&mut self, client: usize, topic: &str, qos: QoS) {
        let number = self.new_message(client, topic, qos, false);
        self.clients[client].wish(Wish::Publish { number, payload: payload_of(number) });
    }

    fn wish_burst(&mut self, client: usize) {
        let dice = &mut self.workload.dice;
        let count = dice.range(1, self.workload.burst_max + 1);
        let topic = TOPICS[dice.index(TOPICS.len())];
        let qos = qos_of(client, topic);
        for _ in 0..count {
            self.wish_publish(client, topic, qos);
        }
    }

    /// While others roam.
    pub(crate) fn wish_calm_bursts(&mut self, client: usize) {
        for topic in TOPICS {
            (0..3).for_each(|_| self.wish_publish(client, topic, qos_of(client, topic)));
        }
        self.let_send(client);
    }

    fn wish_retained(&mut self, client: usize) {
        let dice = &mut self.workload.dice;
        let topic = RETAINED[dice.index(RETAINED.len())];
        let qos = QoS::from_bits(dice.range(0, 3) as u8).unwrap_or_default();
        let clears = dice.permille(300);
        let number = self.new_message(client, topic, qos, true);
        let payload = if clears { Bytes::new() } else { payload_of(number) };
        self.history.publishes[number].clears = clears;
        self.clients[client].wish(Wish::Publish { number, payload });
    }

    fn wish_shadow(&mut self, client: usize) {
        if self.workload.shadow_writes >= SHADOW_WRITES_MAX {
            return;
        }
        self.workload.shadow_writes += 1;
        let dice = &mut self.workload.dice;
        let thing = dice.index(THINGS.len());
        // A thing's device is one client; everybody else only wishes.
        let is_device = client % THINGS.len() == thing;
        let section = if is_device && dice.permille(700) { "reported" } else { "desired" };
        let topic = format!("$aws/things/{}/shadow/update", THINGS[thing]);
        let number = self.new_message(client, &topic, QoS::AtLeastOnce, false);
        let key = format!("k{number}");
        let payload = format!("{{\"state\":{{\"{section}\":{{\"{key}\":{number}}}}}}}");
        let thing = THINGS[thing].to_owned();
        self.history
            .shadow_writes
            .insert(number, ShadowWrite { thing, section, key, accepted: false });
        self.clients[client].wish(Wish::Publish { number, payload: payload.into_bytes().into() });
    }

    fn wish_subscription(&mut self, client: usize) {
        let dice = &mut self.workload.dice;
        let group = self.clients[client].profile.group;
        let filter = if let Some(group) = group {
            let own: Vec<_> = SHARED.into_iter().filter(|f| is_of_group(f, group)).collect();
            own[dice.index(own.len())]
        } else if dice.permille(100) {
            "$aws/things/+/shadow/update/accepted"
        } else {
            FILTERS[dice.index(FILTERS.len())]
        };
        let drawn = QoS::from_bits(dice.range(0, 3) as u8).unwrap_or_default();
        let place = GROUPS.iter().position(|name| Some(*name) == group);
        let qos = place.map_or(drawn, |place| self.workload.share_qos[place]);
        let is_there =
            |s: &Subscribed| s.client == client && s.ended.is_none() && s.filter == filter;
        if self.history.subscriptions.iter().any(is_there) {
            return;
        }
        self.history.subscriptions.push(Subscribed {
            client,
            filter: filter.to_owned(),
            qos,
            durable: self.clients[client].profile.durable,
            asked: Micros::MAX,
            granted: None,
            ended: None,
            end_confirmed: None,
            homes: BTreeMap::new(),
            heard: BTreeMap::new(),
        });
        self.clients[client].wish(Wish::Subscribe(self.history.subscriptions.len() - 1));
    }

    fn wish_end_of_subscription(&mut self, client: usize) {
        let is_one =
            |s: &Subscribed| s.client == client && s.granted.is_some() && s.ended.is_none();
        let Some(index) = self.history.subscriptions.iter().position(is_one) else { return };
        self.history.subscriptions[index].ended = Some(self.clock.now());
        self.clients[client].wish(Wish::Unsubscribe(index));
    }
}

/// One for each topic of a client: the order of different ones is nobody's promise.
fn qos_of(client: usize, topic: &str) -> QoS {
    QoS::from_bits(((client + topic.len()) % 3) as u8).unwrap_or_default()
}

/// Whether a shared filter is one of this group's.
pub fn is_of_group(filter: &str, group: &str) -> bool {
    TopicFilter::new(filter).is_ok_and(|filter| filter.share_group() == Some(group))
}

/// The shared filters that match a topic.
pub fn shared_filters_of(topic: &str) -> Vec<String> {
    let matches = |filter: &&str| pattern_matches(TopicFilter::pattern_of(filter), topic);
    SHARED.into_iter().filter(matches).map(str::to_owned).collect()
}
