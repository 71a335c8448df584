//! A shard: the cells of one data thread, the topics they meet at, and what they owe the disk. No IO, no clock.
//!
//! ```text
//!  bytes ─receive─▶ connection ─▶ session cell ─▶ channel cell ─▶ subscriber cells ─▶ session cells ─▶ out buffers
//!                                     │                └──▶ peers (subscribers on other nodes)
//!                                     └─▶ journal (one batch a turn) ─▶ store … synced ─▶ acknowledgements
//! ```
//! The thread that drives it (`node`, or the simulator) hands in bytes, time and what the disk says, calls
//! [`Shard::end_turn`], and then carries out what [`Shard::poll_event`] asks for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use hashbrown::HashMap;
use outpost_flow::{AdmissionLimits, Budget, Wheel};
use outpost_membership::PeerFrame;
use outpost_model::{Hlc, HlcClock, Message, MessageId, NodeId, Now, QoS, TopicTable};
use outpost_mqtt::packet::{Connack, Connect, Packet, PacketId, Publish, ReasonCode};
use outpost_mqtt::session::{Effect, End};
use outpost_mqtt::window::Delivery;
use outpost_store::{Lsn, Store};
use slab::Slab;

use crate::cell::{CellId, Cells};
use crate::ledger::Ledger;
use crate::ports::{Credentials, Gate, Method, Origin};
use crate::record::PeerRecord;

mod arriving;
mod authenticate;
mod barriers;
mod blocked;
mod bridges;
mod channel;
mod clients;
mod config;
mod connect;
mod connection;
mod decisions;
mod directory;
mod ending;
mod express;
mod express_acked;
mod feed_way;
mod granted;
mod hold;
mod inspect;
mod journal;
mod leaving;
mod memory;
mod moving;
mod names;
mod outbox;
mod overflow;
mod pass;
mod peers;
mod queue;
mod rare;
mod recover;
mod redirect;
mod retained;
mod retained_due;
mod retained_expiry;
mod retained_feed;
mod retained_list;
mod revive;
mod rights;
mod route;
mod run;
mod sessions;
mod shares;
mod slot;
mod stall;
mod state;
mod subscribe;
mod subscriptions;
mod sys;
mod trace;
mod traffic;
mod twins;
mod waiting;
mod water;
mod why;
mod wills;

pub use barriers::PEER_BARRIERS_MAX;
pub use bridges::{BRIDGE_STATES_MAX, SessionView};
pub use clients::{
    CLIENTS_PAGE_MAX, ClientDetail, ClientFilter, ClientInfo, ClientPage, DECISIONS_SHOWN_MAX,
    Kicked, LinkInfo, SUBSCRIPTIONS_SHOWN_MAX, SubscriptionInfo,
};
pub use config::ShardConfig;
pub use connection::Received;
pub use decisions::{DECISIONS_MAX, Decision, DecisionKind};
pub use feed_way::{FEED_WAY_BYTES_MAX, FEED_WAY_MAX};
pub use inspect::{ActorInfo, ShardStats};
pub use peers::{Forgotten, GONE_PEERS_MAX, PEER_EARLY_MAX, STALLED_BYTES_MAX};
pub use queue::{DRAIN_AT_ONCE_MAX, Drained, QUEUE_PAGE_MAX, QueueInfo, QueuePage, QueuedMessage};
pub use redirect::{MOVED_AT_ONCE_MAX, REFERENCE_BYTES_MAX, Redirect, RedirectInfo};
pub use retained_list::{RETAINED_PAGE_MAX, RetainedInfo, RetainedPage};
pub use route::LocalPublish;
pub use shares::PASSING_MAX;
pub use state::STATE_BYTES_MAX;
pub use trace::{TRACE_MS_MAX, TRACES_MAX, TraceInfo, TraceRecord, TraceTarget};
pub use traffic::{ListenerStats, Messages, Totals};
pub use twins::TWIN_LINKS_MAX;
pub use waiting::{TAKEOVER_ANSWERS_MAX, TAKEOVER_WAIT_MS_MAX};
pub use why::{Receiver, TopicWhy};

