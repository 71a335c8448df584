//! Channels and subscribers: the cells between those who publish and those who receive.
//!
//! A channel is the runtime of one topic: it is made when the topic is first published to, knows by reference who
//! receives, and goes when it is long unused. A subscriber is one filter of one session.

use std::hash::{Hash, Hasher};
use std::num::NonZeroU32;
use std::sync::Arc;

use bytestring::ByteString;
use hashbrown::{Equivalent, HashMap};
use outpost_membership::Shares;
use outpost_model::{NodeId, QoS};
use outpost_mqtt::packet::SubscribeOptions;

use super::shares::Shared;
use super::{Cell, Route, Shard};
use crate::cell::CellId;

/// How long a channel is kept without a message, when memory is given back. Shorter: who publishes rarely makes it anew
/// each time; longer: topics of devices that are gone cost memory.
const CHANNEL_IDLE_MS_MAX: u64 = 10 * 60_000;

/// Who receives what is published on a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Recipient {
    /// A session of this shard, all its matching subscriptions taken together.
    Session {
        subscriber: CellId,
        session: u32,
        qos: QoS,
        no_local: bool,
        retain_as_published: bool,
        ids: Vec<u32>,
    },
    /// One member of a share group.
    Group(u32),
    /// A share group that has members on other nodes: one node is chosen for each message.
    Shared(Shared),
    /// Another node, for its ordinary subscribers and the share groups it was chosen for.
    Peer { peer: NodeId, durable: bool, shares: Option<Arc<Shares>> },
    /// A subscription of the node itself.
    Local(u32),
}

/// The cell of a topic.
#[derive(Debug, Default)]
pub(super) struct Channel {
    pub(super) published: u64,
}

/// The cell of a subscription.
#[derive(Debug, Default)]
pub(super) struct Subscriber {
    pub(super) forwarded: u64,
}

/// What the shard keeps of a channel: it survives the cell.
#[derive(Debug)]
pub(super) struct ChannelEntry {
    pub(super) cell: CellId,
    epoch: u64,
    pub(super) recipients: Arc<[Recipient]>,
    /// There are recipients, and all of them are sessions.
    pub(super) only_sessions: bool,
    pub(super) used_ms: u64,
}

impl ChannelEntry {
    /// Nobody has come or gone since the recipients were found.
    pub(super) fn is_current(&self, table_epoch: u64) -> bool {
        self.epoch == table_epoch
    }
}

/// The bytes of a topic name, to find its channel by: what is found is one.
pub(super) struct NameBytes<'a>(pub(super) &'a [u8]);

impl Hash for NameBytes<'_> {
    /// As a text is hashed; the tests see whether it still is.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.0);
        state.write_u8(0xff);
    }
}

impl Equivalent<ByteString> for NameBytes<'_> {
    fn equivalent(&self, name: &ByteString) -> bool {
        **name.as_bytes() == *self.0
    }
}

/// Which cell belongs to whom; what the shard needs to restart or name one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    Session(u32),
    /// Boxed: most cells are not channels.
    Channel(Box<ByteString>),
    /// What it wants is here; its filter is where its session is.
    Subscriber {
        session: u32,
        options: SubscribeOptions,
        id: Option<NonZeroU32>,
    },
}

impl Shard {
    /// The channel of a topic and who receives there, on all nodes, both made if need be.
    pub(super) fn channel(&mut self, topic: &ByteString) -> (CellId, Arc<[Recipient]>) {
        let now_ms = self.now.mono_ms;
        if let Some(entry) = self.channels.get_mut(&**topic) {
            entry.used_ms = now_ms;
            if entry.is_current(self.table_epoch) {
                return (entry.cell, Arc::clone(&entry.recipients));
            }
        }
        let recipients: Arc<[Recipient]> = self.find_recipients(topic).into();
        let is_session = |recipient| matches!(recipient, &Recipient::Session { .. });
        let only_sessions = !recipients.is_empty() && recipients.iter().all(is_session);
        if let Some(entry) = self.channels.get_mut(&**topic) {
            (entry.epoch, entry.recipients) = (self.table_epoch, Arc::clone(&recipients));
            entry.only_sessions = only_sessions;
            return (entry.cell, recipients);
        }
        if self.channels.len() >= self.config.channels_max {
            self.retire_channels();
        }
        // Copied: a channel must not keep the packet of its first message alive.
        let topic = ByteString::from(topic.to_string());
        let cell = self
            .cells
            .spawn(Owner::Channel(topic.clone().into()), Cell::Channel(Channel::default()));
        let entry = ChannelEntry {
            cell,
            epoch: self.table_epoch,
            recipients: Arc::clone(&recipients),
            only_sessions,
            used_ms: now_ms,
        };
        self.channels.insert(topic, entry);
        (cell, recipients)
    }

