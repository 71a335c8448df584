//! From a channel to everybody who receives there, as far as their buffers: the turns of channels and of subscribers.
//!
//! Neither keeps a message nor waits for anything, so no mailbox is needed: their turns are run on the spot.

use std::sync::Arc;

use outpost_flow::Pressure;
use outpost_model::{Message, QoS};
use outpost_mqtt::alias::Alias;
use outpost_mqtt::codec::PACKET_BYTES_MAX;
use outpost_mqtt::packet::{PacketId, PublishHead, Version};
use outpost_mqtt::session::End;
use outpost_mqtt::window::Delivery;

use super::bridges::Kind;
use super::channel::Recipient;
use super::connection::Connection;
use super::memory::SHED_DIVISOR;
use super::{Cell, CellMsg, ConnId, Event, Shard, Totals};
use crate::cell::{CellId, Turn};
use crate::ledger::Drop;

/// A message as one receiver is to get it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parcel<'a> {
    pub(super) message: &'a Arc<Message>,
    pub(super) qos: QoS,
    pub(super) retain: bool,
    /// Numbers of the subscriptions that matched.
    pub(super) ids: &'a [u32],
    /// That it was taken is being written: with QoS 2 it leaves once that is durable. A crash before would forget it, the
    /// message would be taken again, and the copy could go to a session that has not seen it (MQTT 5, §4.3.3).
    pub(super) waits: bool,
}

impl<'a> Parcel<'a> {
    /// What a queue keeps of it.
    pub(super) fn to_delivery(self, place: u64, share: Option<Arc<str>>) -> Delivery {
        Delivery {
            place,
            message: Arc::clone(self.message),
            qos: self.qos,
            retain: self.retain,
            subscription_ids: self.ids.to_vec(),
            share,
        }
    }

    pub(super) fn of(delivery: &'a Delivery) -> Self {
        let Delivery { message, qos, retain, subscription_ids: ids, .. } = delivery;
        Self { message, qos: *qos, retain: *retain, ids, waits: false }
    }
}

/// The head of the last PUBLISH that was written without anything of its receiver's own: the next receiver of the same
/// message gets the same bytes.
#[derive(Debug, Default)]
pub(super) struct LastFrame {
    of: Option<(Arc<Message>, FrameKey)>,
    head: Vec<u8>,
}

/// Version, retain flag and seconds of life left.
type FrameKey = (Version, bool, Option<u32>);

impl LastFrame {
    /// The head of this message for QoS 0; written when it is another than the last. `None`: no packet is that large.
    fn get(&mut self, message: &Arc<Message>, key: FrameKey) -> Option<&[u8]> {
        let is_last =
            |(last, its): &(Arc<Message>, FrameKey)| Arc::ptr_eq(last, message) && *its == key;
        if !self.of.as_ref().is_some_and(is_last) {
            let (version, retain, expiry_s) = key;
            let head = PublishHead {
                dup: false,
                qos: QoS::AtMostOnce,
                retain,
                topic: &message.topic,
                packet_id: None,
                topic_alias: None,
                expiry_s,
                subscription_ids: &[],
                properties: message.properties.as_deref(),
                payload_len: message.payload.len(),
            };
            self.head.clear();
            let fits = head.encode(version, PACKET_BYTES_MAX, &mut self.head).is_ok();
            self.of = fits.then(|| (Arc::clone(message), key));
        }
        self.of.is_some().then_some(&self.head)
    }

    /// The turn is over: no message is kept for this.
    pub(super) fn forget(&mut self) {
        self.of = None;
    }
}

impl Shard {
    /// A turn of a channel: a message for its topic. `from`: who published it, when that was a client of this node;
    /// `waits` as in [`Parcel`].
    pub(super) fn publish_on(
        &mut self,
        channel: CellId,
        message: &Arc<Message>,
        from: Option<u32>,
        waits: bool,
        recipients: &[Recipient],
    ) {
        let turn = self.short_turn(channel, |cell| match cell {
            Cell::Channel(channel) => channel.published += 1,
            _ => unreachable!("the shard keeps channels apart"),
        });
        match turn {
            // The channel was retired, not its receivers.
            Turn::Done | Turn::Gone => self.pass_to_all(message, from, waits, recipients),
            Turn::Panicked(verdict) => {
                self.pass_on_or_lose(message, waits, recipients, Drop::Crashed);
                self.cell_failed(channel, &verdict);
            }
            Turn::Unavailable => {
                self.pass_on_or_lose(message, waits, recipients, Drop::Quarantined)
            }
        }
    }

