//! The links to other nodes, between the cluster and the two who speak through them: the shard and the shadow hub.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use outpost_cluster::{BoxFuture, LinkFull, LinkHandle, LinkPath, PeerInfo, PeerSink};
use outpost_membership::PeerFrame;
use outpost_model::NodeId;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::plane::{Command, PlaneHandle};
use crate::shadows::{ShadowCommand, ShadowHandle};

/// Links that came or went and were not yet told. Full: the newest link is closed and tried again.
const CHANGES_MAX: usize = 1_024;

/// The sending sides of all links.
#[derive(Clone, Default)]
pub struct Links(Arc<Inner>);

#[derive(Default)]
struct Inner {
    up: Mutex<Table<LinkHandle>>,
    /// QoS 0 events no link took.
    dropped: AtomicU64,
}

/// Who speaks to peers. Each hears of links in its own time, by its commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// The shard.
    Plane,
    /// The shadow hub.
    Hub,
}

/// The links that are up, by peer.
///
/// Who speaks of a link that is gone does not speak on the next: what was under way on the one is lost, and a peer that got
/// what comes behind it would take that for all there was.
struct Table<L> {
    up: HashMap<NodeId, Up<L>>,
    /// Links so far.
    count: u64,
}

impl<L> Default for Table<L> {
    fn default() -> Self {
        Self { up: HashMap::new(), count: 0 }
    }
}

struct Up<L> {
    link: L,
    number: u64,
    /// Those who have heard of it.
    speakers: Vec<Speaker>,
    /// Turns true when shard and hub were told of the link; frames wait for that.
    known: watch::Receiver<bool>,
}

impl<L> Table<L> {
    /// A link is up. Its number.
    fn begin(&mut self, peer: NodeId, link: L, known: watch::Receiver<bool>) -> u64 {
        self.count += 1;
        let number = self.count;
        self.up.insert(peer, Up { link, number, speakers: Vec::new(), known });
        number
    }

    /// What this one says to a peer from now on is for this link.
    fn heard(&mut self, speaker: Speaker, peer: NodeId, number: u64) {
        if let Some(up) = self.up.get_mut(&peer).filter(|up| up.number == number) {
            up.speakers.push(speaker);
        }
    }

    /// The link to a peer, when it is the one this speaker means.
    fn of(&self, speaker: Speaker, peer: NodeId) -> Option<&L> {
        let up = self.up.get(&peer).filter(|up| up.speakers.contains(&speaker))?;
        Some(&up.link)
    }
}

impl Links {
    /// A speaker takes up this link.
    pub fn heard(&self, speaker: Speaker, peer: NodeId, number: u64) {
        self.0.up.lock().heard(speaker, peer, number);
    }

    /// Sends a frame on the link its speaker means, if that is still the one. A link that cannot take what must not be lost is
    /// closed: the next one begins where the peer says. `false`: it was fleeting (a QoS 0 event) and is dropped.
    pub fn send(&self, speaker: Speaker, peer: NodeId, frame: PeerFrame) -> bool {
        let is_fleeting = matches!(frame, PeerFrame::Event { seq: 0, .. });
        let link = self.0.up.lock().of(speaker, peer).cloned();
        let Some(link) = link else { return !self.lost(is_fleeting) };
        match link.try_send(frame) {
            Ok(()) => {}
            Err(_) if is_fleeting => return !self.lost(true),
            Err(LinkFull::Closed) => {}
            Err(error) => {
                warn!(
                    "closing the link to {}: {error}; it starts again where the peer left off",
                    link.peer().name
                );
                link.close("the queue is full");
            }
        }
        true
    }

    /// What is not fleeting waits on disk or comes again with the next hello.
    fn lost(&self, is_fleeting: bool) -> bool {
        self.0.dropped.fetch_add(u64::from(is_fleeting), Ordering::Relaxed);
        is_fleeting
    }

    /// Closes the link to a peer.
    pub fn close(&self, peer: NodeId, why: &str) {
        if let Some(up) = self.0.up.lock().up.get(&peer) {
            up.link.close(why);
        }
    }

    /// Closes all links; they come back by themselves.
    pub fn close_all(&self, why: &str) {
        self.0.up.lock().up.values().for_each(|up| up.link.close(why));
    }

