//! What runs on the data thread: the shard, its connections, and the turn that serves them all.

use std::any::Any;
use std::cell::{Cell, RefCell, RefMut};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use hashbrown::HashMap;
use outpost_actors::ledger::Drop;
use outpost_actors::ports::{Gate, Origin};
use outpost_actors::shard::{ConnId, Event, LogLevel, Received, Shard};
use outpost_flow::{Gather, Pressure, TurnShare};
use outpost_model::{Message, Now, TopicFilter};
use outpost_mqtt::packet::ReasonCode;
use outpost_store::Lsn;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::handle::{Command, PlaneHandle, PlanePorts};
use super::reactor::{Reactor, Rouser};
use super::tasks::Ready;
use super::together::Together;
use crate::clock::{now, now_and_us, now_us};
use crate::listen::arrival;
use crate::listen::connection::{Connection, Stream};
use crate::listen::door::{Refusal, Ticket};

/// The one read buffer of the thread. Smaller: more system calls under load; larger: less of it stays in the cache.
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// Subscriptions of the node itself (hardware, tests).
const LOCAL_SUBSCRIPTIONS_MAX: usize = 4_096;

/// Passwords checked at once. Lower: a fleet that comes back at once waits longer for its CONNACKs; higher: each check
/// takes megabytes and a core on purpose, and strangers can ask for as many as they open connections.
const PASSWORD_CHECKS_MAX: usize = 4;

/// How often the shard learns what others use of the memory budget. More often: locks that the store's thread wants as
/// well; less often: their backlog is noticed late.
const CHARGE_EVERY_MS: u64 = 50;

/// The shard's timers are looked at so often though nothing is due. More often: wake-ups for nothing; less often: memory is
/// looked at late.
const TICK_EVERY_MS: u64 = 60_000;

/// After so many lost connections memory is given back to the system. Fewer: work that pays for little; more: a node whose
/// clients have left holds on to what they needed.
const GIVE_BACK_FROM: usize = 256;

/// How long memory is kept after that: those who left may come back at once.
const GIVE_BACK_PAUSE: Duration = Duration::from_secs(2);

/// After so many new connections what their tables have grown out of is given back: the allocator would keep it until it
/// is asked for more. Fewer: work that pays for little; more: a fleet that has come occupies a quarter more than it needs.
const GROWN_FROM: usize = 1_024;

/// How long it is kept after that: more may be on their way.
const GROWN_PAUSE: Duration = Duration::from_secs(1);

/// The data thread's state. Everything here runs on one thread; nothing is held across an await.
pub struct Plane {
    pub(super) shard: RefCell<Shard>,
    /// By the place the shard has given each.
    pub(super) connections: RefCell<Vec<Option<Rc<Connection>>>>,
    pub(super) together: RefCell<Option<Together>>,
    pub(super) ready: Arc<Ready>,
    reactor: Rc<Reactor>,
    rouser: Arc<Rouser>,
    /// Connections lost since memory was given back.
    lost: Cell<usize>,
    /// Connections that came since then.
    came: Cell<usize>,
    tidy: Notify,
    buffer: RefCell<Box<[u8]>>,
    turn_due: Cell<bool>,
    /// When the first of this turn's bytes were read.
    began_us: Cell<u64>,
    /// What the clocks said when the last of them were, unless something else has asked for the turn since.
    read_at: Cell<Option<Now>>,
    /// Connections read from in this turn, counted once for each read.
    reads: Cell<usize>,
    /// What was read in this turn.
    share: Cell<TurnShare>,
    /// Connections that send much and have had their share of a turn; each is in it once at most.
    pub(super) waiting: RefCell<VecDeque<ConnId>>,
    gather: RefCell<Gather>,
    /// When the shard did last what was due.
    ticked_ms: Cell<u64>,
    /// The end of a turn is under way: it carries out what it causes itself.
    pub(super) in_turn: Cell<bool>,
    /// What a task of this thread panicked with; the thread ends with it.
    pub(super) panic: RefCell<Option<Box<dyn Any + Send>>>,
    pub(super) checks: Arc<Semaphore>,
    /// When the shard was last told what others use of the memory budget.
    charged_ms: Cell<u64>,
    synced: Cell<Lsn>,
    stall_changes: Cell<u64>,
    jobs: RefCell<HashMap<u64, oneshot::Sender<ReasonCode>>>,
    next_job: Cell<u64>,
    /// Requests the hub has, by the number it knows them by, and what the shard calls them. The shard bounds them.
    shadow_jobs: RefCell<BTreeMap<u64, u64>>,
    local: RefCell<Vec<mpsc::Sender<Arc<Message>>>>,
    pub(super) handle: PlaneHandle,
    ports: Arc<dyn PlanePorts>,
    pub(super) gate: Arc<dyn Gate>,
    /// Where slow checks run.
    pub(super) control: tokio::runtime::Handle,
}

