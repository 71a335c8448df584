//! The shadow hub at work: an actor with a thread of its own, because a write costs hundreds of microseconds.
//!
//! ```text
//!  shard (MQTT requests), http, links ──ShadowCommand──▶ hub ──rows──▶ store … synced ──▶ answers, frames to peers
//! ```
//! What the hub says may leave once rows are durable is kept here until they are.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use outpost_actors::cell::panic_text;
use outpost_actors::shard::LocalPublish;
use outpost_membership::PeerFrame;
use outpost_model::{Hlc, NodeId, QoS};
use outpost_mqtt::packet::ReasonCode;
use outpost_shadow::{
    Effect, Event, Hub, HubConfig, InFlight, OldHome, Output, Path, Policy, PolicyError,
    PolicyRule, ShadowKey, Verb, parse_topic,
};
use outpost_store::disk::DiskStore;
use outpost_store::{Batch, Lsn, Op, Space, Store, SubmitError};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use crate::clock::now;
use crate::config::{PolicyKind, ShadowPolicy};
use crate::peers::{Links, Speaker};
use crate::plane::{Command, PlaneHandle};
pub use crate::shadow_handle::{Reply, ShadowCommand, ShadowHandle, Unheard};
use crate::shadow_rows::StoredRows;

/// Requests that may wait for the hub. Full: PUBACK says 0x97; at QoS 0 the request is dropped and counted.
pub const REQUESTS_MAX: usize = 1_024;

/// What the history calls a client that came by HTTP.
const BY_HTTP: &str = "(http)";

/// How often a link over which a backlog goes is looked at.
const MEASURE_EVERY: Duration = Duration::from_millis(250);

/// How often the shadows are weighed while there is something to do. More often: each time all are looked at; less often: the memory budget learns late.
const WEIGH_EVERY: Duration = Duration::from_secs(5);

/// Everything the hub's thread is made of.
#[derive(Clone)]
pub struct ShadowSpec {
    /// How the hub behaves.
    pub hub: HubConfig,
    /// What it remembers by.
    pub store: Arc<DiskStore>,
    /// Where its messages go.
    pub plane: PlaneHandle,
    /// Where its frames go.
    pub links: Links,
    /// The way in.
    pub handle: ShadowHandle,
}

/// What the actor is told.
#[derive(Debug)]
pub enum ShadowMsg {
    /// From the thread: it ended, with what.
    Ended(String),
}

/// The actor.
pub struct ShadowActor;

impl ShadowActor {
    /// Starts the actor and its thread below a supervisor.
    ///
    /// # Errors
    /// Why it could not be started.
    pub async fn start(spec: ShadowSpec, supervisor: ActorCell) -> Result<ActorCell, String> {
        let started = Actor::spawn_linked(None, Self, spec, supervisor).await;
        started.map(|(actor, _)| actor.get_cell()).map_err(|error| error.to_string())
    }
}

impl Actor for ShadowActor {
    type Msg = ShadowMsg;
    type State = ();
    type Arguments = ShadowSpec;

    async fn pre_start(
        &self,
        myself: ActorRef<ShadowMsg>,
        spec: ShadowSpec,
    ) -> Result<(), ActorProcessingErr> {
        let (ready, is_ready) = oneshot::channel();
        let to_actor = myself.clone();
        std::thread::Builder::new().name("shadows".to_owned()).spawn(move || {
            let result = std::panic::catch_unwind(AssertUnwindSafe(|| run_thread(spec, ready)));
            let cause = match result {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(panic) => format!("the hub panicked: {}", panic_text(&*panic)),
            };
            // The actor is gone only when the node is.
            let _ = to_actor.cast(ShadowMsg::Ended(cause));
        })?;
        is_ready.await.map_err(|_| "the hub's thread ended before it was ready")?;
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<ShadowMsg>,
        message: ShadowMsg,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let ShadowMsg::Ended(cause) = message;
        Err(cause.into())
    }
}