    /// What the link to a peer is like.
    pub fn path(&self, peer: NodeId) -> Option<LinkPath> {
        self.0.up.lock().up.get(&peer).map(|up| up.link.path())
    }

    /// QoS 0 events that no link took: it was full or had just gone.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

enum Change {
    Up(NodeId, u64, watch::Sender<bool>),
    Down(NodeId),
}

/// Receives from the cluster.
pub struct NodeSink {
    links: Links,
    plane: PlaneHandle,
    shadows: ShadowHandle,
    changes: mpsc::Sender<Change>,
}

impl NodeSink {
    /// A sink, and the task that tells changes in order.
    pub fn start(links: Links, plane: PlaneHandle, shadows: ShadowHandle) -> Arc<Self> {
        let (changes, mut waiting) = mpsc::channel(CHANGES_MAX);
        let (to_plane, to_shadows) = (plane.clone(), shadows.clone());
        tokio::spawn(async move {
            while let Some(change) = waiting.recv().await {
                let (command, shadow, known) = match change {
                    Change::Up(peer, link, known) => (
                        Command::PeerUp(peer, link),
                        ShadowCommand::PeerUp(peer, link),
                        Some(known),
                    ),
                    Change::Down(peer) => {
                        (Command::PeerDown(peer), ShadowCommand::PeerDown(peer), None)
                    }
                };
                // Whoever is down now hears of all links when it is back: they are closed then.
                let _ = to_plane.send(command).await;
                to_shadows.send(shadow).await;
                if let Some(known) = known {
                    let _ = known.send(true);
                }
            }
        });
        Arc::new(Self { links, plane, shadows, changes })
    }
}

impl PeerSink for NodeSink {
    fn peer_up(&self, peer: PeerInfo, link: LinkHandle) {
        info!("link to {} ({}) is up", peer.name, peer.addr);
        let (sender, known) = watch::channel(false);
        let number = self.links.0.up.lock().begin(peer.id, link.clone(), known);
        if self.changes.try_send(Change::Up(peer.id, number, sender)).is_err() {
            link.close("too many links changed at once");
        }
    }

    fn peer_down(&self, peer: NodeId) {
        let name = self.links.0.up.lock().up.remove(&peer).map(|up| up.link.peer().name.clone());
        info!(
            "link to {} is down; what it is owed waits on disk",
            name.unwrap_or_else(|| peer.to_string())
        );
        if self.changes.try_send(Change::Down(peer)).is_err() {
            warn!("the loss of the link to {peer} was not told: {CHANGES_MAX} changes wait");
        }
    }

    fn frame(&self, peer: NodeId, frame: PeerFrame) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Some(mut known) = self.links.0.up.lock().up.get(&peer).map(|up| up.known.clone())
            else {
                return;
            };
            if known.wait_for(|known| *known).await.is_err() {
                return;
            }
            let delivered = match frame {
                PeerFrame::Shadow(bytes) => {
                    self.shadows.send(ShadowCommand::PeerFrame(peer, bytes)).await
                }
                frame => self.plane.send(Command::PeerFrame(peer, frame)).await.is_ok(),
            };
            if !delivered {
                self.links.close(peer, "this node is restarting a part of itself");
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_was_meant_for_one_link_goes_out_on_the_next() {
        let (peer, known) = (NodeId(7), watch::channel(false).1);
        let mut links = Table::default();
        let first = links.begin(peer, "first", known.clone());
        assert_eq!(links.of(Speaker::Plane, peer), None, "the shard has not heard of it");
        links.heard(Speaker::Plane, peer, first);
        assert_eq!(links.of(Speaker::Plane, peer), Some(&"first"));
        assert_eq!(links.of(Speaker::Hub, peer), None, "each in its own time");

        // Replaced, while the shard still hears of the first and pumps.
        links.up.remove(&peer);
        assert_eq!(links.of(Speaker::Plane, peer), None);
        let second = links.begin(peer, "second", known);
        assert_eq!(links.of(Speaker::Plane, peer), None, "it speaks of the first");
        links.heard(Speaker::Hub, peer, first);
        assert_eq!(links.of(Speaker::Hub, peer), None, "late news of the first");
        links.heard(Speaker::Plane, peer, second);
        assert_eq!(links.of(Speaker::Plane, peer), Some(&"second"));
    }
}
