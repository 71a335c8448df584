//! What a session still owes its client: QoS 1 and 2 deliveries, queued and in flight, in order (MQTT 5, §4.3, §4.4, §4.9).
//!
//! Every delivery has a *place*, a number its session never reuses. The packet id is derived from the place, so a
//! delivery keeps its id through any crash without writing the id down, and the receiver of a QoS 2 message
//! recognises the copy. Deliveries beyond [`HOT_MAX`] of a durable session stay on disk only (`cold`) until there is room.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use outpost_model::{Message, QoS};

pub use crate::outbound::Outbound;
use crate::packet::PacketId;

/// Deliveries a durable session keeps in memory. Lower: more reads from disk while catching up; higher: more memory for
/// each session that is offline with a long queue.
pub const HOT_MAX: usize = 128;

/// Packet ids run from 1 to this.
const IDS: u64 = 65_535;

/// One message owed to one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its place in the session's order; 0 for QoS 0, which has none.
    pub place: u64,
    /// The message, shared with all its other receivers.
    pub message: Arc<Message>,
    /// QoS to deliver with, already the lesser of published and granted.
    pub qos: QoS,
    /// Retain flag to show.
    pub retain: bool,
    /// Numbers of the subscriptions that matched.
    pub subscription_ids: Vec<u32>,
    /// The shared subscription it came through, as the client wrote it: if this session ends, another member gets it.
    pub share: Option<Arc<str>>,
}

/// The packet id that belongs to a place: 1 for place 1.
pub fn packet_id_of(place: u64) -> PacketId {
    PacketId::new(id_index(place) as u16 + 1).expect("one is added")
}

fn id_index(place: u64) -> u64 {
    place.wrapping_sub(1) % IDS
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// QoS 2, and its row or that it was taken is not yet durable: sent now and forgotten in a crash, its packet id could
    /// come to name another message, which the client would take for a copy, or the message be taken and sent once more.
    Written,
    /// Not sent on this connection; `true` when an earlier connection may have sent it.
    Queued(bool),
    Sent,
    /// The client has it (PUBREC came), the id is not yet free; `true` when PUBREL was sent on this connection.
    Released(bool),
    Done,
}

#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) delivery: Delivery,
    state: State,
}

/// What to do next for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transmit {
    /// Send the message.
    Publish {
        /// What to send.
        delivery: Delivery,
        /// Its packet id.
        id: PacketId,
        /// It may have been sent before.
        dup: bool,
    },
    /// Send PUBREL (again).
    Pubrel(PacketId),
    /// Nothing to send: the message's life ended in the queue. Its place is free.
    Expired(Delivery),
}

/// What [`Outbound`] holds while there is something to hold; its methods say what these do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Queue {
    pub(crate) slots: VecDeque<Slot>,
    /// Places that stand on disk only, behind all of `slots`.
    pub(crate) cold: Range<u64>,
    pub(crate) in_flight: usize,
    /// Index of the first slot that may need something sent on this connection.
    cursor: usize,
    /// PUBRELs not yet sent on this connection.
    pubrels_due: usize,
}

impl Queue {
    pub(crate) fn from_disk(cold: Range<u64>) -> Self {
        Self { cold, ..Self::default() }
    }

    pub(crate) fn push(&mut self, delivery: Delivery, durable: bool, waits: bool) {
        debug_assert!(delivery.place > 0, "QoS 0 has no place");
        if durable && (!self.cold.is_empty() || self.slots.len() >= HOT_MAX) {
            let start = if self.cold.is_empty() { delivery.place } else { self.cold.start };
            self.cold = start..delivery.place + 1;
            return;
        }
        let state = if waits { State::Written } else { State::Queued(false) };
        self.slots.push_back(Slot { delivery, state });
    }

    pub(crate) fn push_sent(&mut self, delivery: Delivery) {
        self.slots.push_back(Slot { delivery, state: State::Sent });
        self.in_flight += 1;
        self.cursor = self.slots.len();
    }

    pub(crate) fn has_sent_all(&self) -> bool {
        self.cold.is_empty() && self.cursor == self.slots.len()
    }

    pub(crate) fn takes_at_once(&self, place: u64, receive_max: u16) -> bool {
        let oldest = self.slots.front().map_or(place, |first| first.delivery.place);
        let has_room = self.in_flight < usize::from(receive_max) && place - oldest < IDS;
        has_room && self.has_sent_all()
    }

    pub(crate) fn handle_synced(&mut self, upto: u64) {
        let waiting = self.slots.iter_mut().filter(|slot| slot.delivery.place < upto);
        for slot in waiting {
            if slot.state == State::Written {
                slot.state = State::Queued(false);
            }
        }
    }