fn run_thread(spec: ShadowSpec, ready: oneshot::Sender<()>) -> Result<(), String> {
    spec.store.sync_all().map_err(|error| error.to_string())?;
    let mut driver = Driver::load(spec)?;
    let (told, is_told) = oneshot::channel();
    // Before requests come in: what an earlier hub left open is not answered by this one.
    if driver.spec.plane.send_blocking(Command::HubStarted(told)).is_ok() {
        // A data thread that ends meanwhile has no requests open when it is back.
        let _ = is_told.blocking_recv();
    }
    let (sender, mut commands) = mpsc::channel(REQUESTS_MAX);
    *driver.spec.handle.0.lock() = Some(sender);
    // The hub is new and knows no link: each comes up again and says hello.
    driver.spec.links.close_all("this node's shadow hub has started anew");
    let _ = ready.send(());
    driver.drain();
    driver.weigh();
    // The thread has a timer of its own: one of the node's runtime would wake two other threads for each tick.
    let waits = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let waits = waits.map_err(|error| format!("cannot make the hub's timer: {error}"))?;
    driver.tick();
    loop {
        driver.drain();
        driver.release();
        let until = driver.sleeps_until();
        let wait = async {
            match until {
                Some(until) => tokio::time::timeout_at(until.into(), commands.recv()).await,
                None => Ok(commands.recv().await),
            }
        };
        match waits.block_on(wait) {
            Ok(None) => return Ok(()),
            Ok(Some(ShadowCommand::Stop(done))) => {
                let _ = done.send(());
                return Ok(());
            }
            Ok(Some(command)) => {
                driver.is_weighed = false;
                driver.command(command);
            }
            Err(_) => {} // it is time
        }
        driver.tick();
    }
}

enum Asker {
    /// The job that waits, 0 for none, and the connection whose request is under way.
    Device(u64, Option<Arc<str>>),
    Http(oneshot::Sender<Reply>),
}

struct Driver {
    spec: ShadowSpec,
    hub: Hub,
    /// The hub's commits that are not durable, with their numbers.
    waiting: VecDeque<(Lsn, u64, Vec<Output>)>,
    last: Lsn,
    askers: HashMap<u64, Asker>,
    in_flight: InFlight,
    next_id: u64,
    failed: bool,
    /// Nothing has happened since the shadows were weighed.
    is_weighed: bool,
    weighed: Instant,
    measured: Instant,
}

impl Driver {
    fn load(spec: ShadowSpec) -> Result<Self, String> {
        let mut hub = Hub::new(spec.hub.clone(), crate::dice::random_u64(), Hlc::default());
        hub.read_rows_from(Box::new(StoredRows(Arc::clone(&spec.store))));
        let mut load = |key: &[u8], value: &[u8]| {
            if let Err(error) = hub.load_row(key, value) {
                warn!("{error}; this row is left out, peers will send the shadow again");
            }
        };
        spec.store.visit(Space::Shadows, &[], &mut load).map_err(|error| error.to_string())?;
        Ok(Self {
            spec,
            hub,
            waiting: VecDeque::new(),
            last: Lsn(0),
            askers: HashMap::new(),
            in_flight: InFlight::default(),
            next_id: 1,
            failed: false,
            is_weighed: true,
            weighed: Instant::now(),
            measured: Instant::now(),
        })
    }

    /// Nothing is to be done before, unless a command comes.
    fn sleeps_until(&self) -> Option<Instant> {
        let (at, now) = (Instant::now(), now());
        let due = self.hub.next_tick_ms(now);
        let due = due.map(|ms| at + Duration::from_millis(ms.saturating_sub(now.mono_ms)));
        let weigh = (!self.is_weighed).then(|| self.weighed + WEIGH_EVERY);
        let measure = self.hub.behind().next().map(|_| self.measured + MEASURE_EVERY);
        [due, weigh, measure].into_iter().flatten().min()
    }

    /// Does what is due.
    fn tick(&mut self) {
        let (at, now) = (Instant::now(), now());
        if self.hub.next_tick_ms(now).is_none_or(|due| due <= now.mono_ms) {
            self.hub.handle_tick(now);
        }
        if !self.is_weighed && at >= self.weighed + WEIGH_EVERY {
            self.weigh();
            (self.is_weighed, self.weighed) = (true, at);
        }
        if at >= self.measured + MEASURE_EVERY {
            let behind: Vec<NodeId> = self.hub.behind().collect();
            behind.into_iter().for_each(|peer| self.measure(peer));
            self.measured = at;
        }
    }

    /// Tells the hub what the link to a peer is like.
    fn measure(&mut self, peer: NodeId) {
        if let Some(path) = self.spec.links.path(peer) {
            let path = Path {
                rtt_ms: path.rtt.as_millis() as u64,
                sent: path.sent,
                lost: path.lost,
                window_bytes: path.window_bytes as usize,
            };
            self.hub.handle_path(peer, path, now());
        }
    }