    /// The channel's cell failed. A client is told that its message is not safe; a peer has nobody left to ask, so its
    /// message goes on without the cell.
    fn pass_on_or_lose(
        &mut self,
        message: &Arc<Message>,
        waits: bool,
        recipients: &[Recipient],
        why: Drop,
    ) {
        if message.id.node != self.config.node {
            return self.pass_to_all(message, None, waits, recipients);
        }
        self.ledger.drop_unqueued(why, recipients.len() as u64);
        self.crashed_messages.push(message.id);
    }

    fn pass_to_all(
        &mut self,
        message: &Arc<Message>,
        from: Option<u32>,
        waits: bool,
        recipients: &[Recipient],
    ) {
        for recipient in recipients {
            match recipient {
                Recipient::Session { session, no_local: true, .. } if Some(*session) == from => {}
                Recipient::Session {
                    subscriber, session, qos, retain_as_published, ids, ..
                } => {
                    let qos = (*qos).min(message.qos);
                    let retain = *retain_as_published && message.retain;
                    let parcel = Parcel { message, qos, retain, ids, waits };
                    if !self.pass_plain(*subscriber, *session, parcel) {
                        self.forward(*subscriber, *session, parcel);
                    }
                }
                Recipient::Group(group) => self.enqueue_group(*group, message, false, waits),
                Recipient::Shared(_) => {} // chosen before it came here
                Recipient::Peer { peer, durable, shares } => {
                    let message = Arc::clone(message);
                    self.enqueue_peer(*peer, *durable, shares.clone(), waits, message);
                }
                Recipient::Local(subscription) => {
                    self.ledger.owed += 1;
                    self.ledger.delivered += 1;
                    self.events.push_back(Event::Local(*subscription, Arc::clone(message)));
                }
            }
        }
    }

    /// The way of most messages of QoS 0, in one go: nothing waits before them, and there is nothing of their receiver's own
    /// in what is written. `false`: it is not so, and nothing was done.
    fn pass_plain(&mut self, subscriber: CellId, session: u32, parcel: Parcel<'_>) -> bool {
        let Parcel { message, qos, retain, ids, .. } = parcel;
        let is_plain = qos == QoS::AtMostOnce && ids.is_empty();
        if !is_plain || self.probe.is_some() || self.traces.is_on() {
            return false;
        }
        if self.budget.pressure() >= Pressure::Shed {
            return false;
        }
        let Some(conn) = self.plain_connection(session) else { return false };
        let out_max = self.config.out_bytes_max / SHED_DIVISOR;
        let connection = self.connections.get_mut(conn.index as usize);
        let connection =
            connection.filter(|c| c.generation() == conn.generation && c.takes_plain(out_max));
        let Some(connection) = connection else { return false };
        let key = (connection.version, retain, message.expiry_left_s(self.now.wall_ms));
        let Some(head) = self.last_frame.get(message, key) else { return false };
        let bytes = message.payload.len();
        if head.len() + bytes > connection.packet_max as usize {
            return false;
        }
        let Some(Cell::Subscriber(subscriber)) = self.cells.body_mut(subscriber) else {
            return false;
        };
        subscriber.forwarded += 1;
        self.ledger.owed += 1;
        self.ledger.delivered += 1;
        connection.out.put_message(head, &message.payload);
        if written(connection, &mut self.totals, qos, 1, bytes) {
            self.flushes.push_back(conn);
        }
        true
    }

    /// The connection of a session that is an ordinary client's, when no message waits for it.
    pub(super) fn plain_connection(&self, session: u32) -> Option<ConnId> {
        let slot = self.sessions.get(session as usize)?;
        slot.conn.filter(|_| slot.kind == Kind::Client && slot.ring.is_none())
    }

    /// A turn of a subscriber: a message that matches its filter, on its way to its session. It only counts, so the
    /// message goes on when its cell fails.
    pub(super) fn forward(&mut self, subscriber: CellId, session: u32, parcel: Parcel<'_>) {
        let turn = self.short_turn(subscriber, |cell| match cell {
            Cell::Subscriber(subscriber) => subscriber.forwarded += 1,
            _ => unreachable!("the shard keeps subscribers apart"),
        });
        if turn != Turn::Gone {
            self.enqueue(session, parcel, None);
        }
        if let Turn::Panicked(verdict) = turn {
            self.cell_failed(subscriber, &verdict);
        }
    }

