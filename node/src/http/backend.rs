//! What the HTTP API asks of the node. The assembly implements it; tests put a small one in memory in its place.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use outpost_actors::shard::{ClientFilter, Redirect, TraceTarget};
use outpost_model::{MessageProperties, NodeId, QoS, TopicFilter};
use outpost_shadow::{Entry, Reason};
use serde::{Deserialize, Serialize};

use crate::bridge::Shown;

use super::ledger::LedgerPage;

/// A future that may be sent between threads: handlers run on the HTTP thread, the work elsewhere.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The node, as people and scripts see it.
///
/// Every future must end by itself: the API puts [`super::REQUEST_TIMEOUT`] on each and answers 504 when one does not.
pub trait Backend: Send + Sync + 'static {
    /// Every actor of both weights, parents before their children.
    fn actors(&self) -> BoxFuture<'_, Vec<ActorInfo>>;

    /// What this node knows of its cluster; `None` when it is on its own.
    fn cluster(&self) -> BoxFuture<'_, Option<serde_json::Value>>;

    /// The bridges to other brokers.
    fn bridges(&self) -> BoxFuture<'_, Vec<Shown>>;

    /// One shadow request, decided as if it had come by MQTT.
    fn shadow(&self, request: ShadowRequest) -> BoxFuture<'_, ShadowReply>;

    /// Makes this node the home of a shadow: with the old home's consent, or, when that one is `gone` for good, without.
    /// Who is at home now (a consent may still be on its way), and whether surely; `None` when nobody is.
    fn shadow_move(
        &self,
        shadow: ShadowKey,
        gone: bool,
    ) -> BoxFuture<'_, Result<Option<(NodeId, bool)>, ShadowsDown>>;

    /// Up to `limit` shadows whose thing begins with `prefix` and which come after `after`, ordered by thing, then name
    /// (the classic, unnamed one first), with their versions.
    fn shadow_list(
        &self,
        prefix: String,
        after: Option<ShadowKey>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<(ShadowKey, u64)>, ShadowsDown>>;

    /// What happened to a shadow, the newest first.
    fn shadow_history(
        &self,
        shadow: ShadowKey,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Entry>, ShadowsDown>>;

    /// Where the values at and below a path come from.
    fn shadow_why(
        &self,
        shadow: ShadowKey,
        path: Vec<String>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Reason>, ShadowsDown>>;

    /// Publishes; resolves once the message is as durable as a PUBACK promises.
    fn publish(&self, message: PublishRequest) -> BoxFuture<'_, Result<(), PublishError>>;

    /// Counters and gauges, nested by subject; [`super::metrics`] says how names become metrics.
    fn stats(&self) -> BoxFuture<'_, serde_json::Value>;

    /// The account of messages; nothing while the data plane is being restarted.
    fn ledger(&self) -> BoxFuture<'_, Option<LedgerPage>>;

    /// What administrators ask about clients, their queues, retained messages; and what they do to them.
    fn admin(&self, request: AdminRequest) -> BoxFuture<'_, Result<serde_json::Value, AdminError>>;

    /// Takes up what has changed in files while the node runs: the certificates of listeners. What became of each.
    fn reload(&self) -> BoxFuture<'_, serde_json::Value>;

    /// Whether the node does its work. Must not wait.
    fn health(&self) -> Health;
}

/// What an administrator asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminRequest {
    /// Some clients.
    Clients(ClientFilter),
    /// One client.
    Client(String),
    /// Cut a client off; with `true` end its session too.
    Kick(String, bool),
    /// Whether clients are sent elsewhere.
    Redirection,
    /// Send all clients there from now on; `None`: serve them again.
    Redirect(Option<Redirect>),
    /// Send one client there.
    Move(String, Redirect),
    /// A client's queue in figures.
    Queue(String),
    /// Deliveries of a client's queue behind a place.
    QueueMessages(String, u64),
    /// Give up deliveries of a client's queue with places below this; 0: all there are.
    QueueDrain(String, u64),
    /// Retained messages: filter, topic to go on after, limit.
    Retained(TopicFilter, String, usize),
    /// The retained message of a topic, with its payload.
    RetainedMessage(String),
    /// Clear the retained message of a topic.
    RetainedRemove(String),
    /// A node, by its name, is gone for good: nothing waits for it any more.
    ForgetPeer(String),
    /// What was decided about a client id or topic; about a client, on this topic.
    Why(String, Option<String>),
    /// The traces, running and kept.
    Traces,
    /// Start a trace.
    TraceStart {
        /// Of what.
        target: TraceTarget,
        /// For at most so long.
        for_s: u64,
        /// With payloads.
        payload: bool,
    },
    /// End a trace.
    TraceStop(u64),
    /// Lines of a trace from a byte on.
    TraceRead(u64, u64),
}

/// Why an administrator's request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// What it is about is not there.
    #[error("{0}")]
    NotFound(String),
    /// It cannot be done so.
    #[error("{0}")]
    Refused(String),
    /// The data plane or the store is down.
    #[error("{0}")]
    Unavailable(String),
}

