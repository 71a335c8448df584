//! Barriers: a peer says when it has kept all that it was told, and this node has all that the peer had for it then.

use std::collections::VecDeque;

use outpost_membership::PeerFrame;
use outpost_model::NodeId;

use super::{Hold, Shard};

/// Barriers of a peer that wait for its outbox. Fewer: under load a later one takes the place of an earlier one, and both
/// wait for longer; more: a peer that asks without end takes more memory.
pub const PEER_BARRIERS_MAX: usize = 1_024;

/// What a node and one peer have asked each other. Numbers are of this process; a higher one stands for all below it.
#[derive(Debug, Default)]
pub(super) struct Barriers {
    asked: u64,
    passed: u64,
    /// The peer's, and the last message that was accepted here before each.
    theirs: VecDeque<(u64, u64)>,
}

impl Barriers {
    /// A new link: the peer asks again.
    pub(super) fn begin(&mut self) {
        self.theirs.clear();
    }

    /// Whether the peer has answered this one.
    pub(super) fn has_passed(&self, number: u64) -> bool {
        self.passed >= number
    }

    fn push(&mut self, number: u64, upto: u64) {
        if self.theirs.len() >= PEER_BARRIERS_MAX {
            self.theirs.pop_back();
        }
        self.theirs.push_back((number, upto));
    }
}

impl Shard {
    /// Asks a peer, now or when its link is up. The number of the barrier.
    pub(super) fn ask_barrier(&mut self, id: NodeId) -> u64 {
        let number = self.number_barrier(id);
        self.tell_peer(id, PeerFrame::Barrier { number });
        number
    }

    /// The number of one that the caller asks.
    pub(super) fn number_barrier(&mut self, id: NodeId) -> u64 {
        let Some(peer) = self.peers.get_mut(&id) else { return 0 };
        peer.barriers.asked += 1;
        peer.barriers.asked
    }

    /// A link is up, and all interest was told: what was asked on an earlier one is asked again.
    pub(super) fn ask_again(&mut self, id: NodeId) {
        let Some(peer) = self.peers.get(&id) else { return };
        let number = peer.barriers.asked;
        if !peer.barriers.has_passed(number) {
            self.tell_peer(id, PeerFrame::Barrier { number });
        }
    }

    /// A peer asks.
    pub(super) fn peer_barrier(&mut self, id: NodeId, number: u64) {
        let upto = self.message_seq;
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.barriers.push(number, upto);
        }
        self.pass_barriers(id);
    }

    /// Answers a peer that has everything which waited for it when it asked.
    pub(super) fn pass_barriers(&mut self, id: NodeId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let oldest = peer.outbox.front().map_or(u64::MAX, |owed| owed.seq);
        let mut passed = None;
        while let Some((number, _)) = peer.barriers.theirs.pop_front_if(|(_, upto)| *upto < oldest)
        {
            passed = Some(number);
        }
        if let Some(number) = passed {
            // What it told of its interest is kept with this.
            self.journal.hold(Hold::Peer(id, PeerFrame::BarrierPassed { number }));
        }
    }

    /// A peer answers.
    pub(super) fn barrier_passed(&mut self, id: NodeId, number: u64) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let barriers = &mut peer.barriers;
        barriers.passed = barriers.passed.max(number.min(barriers.asked));
        self.moves.stir();
        self.give_answers();
    }
}
