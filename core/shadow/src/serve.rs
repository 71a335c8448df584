//! Requests: who decides them, and what deciding does.
//!
//! A shadow's home node decides all its updates and deletes, wherever they come in. A shadow without a home (it does
//! not exist yet, or was created apart) is decided by the node that rendezvous hashing over the known nodes names; that
//! node appoints the one the request came from. Only a home, or a node about to appoint one, uses the owner's version
//! numbers, so they are never dealt out twice. When the one who decides cannot be reached, the request is accepted here,
//! with a number of this node's own slot.

use outpost_model::{NodeId, Now};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::desired::Pen;
use crate::document::{Shadow, with_token};
use crate::event::Event;
use crate::home::Home;
use crate::hub::{Hub, Output};
use crate::key::{ShadowKey, Verb};
use crate::leaves::SEPARATOR;
use crate::planted::{Bug, is};
use crate::policy::Policy;
use crate::request::{Reject, Update, parse_bare, parse_update, token_of};
use crate::stamp::Stamp;
use crate::sync::{Ask, Frame};
use crate::version::Class;

/// How often a request is sent on, when the one asked says another decides. Fewer and a moving home costs version
/// jumps; more and a request may wander while homes move.
const TRIES_MAX: u8 = 3;

/// A request of one of this node's clients that has to be decided.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    key: ShadowKey,
    ask: Ask,
    payload: Vec<u8>,
    /// An update's payload, read; not kept while it waits for another node.
    update: Option<Update>,
    reply: Option<u64>,
    /// For the history.
    client: Option<String>,
    tries: u8,
}

/// A job that waits for another node.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    job: Job,
    to: NodeId,
    deadline_ms: u64,
}

/// As whom this node decides.
#[derive(Debug, Clone, Copy)]
enum Standing {
    /// As the one who decides, for a client of this node.
    Decider(NodeId),
    /// In the absence of the one who decides.
    Apart,
}

type Outcome = Result<Value, (Reject, Option<String>)>;

impl Hub {
    /// A request that came in on an AWS topic. The answer is published on the matching topic.
    pub fn handle_request(&mut self, key: ShadowKey, verb: Verb, payload: &[u8], now: Now) {
        self.serve(key, verb, payload, None, None, now);
        self.finish();
    }

    /// The same for a client that waits for the outcome: it also comes as [`Output::Reply`].
    pub fn request(&mut self, key: ShadowKey, verb: Verb, payload: &[u8], id: u64, now: Now) {
        self.request_of(key, verb, payload, id, None, now);
    }

    /// The same, for a client whose name goes into the history.
    pub fn request_of(
        &mut self,
        key: ShadowKey,
        verb: Verb,
        payload: &[u8],
        id: u64,
        client: Option<String>,
        now: Now,
    ) {
        self.serve(key, verb, payload, Some(id), client, now);
        self.finish();
    }

    /// Refuses a request unseen, as its connection has too many under way.
    pub fn refuse_busy(&mut self, key: &ShadowKey, verb: Verb, payload: &[u8], id: u64, now: Now) {
        let refused = (Reject::busy(), token_of(payload));
        self.respond(key, verb, Some(id), Err(refused), now);
        self.finish();
    }

    /// Makes `node` the home of a shadow that exists. It happens as soon as the present home agrees; when that one
    /// cannot be reached, [`Event::HomeNotMoved`] says so and nothing has changed.
    pub fn set_home(&mut self, key: ShadowKey, node: NodeId, now: Now) {
        self.decide(
            Job {
                key,
                ask: Ask::SetHome(node),
                payload: Vec::new(),
                update: None,
                reply: None,
                client: None,
                tries: 0,
            },
            now,
        );
        self.finish();
    }

