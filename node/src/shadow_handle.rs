//! What the shadow hub is asked, and the way to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use bytestring::ByteString;
use outpost_model::NodeId;
use outpost_shadow::{Entry, Home, HubStats, Reason, ShadowKey, Verb};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

/// The answer to a request by HTTP: status and body.
pub type Reply = (u16, Vec<u8>);

/// A peer whose word about shadows is not listened to for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unheard {
    /// The peer.
    pub peer: NodeId,
    /// What it sent that no honest node sends.
    pub reason: String,
    /// Until it is listened to again.
    pub left_s: u64,
}

/// What the hub is asked.
#[derive(Debug)]
#[allow(missing_docs, reason = "the fields say what they are")]
pub enum ShadowCommand {
    /// From the data plane: a device published a request.
    Request { topic: ByteString, payload: Bytes, client: ByteString, job: u64 },
    /// From HTTP.
    Ask { key: ShadowKey, verb: Verb, payload: Bytes, reply: oneshot::Sender<Reply> },
    /// From HTTP.
    List {
        prefix: String,
        after: Option<ShadowKey>,
        limit: usize,
        reply: oneshot::Sender<Vec<(ShadowKey, u64)>>,
    },
    /// From HTTP: what happened to a shadow.
    History { key: ShadowKey, limit: usize, reply: oneshot::Sender<Vec<Entry>> },
    /// From HTTP: where the values below a path come from.
    Why { key: ShadowKey, path: Vec<String>, limit: usize, reply: oneshot::Sender<Vec<Reason>> },
    /// From people: make this node the home, asking the old one; or not, as it is gone for good.
    Move { key: ShadowKey, gone: bool, reply: oneshot::Sender<Option<Home>> },
    /// From people.
    Stats(oneshot::Sender<HubStats>),
    /// From people: the peers that are not listened to.
    Quarantined(oneshot::Sender<Vec<Unheard>>),
    /// From links; which one.
    PeerUp(NodeId, u64),
    /// From links.
    PeerDown(NodeId),
    /// From people: it is gone for good.
    ForgetPeer(NodeId),
    /// From links.
    PeerFrame(NodeId, Bytes),
    /// From the store.
    Synced,
    /// From the store: it stopped.
    StoreFailed(String),
    /// From the supervisor.
    Stop(oneshot::Sender<()>),
}

/// The way to the hub. Survives its restarts.
#[derive(Debug, Clone, Default)]
pub struct ShadowHandle(
    pub(crate) Arc<Mutex<Option<mpsc::Sender<ShadowCommand>>>>,
    pub(crate) Arc<AtomicUsize>,
    pub(crate) Arc<AtomicBool>,
);

impl ShadowHandle {
    /// What the shadows occupy in memory, roughly, as the hub said last.
    pub fn bytes(&self) -> usize {
        self.1.load(Ordering::Relaxed)
    }

    /// Memory is short: no shadow stays in it that can be read again.
    pub fn memory_is_short(&self, is: bool) {
        self.2.store(is, Ordering::Relaxed);
    }

    /// Sends if there is room.
    pub fn try_send(&self, command: ShadowCommand) -> bool {
        let sender = self.0.lock().clone();
        sender.is_some_and(|sender| sender.try_send(command).is_ok())
    }

    /// Sends, waiting for room. `false`: the hub is down.
    pub async fn send(&self, command: ShadowCommand) -> bool {
        let sender = self.0.lock().clone();
        match sender {
            Some(sender) => sender.send(command).await.is_ok(),
            None => false,
        }
    }

    /// Asks and waits for the answer; nothing when the hub is down.
    pub async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> ShadowCommand,
    ) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        self.send(question(sender)).await.then_some(())?;
        answer.await.ok()
    }
}
