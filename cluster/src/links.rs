//! The table of links: one per peer, and which of two wins when both sides dialled.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use outpost_model::NodeId;
use tokio::sync::watch;

use crate::sink::LinkHandle;
use crate::stats::PeerCounters;

/// How many different peers are remembered for their counters. More names than this under one CA get no link.
pub(crate) const PEERS_MAX: usize = 1024;

/// What is kept of a peer also while there is no link to it.
pub(crate) struct Peer {
    pub(crate) counters: Arc<PeerCounters>,
    /// Held by the link that is up; a second one waits here until the first has said goodbye.
    pub(crate) seat: Arc<tokio::sync::Mutex<()>>,
    pub(crate) link: Option<LinkHandle>,
    pub(crate) since_wall_ms: u64,
    pub(crate) name: String,
}

pub(crate) struct Links {
    peers: Mutex<BTreeMap<NodeId, Peer>>,
    /// Changes whenever a link comes or goes.
    changed: watch::Sender<u64>,
    max: usize,
    /// What this node has begun to dial and is no link yet.
    under_way: Mutex<BTreeSet<Dialled>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Dialled {
    /// Packets go there.
    Addr(SocketAddr),
    /// This peer has answered.
    Peer(NodeId),
}

/// Takes an attempt out of the list when it is over.
pub(crate) struct UnderWay<'a>(&'a Links, Dialled);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.lock_under_way().remove(&self.1);
    }
}

impl Links {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            peers: Mutex::default(),
            changed: watch::Sender::new(0),
            max,
            under_way: Mutex::default(),
        }
    }

    pub(crate) fn get(&self, peer: NodeId) -> Option<LinkHandle> {
        self.lock().get(&peer)?.link.clone()
    }

    pub(crate) fn is_linked(&self, peer: NodeId) -> bool {
        self.lock().get(&peer).is_some_and(|peer| peer.link.is_some())
    }

    /// Claims an address to dial; `None` when somebody else here dials it already.
    pub(crate) fn dial(&self, addr: SocketAddr) -> Option<UnderWay<'_>> {
        self.begin(Dialled::Addr(addr))
    }

    /// Notes that a peer this node dialled has answered.
    pub(crate) fn answered(&self, peer: NodeId) -> Option<UnderWay<'_>> {
        self.begin(Dialled::Peer(peer))
    }

    /// Whether a connection this node dialled to the peer is about to become the link.
    pub(crate) fn is_answering(&self, peer: NodeId) -> bool {
        self.lock_under_way().contains(&Dialled::Peer(peer))
    }

    fn begin(&self, what: Dialled) -> Option<UnderWay<'_>> {
        self.lock_under_way().insert(what).then(|| UnderWay(self, what))
    }

    fn lock_under_way(&self) -> MutexGuard<'_, BTreeSet<Dialled>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Counters and seat of a peer, unless the table is full.
    pub(crate) fn peer(
        &self,
        id: NodeId,
        name: &str,
    ) -> Option<(Arc<PeerCounters>, Arc<tokio::sync::Mutex<()>>)> {
        let mut peers = self.lock();
        let linked = peers.values().filter(|peer| peer.link.is_some()).count();
        let is_linked = peers.get(&id).is_some_and(|peer| peer.link.is_some());
        let is_new = !peers.contains_key(&id);
        if (linked >= self.max && !is_linked) || (is_new && peers.len() >= PEERS_MAX) {
            return None;
        }
        let peer = peers.entry(id).or_insert_with(|| Peer {
            counters: Arc::default(),
            seat: Arc::default(),
            link: None,
            since_wall_ms: wall_ms(),
            name: name.to_owned(),
        });
        Some((Arc::clone(&peer.counters), Arc::clone(&peer.seat)))
    }

    pub(crate) fn set(&self, id: NodeId, link: Option<LinkHandle>) {
        if let Some(peer) = self.lock().get_mut(&id) {
            peer.link = link;
            peer.since_wall_ms = wall_ms();
        }
        self.changed.send_modify(|count| *count += 1);
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a new connection takes the place of the one there is. Both sides come to the same answer: of two that were
/// dialled from different ends the one of the smaller id stays; of two from the same end the later, because its dialler
/// gave up the earlier.
pub(crate) fn new_one_wins(
    me: NodeId,
    peer: NodeId,
    old_dialled: Option<bool>,
    new_dialled: bool,
) -> bool {
    match old_dialled {
        Some(old) if old != new_dialled => new_dialled == (me < peer),
        _ => true,
    }
}

pub(crate) fn wall_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_keep_the_connection_the_smaller_id_dialled() {
        let (low, high) = (NodeId(1), NodeId(2));
        assert!(new_one_wins(low, high, Some(false), true));
        assert!(!new_one_wins(low, high, Some(true), false));
        assert!(new_one_wins(high, low, Some(true), false));
        assert!(!new_one_wins(high, low, Some(false), true));
        assert!(new_one_wins(high, low, None, true));
        assert!(new_one_wins(high, low, Some(true), true));
    }
}