    fn short_turn(&mut self, id: CellId, act: impl FnOnce(&mut Cell)) -> Turn {
        let probe = self.probe_of(id);
        self.cells.turn(id, self.now.mono_ms, |cell| {
            if let Some((probe, (role, name))) = &probe {
                probe(role, name);
            }
            act(cell);
        })
    }

    /// A QoS 0 message for a session is in no queue: it is for a client that is here.
    pub(super) fn deliver_at_once(&mut self, session: u32, parcel: Parcel<'_>) {
        let conn = self.sessions.get(session as usize).and_then(|s| s.conn);
        match conn.filter(|conn| self.connection(*conn).is_some_and(|c| c.welcomed)) {
            None => self.drop_for(session, Drop::Offline, 1, &parcel.message.topic),
            Some(conn) => self.enqueue_fleeting(session, conn, parcel),
        }
    }

    /// Writes a QoS 0 message for a client.
    pub(super) fn write_fleeting(&mut self, session: u32, conn: ConnId, parcel: Parcel<'_>) {
        if self.write_publish(session, conn, parcel, None, false) {
            self.ledger.delivered += 1;
        } else {
            self.drop_for(session, Drop::TooLarge, 1, &parcel.message.topic);
        }
    }

    /// Writes a message for a client, one that its session keeps.
    pub(super) fn deliver(
        &mut self,
        session: u32,
        delivery: &Delivery,
        id: Option<PacketId>,
        dup: bool,
    ) {
        let Some(conn) = self.sessions.get(session as usize).and_then(|s| s.conn) else { return };
        let parcel = Parcel::of(delivery);
        if self.connection(conn).is_some()
            && !self.write_publish(session, conn, parcel, id, dup)
            && let Some(id) = id
        {
            // To be treated as if it had been sent and acknowledged (MQTT-3.1.2-25).
            self.skip_too_large(session, id, delivery.qos);
        }
    }

    /// `false`: it is larger than the client takes, and nothing was written.
    fn write_publish(
        &mut self,
        session: u32,
        conn: ConnId,
        parcel: Parcel<'_>,
        id: Option<PacketId>,
        dup: bool,
    ) -> bool {
        if self.traces.is_on() {
            self.trace_delivery(session, parcel, id, dup);
        }
        let Parcel { message, qos, retain, ids, .. } = parcel;
        let with_path = self.with_path(session, message);
        if with_path.is_some() && !dup {
            self.note_sent(session, &message.topic, &message.payload);
        }
        let Some(connection) = self
            .connections
            .get_mut(conn.index as usize)
            .filter(|c| c.generation() == conn.generation)
        else {
            return false;
        };
        let (version, packet_max) = (connection.version, connection.packet_max);
        let alias = connection.rare.aliases_mut().map_or(Alias::None, |a| a.find(&message.topic));
        let (topic, topic_alias) = match alias {
            Alias::None => (&*message.topic, None),
            Alias::New(number) => (&*message.topic, Some(number)),
            Alias::Known(number) => ("", Some(number)),
        };
        let head = PublishHead {
            dup,
            qos,
            retain,
            topic,
            packet_id: id,
            topic_alias,
            expiry_s: message.expiry_left_s(self.now.wall_ms),
            subscription_ids: ids,
            properties: with_path.as_ref().or(message.properties.as_deref()),
            payload_len: message.payload.len(),
        };
        let out = &mut connection.out;
        if out.put_with(|out| head.encode(version, packet_max, out)).is_err() {
            return false;
        }
        if let (Alias::New(number), Some(aliases)) = (alias, connection.rare.aliases_mut()) {
            aliases.set(number, &message.topic);
        }
        connection.out.put_payload(&message.payload);
        let bytes = message.payload.len();
        if written(connection, &mut self.totals, qos, 1, bytes) {
            self.flushes.push_back(conn);
        }
        true
    }

    fn skip_too_large(&mut self, session: u32, id: PacketId, qos: QoS) {
        let Some(slot) = self.sessions.get(session as usize) else { return };
        let cell = slot.cell;
        self.send(cell, CellMsg::Skip(id, qos, End::TooLarge));
    }
}

/// So many messages lie in the buffer of a connection: they are counted. `true`: they are the first of a turn, and the
/// buffer is to be written.
pub(super) fn written(
    connection: &mut Connection,
    totals: &mut Totals,
    qos: QoS,
    count: u64,
    payload_bytes: usize,
) -> bool {
    connection.traffic.messages_mut().count_sent(qos, count, payload_bytes);
    totals.packets_sent += count;
    totals.messages.count_sent(qos, count, payload_bytes);
    !std::mem::replace(&mut connection.flush_asked, true)
}