use bridges::Bridges;
use channel::{Channel, ChannelEntry, Owner, Subscriber};
use connection::Connection;
use hold::{Hold, Remains, Ticket};
use journal::Journal;
use pass::LastFrame;
use peers::Peer;
use retained::Retained;
use slot::SessionSlot;
use subscribe::Group;

/// Longest client id, topic filter and retained topic, bytes: together with a prefix they are keys of the store.
pub const NAME_BYTES_MAX: usize = 65_000;

/// Batches one turn may hand to the store: what a commit sets free may have something to write again. Lower: it waits
/// for the next turn; higher: one turn can take longer.
const COMMITS_PER_TURN_MAX: usize = 16;

/// Ticks of the timers that pace publishers. Coarser: they are read in larger clumps; finer: more turns.
const PACE_TICK_MS: u64 = 10;

/// A connection of a shard. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    index: u32,
    generation: u32,
}

impl ConnId {
    /// Its place: small numbers, used again when a connection is gone.
    pub fn index(self) -> u32 {
        self.index
    }
}

/// What the driver has to do.
#[derive(Debug)]
pub enum Event {
    /// Bytes wait in the out buffer of this connection.
    Flush(ConnId),
    /// Close it once its out buffer is written.
    Close(ConnId),
    /// Read from it again.
    Resume(ConnId),
    /// Check credentials on another thread, then [`Shard::admitted`].
    Authenticate {
        /// Who waits.
        conn: ConnId,
        /// Where it comes from.
        origin: Origin,
        /// Its client id.
        client_id: ByteString,
        /// What it said.
        credentials: Credentials,
    },
    /// Do a step of an authentication method on another thread, then [`Shard::stepped`].
    Step {
        /// Who waits.
        conn: ConnId,
        /// The exchange.
        method: Box<dyn Method>,
        /// What the client sent for it.
        data: Option<Bytes>,
    },
    /// Send to a peer.
    Peer(NodeId, PeerFrame),
    /// Somebody published on a shadow's topic; answer with [`Shard::complete`] when `job` is not 0.
    Shadow {
        /// Topic of the request.
        topic: ByteString,
        /// The request.
        payload: Bytes,
        /// The client that published it; empty for the node itself.
        client: ByteString,
        /// Names the answer that is waited for.
        job: u64,
    },
    /// A message [`Shard::publish`]ed with this job number is durable, or was refused.
    Published(u64, ReasonCode),
    /// A message for one of the node's own subscriptions.
    Local(u32, Arc<Message>),
    /// Something a trace of this number wants written down.
    Traced(u64, Box<TraceRecord>),
    /// The trace of this number has ended.
    TraceEnded(u64),
    /// Something for the log: what, about whom.
    Log(LogLevel, String),
}

/// How loud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Ordinary life.
    Info,
    /// Worth waking someone for.
    Warn,
}

/// Before each turn of a cell the probe is shown its role and name, and may panic in its place. For tests only.
pub type Probe = Arc<dyn Fn(&str, &str) + Send + Sync>;

/// A message from one cell, or the shard, to a cell.
#[derive(Debug)]
enum CellMsg {
    /// To a session: its client connected.
    Connect(Box<Connect>, Box<Connack>),
    /// To a session: its client is gone.
    LinkLost,
    /// To a session: from its client.
    Packet(Packet),
    /// To a session: a message for its client; `durable` when its row is written, `waits` for [`CellMsg::RowsSynced`].
    Deliver { delivery: Delivery, durable: bool, waits: bool },
    /// To a session: what it published is settled.
    Accepted { id: PacketId, qos: QoS, reason: ReasonCode, same_link: bool },
    /// To a session: this delivery could not be written; it ends so.
    Skip(PacketId, QoS, End),
    /// To a session: answer to SUBSCRIBE or (`true`) UNSUBSCRIBE.
    Subscribed(PacketId, Vec<ReasonCode>, bool),
    /// To a session: deliveries from disk.
    Loaded { from: u64, rows: Vec<(Delivery, bool)>, next: u64, dup: bool },
    /// To a session: what its deliveries below this place waited for is durable.
    RowsSynced(u64),
}