impl Plane {
    /// A plane around a shard; `gather` keeps turns apart, `together` makes one call of many writes. Slow checks run where
    /// this is called.
    pub fn new(
        shard: Shard,
        (reactor, rouser): (Rc<Reactor>, Arc<Rouser>),
        gather: Gather,
        together: Option<Together>,
        handle: PlaneHandle,
        ports: Arc<dyn PlanePorts>,
        gate: Arc<dyn Gate>,
    ) -> Rc<Self> {
        Rc::new(Self {
            shard: RefCell::new(shard),
            connections: RefCell::default(),
            together: RefCell::new(together),
            ready: Ready::new(Arc::clone(&rouser)),
            reactor,
            rouser,
            lost: Cell::new(0),
            came: Cell::new(0),
            tidy: Notify::new(),
            buffer: RefCell::new(vec![0; READ_BUFFER_BYTES].into()),
            turn_due: Cell::new(false),
            began_us: Cell::new(0),
            read_at: Cell::new(None),
            reads: Cell::new(0),
            share: Cell::default(),
            waiting: RefCell::default(),
            gather: RefCell::new(gather),
            ticked_ms: Cell::new(0),
            in_turn: Cell::new(false),
            panic: RefCell::default(),
            checks: Arc::new(Semaphore::new(PASSWORD_CHECKS_MAX)),
            charged_ms: Cell::new(0),
            synced: Cell::new(Lsn(0)),
            stall_changes: Cell::new(0),
            jobs: RefCell::default(),
            next_job: Cell::new(1),
            shadow_jobs: RefCell::default(),
            local: RefCell::default(),
            handle,
            ports,
            gate,
            control: tokio::runtime::Handle::current(),
        })
    }