    fn serve(
        &mut self,
        key: ShadowKey,
        verb: Verb,
        payload: &[u8],
        reply: Option<u64>,
        client: Option<String>,
        now: Now,
    ) {
        if let Some(why) = key.wrong_name() {
            let refused = (Reject::new(400, why), token_of(payload));
            return self.respond(&key, verb, reply, Err(refused), now);
        }
        let limits = &self.config.limits;
        let read = match verb {
            Verb::Get => {
                let outcome = self.get(&key, payload, now);
                return self.respond(&key, verb, reply, outcome, now);
            }
            Verb::Update => parse_update(payload, limits).map(|update| (Ask::Update, Some(update))),
            Verb::Delete => parse_bare(payload, limits).map(|_| (Ask::Delete, None)),
        };
        match read {
            Err(refused) => self.respond(&key, verb, reply, Err(refused), now),
            Ok((ask, update)) => {
                let payload = payload.to_vec();
                self.decide(Job { key, ask, payload, update, reply, client, tries: 0 }, now);
            }
        }
    }

    fn get(&mut self, key: &ShadowKey, payload: &[u8], now: Now) -> Outcome {
        let (token, _) = parse_bare(payload, &self.config.limits)?;
        match self.shadows.fetch(key).filter(|shadow| shadow.exists()) {
            Some(shadow) => Ok(shadow.get_accepted(now.wall_s(), token.as_deref())),
            None => Err((not_there(key), token)),
        }
    }

    /// Who decides about a shadow.
    fn decider(&self, key: &ShadowKey) -> NodeId {
        if let Some(home) = self.home(key) {
            return home.node;
        }
        let nodes = self.peers.keys().copied().chain([self.config.node]);
        nodes.max_by_key(|node| rendezvous(key, *node)).expect("this node is among them")
    }

    fn decide(&mut self, job: Job, now: Now) {
        let decider = self.decider(&job.key);
        if decider == self.config.node {
            return self.settle(&job, Standing::Decider(self.config.node), now);
        }
        if !self.can_reach(decider) || job.tries >= TRIES_MAX {
            return self.settle(&job, Standing::Apart, now);
        }
        if self.pending.len() >= self.config.limits.forwards_max {
            let reject = Reject::new(429, "Too many requests wait for their home node");
            return self.respond_job(&job, Err((reject, None)), now);
        }
        self.forward(job, decider, now);
    }

    fn forward(&mut self, job: Job, to: NodeId, now: Now) {
        let job = Job { update: None, ..job };
        self.pending_last += 1;
        self.stats.forwarded += 1;
        let id = self.pending_last;
        let frame =
            Frame::Forward { id, key: job.key.clone(), ask: job.ask, payload: job.payload.clone() };
        let frame = self.frame_to(to, &frame);
        self.now(frame);
        let deadline_ms = now.mono_ms + self.config.limits.forward_timeout_ms;
        self.pending.insert(id, Pending { job, to, deadline_ms });
    }

    /// A peer sends a request on to us. Its answer goes behind the shadow's new state.
    pub(crate) fn handle_forward(
        &mut self,
        from: NodeId,
        id: u64,
        key: &ShadowKey,
        ask: Ask,
        payload: &[u8],
        now: Now,
    ) {
        let answer = if self.decider(key) == self.config.node {
            match self.perform(key, ask, (payload, None), Standing::Decider(from), now) {
                Ok(body) => Frame::Answer { id, status: 200, body: to_bytes(&body) },
                Err((reject, token)) => {
                    self.stats.rejected += 1;
                    let body = to_bytes(&rejection(&reject, token.as_deref(), now));
                    Frame::Answer { id, status: reject.code, body }
                }
            }
        } else {
            Frame::Answer { id, status: 0, body: Vec::new() }
        };
        let answer = self.frame_to(from, &answer);
        self.last.push(answer);
    }

    /// A peer answers. Nothing happens when the request was settled otherwise meanwhile.
    pub(crate) fn handle_answer(
        &mut self,
        from: NodeId,
        id: u64,
        status: u16,
        body: Vec<u8>,
        now: Now,
    ) {
        if self.pending.get(&id).is_none_or(|pending| pending.to != from) {
            return;
        }
        let Some(Pending { mut job, .. }) = self.pending.remove(&id) else { return };
        if status == 0 {
            job.tries += 1;
            return self.decide(job, now);
        }
        if status == 200
            && let Some(client) = &job.client
        {
            self.remember_client(&job.key, &body, client);
        }
        match job.ask {
            Ask::Update => self.publish_answer(&job.key, Verb::Update, job.reply, status, body),
            Ask::Delete => self.publish_answer(&job.key, Verb::Delete, job.reply, status, body),
            Ask::SetHome(_) if status != 200 => {
                self.then.push(Output::Event(Event::HomeNotMoved { key: job.key }))
            }
            Ask::SetHome(_) => {}
        }
    }

