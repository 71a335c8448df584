//! The outbox: what a peer is owed, from its row on disk to the peer's acknowledgement.

use std::sync::Arc;

use outpost_flow::{Class, Level, QuotaLimits};
use outpost_membership::{PeerFrame, Shares};
use outpost_model::{Message, MessageId, NodeId, QoS};
use outpost_store::Space;

use super::peers::{PEER_WINDOW, PEER_WINDOW_BYTES};
use super::water::tell;
use super::{Event, Hold, LogLevel, Shard};
use crate::ledger::Drop;
use crate::record::{self, OutboxRecord};

/// Messages of an outbox kept in memory; the others are read from disk when their turn comes.
const OUTBOX_HOT_MAX: usize = 4_096;

/// A message owed to a peer.
#[derive(Debug)]
pub(super) struct Owed {
    pub(super) seq: u64,
    /// What it counts in the outbox's quota.
    pub(super) bytes: u32,
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
    /// A message for a peer; `waits` as in [`super::pass::Parcel`], for nothing would tell the peer a copy from the first.
    pub(super) fn enqueue_peer(
        &mut self,
        id: NodeId,
        durable: bool,
        shares: Option<Arc<Shares>>,
        waits: bool,
        message: Arc<Message>,
    ) {
        let limits = self.outbox_limits();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        // What need not be kept still may not overtake what is.
        let behind_kept = peer.up && !peer.outbox.is_empty();
        // What a share group is owed goes elsewhere when this peer turns out to have nobody: it must not get lost on the way.
        let kept = durable || behind_kept || shares.is_some();
        if message.qos == QoS::AtMostOnce || !kept {
            if waits && peer.up {
                self.journal.hold(Hold::Fleeting { peer: id, message });
            } else {
                self.send_unkept(id, message, shares);
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
            bytes: message.cost_bytes() as u32,
            message: hot.then(|| Arc::clone(&message)),
            shares: shares.clone().filter(|_| hot),
            durable: false,
        };
        peer.outbox.insert(place, owed);
        let changed = peer.quota.add(&limits, message.cost_bytes() as u64);
        self.full_peers += u32::from(changed == Some(Level::Full));
        self.tell_outbox(id, changed);
        self.journal.put(Space::Outbox, outbox_key(id, seq), outbox_row(&message, shares));
        self.journal.need_body(&message);
        self.journal.hold(Hold::Outbox { peer: id, seq });
    }

    /// What need not be kept goes out as far as there is a link now.
    pub(super) fn send_unkept(
        &mut self,
        id: NodeId,
        message: Arc<Message>,
        shares: Option<Arc<Shares>>,
    ) {
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.up) else {
            // Only subscribers that are connected there wanted it, and they cannot be reached.
            return self.ledger.drop_unqueued(Drop::Offline, 1);
        };
        peer.events_out += 1;
        (self.ledger.owed, self.ledger.delivered) =
            (self.ledger.owed + 1, self.ledger.delivered + 1);
        self.events.push_back(Event::Peer(id, PeerFrame::Event { seq: 0, message, shares }));
    }

    fn outbox_limits(&self) -> QuotaLimits {
        QuotaLimits {
            messages: self.config.outbox_messages_max,
            bytes: self.config.outbox_bytes_max,
        }
    }

    fn tell_outbox(&mut self, id: NodeId, changed: Option<Level>) {
        let (Some(level), Some(peer)) = (changed, self.peers.get(&id)) else { return };
        let text = format!(
            "{} messages, {} bytes wait for peer {id} (limits.outbox_messages_max, outbox_bytes_max)",
            peer.quota.messages(),
            peer.quota.bytes()
        );
        self.water.outbox_marks +=
            tell(level, "outbox", &text, |level, text| self.log(level, text));
    }

