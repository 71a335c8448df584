//! The outbox: what a peer is owed, from its row on disk to the peer's acknowledgement.

use std::sync::Arc;

use outpost_flow::Class;
use outpost_membership::{PeerFrame, Shares};
use outpost_model::{Message, MessageId, NodeId, QoS};
use outpost_store::Space;

use super::peers::{PEER_WINDOW, PEER_WINDOW_BYTES};
use super::{Event, Hold, LogLevel, Shard};
use crate::ledger::Drop;
use crate::record::{self, OutboxRecord};

/// Messages of an outbox kept in memory; the others are read from disk when their turn comes.
const OUTBOX_HOT_MAX: usize = 4_096;

/// A message owed to a peer.
#[derive(Debug)]
pub(super) struct Owed {
    pub(super) seq: u64,
    /// Absent: on disk only.
    pub(super) message: Option<Arc<Message>>,
    /// The share groups it is for; on disk as well.
    pub(super) shares: Option<Arc<Shares>>,
    /// Its row is synced; it may travel.
    pub(super) durable: bool,
}

/// A message owed to a peer, and the share groups it is to serve there.
type OwedBody = (Arc<Message>, Option<Arc<Shares>>);

impl Shard {
    /// A message for a peer.
    pub(super) fn enqueue_peer(
        &mut self,
        id: NodeId,
        durable: bool,
        shares: Option<Arc<Shares>>,
        message: Arc<Message>,
    ) {
        let limit = self.config.outbox_messages_max;
        let Some(peer) = self.peers.get_mut(&id) else { return };
        // What need not be kept still may not overtake what is.
        let behind_kept = peer.up && !peer.outbox.is_empty();
        // What a share group is owed goes elsewhere when this peer turns out to have nobody: it must not get lost on the way.
        let kept = durable || behind_kept || shares.is_some();
        if message.qos == QoS::AtMostOnce || !kept {
            if peer.up {
                peer.events_out += 1;
                (self.ledger.owed, self.ledger.delivered) =
                    (self.ledger.owed + 1, self.ledger.delivered + 1);
                let frame = PeerFrame::Event { seq: 0, message, shares };
                self.events.push_back(Event::Peer(id, frame));
            } else {
                // Only subscribers that are connected there wanted it, and they cannot be reached.
                self.ledger.drop_unqueued(Drop::Offline, 1);
            }
            return;
        }
        self.ledger.owed += 1;
        let seq = message.id.seq;
        let hot = peer.outbox.len() < OUTBOX_HOT_MAX;
        if hot {
            self.budget.recharge(Class::Peers, 0, message.cost_bytes() as u64);
        }
        // Two of one turn may come in another order than they were accepted.
        let place = peer.outbox.partition_point(|owed| owed.seq < seq);
        let owed = Owed {
            seq,
            message: hot.then(|| Arc::clone(&message)),
            shares: shares.clone().filter(|_| hot),
            durable: false,
        };
        peer.outbox.insert(place, owed);
        if !peer.full && peer.outbox.len() >= limit {
            peer.full = true;
            self.full_peers += 1;
            self.log(
                LogLevel::Warn,
                format!(
                    "the outbox for peer {id} is full ({limit} messages); publishers are held back"
                ),
            );
        }
        self.journal.put(Space::Outbox, outbox_key(id, seq), outbox_row(message.id, shares));
        self.journal.need_body(&message);
        self.journal.hold(Hold::Outbox { peer: id, seq });
    }

    pub(super) fn outbox_durable(&mut self, id: NodeId, seq: u64) {
        if let Some(peer) = self.peers.get_mut(&id) {
            if let Ok(index) = peer.outbox.binary_search_by_key(&seq, |owed| owed.seq) {
                peer.outbox[index].durable = true;
            }
            self.pump(id);
        }
    }

    /// Sends what the windows of all peers allow.
    pub(super) fn pump_all(&mut self) {
        let all: Vec<NodeId> = self.peers.keys().copied().collect();
        all.into_iter().for_each(|id| self.pump(id));
    }

    /// Sends what the window allows.
    pub(super) fn pump(&mut self, id: NodeId) {
        while let Some(peer) = self.peers.get_mut(&id) {
            let ready = peer.up
                && peer.greeted
                && peer.sent < PEER_WINDOW
                && peer.sent_bytes < PEER_WINDOW_BYTES;
            let Some(owed) = peer.outbox.get(peer.sent).filter(|owed| ready && owed.durable) else {
                return;
            };
            let (seq, message) = (owed.seq, owed.message.clone());
            let (message, shares) = match message {
                Some(message) => (message, owed.shares.clone()),
                None => match self.read_owed(id, seq) {
                    Ok(Some(found)) => found,
                    Ok(None) => {
                        self.lose_owed(id, seq);
                        continue;
                    }
                    // The disk did not answer: it is still owed, and tried again with the next event or link.
                    Err(error) => {
                        return self.log(
                            LogLevel::Warn,
                            format!("events for peer {id} stay on disk: {error}"),
                        );
                    }
                },
            };
            let Some(peer) = self.peers.get_mut(&id) else { return };
            peer.sent += 1;
            peer.sent_bytes += message.cost_bytes();
            peer.events_out += 1;
            self.events.push_back(Event::Peer(id, PeerFrame::Event { seq, message, shares }));
        }
    }

