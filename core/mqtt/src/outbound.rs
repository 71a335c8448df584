//! What a session owes its client, seen from outside: [`crate::window`] decides, this keeps nothing while nothing is owed.

use std::ops::Range;

use outpost_model::QoS;

use crate::packet::PacketId;
use crate::window::{Delivery, Queue, Transmit};

/// The deliveries of one session. One word while there are none: most sessions wait for the next message.
#[derive(Debug, Clone, Default)]
pub struct Outbound(Option<Box<Queue>>);

impl Outbound {
    /// A queue whose deliveries in `cold` must first be loaded.
    pub fn from_disk(cold: Range<u64>) -> Self {
        Self((!cold.is_empty()).then(|| Box::new(Queue::from_disk(cold))))
    }

    /// Takes a delivery in. With `durable` it may be left to the disk, where its owner has put it already; with `waits` it
    /// is not sent before [`Outbound::handle_synced`].
    pub fn push(&mut self, delivery: Delivery, durable: bool, waits: bool) {
        self.0.get_or_insert_default().push(delivery, durable, waits);
    }

    /// Takes a delivery in that its owner sends at once: [`Outbound::takes_at_once`] said so, and it is not durable.
    pub fn push_sent(&mut self, delivery: Delivery) {
        self.0.get_or_insert_default().push_sent(delivery);
    }

    /// Whether a delivery of this place would be sent at once, with nothing before it.
    pub fn takes_at_once(&self, place: u64, receive_max: u16) -> bool {
        self.0.as_ref().map_or(receive_max > 0, |queue| queue.takes_at_once(place, receive_max))
    }

    /// Whether everything there is has been sent on this connection.
    pub fn has_sent_all(&self) -> bool {
        self.0.as_ref().is_none_or(|queue| queue.has_sent_all())
    }

    /// What all places below `upto` waited for is durable.
    pub fn handle_synced(&mut self, upto: u64) {
        if let Some(queue) = &mut self.0 {
            queue.handle_synced(upto);
        }
    }

    /// From which place on to load, and how many, when memory has room for what is on disk.
    pub fn wants_load(&self) -> Option<(u64, usize)> {
        self.0.as_ref()?.wants_load()
    }

    /// Takes in what was loaded from place `from` on; of no use unless that is where the cold ones begin.
    /// `next` is the first place not yet looked at; what lies before it is no longer cold.
    /// `released` deliveries were acknowledged with PUBREC; `dup` when an earlier connection may have sent them.
    pub fn load(
        &mut self,
        from: u64,
        loaded: impl IntoIterator<Item = (Delivery, bool)>,
        next: u64,
        dup: bool,
    ) {
        if let Some(queue) = &mut self.0 {
            queue.load(from, loaded, next, dup);
        }
    }

    /// A new connection: what was in flight is sent again, first of all.
    pub fn restart(&mut self) {
        if let Some(queue) = &mut self.0 {
            queue.restart();
        }
    }

    /// The next thing to send, while fewer than `receive_max` deliveries are in flight.
    pub fn poll_transmit(&mut self, receive_max: u16, wall_ms: u64) -> Option<Transmit> {
        self.0.as_mut()?.poll_transmit(receive_max, wall_ms)
    }

    /// Whether a packet that belongs to this QoS contradicts what was sent under its id: an acknowledgement of QoS 1 for
    /// a QoS 2 delivery or the reverse. An id that names nothing contradicts nothing.
    pub fn contradicts(&mut self, id: PacketId, qos: QoS) -> bool {
        self.0.as_mut().is_some_and(|queue| queue.contradicts(id, qos))
    }

    /// Whether a PUBCOMP for this id comes before its PUBREC.
    pub fn awaits_pubrec(&mut self, id: PacketId) -> bool {
        self.0.as_mut().is_some_and(|queue| queue.awaits_pubrec(id))
    }

    /// PUBACK, or a PUBREC that refuses: the delivery is done. `None` when nothing of that id and QoS is in flight.
    pub fn handle_done(&mut self, id: PacketId, qos: QoS) -> Option<Delivery> {
        self.0.as_mut()?.handle_done(id, qos)
    }

    /// PUBREC: the client owns the message now. The delivery to write down as released, `None` when the id is unknown;
    /// asking again for a released id is answered again.
    pub fn handle_pubrec(&mut self, id: PacketId) -> Option<Delivery> {
        self.0.as_mut()?.handle_pubrec(id)
    }

    /// PUBCOMP: the id is free again. `None` when it was not released.
    pub fn handle_pubcomp(&mut self, id: PacketId) -> Option<Delivery> {
        self.0.as_mut()?.handle_pubcomp(id)
    }

    /// Deliveries in memory: queued and in flight.
    pub fn len_hot(&self) -> usize {
        self.0.as_ref().map_or(0, |queue| queue.slots.len())
    }

    /// Deliveries sent and not yet done.
    pub fn in_flight(&self) -> usize {
        self.0.as_ref().map_or(0, |queue| queue.in_flight)
    }

    /// When the oldest delivery in memory was accepted, milliseconds since 1970.
    pub fn oldest_wall_ms(&self) -> Option<u64> {
        self.0.as_ref()?.slots.front().map(|slot| slot.delivery.message.accepted_wall_ms)
    }

    /// Whether nothing at all is owed.
    pub fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|queue| queue.slots.is_empty() && queue.cold.is_empty())
    }

    /// Takes every delivery in memory out, in order; `true` for those the client may have received already.
    pub fn drain(&mut self) -> Vec<(Delivery, bool)> {
        self.0.as_mut().map_or_else(Vec::new, |queue| queue.drain())
    }

    /// Deliveries in memory, in order; `true` for those sent and not done.
    pub fn iter(&self) -> impl Iterator<Item = (&Delivery, bool)> {
        self.0.iter().flat_map(|queue| queue.iter())
    }

    /// Places that stand on disk only.
    pub fn cold(&self) -> Range<u64> {
        self.0.as_ref().map_or(0..0, |queue| queue.cold.clone())
    }

    /// Places below `next` on disk are no longer owed.
    pub fn skip_cold(&mut self, next: u64) {
        if let Some(queue) = &mut self.0 {
            queue.skip_cold(next);
        }
    }

    /// Takes out at most `limit` deliveries in memory with places below `upto`. A QoS 2 delivery that may have been sent
    /// stays: its packet id belongs to both sides until the exchange is over.
    pub fn give_up(&mut self, upto: u64, limit: usize) -> Vec<Delivery> {
        self.0.as_mut().map_or_else(Vec::new, |queue| queue.give_up(upto, limit))
    }

    /// Keeps no memory for the next delivery when nothing is owed.
    pub fn give_back(&mut self) {
        if self.is_empty() {
            self.0 = None;
        }
    }
}