    /// Accepts here what waited for a node that is gone, or for too long.
    pub(crate) fn settle_pending(&mut self, gone: Option<NodeId>, now: Now) {
        let due = |p: &Pending| gone == Some(p.to) || p.deadline_ms <= now.mono_ms;
        let due: Vec<u64> =
            self.pending.iter().filter(|(_, p)| due(p)).map(|(id, _)| *id).collect();
        for id in due {
            let Some(Pending { job, .. }) = self.pending.remove(&id) else { continue };
            self.stats.forwards_timed_out += u64::from(gone.is_none());
            let standing = if self.decider(&job.key) == self.config.node {
                Standing::Decider(self.config.node)
            } else {
                Standing::Apart
            };
            self.settle(&job, standing, now);
        }
    }

    /// When the first waiting request gives up.
    pub(crate) fn pending_deadline_ms(&self) -> Option<u64> {
        self.pending.values().map(|pending| pending.deadline_ms).min()
    }

    fn settle(&mut self, job: &Job, standing: Standing, now: Now) {
        self.history.asking.clone_from(&job.client);
        let asked = (&job.payload[..], job.update.as_ref());
        let outcome = self.perform(&job.key, job.ask, asked, standing, now);
        self.history.asking = None;
        self.respond_job(job, outcome, now);
    }

    fn perform(
        &mut self,
        key: &ShadowKey,
        ask: Ask,
        (payload, update): (&[u8], Option<&Update>),
        standing: Standing,
        now: Now,
    ) -> Outcome {
        match ask {
            Ask::Update => {
                let read;
                let update = if let Some(update) = update {
                    update
                } else {
                    read = parse_update(payload, &self.config.limits)?;
                    &read
                };
                let outcome = self.update(key, update, standing, now);
                outcome.map_err(|reject| (reject, update.token.clone()))
            }
            Ask::Delete => {
                let (token, version) = parse_bare(payload, &self.config.limits)?;
                self.delete(key, token.as_deref(), version, standing, now)
                    .map_err(|reject| (reject, token))
            }
            Ask::SetHome(node) => {
                if matches!(standing, Standing::Apart) {
                    return Err((Reject::new(500, "The home node cannot be reached"), None));
                }
                self.hand_over(key, node, now).map_err(|reject| (reject, None))
            }
        }
    }

    fn update(
        &mut self,
        key: &ShadowKey,
        update: &Update,
        standing: Standing,
        now: Now,
    ) -> Result<Value, Reject> {
        self.forget_deleted(key, now);
        self.renounce(key, now);
        let previous = self.shadows.fetch(key);
        let previous = previous.as_deref();
        if !update.desired.is_empty() {
            self.check_owner(previous, standing)?;
        }
        let expected = update.version.filter(|_| !is(Bug::VersionNotCompared));
        check_expected(expected, previous, self.peers.is_empty())?;
        self.check_policies(key, update)?;
        if previous.is_none() && self.shadows.len() >= self.config.limits.shadows_max {
            return Err(Reject::new(429, "This node keeps as many shadows as it may"));
        }
        let (mut shadow, pen, class) = self.begin(previous, standing, now);
        shadow.update(update, &pen, class);
        check_grown(&shadow, previous)?;
        self.check_size(&shadow, previous)?;
        self.judge(key, &mut shadow, now);
        let (timestamp_s, token) = (now.wall_s(), update.token.as_deref());
        let accepted = shadow.update_accepted(update, &pen.stamp, timestamp_s);
        self.publish_state(key, &shadow, previous, timestamp_s, token);
        self.written(key, shadow, pen.stamp, standing);
        Ok(accepted)
    }

