//! What runs on the data thread: the shard, its connections, and the turn that serves them all.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outpost_actors::out_buffer::OutBuffer;
use outpost_actors::ports::{Gate, Origin};
use outpost_actors::shard::{ConnId, Event, LogLevel, Received, Shard};
use outpost_model::{Message, TopicFilter};
use outpost_mqtt::packet::ReasonCode;
use outpost_store::Lsn;
use tokio::sync::{Notify, mpsc, oneshot};
use tracing::{info, warn};

use super::handle::{Command, PlaneHandle, PlanePorts};
use crate::clock::now;
use crate::listen::connection::{ByteStream, Connection};

/// The one read buffer of the thread. Smaller: more system calls under load; larger: less of it stays in the cache.
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// Subscriptions of the node itself (hardware, tests).
const LOCAL_SUBSCRIPTIONS_MAX: usize = 4_096;

/// The data thread's state. Everything here runs on one thread; nothing is held across an await.
pub struct Plane {
    shard: RefCell<Shard>,
    connections: RefCell<HashMap<ConnId, Rc<Connection>>>,
    buffer: RefCell<Box<[u8]>>,
    turn: Notify,
    timer: Notify,
    turn_due: Cell<bool>,
    synced: Cell<Lsn>,
    jobs: RefCell<HashMap<u64, oneshot::Sender<ReasonCode>>>,
    next_job: Cell<u64>,
    local: RefCell<Vec<mpsc::Sender<Arc<Message>>>>,
    handle: PlaneHandle,
    ports: Arc<dyn PlanePorts>,
    gate: Arc<dyn Gate>,
    /// Where slow checks run.
    control: tokio::runtime::Handle,
}

impl Plane {
    /// A plane around a shard.
    pub fn new(
        shard: Shard,
        handle: PlaneHandle,
        ports: Arc<dyn PlanePorts>,
        gate: Arc<dyn Gate>,
        control: tokio::runtime::Handle,
    ) -> Rc<Self> {
        Rc::new(Self {
            shard: RefCell::new(shard),
            connections: RefCell::default(),
            buffer: RefCell::new(vec![0; READ_BUFFER_BYTES].into()),
            turn: Notify::new(),
            timer: Notify::new(),
            turn_due: Cell::new(false),
            synced: Cell::new(Lsn(0)),
            jobs: RefCell::default(),
            next_job: Cell::new(1),
            local: RefCell::default(),
            handle,
            ports,
            gate,
            control,
        })
    }

    /// Serves until told to stop. Ends the turns, carries out commands, keeps time.
    pub async fn run(self: &Rc<Self>, mut commands: mpsc::Receiver<Command>) {
        let turns = tokio::task::spawn_local(Rc::clone(self).turns());
        let timers = tokio::task::spawn_local(Rc::clone(self).timers());
        self.schedule_turn();
        while let Some(command) = commands.recv().await {
            if let Command::Stop(done) = command {
                self.end_turn();
                // Nobody waits for the answer when the node is already gone.
                let _ = done.send(());
                break;
            }
            self.command(command);
        }
        turns.abort();
        timers.abort();
    }

    /// A new connection: its own task reads from it.
    pub fn accept(self: &Rc<Self>, origin: Origin, stream: Box<dyn ByteStream>) {
        let remote = origin.remote;
        let Some(id) = self.shard.borrow_mut().accept(origin, now()) else {
            return warn!("refused a connection from {remote}: limits.connections_max are open");
        };
        let connection = Rc::new(Connection::new(id, stream));
        self.connections.borrow_mut().insert(id, Rc::clone(&connection));
        self.timer.notify_one();
        tokio::task::spawn_local(connection.run(Rc::clone(self)));
    }

    /// Bytes for the shard.
    pub fn receive(&self, id: ConnId, bytes: &[u8]) -> Received {
        let received = self.shard.borrow_mut().receive(id, bytes, now());
        self.schedule_turn();
        received
    }

    /// The connection is gone.
    pub fn connection_lost(&self, id: ConnId) {
        self.connections.borrow_mut().remove(&id);
        self.shard.borrow_mut().connection_lost(id, now());
        self.schedule_turn();
    }