    pub(super) fn find_recipients(&self, topic: &str) -> Vec<Recipient> {
        let mut found: Vec<Recipient> = Vec::new();
        let mut of_session: HashMap<u32, usize> = HashMap::new();
        self.table.matches(topic, |route| match *route {
            Route::Group(group) => found.push(Recipient::Group(group)),
            Route::Local(subscription) => found.push(Recipient::Local(subscription)),
            Route::Subscriber(cell) => self.merge_recipient(cell, &mut found, &mut of_session),
        });
        for (peer, state) in &self.peers {
            if let Some(durable) = state.interest.wants(topic) {
                found.push(Recipient::Peer { peer: *peer, durable, shares: None });
            }
        }
        self.join_shares(topic, &mut found);
        found
    }

    /// A session with several matching subscriptions gets one copy, with the highest QoS granted (MQTT-3.3.5-1) and
    /// all subscription identifiers (MQTT-3.3.4-4).
    fn merge_recipient(
        &self,
        cell: CellId,
        found: &mut Vec<Recipient>,
        of_session: &mut HashMap<u32, usize>,
    ) {
        let Some(Owner::Subscriber { session: owner, options, id }) = self.cells.owner(cell) else {
            return;
        };
        let id = id.map(NonZeroU32::get);
        if let Some(place) = of_session.get(owner) {
            let Recipient::Session { qos, no_local, retain_as_published, ids, .. } =
                &mut found[*place]
            else {
                return;
            };
            *qos = (*qos).max(options.qos);
            *no_local &= options.no_local;
            *retain_as_published |= options.retain_as_published;
            ids.extend(id);
            return;
        }
        of_session.insert(*owner, found.len());
        found.push(Recipient::Session {
            subscriber: cell,
            session: *owner,
            qos: options.qos,
            no_local: options.no_local,
            retain_as_published: options.retain_as_published,
            ids: id.into_iter().collect(),
        });
    }

    /// Channels nobody has published to for long go.
    pub(super) fn retire_unused_channels(&mut self) {
        let before_ms = self.now.mono_ms.saturating_sub(CHANNEL_IDLE_MS_MAX);
        let unused = self.channels.extract_if(|_, entry| entry.used_ms < before_ms);
        let mut cells: Vec<CellId> = unused.map(|(_, entry)| entry.cell).collect();
        cells.sort_unstable();
        for cell in cells {
            self.cells.stop(cell);
        }
    }

    /// Room for new channels: the eighth that was unused for longest goes.
    fn retire_channels(&mut self) {
        let mut ages: Vec<(u64, ByteString)> =
            self.channels.iter().map(|(t, e)| (e.used_ms, t.clone())).collect();
        let count = (ages.len() / 8).max(1);
        ages.select_nth_unstable(count - 1);
        for (_, topic) in ages.into_iter().take(count) {
            if let Some(entry) = self.channels.remove(&topic) {
                self.cells.stop(entry.cell);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_by_its_bytes() {
        let names =
            ["a", "plant/hall/7", "größe/°C", "$SYS/broker", "a/very/long/name/of/some/thing"];
        let map: HashMap<ByteString, usize> =
            names.iter().enumerate().map(|(n, name)| (ByteString::from_static(name), n)).collect();
        for (number, name) in names.iter().enumerate() {
            assert_eq!(map.get(&NameBytes(name.as_bytes())), Some(&number));
            assert_eq!(map.get(&NameBytes(&name.as_bytes()[1..])), None);
        }
    }
}