/// The state machines.
#[derive(Debug)]
enum Cell {
    Session(Box<outpost_mqtt::session::Session>),
    Channel(Channel),
    Subscriber(Subscriber),
}

/// Who stands in the topic table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Route {
    Subscriber(CellId),
    Group(u32),
    Local(u32),
}

/// One shard. See the module.
pub struct Shard {
    config: ShardConfig,
    gate: Arc<dyn Gate>,
    probe: Option<Probe>,
    now: Now,
    cells: Cells<Cell, CellMsg, Owner>,
    fx: Vec<Effect>,
    /// A session's turn is being carried out.
    in_turn: bool,
    connections: Slab<Connection>,
    connection_generation: u32,
    connection_wheel: Wheel,
    names: names::Names,
    sessions: Slab<SessionSlot>,
    session_wheel: Wheel,
    session_number: u64,
    cell_wheel: Wheel,
    pace_wheel: Wheel,
    budget: Budget,
    table: TopicTable<Route>,
    table_epoch: u64,
    channels: HashMap<ByteString, ChannelEntry>,
    groups: BTreeMap<u32, Group>,
    group_ids: HashMap<(String, String), u32>,
    group_next: u32,
    retained: Retained,
    peers: BTreeMap<NodeId, Peer>,
    /// Those that were forgotten by hand.
    gone: BTreeMap<NodeId, PeerRecord>,
    /// What peers are told, counted from the moment there is one.
    interest: Option<outpost_membership::interest::LocalInterest>,
    /// Filters of the node itself; they stay.
    local_filters: Vec<Arc<str>>,
    journal: Journal<Hold>,
    last_frame: LastFrame,
    granted: granted::Granted,
    tickets: Vec<(Ticket, MessageId, ReasonCode)>,
    shadow_jobs: BTreeMap<u64, Ticket>,
    shadow_job: u64,
    crashed_messages: Vec<MessageId>,
    retained_due: retained_due::RetainedDues,
    cut_off: BTreeSet<ConnId>,
    link_count: u64,
    /// When a feed goes on though its peer has confirmed nothing.
    feed_due_ms: Option<u64>,
    full_sessions: u32,
    full_peers: u32,
    blocked: Vec<ConnId>,
    retry_blocked: bool,
    water: water::Water,
    expiry: water::Expiry,
    bridges: Bridges,
    twins: twins::Twins,
    clock: HlcClock,
    message_seq: u64,
    message_seq_reserved: u64,
    events: VecDeque<Event>,
    /// Connections to be written to, each once: nearly all there is to do, and a word where an event has many.
    flushes: VecDeque<ConnId>,
    ledger: Ledger,
    totals: Totals,
    listeners: Vec<ListenerStats>,
    sys: sys::Sys,
    decisions: decisions::Decisions,
    traces: trace::Traces,
    redirecting: Option<redirect::Redirecting>,
    state: state::State,
    directory: waiting::Directory,
    moves: moving::Moves,
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard")
            .field("sessions", &self.sessions.len())
            .field("ledger", &self.ledger)
            .finish_non_exhaustive()
    }
}