    pub(crate) fn wants_load(&self) -> Option<(u64, usize)> {
        let room = HOT_MAX.saturating_sub(self.slots.len());
        (!self.cold.is_empty() && room > HOT_MAX / 2).then_some((self.cold.start, room))
    }

    pub(crate) fn load(
        &mut self,
        from: u64,
        loaded: impl IntoIterator<Item = (Delivery, bool)>,
        next: u64,
        dup: bool,
    ) {
        if from != self.cold.start {
            return; // asked for by a body of this session that is no more
        }
        for (delivery, released) in loaded {
            if !self.cold.contains(&delivery.place) {
                continue;
            }
            let state = if released { State::Released(false) } else { State::Queued(dup) };
            self.in_flight += usize::from(released);
            self.pubrels_due += usize::from(released);
            self.slots.push_back(Slot { delivery, state });
        }
        self.cold.start = next.clamp(self.cold.start, self.cold.end);
        if self.cold.is_empty() {
            self.cold = 0..0;
        }
    }

    pub(crate) fn restart(&mut self) {
        self.cursor = 0;
        self.in_flight = 0;
        self.pubrels_due = 0;
        for slot in &mut self.slots {
            match slot.state {
                State::Sent => slot.state = State::Queued(true),
                State::Released(_) => {
                    slot.state = State::Released(false);
                    self.in_flight += 1;
                    self.pubrels_due += 1;
                }
                State::Written | State::Queued(_) | State::Done => {}
            }
        }
    }

    pub(crate) fn poll_transmit(&mut self, receive_max: u16, wall_ms: u64) -> Option<Transmit> {
        while let Some(slot) = self.slots.get_mut(self.cursor) {
            match slot.state {
                State::Written => return self.next_pubrel(), // and no message behind it may overtake it
                State::Queued(dup) => {
                    if slot.delivery.message.expiry_left_s(wall_ms) == Some(0) && !dup {
                        let delivery = slot.delivery.clone();
                        slot.state = State::Done;
                        self.sweep();
                        return Some(Transmit::Expired(delivery));
                    }
                    let oldest = self.slots.front().map_or(0, |first| first.delivery.place);
                    let slot = &mut self.slots[self.cursor];
                    if self.in_flight >= usize::from(receive_max)
                        || slot.delivery.place - oldest >= IDS
                    {
                        return self.next_pubrel();
                    }
                    slot.state = State::Sent;
                    self.in_flight += 1;
                    self.cursor += 1;
                    let delivery = slot.delivery.clone();
                    return Some(Transmit::Publish {
                        id: packet_id_of(delivery.place),
                        delivery,
                        dup,
                    });
                }
                State::Released(false) => {
                    slot.state = State::Released(true);
                    self.pubrels_due -= 1;
                    self.cursor += 1;
                    return Some(Transmit::Pubrel(packet_id_of(slot.delivery.place)));
                }
                State::Sent | State::Released(true) | State::Done => self.cursor += 1,
            }
        }
        None
    }

    /// The next PUBREL, whatever the receive maximum: it is what makes room again (MQTT 5, §4.9).
    fn next_pubrel(&mut self) -> Option<Transmit> {
        if self.pubrels_due == 0 {
            return None;
        }
        let mut rest = self.slots.iter_mut().skip(self.cursor);
        let slot = rest.find(|slot| slot.state == State::Released(false))?;
        slot.state = State::Released(true);
        self.pubrels_due -= 1;
        Some(Transmit::Pubrel(packet_id_of(slot.delivery.place)))
    }

    pub(crate) fn contradicts(&mut self, id: PacketId, qos: QoS) -> bool {
        self.find(id).is_some_and(|slot| slot.state != State::Done && slot.delivery.qos != qos)
    }

    pub(crate) fn awaits_pubrec(&mut self, id: PacketId) -> bool {
        self.find(id).is_some_and(|slot| slot.state == State::Sent)
    }

    pub(crate) fn handle_done(&mut self, id: PacketId, qos: QoS) -> Option<Delivery> {
        let index = self.index_of(id)?;
        let slot = &self.slots[index];
        if slot.state != State::Sent || slot.delivery.qos != qos {
            return None;
        }
        Some(self.finish(index))
    }

    pub(crate) fn handle_pubrec(&mut self, id: PacketId) -> Option<Delivery> {
        let slot = self.find(id)?;
        match slot.state {
            State::Sent if slot.delivery.qos == QoS::ExactlyOnce => {
                slot.state = State::Released(true)
            }
            State::Released(_) => {}
            _ => return None,
        }
        Some(slot.delivery.clone())
    }

