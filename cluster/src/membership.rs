//! Drives [`Swim`] by the clock and the links' datagrams, and keeps a dial task for each node it learns of.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use outpost_membership::{Member, MemberState, Output, Swim, SwimConfig};
use outpost_model::NodeId;
use tokio::sync::mpsc;

use crate::cluster::Context;
use crate::links::wall_ms;
use crate::stats::bump;

/// Packets and news that may wait for the membership task. Full means that gossip is dropped, which it survives.
pub(crate) const GOSSIP_QUEUE_MAX: usize = 1024;

/// What links tell membership.
#[derive(Debug)]
pub(crate) enum Gossip {
    /// A datagram came from this peer.
    Packet(NodeId, Bytes),
    /// A link to this peer just came up.
    LinkUp(NodeId),
    /// This node stops.
    Leave,
}

/// What membership last said, for whoever asks.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    members: Mutex<BTreeMap<NodeId, Known>>,
    incarnation: Mutex<u64>,
}

#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) member: Member,
    pub(crate) state: MemberState,
    pub(crate) since_wall_ms: u64,
}

impl Roster {
    pub(crate) fn get(&self, id: NodeId) -> Option<Known> {
        self.lock().get(&id).cloned()
    }

    pub(crate) fn all(&self) -> BTreeMap<NodeId, Known> {
        self.lock().clone()
    }

    pub(crate) fn incarnation(&self) -> u64 {
        *self.incarnation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_incarnation(&self, incarnation: u64) {
        *self.incarnation.lock().unwrap_or_else(PoisonError::into_inner) = incarnation;
    }

    /// `true` when the node was not known before.
    fn note(&self, member: Member, state: MemberState) -> bool {
        self.lock().insert(member.id, Known { member, state, since_wall_ms: wall_ms() }).is_none()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Known>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs until this node leaves. After a panic it begins again with a greater incarnation than it had.
pub(crate) async fn run(
    context: Arc<Context>,
    inbox: Arc<tokio::sync::Mutex<mpsc::Receiver<Gossip>>>,
    incarnation: u64,
) {
    let mut inbox = inbox.lock().await;
    let began = Instant::now();
    let now_ms = || began.elapsed().as_millis() as u64;
    let incarnation = incarnation.max(context.roster.incarnation().saturating_add(1));
    let me = Member::new(&context.config.name, context.advertised, incarnation);
    let mut swim = Swim::new(me, SwimConfig::default(), crate::random_u64());
    context.links.lock().keys().for_each(|peer| swim.announce_to(*peer, now_ms()));
    carry_out(&context, &mut swim);
    loop {
        let wake =
            swim.poll_timeout().map(|due| Duration::from_millis(due.saturating_sub(now_ms())));
        tokio::select! {
            biased;
            news = inbox.recv() => match news {
                Some(Gossip::Packet(from, packet)) => {
                    if let Err(error) = swim.handle_data(from, &packet, now_ms()) {
                        bump(&context.counters.bad_gossip);
                        tracing::debug!(%from, %error, "dropped a gossip packet");
                    }
                }
                Some(Gossip::LinkUp(peer)) => swim.announce_to(peer, now_ms()),
                Some(Gossip::Leave) => swim.leave(now_ms()),
                None => return,
            },
            () = tokio::time::sleep(wake.unwrap_or(Duration::from_mins(1))) => swim.handle_timeout(now_ms()),
        }
        carry_out(&context, &mut swim);
    }
}

fn carry_out(context: &Arc<Context>, swim: &mut Swim) {
    while let Some(output) = swim.poll_output() {
        match output {
            Output::Send { to, bytes } => {
                if let Some(link) = to.id.and_then(|id| context.links.get(id)) {
                    // Lost packets are what gossip is made for.
                    let _ = link.shared().connection.send_datagram(bytes);
                }
            }
            Output::Change { member, state } => {
                tracing::info!(node = %member.name, addr = %member.addr, ?state, incarnation = member.incarnation, "membership");
                let id = member.id;
                if context.roster.note(member, state) {
                    context.dial_member(id);
                }
            }
        }
    }
    context.roster.set_incarnation(swim.me().incarnation);
}