impl Shard {
    /// A shard on a store, with everything the store remembers.
    ///
    /// # Errors
    /// [`outpost_store::ReadError`] when the store cannot be read. Rows that cannot be decoded are left out and logged.
    pub fn open(
        config: ShardConfig,
        gate: Arc<dyn Gate>,
        store: Arc<dyn Store>,
        now: Now,
    ) -> Result<Self, outpost_store::ReadError> {
        let lazy = !config.durable;
        let sys = sys::Sys::new(now.mono_ms, config.sys_interval_ms);
        let mut shard = Self {
            budget: Budget::new(config.memory_bytes_max),
            cells: Cells::new(config.restart.clone()),
            config,
            gate,
            probe: None,
            now,
            fx: Vec::new(),
            in_turn: false,
            connections: Slab::new(),
            connection_generation: 0,
            connection_wheel: Wheel::new(100, now.mono_ms),
            names: names::Names::default(),
            sessions: Slab::new(),
            session_wheel: Wheel::new(100, now.mono_ms),
            session_number: 0,
            cell_wheel: Wheel::new(50, now.mono_ms),
            pace_wheel: Wheel::new(PACE_TICK_MS, now.mono_ms),
            table: TopicTable::default(),
            table_epoch: 0,
            channels: HashMap::new(),
            groups: BTreeMap::new(),
            group_ids: HashMap::new(),
            group_next: 0,
            retained: Retained::default(),
            peers: BTreeMap::new(),
            gone: BTreeMap::new(),
            interest: None,
            local_filters: Vec::new(),
            journal: Journal::new(store, lazy),
            last_frame: LastFrame::default(),
            granted: granted::Granted::default(),
            tickets: Vec::new(),
            shadow_jobs: BTreeMap::new(),
            shadow_job: 0,
            crashed_messages: Vec::new(),
            retained_due: retained_due::RetainedDues::default(),
            cut_off: BTreeSet::new(),
            link_count: 0,
            feed_due_ms: None,
            full_sessions: 0,
            full_peers: 0,
            blocked: Vec::new(),
            retry_blocked: false,
            water: water::Water::default(),
            expiry: water::Expiry::default(),
            bridges: Bridges::default(),
            twins: twins::Twins::default(),
            clock: HlcClock::new(Hlc::default()),
            message_seq: 0,
            message_seq_reserved: 0,
            events: VecDeque::new(),
            flushes: VecDeque::new(),
            ledger: Ledger::default(),
            totals: Totals::default(),
            listeners: Vec::new(),
            sys,
            decisions: decisions::Decisions::default(),
            traces: trace::Traces::default(),
            redirecting: None,
            state: state::State::default(),
            directory: waiting::Directory::default(),
            moves: moving::Moves::default(),
        };
        shard.recover()?;
        if let Some(to) = shard.config.redirect.clone() {
            shard.redirect(Some(to), now);
        }
        Ok(shard)
    }

    /// Installs a probe; see [`Probe`].
    pub fn set_probe(&mut self, probe: Probe) {
        self.probe = Some(probe);
    }

    /// Publishes a message of the node itself (HTTP, hardware, shadows). With a `job` other than 0 an
    /// [`Event::Published`] tells when it is durable.
    pub fn publish(&mut self, local: LocalPublish, job: u64, now: Now) {
        self.now = now;
        let ticket = if job == 0 { Ticket::None } else { Ticket::Node(job) };
        let publish = Publish {
            dup: false,
            qos: local.qos,
            retain: local.retain,
            topic: local.topic,
            packet_id: None,
            payload: local.payload,
            topic_alias: None,
            expiry_s: local.expiry_s,
            subscription_ids: Vec::new(),
            properties: local.properties,
        };
        let reach = if local.here_only { route::Reach::Here } else { route::Reach::Everyone };
        if let Err((_, reason)) = self.route_within(publish, None, ticket, reach) {
            self.ledger.refused += 1;
            self.settle_ticket(ticket, reason);
        }
        self.settle();
    }

    /// The store has synced up to `lsn`.
    pub fn synced(&mut self, lsn: Lsn, now: Now) {
        self.now = now;
        let free = self.journal.handle_synced(lsn);
        self.release(free);
        self.settle();
    }

    /// Ends the turn: what was written in it goes to the store as one batch.
    pub fn end_turn(&mut self, now: Now) {
        self.now = now;
        self.settle();
        self.end_retained_turn();
        self.end_state_turn();
        self.weigh();
        if !self.journal.is_idle() || self.retry_blocked || !self.is_settled() {
            self.commit();
        }
        self.last_frame.forget();
    }

    fn commit(&mut self) {
        for _ in 0..COMMITS_PER_TURN_MAX {
            let was_busy = self.journal.is_busy();
            let free = self.journal.commit();
            self.release(free);
            self.settle();
            if was_busy && !self.journal.is_busy() {
                self.resume_all();
            }
            if std::mem::take(&mut self.retry_blocked) {
                self.retry_stalled_events();
                self.retry_blocked_publishers();
                self.settle();
            }
            if !self.journal.has_work() {
                break;
            }
        }
    }

