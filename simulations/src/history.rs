//! What happened in a run, as the checkers see it, and its hash: equal for equal seeds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use outpost_model::QoS;

use crate::clock::Micros;
use crate::world::NODES;

/// A published message; its index in [`History::publishes`] is its number and stands in its payload.
#[derive(Debug, Clone)]
pub struct Published {
    /// Who published it.
    pub client: usize,
    /// Topic.
    pub topic: String,
    /// As published.
    pub qos: QoS,
    /// With the retain flag.
    pub retain: bool,
    /// Sent for the first time.
    pub sent: Option<Micros>,
    /// PUBACK or PUBREC with success arrived.
    pub acked: Option<Micros>,
    /// Refused with a reason, or given up with its session: nobody knows whether it was accepted.
    pub uncertain: bool,
    /// Each PUBLISH with it, the first and those again.
    pub sendings: Vec<Sending>,
    /// With QoS 2, and its publisher may have been at two nodes at once when it was under way: both may have taken it.
    pub is_doubled: bool,
    /// A will: the server publishes it.
    pub is_will: bool,
    /// It clears a retained message.
    pub clears: bool,
    /// Published after everything was healed.
    pub probe: bool,
}

/// A PUBLISH that a client sent.
#[derive(Debug, Clone, Copy)]
pub struct Sending {
    /// Its place among all of the run.
    pub place: u64,
    /// When.
    pub at: Micros,
    /// To which node.
    pub node: usize,
}

impl Published {
    /// The node it was sent to, when it was one only.
    pub fn only_node(&self) -> Option<usize> {
        let first = self.sendings.first()?.node;
        self.sendings.iter().all(|sending| sending.node == first).then_some(first)
    }

    /// Whether each node that may be the one that took it had heard of a subscription before.
    pub fn is_after_news_of(&self, subscription: &Subscribed) -> bool {
        let acked = self.acked.unwrap_or(Micros::MAX);
        self.sendings.iter().filter(|sending| sending.at <= acked).all(|sending| {
            subscription.heard.get(&sending.node).is_some_and(|since| *since < sending.at)
        })
    }
}

/// A message a client handed to its application.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// Receiver.
    pub client: usize,
    /// Grows with each session the receiver had.
    pub session: u32,
    /// Number of the message.
    pub number: usize,
    /// As delivered.
    pub qos: QoS,
    /// Topic as delivered.
    pub topic: String,
    /// It came as a retained message for a new subscription.
    pub retain: bool,
    /// May be a copy.
    pub dup: bool,
    /// When.
    pub at: Micros,
}

/// A subscription of a client.
#[derive(Debug, Clone)]
pub struct Subscribed {
    /// Who.
    pub client: usize,
    /// Filter.
    pub filter: String,
    /// QoS asked for.
    pub qos: QoS,
    /// The session outlives its connection.
    pub durable: bool,
    /// SUBSCRIBE was sent.
    pub asked: Micros,
    /// SUBACK arrived.
    pub granted: Option<Micros>,
    /// UNSUBSCRIBE was sent, or the session given up.
    pub ended: Option<Micros>,
    /// UNSUBACK arrived, or the new session is confirmed.
    pub end_confirmed: Option<Micros>,
    /// Nodes that granted it, and when.
    pub homes: BTreeMap<usize, Micros>,
    /// Since when each node has durably known of it. It is not forgotten when the session moves.
    pub heard: BTreeMap<usize, Micros>,
}

/// An update of a shadow that was accepted.
#[derive(Debug, Clone)]
pub struct ShadowWrite {
    /// The thing.
    pub thing: String,
    /// `desired` or `reported`.
    pub section: &'static str,
    /// A key no other update uses.
    pub key: String,
    /// The client read `accepted`, or its QoS 1 publish was acknowledged.
    pub accepted: bool,
}