    fn command(&mut self, command: ShadowCommand) {
        let now = now();
        match command {
            ShadowCommand::Request { topic, payload, client, job } => match parse_topic(&topic) {
                Some((key, verb)) => self.device(key, verb, &payload, &client, job),
                // Looks like a request and is none: an ordinary message.
                None => self.answer(Asker::Device(job, None), 200, Vec::new()),
            },
            ShadowCommand::Ask { key, verb, payload, reply } => {
                let id = self.asker(Asker::Http(reply));
                self.hub.request_of(key, verb, &payload, id, Some(BY_HTTP.to_owned()), now);
            }
            ShadowCommand::List { prefix, after, limit, reply } => {
                let version =
                    |key: &ShadowKey| self.hub.version_and_home(key).map_or(0, |known| known.0);
                let keys = self.hub.list(&prefix, after.as_ref(), limit);
                let _ =
                    reply.send(keys.into_iter().map(|key| (key.clone(), version(&key))).collect());
            }
            ShadowCommand::History { key, limit, reply } => {
                let _ = reply.send(self.hub.history(&key, limit));
            }
            ShadowCommand::Why { key, path, limit, reply } => {
                let _ = reply.send(self.hub.why(&key, &path, limit));
            }
            ShadowCommand::Move { key, gone, reply } => {
                if gone {
                    self.hub.take_over(&key, OldHome::IsGone, now);
                } else {
                    self.hub.set_home(key.clone(), self.spec.hub.node, now);
                }
                let _ = reply.send(self.hub.home(&key));
            }
            ShadowCommand::Stats(reply) => {
                let _ = reply.send(self.hub.stats());
            }
            ShadowCommand::Quarantined(reply) => {
                let unheard = |(peer, quarantine): (NodeId, &outpost_shadow::Quarantine)| Unheard {
                    peer,
                    reason: quarantine.reason.clone(),
                    left_s: quarantine.until_ms.saturating_sub(now.mono_ms).div_ceil(1_000),
                };
                let _ = reply.send(self.hub.quarantined(now).map(unheard).collect());
            }
            ShadowCommand::PeerUp(peer, link) => {
                self.spec.links.heard(Speaker::Hub, peer, link);
                self.hub.peer_up(peer, now);
                self.measure(peer);
            }
            ShadowCommand::PeerDown(peer) => self.hub.peer_down(peer, now),
            ShadowCommand::ForgetPeer(peer) => self.hub.forget_peer(peer, now),
            ShadowCommand::PeerFrame(peer, frame) => {
                if let Err(error) = self.hub.handle_peer_frame(peer, &frame, now) {
                    self.hub.quarantine(peer, &error, now);
                    self.spec.links.close(peer, &error.to_string());
                }
            }
            ShadowCommand::StoreFailed(cause) => self.fail(&cause),
            ShadowCommand::Synced | ShadowCommand::Stop(_) => {}
        }
    }

    fn device(&mut self, key: ShadowKey, verb: Verb, payload: &[u8], client: &str, job: u64) {
        let now = now();
        if verb == Verb::Update && *client == *key.thing {
            self.hub.device_here(&key, now);
        }
        let client = Arc::<str>::from(client);
        let is_node = client.is_empty();
        if is_node || self.in_flight.enter(&client, self.spec.hub.limits.in_flight_max) {
            let name = (!is_node).then(|| client.to_string());
            let id = self.asker(Asker::Device(job, (!is_node).then_some(client)));
            self.hub.request_of(key, verb, payload, id, name, now);
        } else {
            let id = self.asker(Asker::Device(job, None));
            self.hub.refuse_busy(&key, verb, payload, id, now);
        }
    }