    /// Timers: keep-alive, expiry, wills, restarts.
    pub fn tick(&mut self, now: Now) {
        self.now = now;
        let mut due = Vec::new();
        self.connection_wheel.poll_expired(now.mono_ms, &mut due);
        for index in due.drain(..) {
            self.connection_timeout(index);
        }
        self.session_wheel.poll_expired(now.mono_ms, &mut due);
        for index in due.drain(..) {
            self.session_timeout(index);
            self.run_cells(); // a mailbox is not made for the wills of thousands
        }
        self.cell_wheel.poll_expired(now.mono_ms, &mut due);
        for index in due.drain(..) {
            self.cell_timeout(index);
        }
        self.pace_wheel.poll_expired(now.mono_ms, &mut due);
        for index in due {
            self.pace_timeout(index);
        }
        self.sys_timeout();
        self.trace_timeout();
        self.redirect_timeout();
        self.review_timeout();
        self.expire_full();
        self.sweep_bodies();
        self.feed_timeout();
        self.expire_retained();
        self.settle();
    }

    /// When [`Shard::tick`] has something to do, milliseconds of the monotonic clock.
    pub fn next_tick_ms(&self) -> Option<u64> {
        // One after the other: an iterator over all of them costs each turn twice as much.
        let mut soonest_ms = u64::MAX;
        let mut look_at = |due_ms: Option<u64>| {
            soonest_ms = soonest_ms.min(due_ms.unwrap_or(u64::MAX));
        };
        look_at(self.connection_wheel.poll_timeout());
        look_at(self.session_wheel.poll_timeout());
        look_at(self.cell_wheel.poll_timeout());
        look_at(self.pace_wheel.poll_timeout());
        look_at(self.sys.due_ms());
        look_at(self.traces.due_ms());
        look_at(self.redirect_due_ms());
        look_at(self.review_due_ms());
        look_at(self.expire_due_ms());
        look_at(self.water.sweep_due_ms());
        look_at(self.feed_due_ms);
        look_at(self.retained_expiry_due_ms());
        (soonest_ms < u64::MAX).then_some(soonest_ms)
    }

    /// What the driver has to do next; what is to be written comes first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.poll_flush().map(Event::Flush).or_else(|| self.events.pop_front())
    }

    /// The same, as long as it is a connection to be written to.
    pub fn poll_flush(&mut self) -> Option<ConnId> {
        self.flushes.pop_front()
    }

    /// The first of them, at most so many.
    pub fn poll_flushes(&mut self, at_most: usize, into: &mut Vec<ConnId>) {
        let count = at_most.min(self.flushes.len());
        into.extend(self.flushes.drain(..count));
    }

    /// How many connections are to be written to.
    pub fn flushes_waiting(&self) -> usize {
        self.flushes.len()
    }

    /// The shadow hub has settled a request that came as [`Event::Shadow`].
    pub fn complete(&mut self, job: u64, reason: ReasonCode, now: Now) {
        self.now = now;
        if let Some(ticket) = self.shadow_jobs.remove(&job) {
            if reason.is_error() {
                self.answer(ticket, reason); // a refusal promises nothing about the disk
            } else if self.journal.is_settled() {
                self.settle_ticket(ticket, reason);
            } else {
                self.hold_ticket(ticket, reason);
            }
            self.settle();
        }
    }

    /// A QoS 0 message the driver was given ([`Event::Peer`], [`Event::Local`]) found no room where it was to go.
    pub fn not_taken(&mut self, why: crate::ledger::Drop) {
        self.ledger.not_taken(why);
    }

    /// How fast each listener takes new connections.
    pub fn admission(&self) -> AdmissionLimits {
        self.config.admission
    }

    /// The counters.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn log(&mut self, level: LogLevel, text: String) {
        self.events.push_back(Event::Log(level, text));
    }
}