    fn delete(
        &mut self,
        key: &ShadowKey,
        token: Option<&str>,
        version: Option<u64>,
        standing: Standing,
        now: Now,
    ) -> Result<Value, Reject> {
        self.renounce(key, now);
        let previous = self.shadows.fetch(key).filter(|shadow| shadow.exists());
        let Some(previous) = previous else { return Err(not_there(key)) };
        self.check_owner(Some(&previous), standing)?;
        if version.is_some_and(|version| version != previous.version) {
            return Err(Reject::conflict());
        }
        let (mut shadow, pen, class) = self.begin(Some(&previous), standing, now);
        shadow.delete(&pen, class);
        check_grown(&shadow, Some(&previous))?;
        let body = json!({ "version": shadow.version, "timestamp": now.wall_s() });
        self.written(key, shadow, pen.stamp, standing);
        Ok(with_token(body, token))
    }

    /// A copy to write to, what to write with, and the class of its version number.
    fn begin(
        &mut self,
        previous: Option<&Shadow>,
        standing: Standing,
        now: Now,
    ) -> (Shadow, Pen, Class) {
        let mut shadow = previous.cloned().unwrap_or_default();
        self.collect_tombstones(&mut shadow, now);
        let stamp = Stamp::new(self.stamp(now), self.config.node);
        let class = match (standing, shadow.home) {
            (Standing::Apart, _) => self.place().slot(),
            (Standing::Decider(_), Some(_)) => self.place().class(shadow.home),
            (Standing::Decider(client_node), None) => {
                shadow.home = Some(Home { term: stamp.hlc.0, node: client_node, sure: true });
                Class::Owner
            }
        };
        let rebase_at = self.config.limits.rebase_changes;
        (shadow, Pen { stamp, actor: self.actor, seq: self.feed.head + 1, rebase_at }, class)
    }

    /// Strict: what is intended is decided by the one who has the shadow's numbers, or not at all.
    fn check_owner(&self, shadow: Option<&Shadow>, standing: Standing) -> Result<(), Reject> {
        let home = shadow.and_then(|shadow| shadow.home);
        let decides = matches!(standing, Standing::Decider(_)) && home.is_none_or(|home| home.sure);
        if decides || !self.config.rules.strict {
            return Ok(());
        }
        Err(Reject::new(500, "The shadow's owner is unreachable"))
    }

    /// What only the device says cannot be wanted.
    fn check_policies(&self, key: &ShadowKey, update: &Update) -> Result<(), Reject> {
        let policies = &self.config.rules.policies;
        let refused = |(path, value): &&(String, Option<String>)| {
            value.is_some() && policies.of(&key.thing, path) == Policy::ReportedOnly
        };
        match update.desired.iter().find(refused) {
            Some((path, _)) => {
                let path = path[1..].replace(SEPARATOR, ".");
                let message =
                    format!("State contains an invalid node: desired{path} is only reported");
                Err(Reject::new(400, message))
            }
            None => Ok(()),
        }
    }

    /// A home is on its way here already.
    pub(crate) fn is_moving(&self, key: &ShadowKey) -> bool {
        let moves = |job: &Job| matches!(job.ask, Ask::SetHome(_)) && job.key == *key;
        self.pending.values().any(|pending| moves(&pending.job))
    }

    /// A merge is never refused, so a shadow can be too large; then only what shrinks it is accepted.
    fn check_size(&self, shadow: &Shadow, previous: Option<&Shadow>) -> Result<(), Reject> {
        let fits = shadow.fits_in(self.config.limits.state_bytes_max);
        if fits || previous.is_some_and(|p| shadow.state_bytes() < p.state_bytes()) {
            Ok(())
        } else {
            Err(Reject::too_large())
        }
    }

    fn written(&mut self, key: &ShadowKey, shadow: Shadow, stamp: Stamp, standing: Standing) {
        let apart = matches!(standing, Standing::Apart);
        self.stats.accepted += 1;
        let epoch_before = self.shadows.get(key).map_or(0, |shadow| shadow.desired.epoch().number);
        self.stats.epochs += u64::from(shadow.desired.epoch().number > epoch_before);
        self.stats.apart += u64::from(apart);
        let from = match standing {
            Standing::Decider(node) => Some(node),
            Standing::Apart => None,
        };
        self.remember_write(key, &shadow, from, apart);
        let stamp = stamp.with_term(shadow.term());
        let event = Event::Written { key: key.clone(), version: shadow.version, stamp, apart };
        self.then.push(Output::Event(event));
        self.install(key.clone(), shadow);
    }