/// Everything a checker may look at.
#[derive(Debug, Default)]
pub struct History {
    /// By number.
    pub publishes: Vec<Published>,
    /// Counts the PUBLISH packets clients sent.
    pub sendings: u64,
    /// In order of arrival.
    pub deliveries: Vec<Delivered>,
    /// In order of SUBSCRIBE.
    pub subscriptions: Vec<Subscribed>,
    /// By message number of the request.
    pub shadow_writes: BTreeMap<usize, ShadowWrite>,
    /// Since when a node durably knows that another wants a filter durably: (knower, wanter, filter).
    pub interest: BTreeMap<(usize, usize, String), Micros>,
    /// When last something was broken or slow.
    pub calm_since: Micros,
    /// Messages that clients took for copies of others: (client, number). See [`crate::roaming`].
    pub mistaken: BTreeSet<(usize, usize)>,
    /// What went wrong while it ran.
    pub violations: Vec<String>,
    /// Frames, bytes and faults so far.
    pub steps: u64,
    /// How often each fault struck.
    pub faults: BTreeMap<&'static str, u64>,
    hash: u64,
    trace: Option<Trace>,
}

#[derive(Debug, Default)]
struct Trace {
    print: bool,
}

impl History {
    /// A history that also prints each step.
    pub fn printing() -> Self {
        Self { trace: Some(Trace { print: true }), ..Self::default() }
    }

    /// The hash of all steps so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// One step of the world. The text is only made when somebody reads it.
    pub fn step(&mut self, at: Micros, numbers: &[u64], text: impl FnOnce() -> String) {
        self.steps += 1;
        self.mix(at);
        numbers.iter().for_each(|number| self.mix(*number));
        if self.trace.as_ref().is_some_and(|trace| trace.print) {
            let mut line = String::new();
            let _ = write!(line, "{:>10}.{:03} ", at / 1_000, at % 1_000);
            println!("{line}{}", text());
        }
    }

    /// Bytes that belong to the step before.
    pub fn bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
        self.mix(bytes.len() as u64);
    }

    /// Notes which nodes know of the subscriptions of sessions that are kept.
    pub fn note_heard(&mut self) {
        let interest = &self.interest;
        for subscription in self.subscriptions.iter_mut().filter(|s| s.durable) {
            if subscription.granted.is_none() || subscription.ended.is_some() {
                continue;
            }
            for knower in 0..NODES {
                if subscription.heard.contains_key(&knower) {
                    continue;
                }
                let mut homes = subscription.homes.iter();
                let since = homes.find_map(|(home, granted)| {
                    let key = (knower, *home, subscription.filter.clone());
                    let told = || interest.get(&key).map(|since| *since.max(granted));
                    if *home == knower { Some(*granted) } else { told() }
                });
                if let Some(since) = since {
                    subscription.heard.insert(knower, since);
                }
            }
        }
    }

    /// A client read that an update of a shadow was accepted: it is never taken back.
    pub fn shadow_accepted(&mut self, json: &[u8]) {
        let Ok(json) = serde_json::from_slice::<serde_json::Value>(json) else { return };
        for section in ["desired", "reported"] {
            let state = json["state"][section].as_object();
            for number in state.into_iter().flatten().filter_map(|(_, value)| value.as_u64()) {
                if let Some(write) = self.shadow_writes.get_mut(&(number as usize)) {
                    write.accepted = true;
                }
            }
        }
    }

    /// An invariant is broken.
    pub fn violation(&mut self, at: Micros, text: String) {
        self.step(at, &[u64::MAX], || format!("VIOLATION {text}"));
        self.violations.push(text);
    }

    /// A fault strikes.
    pub fn fault(&mut self, at: Micros, name: &'static str, text: impl FnOnce() -> String) {
        *self.faults.entry(name).or_default() += 1;
        self.step(at, &[name.len() as u64], || format!("FAULT {name} {}", text()));
    }

    fn mix(&mut self, number: u64) {
        let mixed = (self.hash ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.hash = mixed ^ (mixed >> 29);
    }
}