    pub(crate) fn handle_pubcomp(&mut self, id: PacketId) -> Option<Delivery> {
        let index = self.index_of(id)?;
        matches!(self.slots[index].state, State::Released(_)).then(|| self.finish(index))
    }

    /// Deliveries in memory, in order; `true` for those sent and not done.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Delivery, bool)> {
        let open = self.slots.iter().filter(|slot| slot.state != State::Done);
        open.map(|slot| {
            let waits = matches!(slot.state, State::Written | State::Queued(_));
            (&slot.delivery, !waits)
        })
    }

    /// Places below `next` on disk are no longer owed.
    pub(crate) fn skip_cold(&mut self, next: u64) {
        self.cold.start = next.clamp(self.cold.start, self.cold.end);
        if self.cold.is_empty() {
            self.cold = 0..0;
        }
    }

    /// Takes out at most `limit` deliveries in memory with places below `upto`. A QoS 2 delivery that may have been sent
    /// stays: its packet id belongs to both sides until the exchange is over.
    pub(crate) fn give_up(&mut self, upto: u64, limit: usize) -> Vec<Delivery> {
        let mut gone = Vec::new();
        for slot in &mut self.slots {
            if slot.delivery.place >= upto || gone.len() == limit {
                break;
            }
            let sent = matches!(slot.state, State::Sent | State::Released(_) | State::Queued(true));
            if slot.state == State::Done || (sent && slot.delivery.qos == QoS::ExactlyOnce) {
                continue;
            }
            self.in_flight -= usize::from(slot.state == State::Sent);
            slot.state = State::Done;
            gone.push(slot.delivery.clone());
        }
        self.slots.retain(|slot| slot.state != State::Done);
        self.cursor = 0;
        gone
    }

    pub(crate) fn drain(&mut self) -> Vec<(Delivery, bool)> {
        self.in_flight = 0;
        self.cursor = 0;
        self.pubrels_due = 0;
        let open = |slot: Slot| match slot.state {
            State::Written | State::Queued(false) => Some((slot.delivery, false)),
            State::Queued(true) | State::Sent | State::Released(_) => Some((slot.delivery, true)),
            State::Done => None,
        };
        std::mem::take(&mut self.slots).into_iter().filter_map(open).collect()
    }

    fn find(&mut self, id: PacketId) -> Option<&mut Slot> {
        let index = self.index_of(id)?;
        self.slots.get_mut(index)
    }

    fn index_of(&self, id: PacketId) -> Option<usize> {
        let oldest = self.slots.front()?.delivery.place;
        let ahead = (u64::from(id.get() - 1) + IDS - id_index(oldest)) % IDS;
        let place = oldest + ahead;
        // Without gaps it stands where its number says.
        if self.slots.get(ahead as usize).is_some_and(|slot| slot.delivery.place == place) {
            return Some(ahead as usize);
        }
        self.slots.binary_search_by_key(&place, |slot| slot.delivery.place).ok()
    }

    fn finish(&mut self, index: usize) -> Delivery {
        let slot = &mut self.slots[index];
        let was_due = slot.state == State::Released(false);
        slot.state = State::Done;
        let delivery = slot.delivery.clone();
        self.in_flight -= 1;
        self.pubrels_due -= usize::from(was_due);
        self.sweep();
        delivery
    }

    /// Forgets what is done at the front.
    fn sweep(&mut self) {
        while self.slots.front().is_some_and(|slot| slot.state == State::Done) {
            self.slots.pop_front();
            self.cursor = self.cursor.saturating_sub(1);
        }
        if self.slots.is_empty() && self.slots.capacity() > 16 {
            self.slots = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use outpost_model::{MessageId, NodeId};

    fn delivery(place: u64, qos: QoS) -> Delivery {
        let message = Message {
            id: MessageId { node: NodeId(1), seq: place },
            topic: "t".into(),
            payload: Bytes::from_static(b"x"),
            qos,
            retain: false,
            properties: None,
            accepted_wall_ms: 0,
            expiry_s: None,
        };
        Delivery {
            place,
            message: Arc::new(message),
            qos,
            retain: false,
            subscription_ids: Vec::new(),
            share: None,
        }
    }

    fn queue(places: Range<u64>, qos: QoS) -> Outbound {
        let mut out = Outbound::default();
        let end = places.end;
        places.for_each(|place| out.push(delivery(place, qos), true, qos == QoS::ExactlyOnce));
        out.handle_synced(end);
        out
    }

    /// Everything that can be sent now, as (place, dup).
    fn sent(out: &mut Outbound, receive_max: u16) -> Vec<(u64, bool)> {
        std::iter::from_fn(|| out.poll_transmit(receive_max, 0))
            .map(|t| match t {
                Transmit::Publish { delivery, dup, .. } => (delivery.place, dup),
                other => panic!("only publishes expected, got {other:?}"),
            })
            .collect()
    }

    #[test]
    fn the_client_sets_how_much_is_in_flight() {
        let mut out = queue(1..6, QoS::AtLeastOnce);
        assert_eq!(sent(&mut out, 2), [(1, false), (2, false)]);
        assert!(
            out.handle_done(packet_id_of(2), QoS::AtLeastOnce).is_some(),
            "acknowledgements may come in any order"
        );
        assert_eq!(sent(&mut out, 2), [(3, false)]);
        assert!(
            out.handle_done(packet_id_of(9), QoS::AtLeastOnce).is_none(),
            "nobody sent this id"
        );
    }

    #[test]
    fn what_was_in_flight_comes_again_first_with_the_same_id_and_dup() {
        let mut out = queue(1..4, QoS::AtLeastOnce);
        assert_eq!(sent(&mut out, 2).len(), 2);
        out.restart();
        assert_eq!(sent(&mut out, 3), [(1, true), (2, true), (3, false)]);
    }

    #[test]
    fn a_qos_2_delivery_is_released_before_it_is_done() {
        let mut out = queue(1..2, QoS::ExactlyOnce);
        sent(&mut out, 1);
        let id = packet_id_of(1);
        assert!(out.handle_done(id, QoS::AtLeastOnce).is_none(), "PUBACK does not fit QoS 2");
        assert!(out.handle_pubcomp(id).is_none(), "not before PUBREC");
        assert_eq!(out.handle_pubrec(id).map(|d| d.place), Some(1));
        out.restart();
        assert_eq!(out.poll_transmit(1, 0), Some(Transmit::Pubrel(id)), "never the message again");
        assert!(out.handle_pubcomp(id).is_some());
        assert!(out.is_empty());
    }

    #[test]
    fn packet_ids_wrap_without_meeting() {
        let mut out = queue(65_530..65_540, QoS::AtLeastOnce);
        let places = sent(&mut out, 100);
        assert_eq!(places.len(), 10);
        for (place, _) in places.iter().rev() {
            assert_eq!(
                out.handle_done(packet_id_of(*place), QoS::AtLeastOnce).map(|d| d.place),
                Some(*place)
            );
        }
    }

    #[test]
    fn a_long_queue_of_a_durable_session_stays_on_disk() {
        let mut out = queue(1..1_001, QoS::AtLeastOnce);
        assert_eq!(out.len_hot(), HOT_MAX);
        assert_eq!(out.wants_load(), None);
        for (place, _) in sent(&mut out, 1_000) {
            out.handle_done(packet_id_of(place), QoS::AtLeastOnce).expect("in flight");
        }
        let (from, room) = out.wants_load().expect("all in memory is done");
        assert_eq!((from, room), (HOT_MAX as u64 + 1, HOT_MAX));
        out.load(
            from,
            (from..from + 10).map(|p| (delivery(p, QoS::AtLeastOnce), false)),
            from + 10,
            false,
        );
        assert_eq!(sent(&mut out, 1_000).len(), 10);
        out.push(delivery(1_001, QoS::AtLeastOnce), true, false);
        assert!(
            sent(&mut out, 1_000).is_empty(),
            "a newer delivery must not overtake those on disk"
        );
    }

    #[test]
    fn a_qos_2_delivery_waits_for_its_row_and_holds_back_what_follows() {
        let mut out = Outbound::default();
        out.push(delivery(1, QoS::ExactlyOnce), true, true);
        out.push(delivery(2, QoS::AtLeastOnce), true, false);
        assert!(sent(&mut out, 10).is_empty());
        out.handle_synced(2);
        assert_eq!(sent(&mut out, 10), [(1, false), (2, false)]);
    }

    #[test]
    fn rows_read_for_an_earlier_body_change_nothing() {
        let mut out = Outbound::from_disk(1..20);
        let late = (10..20).map(|p| (delivery(p, QoS::AtLeastOnce), false));
        out.load(10, late, 20, false);
        assert_eq!(out.wants_load(), Some((1, HOT_MAX)), "places 1 to 9 are still to come");
    }

    #[test]
    fn an_expired_message_is_not_sent() {
        let mut out = Outbound::default();
        let mut short = delivery(1, QoS::AtLeastOnce);
        Arc::make_mut(&mut short.message).expiry_s = Some(1);
        out.push(short, false, false);
        assert!(matches!(out.poll_transmit(10, 2_000), Some(Transmit::Expired(d)) if d.place == 1));
        assert!(out.is_empty());
    }
}