/// Nobody knows of shadows at this moment, which is another answer than "there is none".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shadow service is being restarted; try again")]
pub struct ShadowsDown;

/// A thing and the name of one of its shadows; `None` is the classic one.
pub type ShadowKey = (String, Option<String>);

/// One actor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActorInfo {
    /// Unique on this node while it runs.
    pub id: String,
    /// Who supervises it; nobody for the root.
    pub parent: Option<String>,
    /// `ractor` or `cell`.
    pub kind: String,
    /// `shard`, `session`, `channel`, `subscriber`, …
    pub role: String,
    /// What people call it: the client id, the topic.
    pub name: String,
    /// `running`, `restarting`, `quarantined`, `hibernated`, …
    pub state: String,
    /// Messages waiting.
    pub mailbox: usize,
    /// Room for messages; 0 when the bound is elsewhere (a permit, a channel).
    pub mailbox_max: usize,
    /// How often it was restarted.
    pub restarts: u64,
    /// Why it last failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What is special about it, in a few words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What is asked of a shadow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShadowVerb {
    /// Read it.
    Get,
    /// Merge a document into it.
    Update,
    /// Take it away.
    Delete,
}

/// A request about one shadow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShadowRequest {
    /// The thing.
    pub thing: String,
    /// The shadow's name; `None` is the classic one.
    pub name: Option<String>,
    /// What to do.
    pub verb: ShadowVerb,
    /// The document of an update.
    pub payload: Bytes,
}

/// The answer: what would stand on the `accepted` or `rejected` topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShadowReply {
    /// 200, or the `code` of the error.
    pub status: u16,
    /// JSON.
    pub body: Bytes,
}

/// A message to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishRequest {
    /// A topic name, checked already.
    pub topic: String,
    /// The bytes.
    pub payload: Bytes,
    /// What its receivers get at most.
    pub qos: QoS,
    /// Keep it for later subscribers.
    pub retain: bool,
    /// Seconds it is worth delivering; `None`: for ever.
    pub expiry_s: Option<u32>,
    /// The properties of MQTT 5, checked already.
    pub properties: Option<Box<MessageProperties>>,
}

/// Why a message was not published. Nothing of it was sent or kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// A queue or the disk cannot keep up; try again.
    #[error("the node is busy: {0}; nothing was published, try again")]
    Busy(String),
    /// It will not work by trying again.
    #[error("refused: {0}; nothing was published")]
    Refused(String),
    /// The store stopped.
    #[error("the node cannot make messages durable: {0}; nothing was acknowledged")]
    Failed(String),
}

/// Whether the node does its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `ok`, or what is wrong in one word: `disk_full`, `store_stalled`, `store_failed`, `starting`, `stopping`.
    pub status: String,
    /// The node's name.
    pub node: String,
    /// Version of the program.
    pub version: String,
    /// Which configuration is in force.
    pub config_sha256: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// How the store is: `ok`, or its error.
    pub store: String,
}

impl Health {
    /// Whether devices are served as promised.
    pub fn is_ok(&self) -> bool {
        self.status == "ok"
    }
}