    /// The messages that show a new state: the whole difference, and both documents.
    pub(crate) fn publish_state(
        &mut self,
        key: &ShadowKey,
        shadow: &Shadow,
        previous: Option<&Shadow>,
        timestamp_s: u64,
        token: Option<&str>,
    ) {
        let silent = is(Bug::MergedDeltaLeftOut) && token.is_none();
        if let Some(delta) = shadow.delta_message(timestamp_s, token).filter(|_| !silent) {
            self.publish(key, "update/delta", to_bytes(&delta));
        }
        let documents = shadow.documents_message(previous, timestamp_s, token);
        self.publish(key, "update/documents", to_bytes(&documents));
    }

    fn respond_job(&mut self, job: &Job, outcome: Outcome, now: Now) {
        match (job.ask, &outcome) {
            (Ask::Update, _) => self.respond(&job.key, Verb::Update, job.reply, outcome, now),
            (Ask::Delete, _) => self.respond(&job.key, Verb::Delete, job.reply, outcome, now),
            (Ask::SetHome(_), Err(_)) => {
                self.then.push(Output::Event(Event::HomeNotMoved { key: job.key.clone() }))
            }
            (Ask::SetHome(_), Ok(_)) => {}
        }
    }

    fn respond(
        &mut self,
        key: &ShadowKey,
        verb: Verb,
        reply: Option<u64>,
        outcome: Outcome,
        now: Now,
    ) {
        let (status, body) = match outcome {
            Ok(body) => (200, body),
            Err((reject, token)) => {
                self.stats.rejected += 1;
                (reject.code, rejection(&reject, token.as_deref(), now))
            }
        };
        self.publish_answer(key, verb, reply, status, to_bytes(&body));
    }

    fn publish_answer(
        &mut self,
        key: &ShadowKey,
        verb: Verb,
        reply: Option<u64>,
        status: u16,
        body: Vec<u8>,
    ) {
        if let Some(id) = reply {
            self.then.push(Output::Reply { id, status, body: body.clone() });
        }
        let outcome = if status == 200 { "accepted" } else { "rejected" };
        self.publish(key, &format!("{}/{outcome}", verb.word()), body);
    }

    pub(crate) fn publish(&mut self, key: &ShadowKey, tail: &str, payload: Vec<u8>) {
        self.then.push(Output::Publish { topic: key.topic(tail), payload });
    }
}

/// A client that names a version must name the current one, also that of a delete. Of a shadow that was never there the
/// first version is 1; but where a peer may have it, who names 1 may have read it there.
fn check_expected(
    expected: Option<u64>,
    previous: Option<&Shadow>,
    alone: bool,
) -> Result<(), Reject> {
    match (expected, previous) {
        (None, _) => Ok(()),
        (Some(1), None) if alone => Ok(()),
        (Some(_), None) if alone => Err(Reject::invalid_version()),
        (Some(_), None) => Err(Reject::conflict()),
        (Some(expected), Some(previous)) if expected == previous.version => Ok(()),
        (Some(_), Some(_)) => Err(Reject::conflict()),
    }
}

fn check_grown(shadow: &Shadow, previous: Option<&Shadow>) -> Result<(), Reject> {
    let grew = shadow.version > previous.map_or(0, |p| p.version);
    if grew { Ok(()) } else { Err(Reject::new(500, "This shadow's version numbers are used up")) }
}

fn not_there(key: &ShadowKey) -> Reject {
    Reject::new(404, format!("No shadow exists with name: '{}'", key.spoken()))
}

fn rejection(reject: &Reject, token: Option<&str>, now: Now) -> Value {
    let body = json!({ "code": reject.code, "message": reject.message, "timestamp": now.wall_s() });
    with_token(body, token)
}

fn to_bytes(body: &Value) -> Vec<u8> {
    body.to_string().into_bytes()
}

fn rendezvous(key: &ShadowKey, node: NodeId) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(key.thing.as_bytes());
    hash.update([0]);
    hash.update(key.name.as_deref().unwrap_or("").as_bytes());
    hash.update(node.0.to_be_bytes());
    hash.finalize().into()
}