    /// Runs a task on this thread. Its panic ends the thread: the shard may be half changed, and a new one knows from
    /// disk what was acknowledged.
    pub fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) -> JoinHandle<()> {
        let plane = Rc::clone(self);
        // Boxed: a block around it would be twice as large, for as long as a stranger's handshake takes.
        let mut task = Box::pin(task);
        tokio::task::spawn_local(poll_fn(move |cx| {
            plane.guarded(|| task.as_mut().poll(cx)).unwrap_or(Poll::Ready(()))
        }))
    }

    /// Runs a step of a task of this thread. `None`: it panicked, and the thread ends with it.
    fn guarded<T>(&self, step: impl FnOnce() -> T) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(step)) {
            Ok(done) => Some(done),
            Err(panic) => {
                self.panic.replace(Some(panic));
                self.rouser.rouse();
                None
            }
        }
    }

    /// A new connection: it is read from when it is ready.
    pub fn accept(self: &Rc<Self>, origin: Origin, stream: Stream, ticket: Ticket) {
        let remote = origin.remote;
        let accepted = self.shard.borrow_mut().accept_since(origin, ticket.arrived_ms(), now());
        let Some(id) = accepted else {
            let text = "limits.connections_max are open";
            return arrival::refuse(ticket.door(), Some(remote), Refusal::Connections, text);
        };
        let bell = self.ready.bell(id.index());
        bell.ring(); // it may have sent something already
        self.keep(Rc::new(Connection::new(id, stream, ticket, bell)));
        self.came.set(self.came.get() + 1);
        if self.came.get() == GROWN_FROM {
            self.tidy.notify_one();
        }
    }

    /// Polls the connection at this place.
    pub(super) fn serve(self: &Rc<Self>, place: u32) {
        let connection = self.connections.borrow().get(place as usize).cloned().flatten();
        if let Some(connection) = connection {
            Connection::serve(&connection, self);
        }
    }

    /// The sockets of this thread.
    pub fn reactor(&self) -> &Rc<Reactor> {
        &self.reactor
    }

    /// How fast a listener takes new connections.
    pub fn admission(&self) -> outpost_flow::Admission {
        outpost_flow::Admission::new(self.shard.borrow().admission())
    }

    /// Bytes for the shard, at most so many packets of them.
    pub fn receive(&self, id: ConnId, bytes: &[u8], packets_max: usize) -> Received {
        let (now, us) = now_and_us();
        if !self.turn_due.get() {
            self.began_us.set(us);
        }
        let received = self.shard.borrow_mut().receive_some(id, bytes, packets_max, now);
        self.share.set(self.share.get().with(received.packets, received.used));
        self.reads.set(self.reads.get() + 1);
        self.schedule_turn();
        self.read_at.set(Some(now));
        received
    }

    /// The connection is gone.
    pub fn connection_lost(&self, id: ConnId) {
        if let Some(place) = self.connections.borrow_mut().get_mut(id.index() as usize) {
            place.take_if(|connection| connection.id() == id);
        }
        self.lost.set(self.lost.get() + 1);
        if self.lost.get() == GIVE_BACK_FROM {
            self.tidy.notify_one();
        }
        self.shard.borrow_mut().connection_lost(id, now());
        self.schedule_turn();
    }

    /// The thread's read buffer.
    pub fn read_buffer(&self) -> RefMut<'_, Box<[u8]>> {
        self.buffer.borrow_mut()
    }

    /// Asks for the end of the turn: after every connection that is ready now.
    pub(super) fn schedule_turn(&self) {
        self.read_at.set(None);
        self.turn_due.set(true);
    }

    /// Whether only those who send little are read from before the next turn.
    pub fn is_turn_used_up(&self) -> bool {
        self.share.get().is_used_up()
    }

    /// Those who were ready have been read from. `None`: nothing came of it; else what the clock says behind the turn.
    pub(super) fn end_round(&self) -> Option<u64> {
        if !self.has_work() {
            return None;
        }
        self.serve_waiting();
        self.end_turn();
        Some(self.rest())
    }

    /// Whether there is to be another round without anything having happened.
    pub(super) fn has_work(&self) -> bool {
        self.turn_due.get() || self.someone_waits()
    }

    /// Whether a client waits for its next share of a turn.
    pub(super) fn someone_waits(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }

    /// Lets what comes next gather for a moment, when that pays. What the clock says then, in milliseconds.
    fn rest(&self) -> u64 {
        let (now_us, reads) = (now_us(), self.reads.take());
        if reads > 0 {
            self.handle.turns().count(now_us.saturating_sub(self.began_us.get()));
        }
        let rest_us = self.gather.borrow_mut().handle_turn(now_us / 1_000, reads);
        if rest_us > 0 {
            // Not a wait for sockets: those are of a thousand times its length. Nothing else waits on this thread.
            #[allow(
                clippy::disallowed_methods,
                reason = "at most 1 ms, and shorter than any timer there is"
            )]
            std::thread::sleep(Duration::from_micros(rest_us));
        }
        (now_us + rest_us) / 1_000
    }

    pub(super) fn end_turn(&self) {
        self.turn_due.set(false);
        self.share.set(TurnShare::default());
        self.in_turn.set(true);
        let now = self.read_at.take().unwrap_or_else(now);
        let synced = self.handle.synced();
        {
            let mut shard = self.shard.borrow_mut();
            if now.mono_ms >= self.charged_ms.get() + CHARGE_EVERY_MS {
                self.charged_ms.set(now.mono_ms);
                for (class, bytes) in self.ports.charges() {
                    shard.charge_outside(class, bytes);
                }
                self.ports.memory_is_short(shard.pressure() >= Pressure::Refuse);
            }
            if let Some((changes, stall)) = self.handle.stall_since(self.stall_changes.get()) {
                self.stall_changes.set(changes);
                match stall {
                    Some(cause) => shard.store_stalled(&cause, now),
                    None => shard.store_resumed(now),
                }
            }
            if synced > self.synced.replace(synced) {
                shard.synced(synced, now);
            }
            shard.end_turn(now);
        }
        loop {
            self.flush_together();
            let flush = self.shard.borrow_mut().poll_flush();
            if let Some(id) = flush {
                self.with_connection(id, |connection| connection.flush(self));
                continue;
            }
            let event = self.shard.borrow_mut().poll_event();
            let Some(event) = event else { break };
            self.carry_out(event);
        }
        self.in_turn.set(false);
    }

    /// Has the shard do what is due by now. When it is to be looked at again.
    pub(super) fn keep_time(&self, now_ms: u64) -> u64 {
        let due_ms = self.shard.borrow().next_tick_ms().unwrap_or(u64::MAX);
        let due_ms = due_ms.min(self.ticked_ms.get() + TICK_EVERY_MS);
        // Once in a millisecond: what is still due then is looked at in the next.
        if due_ms <= now_ms && self.ticked_ms.replace(now_ms) != now_ms {
            self.tick();
            self.schedule_turn();
        }
        due_ms.max(now_ms + 1)
    }

    fn tick(&self) {
        let (now, mut shard) = (now(), self.shard.borrow_mut());
        if shard.wants_memory(now.mono_ms)
            && let Some(memory) = crate::telemetry::memory::resident()
        {
            shard.set_memory(memory.bytes, memory.peak_bytes);
        }
        shard.tick(now);
    }

    /// Gives memory back after many clients have left or come.
    pub(super) async fn tidies(self: Rc<Self>) {
        loop {
            self.tidy.notified().await;
            let have_left = || self.lost.get() >= GIVE_BACK_FROM;
            tokio::time::sleep(if have_left() { GIVE_BACK_PAUSE } else { GROWN_PAUSE }).await;
            if have_left() {
                self.lost.set(0);
                self.shard.borrow_mut().shrink();
            }
            self.came.set(0);
            crate::allocator::give_back();
        }
    }

    /// Keeps a connection at the place the shard has given it.
    fn keep(&self, connection: Rc<Connection>) {
        let place = connection.id().index() as usize;
        let mut connections = self.connections.borrow_mut();
        if connections.len() <= place {
            connections.resize(place + 1, None);
        }
        connections[place] = Some(connection);
    }

    fn carry_out(&self, event: Event) {
        match event {
            Event::Flush(id) => self.with_connection(id, |connection| connection.flush(self)),
            Event::Close(id) => self.with_connection(id, Connection::close),
            Event::Resume(id) => self.with_connection(id, Connection::resume),
            Event::Authenticate { conn, origin, client_id, credentials } => {
                self.authenticate(conn, origin, client_id, credentials);
            }
            Event::Step { conn, method, data } => self.step(conn, method, data),
            Event::Peer(peer, frame) => {
                if !self.ports.peer(peer, frame) {
                    self.shard.borrow_mut().not_taken(Drop::SlowPeer);
                }
            }
            Event::Shadow { topic, payload, client, job } => {
                self.shadow(topic, payload, client, job);
            }
            Event::Published(job, reason) => {
                if let Some(waiting) = self.jobs.borrow_mut().remove(&job) {
                    let _ = waiting.send(reason);
                }
            }
            Event::Local(number, message) => {
                let local = self.local.borrow();
                // The channel's owner chose its bound; what it is too slow for is dropped.
                if local.get(number as usize).is_some_and(|to| to.try_send(message).is_err()) {
                    self.handle.drops().local.fetch_add(1, Ordering::Relaxed);
                    self.shard.borrow_mut().not_taken(Drop::SlowDevice);
                }
            }
            Event::Traced(trace, record) => self.ports.traced(trace, Some(&record)),
            Event::TraceEnded(trace) => self.ports.traced(trace, None),
            Event::Log(LogLevel::Info, text) => info!("{text}"),
            Event::Log(LogLevel::Warn, text) => warn!("{text}"),
        }
    }

    pub(super) fn with_connection(&self, id: ConnId, act: impl FnOnce(&Connection)) {
        let connection = self.connections.borrow().get(id.index() as usize).cloned().flatten();
        if let Some(connection) = connection.filter(|connection| connection.id() == id) {
            act(&connection);
        }
    }

    fn shadow(&self, topic: ByteString, payload: Bytes, client: ByteString, job: u64) {
        let number = if job == 0 { 0 } else { self.handle.new_job() };
        let is_taken = self.ports.shadow(topic, payload, client, number);
        if job == 0 {
            let lost = u64::from(!is_taken);
            self.handle.drops().shadow_requests.fetch_add(lost, Ordering::Relaxed);
            return;
        }
        if is_taken {
            self.shadow_jobs.borrow_mut().insert(number, job);
        } else {
            self.shard.borrow_mut().complete(job, ReasonCode::QuotaExceeded, now());
            self.schedule_turn();
        }
    }

    /// The hub is a new one: what the old one had is not answered any more. The clients are told so and ask again.
    fn hub_started(&self) {
        for job in std::mem::take(&mut *self.shadow_jobs.borrow_mut()).into_values() {
            self.shard.borrow_mut().complete(job, ReasonCode::UnspecifiedError, now());
        }
    }

    pub(super) fn command(&self, command: Command) {
        let now = now();
        match command {
            Command::Synced | Command::Stop(_) | Command::Attach(..) => {}
            Command::StoreFailed(cause) => {
                self.shard.borrow_mut().store_failed(cause, now);
                // What they wait for will not become durable; whoever waits learns it by this.
                self.jobs.borrow_mut().clear();
            }
            Command::Publish(publish, waiting) => {
                let job = waiting.map_or(0, |waiting| self.new_job(waiting));
                self.shard.borrow_mut().publish(publish, job, now);
            }
            Command::Admitted(conn, admission) => {
                self.shard.borrow_mut().admitted(conn, admission, now)
            }
            Command::Stepped(conn, method, step) => {
                self.shard.borrow_mut().stepped(conn, method, step, now)
            }
            Command::Complete(number, reason) => {
                if let Some(job) = self.shadow_jobs.borrow_mut().remove(&number) {
                    self.shard.borrow_mut().complete(job, reason, now);
                }
            }
            Command::HubStarted(done) => {
                self.hub_started();
                let _ = done.send(());
            }
            Command::PeerUp(peer, link) => {
                self.ports.peer_up(peer, link);
                self.shard.borrow_mut().peer_up(peer, now);
            }
            Command::PeerDown(peer) => self.shard.borrow_mut().peer_down(peer, now),
            Command::PeerFrame(peer, frame) => {
                let result = self.shard.borrow_mut().peer_frame(peer, frame, now);
                if let Err(why) = result {
                    self.ports.peer_failed(peer, &why);
                }
            }
            Command::Subscribe(filter, channel) => self.subscribe(&filter, channel),
            Command::Actors(limit, reply) => {
                let _ = reply.send(self.shard.borrow().actors("shard-0", limit));
            }
            Command::With(work, waiting) => {
                let job = waiting.map_or(0, |waiting| self.new_job(waiting));
                (work.0)(&mut self.shard.borrow_mut(), now, job);
            }
            Command::BridgeState(name, is_up) => {
                self.shard.borrow_mut().set_bridge_state(&name, is_up, now)
            }
            Command::Sessions(prefix, reply) => {
                let _ = reply.send(self.shard.borrow().sessions(&prefix));
            }
            Command::Stats(reply) => {
                let _ = reply.send(self.shard.borrow().stats());
            }
        }
        self.schedule_turn();
    }

    fn new_job(&self, waiting: oneshot::Sender<ReasonCode>) -> u64 {
        let job = self.next_job.get();
        self.next_job.set(job + 1);
        self.jobs.borrow_mut().insert(job, waiting);
        job
    }

    fn subscribe(&self, filter: &TopicFilter, channel: mpsc::Sender<Arc<Message>>) {
        let mut local = self.local.borrow_mut();
        if local.len() >= LOCAL_SUBSCRIPTIONS_MAX {
            return warn!(
                "refused the node's own subscription to {filter}: there are {LOCAL_SUBSCRIPTIONS_MAX}"
            );
        }
        let number = local.len() as u32;
        local.push(channel);
        self.shard.borrow_mut().subscribe_local(filter, number);
    }
}
