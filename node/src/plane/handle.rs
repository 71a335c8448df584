//! The way into the data plane from other threads, and the way out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use bytestring::ByteString;
use outpost_actors::ports::{Admission, Method, Origin, Step};
use outpost_actors::shard::{
    ActorInfo, ConnId, LocalPublish, SessionView, Shard, ShardStats, TraceRecord,
};
use outpost_flow::Class;
use outpost_membership::PeerFrame;
use outpost_model::{Message, NodeId, Now, TopicFilter};
use outpost_mqtt::packet::ReasonCode;
use outpost_store::{Lsn, StoreEvent};
use parking_lot::Mutex;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot};

use super::turns::Turns;
use crate::listen::door::Ticket;

/// Commands that may wait for the data thread. Full: whoever sends waits or is refused.
pub const COMMANDS_MAX: usize = 1_024;

/// What other threads ask of the data plane.
#[derive(Debug)]
pub enum Command {
    /// From the store: see [`PlaneHandle::store_event`].
    Synced,
    /// From the store: it stopped.
    StoreFailed(String),
    /// From the node itself: publish; the answer comes when it is durable.
    Publish(LocalPublish, Option<oneshot::Sender<ReasonCode>>),
    /// From a check of credentials.
    Admitted(ConnId, Admission),
    /// A step of an authentication method was done.
    Stepped(ConnId, Box<dyn Method>, Step),
    /// From the hub: a shadow request is settled.
    Complete(u64, ReasonCode),
    /// From the hub: it is a new one and knows of no request.
    HubStarted(oneshot::Sender<()>),
    /// From a link: it is up; which one.
    PeerUp(NodeId, u64),
    /// From a link: it is down.
    PeerDown(NodeId),
    /// From a link.
    PeerFrame(NodeId, PeerFrame),
    /// From the node itself: deliver what matches to this channel.
    Subscribe(TopicFilter, mpsc::Sender<Arc<Message>>),
    /// From a bridge: it is a client, through memory.
    Attach(Origin, DuplexStream, Ticket),
    /// From a bridge: its link is up, or no longer.
    BridgeState(String, bool),
    /// From a bridge: the sessions whose client ids begin so.
    Sessions(String, oneshot::Sender<Vec<SessionView>>),
    /// From people.
    Actors(usize, oneshot::Sender<Vec<ActorInfo>>),
    /// From people.
    Stats(oneshot::Sender<ShardStats>),
    /// From people: a question to the shard, or something to do there. Who waits is told when it is durable.
    With(ShardWork, Option<oneshot::Sender<ReasonCode>>),
    /// From the supervisor: write what is left, close everything, end the thread.
    Stop(oneshot::Sender<()>),
}

/// Work for the shard; it gets the number of the job, 0 when nobody waits for the disk.
#[allow(clippy::type_complexity, reason = "it is the one thing here")]
pub struct ShardWork(pub(super) Box<dyn FnOnce(&mut Shard, Now, u64) + Send>);

impl std::fmt::Debug for ShardWork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ShardWork")
    }
}

/// What the data plane asks of the node. Called on the data thread: nothing here may wait.
pub trait PlanePorts: Send + Sync + 'static {
    /// A frame for a peer; `false` when it was a QoS 0 event and no link took it.
    fn peer(&self, peer: NodeId, frame: PeerFrame) -> bool;
    /// The shard has heard of this link: what it says to the peer from now on is for it.
    fn peer_up(&self, peer: NodeId, link: u64);
    /// A shadow request of a client; `false` when there is no room for it.
    fn shadow(&self, topic: ByteString, payload: Bytes, client: ByteString, job: u64) -> bool;
    /// What others use of the memory budget now.
    fn charges(&self) -> [(Class, u64); 2];
    /// Memory is short: who can do with less should.
    fn memory_is_short(&self, is: bool);
    /// The data thread serves, for the first time or again.
    fn started(&self);
    /// A trace wants this written down; `None`: it has ended.
    fn traced(&self, trace: u64, record: Option<&TraceRecord>) {
        let _ = (trace, record);
    }
    /// A peer broke the protocol: `why`.
    fn peer_failed(&self, peer: NodeId, why: &str);
}

/// The way in. Survives restarts of the data thread.
#[derive(Debug, Clone, Default)]
pub struct PlaneHandle(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    sender: Mutex<Option<mpsc::Sender<Command>>>,
    /// The highest number the store has synced: many events become one command.
    synced: AtomicU64,
    /// Why the store stalls, and how often that has changed.
    stall: Mutex<Option<String>>,
    stall_changes: AtomicU64,
    /// Numbers of shadow requests; one that a data thread left open must not name one of the next thread.
    jobs: AtomicU64,
    drops: Drops,
    turns: Turns,
}