    /// So many are not owed to a peer any more.
    fn take_from_outbox(&mut self, id: NodeId, messages: u64, bytes: u64) {
        let limits = self.outbox_limits();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let was_full = peer.quota.is_full();
        let changed = peer.quota.take(&limits, messages, bytes);
        if was_full && !peer.quota.is_full() {
            self.full_peers -= 1;
            self.retry_blocked = true;
        }
        self.tell_outbox(id, changed);
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
            let bytes = owed.as_ref().map_or(0, |owed| owed.bytes);
            let cost = owed.and_then(|owed| owed.message).map_or(0, |m| m.cost_bytes());
            self.budget.recharge(Class::Peers, cost as u64, 0);
            self.take_from_outbox(id, 1, bytes.into());
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
                Ok(message) => Some((Arc::new(message), row.and_then(|row| shares_of(&key, &row)))),
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
        let (mut done, mut bytes) = (Vec::new(), 0);
        // Never what is not yet durable here: the peer cannot have seen it.
        while let Some(owed) = peer.outbox.pop_front_if(|owed| owed.seq <= seq && owed.durable) {
            let cost = owed.message.as_ref().map_or(0, |m| m.cost_bytes());
            self.budget.recharge(Class::Peers, cost as u64, 0);
            if peer.sent > 0 {
                peer.sent -= 1;
                // As it was counted when it left, also when it was read from disk for that.
                peer.sent_bytes = peer.sent_bytes.saturating_sub(owed.bytes as usize);
            }
            bytes += u64::from(owed.bytes);
            done.push(owed.seq);
        }
        if peer.sent == 0 {
            peer.sent_bytes = 0;
        }
        self.take_from_outbox(id, done.len() as u64, bytes);
        for seq in done {
            self.ledger.delivered += 1;
            self.journal.delete(Space::Outbox, outbox_key(id, seq));
            self.journal.release_body(MessageId { node: self.config.node, seq });
        }
        self.pump(id);
        self.pass_barriers(id);
        self.moves.stir();
    }

    /// Nothing is owed to a peer any more, and never will be delivered. How many messages that was.
    pub(super) fn drop_outbox(&mut self, id: NodeId) -> usize {
        let Some(peer) = self.peers.get_mut(&id) else { return 0 };
        let owed = std::mem::take(&mut peer.outbox);
        let bytes: u64 = owed.iter().map(|owed| u64::from(owed.bytes)).sum();
        let hot = owed.iter().filter_map(|owed| owed.message.as_ref());
        let cost: u64 = hot.map(|message| message.cost_bytes() as u64).sum();
        self.budget.recharge(Class::Peers, cost, 0);
        self.take_from_outbox(id, owed.len() as u64, bytes);
        for owed in &owed {
            self.journal.delete(Space::Outbox, outbox_key(id, owed.seq));
            self.journal.release_body(MessageId { node: self.config.node, seq: owed.seq });
        }
        self.ledger.drop(Drop::Drained, owed.len() as u64);
        owed.len()
    }

    /// At start: a row of `Space::Outbox`.
    pub(super) fn recover_outbox_row(&mut self, key: &[u8], row: &[u8]) -> Option<()> {
        let id = NodeId(u64::from_be_bytes(key.get(..8)?.try_into().ok()?));
        let seq = u64::from_be_bytes(key.get(8..16)?.try_into().ok()?);
        let record = record::decode::<OutboxRecord>("outbox", row);
        let bytes = record.ok().and_then(|record| record.bytes).unwrap_or(0);
        let limits = self.outbox_limits();
        let peer = self.peers.entry(id).or_default();
        peer.outbox.push_back(Owed { seq, bytes, message: None, shares: None, durable: true });
        let changed = peer.quota.add(&limits, bytes.into());
        self.full_peers += u32::from(changed == Some(Level::Full));
        self.tell_outbox(id, changed);
        self.ledger.owed += 1;
        self.journal.count_body(MessageId { node: self.config.node, seq });
        Some(())
    }
}

fn outbox_key(peer: NodeId, seq: u64) -> Vec<u8> {
    [peer.0.to_be_bytes(), seq.to_be_bytes()].concat()
}

fn outbox_row(message: &Message, shares: Option<Arc<Shares>>) -> bytes::Bytes {
    let Shares { groups, hops, session } =
        shares.map_or_else(Shares::default, Arc::unwrap_or_clone);
    let session = session.map(|part| part.to_vec().into());
    let bytes = Some(message.cost_bytes() as u32);
    record::encode(&OutboxRecord { groups, hops, bytes, session })
}

/// Rows of earlier releases are the bare message id when there are no groups.
fn shares_of(id: &[u8], row: &[u8]) -> Option<Arc<Shares>> {
    if row == id {
        return None;
    }
    let OutboxRecord { groups, hops, session, .. } = record::decode("outbox", row).ok()?;
    let session = session.map(|part| Vec::from(part).into());
    (!groups.is_empty() || session.is_some()).then(|| Arc::new(Shares { groups, hops, session }))
}