    fn asker(&mut self, asker: Asker) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.askers.insert(id, asker);
        id
    }

    /// Tells what the shadows occupy: they are charged to the memory budget.
    fn weigh(&mut self) {
        if self.spec.handle.2.load(Ordering::Relaxed) {
            self.hub.rest();
        }
        self.spec.handle.1.store(self.hub.stats().bytes, Ordering::Relaxed);
    }

    /// Carries out what the hub wants: writes now, says later.
    fn drain(&mut self) {
        while let Some(effect) = self.hub.poll_effect() {
            match effect {
                Effect::Now(output) => self.output(output),
                Effect::Commit { number, rows, then } => {
                    let op = |(key, value): (Vec<u8>, Option<Vec<u8>>)| match value {
                        Some(value) => Op::Put(Space::Shadows, key.into(), value.into()),
                        None => Op::Delete(Space::Shadows, key.into()),
                    };
                    self.submit(&rows.into_iter().map(op).collect());
                    if self.failed {
                        self.refuse(then);
                    } else {
                        self.waiting.push_back((self.last, number, then));
                    }
                }
            }
        }
    }

    /// Hands a batch to the store. This thread may wait for the disk; nothing of a device runs on it.
    fn submit(&mut self, batch: &Batch) {
        while !batch.is_empty() && !self.failed {
            match self.spec.store.submit(batch.clone()) {
                Ok(lsn) => {
                    self.last = lsn;
                    return;
                }
                Err(SubmitError::Busy { .. }) if self.spec.store.sync_all().is_ok() => {}
                Err(error) => self.fail(&error.to_string()),
            }
        }
    }

    /// The store stopped: what waits for it is refused, and what comes later.
    fn fail(&mut self, cause: &str) {
        if !self.failed {
            self.failed = true;
            warn!("shadows are no longer written: {cause}; updates are refused from now on");
        }
        for (_, _, outputs) in std::mem::take(&mut self.waiting) {
            self.refuse(outputs);
        }
    }

    /// Answers whoever waits for what will not become durable.
    fn refuse(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            let Output::Reply { id, .. } = output else { continue };
            match self.settled(id) {
                Some(Asker::Device(job, _)) if job != 0 => {
                    self.complete(job, ReasonCode::UnspecifiedError);
                }
                Some(Asker::Http(reply)) => {
                    let body =
                        r#"{"code":503,"message":"the store has stopped; nothing was written"}"#;
                    // Who asked may have gone.
                    let _ = reply.send((503, body.into()));
                }
                _ => {}
            }
        }
    }

    /// Says what has become durable.
    fn release(&mut self) {
        let synced = self.spec.store.synced();
        let mut durable = None;
        while self.waiting.front().is_some_and(|(needs, ..)| *needs <= synced) {
            let (_, commit, outputs) = self.waiting.pop_front().expect("just seen");
            durable = Some(commit);
            outputs.into_iter().for_each(|output| self.output(output));
        }
        if let Some(commit) = durable {
            self.hub.synced(commit);
        }
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Publish { topic, payload } => {
                let publish = LocalPublish {
                    here_only: is_published_everywhere(&topic),
                    topic: topic.into(),
                    payload: payload.into(),
                    qos: QoS::AtLeastOnce,
                    retain: false,
                    expiry_s: None,
                    properties: None,
                };
                if self.spec.plane.send_blocking(Command::Publish(publish, None)).is_err() {
                    warn!(
                        "an answer of the shadow service was lost: the data plane is being restarted"
                    );
                }
            }
            Output::ToPeer { peer, frame } => {
                // Never dropped: a link that has no room for it is closed.
                let _ = self.spec.links.send(Speaker::Hub, peer, PeerFrame::Shadow(frame.into()));
            }
            Output::Reply { id, status, body } => {
                if let Some(asker) = self.settled(id) {
                    self.answer(asker, status, body);
                }
            }
            Output::Event(Event::QuarantineOver { peer }) => {
                info!("listening to peer {peer} again: its link starts anew");
                self.spec.links.close(peer, "the quarantine is over");
            }
            Output::Event(event) => log(&event),
        }
    }

    /// Takes out whoever waits for this answer.
    fn settled(&mut self, id: u64) -> Option<Asker> {
        let asker = self.askers.remove(&id)?;
        if let Asker::Device(_, Some(client)) = &asker {
            self.in_flight.leave(client);
        }
        Some(asker)
    }

    fn answer(&mut self, asker: Asker, status: u16, body: Vec<u8>) {
        match asker {
            Asker::Device(0, _) => {}
            // A rejected request was received all the same; the reason is on the rejected topic.
            Asker::Device(job, _) => self.complete(job, ReasonCode::Success),
            Asker::Http(reply) => {
                // Who asked may have gone.
                let _ = reply.send((status, body));
            }
        }
    }

    fn complete(&self, job: u64, reason: ReasonCode) {
        if self.spec.plane.send_blocking(Command::Complete(job, reason)).is_err() {
            warn!("a shadow request stays unacknowledged: the data plane is being restarted");
        }
    }
}

fn log(event: &Event) {
    match event {
        Event::Written { .. } | Event::Merged { .. } => debug!("shadow: {event:?}"),
        Event::Quarantined { peer, reason, ms } => {
            warn!("shadows of peer {peer} are not listened to for {} s: {reason}", ms / 1_000)
        }
        other => info!("shadow: {other:?}"),
    }
}

/// A rule of the configuration.
///
/// # Errors
/// [`PolicyError`]: its path is none.
pub fn policy_rule(rule: &ShadowPolicy) -> Result<PolicyRule, PolicyError> {
    let expiry_ms = (rule.expiry_s > 0).then_some(rule.expiry_s as u64 * 1_000);
    let policy = match rule.policy {
        PolicyKind::Controlled => Policy::Controlled,
        PolicyKind::ReportedOnly => Policy::ReportedOnly,
        PolicyKind::LocalOverride => Policy::LocalOverride { expiry_ms },
    };
    PolicyRule::new(&rule.things, &rule.path, policy)
}

/// The topics every node publishes to its own subscribers, when it has merged (R9): they do not cross the links.
pub fn is_published_everywhere(topic: &str) -> bool {
    topic.ends_with("/update/delta") || topic.ends_with("/update/documents")
}