    /// What cannot be read will never be: it is not owed any more.
    fn lose_owed(&mut self, id: NodeId, seq: u64) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if let Ok(index) = peer.outbox.binary_search_by_key(&seq, |owed| owed.seq) {
            let owed = peer.outbox.remove(index);
            let cost = owed.and_then(|owed| owed.message).map_or(0, |m| m.cost_bytes());
            self.budget.recharge(Class::Peers, cost as u64, 0);
        }
        self.ledger.drop(Drop::Damaged, 1);
        self.journal.delete(Space::Outbox, outbox_key(id, seq));
        self.journal.release_body(MessageId { node: self.config.node, seq });
    }

    fn read_owed(
        &mut self,
        id: NodeId,
        seq: u64,
    ) -> Result<Option<OwedBody>, outpost_store::ReadError> {
        let row = self.journal.store().get(Space::Outbox, &outbox_key(id, seq))?;
        let key = MessageId { node: self.config.node, seq }.to_bytes();
        let body = self.journal.store().get(Space::Messages, &key)?;
        let message = body.ok_or_else(|| "it is not there".to_owned());
        Ok(
            match message.and_then(|body| record::decode_message(&body).map_err(|e| e.to_string()))
            {
                Ok(message) => Some((Arc::new(message), row.and_then(|row| shares_of(&row)))),
                Err(error) => {
                    self.log(
                        LogLevel::Warn,
                        format!("message {seq} for peer {id} cannot be read: {error}"),
                    );
                    None
                }
            },
        )
    }

    pub(super) fn event_acked(&mut self, id: NodeId, seq: u64) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let mut done = Vec::new();
        // Never what is not yet durable here: the peer cannot have seen it.
        while let Some(owed) = peer.outbox.pop_front_if(|owed| owed.seq <= seq && owed.durable) {
            let cost = owed.message.as_ref().map_or(0, |m| m.cost_bytes());
            self.budget.recharge(Class::Peers, cost as u64, 0);
            if peer.sent > 0 {
                peer.sent -= 1;
                peer.sent_bytes = peer.sent_bytes.saturating_sub(cost);
            }
            done.push(owed.seq);
        }
        if peer.sent == 0 {
            peer.sent_bytes = 0;
        }
        if peer.full && peer.outbox.len() <= self.config.outbox_messages_max / 8 * 7 {
            peer.full = false;
            self.full_peers -= 1;
            self.retry_blocked = true;
        }
        for seq in done {
            self.ledger.delivered += 1;
            self.journal.delete(Space::Outbox, outbox_key(id, seq));
            self.journal.release_body(MessageId { node: self.config.node, seq });
        }
        self.pump(id);
    }

    /// At start: a row of `Space::Outbox`.
    pub(super) fn recover_outbox_row(&mut self, key: &[u8]) -> Option<()> {
        let id = NodeId(u64::from_be_bytes(key.get(..8)?.try_into().ok()?));
        let seq = u64::from_be_bytes(key.get(8..16)?.try_into().ok()?);
        let peer = self.peers.entry(id).or_default();
        peer.outbox.push_back(Owed { seq, message: None, shares: None, durable: true });
        self.ledger.owed += 1;
        self.journal.count_body(MessageId { node: self.config.node, seq });
        Some(())
    }
}

fn outbox_key(peer: NodeId, seq: u64) -> Vec<u8> {
    [peer.0.to_be_bytes(), seq.to_be_bytes()].concat()
}

/// The message it is for; with share groups a record of them instead.
fn outbox_row(id: MessageId, shares: Option<Arc<Shares>>) -> bytes::Bytes {
    let Some(shares) = shares else { return id.to_bytes().to_vec().into() };
    record::encode(&OutboxRecord { groups: shares.groups.clone(), hops: shares.hops })
}

fn shares_of(row: &[u8]) -> Option<Arc<Shares>> {
    if row.len() == 16 && MessageId::from_bytes(row).is_some() {
        return None;
    }
    let OutboxRecord { groups, hops } = record::decode("outbox", row).ok()?;
    Some(Arc::new(Shares { groups, hops }))
}