/// What was given up at the edge of the data plane, before or behind the shard's own ledger.
#[derive(Debug, Default)]
pub struct Drops {
    /// Messages the node's own subscriptions (hardware) were too slow for.
    pub local: AtomicU64,
    /// QoS 0 requests the shadow hub had no room for. With QoS 1 and 2 the client is told.
    pub shadow_requests: AtomicU64,
    /// Credentials that had to wait for their check for too long.
    pub late_checks: AtomicU64,
}

/// The data thread is being restarted, or has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the data plane does not take commands now; try again")]
pub struct Unavailable;

impl PlaneHandle {
    /// What was given up, counted since the node started.
    pub fn drops(&self) -> &Drops {
        &self.0.drops
    }

    /// How long the data thread's turns take.
    pub fn turns(&self) -> &Turns {
        &self.0.turns
    }

    pub(super) fn connect(&self, sender: mpsc::Sender<Command>) {
        *self.0.sender.lock() = Some(sender);
    }

    /// The queue of the data thread that runs now, and of no later one.
    pub(super) fn commands(&self) -> Option<mpsc::Sender<Command>> {
        self.0.sender.lock().clone()
    }

    /// A number no shadow request had before.
    pub(super) fn new_job(&self) -> u64 {
        self.0.jobs.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn synced(&self) -> Lsn {
        Lsn(self.0.synced.load(Ordering::Acquire))
    }

    /// Sends a command if there is room.
    ///
    /// # Errors
    /// [`Unavailable`]; nothing was sent then.
    pub fn try_send(&self, command: Command) -> Result<(), Unavailable> {
        let sender = self.commands().ok_or(Unavailable)?;
        sender.try_send(command).map_err(|_| Unavailable)
    }

    /// Sends a command, waiting for room.
    ///
    /// # Errors
    /// [`Unavailable`] when the data thread is down.
    pub async fn send(&self, command: Command) -> Result<(), Unavailable> {
        let sender = self.commands().ok_or(Unavailable)?;
        sender.send(command).await.map_err(|_| Unavailable)
    }

    /// Sends a command from a thread that may wait.
    ///
    /// # Errors
    /// [`Unavailable`] when the data thread is down.
    pub fn send_blocking(&self, command: Command) -> Result<(), Unavailable> {
        let sender = self.commands().ok_or(Unavailable)?;
        sender.blocking_send(command).map_err(|_| Unavailable)
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// [`Unavailable`] when the data thread is down or goes down meanwhile.
    pub async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Unavailable> {
        let (sender, answer) = oneshot::channel();
        self.send(question(sender)).await?;
        answer.await.map_err(|_| Unavailable)
    }

    /// Asks the shard itself.
    ///
    /// # Errors
    /// [`Unavailable`] when the data thread is down or goes down meanwhile.
    pub async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Shard, Now) -> T + Send + 'static,
    ) -> Result<T, Unavailable> {
        let (sender, answer) = oneshot::channel();
        let work = ShardWork(Box::new(move |shard, now, _| drop(sender.send(work(shard, now)))));
        self.send(Command::With(work, None)).await?;
        answer.await.map_err(|_| Unavailable)
    }

    /// Has the shard do something, and waits until it is durable.
    ///
    /// # Errors
    /// [`Unavailable`] when the data thread is down or goes down meanwhile, or the store has stopped; whether it was done
    /// is not known then.
    pub async fn with_durable<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Shard, Now) -> T + Send + 'static,
    ) -> Result<T, Unavailable> {
        let (sender, answer) = oneshot::channel();
        let (durable, is_durable) = oneshot::channel();
        let work = ShardWork(Box::new(move |shard, now, job| {
            drop(sender.send(work(shard, now)));
            shard.when_durable(job);
        }));
        self.send(Command::With(work, Some(durable))).await?;
        match (answer.await, is_durable.await) {
            (Ok(answer), Ok(ReasonCode::Success)) => Ok(answer),
            _ => Err(Unavailable),
        }
    }

    fn set_stall(&self, cause: Option<String>) {
        *self.0.stall.lock() = cause;
        self.0.stall_changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Why the store stalls, when that has changed since `seen` changes.
    pub(super) fn stall_since(&self, seen: u64) -> Option<(u64, Option<String>)> {
        let changes = self.0.stall_changes.load(Ordering::Acquire);
        (changes != seen).then(|| (changes, self.0.stall.lock().clone()))
    }

    /// From the store's thread. A full command queue is no loss: whoever empties it looks at the number as well.
    pub fn store_event(&self, event: StoreEvent) {
        let command = match event {
            StoreEvent::Synced(lsn) => {
                self.0.synced.fetch_max(lsn.0, Ordering::AcqRel);
                Command::Synced
            }
            StoreEvent::Stalled(stall) => {
                self.set_stall(Some(stall.cause));
                Command::Synced
            }
            StoreEvent::Resumed => {
                self.set_stall(None);
                Command::Synced
            }
            StoreEvent::Failed(cause) => Command::StoreFailed(cause),
        };
        let _ = self.try_send(command);
    }
}
