//! Peers that sent what no honest node sends: they are not listened to for a while, and a reason is kept.
//!
//! The link stays, as others use it. The hub behaves as if it had none, so shadows whose home is that peer are decided
//! apart or taken over. When the time is over [`Event::QuarantineOver`] asks for a new link, and both begin with hello.

use outpost_model::{NodeId, Now};

use crate::event::Event;
use crate::hub::{Hub, Output, PeerError};

/// The first quarantine of a peer. Shorter and a peer with a wrong clock costs this node a link and a log line more often;
/// longer and it is missed after it was mended.
pub const QUARANTINE_MS: u64 = 60_000;
/// Each further one is twice as long, up to this. `outpost_shadows_peers_quarantined`
pub const QUARANTINE_MS_MAX: u64 = 3_600_000;

/// Why and until when a peer is not listened to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine {
    /// In the words of the error.
    pub reason: String,
    /// In monotonic milliseconds; over, but remembered, when it has passed.
    pub until_ms: u64,
    length_ms: u64,
}

impl Hub {
    /// Stops listening to a peer whose frame was refused. What it sends until the time is over is not read, and makes
    /// the time no longer.
    pub fn quarantine(&mut self, peer: NodeId, error: &PeerError, now: Now) {
        if self.is_quarantined(peer, now) {
            return;
        }
        let before = self.quarantines.get(&peer).map_or(0, |old| old.length_ms);
        let length_ms = (2 * before).clamp(QUARANTINE_MS, QUARANTINE_MS_MAX);
        let until_ms = now.mono_ms + length_ms;
        let reason = error.to_string();
        self.quarantines.insert(peer, Quarantine { reason: reason.clone(), until_ms, length_ms });
        self.then.push(Output::Event(Event::Quarantined { peer, reason, ms: length_ms }));
        self.peer_down(peer, now);
    }

    /// Peers that are not listened to now, and why.
    pub fn quarantined(&self, now: Now) -> impl Iterator<Item = (NodeId, &Quarantine)> {
        let all = self.quarantines.iter().filter(move |(_, q)| q.until_ms > now.mono_ms);
        all.map(|(peer, quarantine)| (*peer, quarantine))
    }

    /// Is this peer not listened to?
    pub(crate) fn is_quarantined(&self, peer: NodeId, now: Now) -> bool {
        self.quarantines.get(&peer).is_some_and(|q| q.until_ms > now.mono_ms)
    }

    /// When a peer with a link is to be listened to again.
    pub(crate) fn quarantine_ends_ms(&self) -> Option<u64> {
        let ends = |peer| self.quarantines.get(peer).map(|quarantine| quarantine.until_ms);
        self.shut_out.iter().filter_map(ends).min()
    }

    /// Asks for new links to those whose time is over, and forgets those that behaved for as long as the longest.
    pub(crate) fn end_quarantines(&mut self, now: Now) {
        let over = |q: &Quarantine| q.until_ms <= now.mono_ms;
        let peers: Vec<NodeId> =
            self.quarantines.iter().filter(|(_, q)| over(q)).map(|(peer, _)| *peer).collect();
        for peer in peers {
            if self.shut_out.remove(&peer) {
                self.then.push(Output::Event(Event::QuarantineOver { peer }));
            }
        }
        self.quarantines.retain(|_, q| q.until_ms + QUARANTINE_MS_MAX > now.mono_ms);
    }
}