    /// The thread's read buffer.
    pub fn read_buffer(&self) -> RefMut<'_, Box<[u8]>> {
        self.buffer.borrow_mut()
    }

    /// Lets `write` take from a connection's out buffer.
    ///
    /// # Errors
    /// What `write` returns.
    pub fn with_out_buffer(
        &self,
        id: ConnId,
        write: impl FnOnce(&mut OutBuffer) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let mut shard = self.shard.borrow_mut();
        let Some(out) = shard.out_buffer(id) else { return Ok(true) };
        let written = write(out)?;
        shard.written(id);
        Ok(written)
    }

    /// Asks for the end of the turn: after every task that is ready now.
    fn schedule_turn(&self) {
        if !self.turn_due.replace(true) {
            self.turn.notify_one();
        }
    }

    async fn turns(self: Rc<Self>) {
        loop {
            self.turn.notified().await;
            self.end_turn();
        }
    }

    fn end_turn(&self) {
        self.turn_due.set(false);
        let now = now();
        let synced = self.handle.synced();
        {
            let mut shard = self.shard.borrow_mut();
            if synced > self.synced.replace(synced) {
                shard.synced(synced, now);
            }
            shard.end_turn(now);
        }
        loop {
            let event = self.shard.borrow_mut().poll_event();
            let Some(event) = event else { break };
            self.carry_out(event);
        }
        self.timer.notify_one();
    }

    async fn timers(self: Rc<Self>) {
        loop {
            let due_ms = self.shard.borrow().next_tick_ms();
            let wait_ms = due_ms
                .map_or(60_000, |due_ms| due_ms.saturating_sub(now().mono_ms).clamp(1, 60_000));
            tokio::select! {
                biased;
                () = tokio::time::sleep(Duration::from_millis(wait_ms)) => {
                    self.shard.borrow_mut().tick(now());
                    self.schedule_turn();
                }
                () = self.timer.notified() => {}
            }
        }
    }

    fn carry_out(&self, event: Event) {
        match event {
            Event::Flush(id) => self.with_connection(id, |connection| connection.flush(self)),
            Event::Close(id) => self.with_connection(id, Connection::close),
            Event::Resume(id) => self.with_connection(id, Connection::resume),
            Event::Authenticate { conn, origin, client_id, credentials } => {
                let (gate, handle) = (Arc::clone(&self.gate), self.handle.clone());
                let check = self
                    .control
                    .spawn_blocking(move || gate.check_slowly(&origin, &client_id, &credentials));
                self.control.spawn(async move {
                    let admission =
                        check.await.unwrap_or(outpost_actors::ports::Admission::NotAuthorized);
                    // When the data thread is down the connection is too.
                    let _ = handle.send(Command::Admitted(conn, admission)).await;
                });
            }
            Event::Peer(peer, frame) => self.ports.peer(peer, frame),
            Event::Shadow { topic, payload, job } => self.shadow(topic, payload, job),
            Event::Published(job, reason) => {
                if let Some(waiting) = self.jobs.borrow_mut().remove(&job) {
                    let _ = waiting.send(reason);
                }
            }
            Event::Local(number, message) => {
                if let Some(channel) = self.local.borrow().get(number as usize) {
                    // The channel's owner chose its bound; what it is too slow for is dropped.
                    let _ = channel.try_send(message);
                }
            }
            Event::Log(LogLevel::Info, text) => info!("{text}"),
            Event::Log(LogLevel::Warn, text) => warn!("{text}"),
        }
    }

    fn with_connection(&self, id: ConnId, act: impl FnOnce(&Connection)) {
        let connection = self.connections.borrow().get(&id).cloned();
        if let Some(connection) = connection {
            act(&connection);
        }
    }

    fn shadow(&self, topic: bytestring::ByteString, payload: Bytes, job: u64) {
        if !self.ports.shadow(topic, payload, job) && job != 0 {
            self.shard.borrow_mut().complete(job, ReasonCode::QuotaExceeded, now());
            self.schedule_turn();
        }
    }

    fn command(&self, command: Command) {
        let now = now();
        match command {
            Command::Synced | Command::Stop(_) => {}
            Command::StoreFailed(cause) => self.shard.borrow_mut().store_failed(cause, now),
            Command::Publish(publish, waiting) => {
                let job = waiting.map_or(0, |waiting| self.new_job(waiting));
                self.shard.borrow_mut().publish(publish, job, now);
            }
            Command::Admitted(conn, admission) => {
                self.shard.borrow_mut().admitted(conn, admission, now)
            }
            Command::Complete(job, reason) => self.shard.borrow_mut().complete(job, reason, now),
            Command::PeerUp(peer) => self.shard.borrow_mut().peer_up(peer, now),
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
