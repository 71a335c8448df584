//! A bridge at work: connect, relay until the link ends, wait, again.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use outpost_bridge::pace::Pace;
use outpost_bridge::{Relay, Step};
use outpost_flow::Backoff;
use outpost_mqtt::packet::{Packet, PacketId, RetainHandling};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::link::{LinkError, Moved};
use super::local::{self, Local};
use super::remote::{self, Far, Wish};
use super::{Spec, sessions};
use crate::clock::now;
use crate::dice;
use crate::plane::Command;

/// Bytes waiting to be written to one side before the other is no longer read. Fewer: more turns; more: memory of each
/// bridge, and what a lost link makes the shard send again.
const WRITE_BYTES_MAX: usize = 256 * 1024;

/// How often to look for the data plane at start.
const PLANE_PAUSE: Duration = Duration::from_millis(20);

/// A link that lived this long was a success: the next wait begins small again.
const STEADY_MS: u64 = 10_000;

/// What a bridge remembers between links.
#[derive(Debug)]
struct Memory {
    /// The session on this node was new when the bridge started: the broker's old one would not fit it.
    is_new: bool,
    /// Unacknowledged messages that this node takes of one client.
    receive_max: u16,
    /// Retained messages are due: there are filters the broker has not had them for.
    retained_due: bool,
    /// The broker does not take a client that says it is a bridge.
    no_private: bool,
    /// No link has been up since the bridge started.
    first: bool,
}

/// Works for ever.
pub(super) async fn run(spec: Spec) {
    // The data plane is started beside this actor.
    while spec.plane.ask(|reply| Command::Sessions(String::new(), reply)).await.is_err() {
        tokio::time::sleep(PLANE_PAUSE).await;
    }
    let (min_ms, max_ms) = spec.settings.restart_ms;
    let mut backoff = Backoff::new(min_ms, max_ms);
    let mut memory = None;
    notify(&spec, false).await;
    loop {
        spec.status.connecting();
        let began_ms = now().mono_ms;
        if let Some(probe) = &spec.probe {
            probe(super::ROLE, &spec.settings.name);
        }
        let mut was_up = false;
        let why = match attempt(&spec, &mut memory, &mut was_up).await {
            Err(why) => why,
            Ok(never) => match never {},
        };
        if was_up {
            notify(&spec, false).await;
            if now().mono_ms >= began_ms + STEADY_MS {
                backoff.handle_success();
            }
        }
        let wait_ms = backoff.handle_failure(dice::random_u64() as u32).max(1);
        let (name, address) = (&spec.settings.name, spec.settings.address());
        let text = why.to_string();
        if spec.status.waiting(&text, wait_ms) {
            warn!("bridge {name} to {address}: {text}; trying again in {wait_ms} ms");
        } else {
            debug!("bridge {name} to {address}: {text}; trying again in {wait_ms} ms");
        }
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
    }
}

/// Nothing is ever this.
enum Never {}

async fn attempt(
    spec: &Spec,
    memory: &mut Option<Memory>,
    was_up: &mut bool,
) -> Result<Never, LinkError> {
    let settings = &*spec.settings;
    let memory = match memory {
        Some(memory) => memory,
        None => memory.insert(prepare(spec).await?),
    };
    let private = settings.version != outpost_mqtt::packet::Version::V5
        && settings.try_private
        && !memory.no_private;
    let wish = Wish { clean_start: memory.is_new, private, receive_max: memory.receive_max };
    let connected = remote::connect(settings, wish).await;
    if let Err(why) = &connected
        && private
        && remote::refuses_bridges(why)
    {
        memory.no_private = true; // the next attempt does without
    }
    let (mut far, peer, facts, connack) = connected?;
    let mut subacks_due = 0;
    if let Some(request) = remote::subscribe(settings, &facts, memory.first) {
        put(&mut far, &Packet::Subscribe(request))?;
        subacks_due += 1;
    }
    if let Some(up) = remote::up(settings) {
        put(&mut far, &up)?;
    }
    let received = received(spec).await;
    let in_flight = settings.inflight_max.min(connack.receive_max.unwrap_or(u16::MAX));
    let (mut near, _) =
        local::attach(&spec.plane, &settings.client_id, peer, false, in_flight).await?;
    // A broker that has no session of ours may have lost its retained messages too.
    let retained = memory.retained_due || !facts.session_present;
    let handling = if retained { RetainHandling::Send } else { RetainHandling::Never };
    if let Some(request) = local::subscribe(settings, handling, facts.qos_max) {
        put(&mut near, &Packet::Subscribe(request))?;
        subacks_due += 1;
    }
    (memory.is_new, memory.first, memory.retained_due) = (false, false, false);
    *was_up = true;
    let pace = Pace::new(usize::from(in_flight), settings.rate_bytes_max);
    let rules = std::sync::Arc::clone(&settings.rules);
    let relay = Relay::new(rules, facts, pace, memory.receive_max, received);
    let now_ms = now().mono_ms;
    let (heard_ms, alive_ms) = (now_ms, now_ms);
    let subacks_due = Some(subacks_due);
    Link { spec, near, far, relay, subacks_due, heard_ms, alive_ms, ping_ms: None }.work().await
}

async fn prepare(spec: &Spec) -> Result<Memory, LinkError> {
    let known = sessions(&spec.plane).await.remove(&spec.settings.client_id);
    let filters = known.map(|session| session.filters).unwrap_or_default();
    let prepared = local::prepare(&spec.plane, &spec.settings, &filters).await;
    spec.status.prepared();
    let prepared = prepared?;
    Ok(Memory {
        is_new: prepared.is_new,
        receive_max: prepared.receive_max,
        retained_due: prepared.has_new_filters,
        no_private: false,
        first: true,
    })
}

async fn received(spec: &Spec) -> Vec<PacketId> {
    let session = sessions(&spec.plane).await.remove(&spec.settings.client_id);
    session.map(|session| session.received).unwrap_or_default()
}

/// Has the node say whether the link is up, under the topic mosquitto has for it.
async fn notify(spec: &Spec, is_up: bool) {
    if !spec.settings.notifications {
        return;
    }
    // While the data plane is down nobody could read it.
    let _ = spec.plane.send(Command::BridgeState(spec.settings.name.clone(), is_up)).await;
}

fn put<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    wire: &mut super::link::Wire<S>,
    packet: &Packet,
) -> Result<(), LinkError> {
    wire.put(packet).map_err(|why| LinkError::Other(why.to_string()))
}

/// A link that is up.
struct Link<'a> {
    spec: &'a Spec,
    near: Local,
    far: Far,
    relay: Relay,
    /// Answers to our SUBSCRIBEs that have not come: until they have, what is published may pass the bridge by, and nobody is
    /// told that it is up. Nothing once that is told.
    subacks_due: Option<u32>,
    /// Something came from the broker.
    heard_ms: u64,
    /// It showed that it is there: something came, or it took what had to wait.
    alive_ms: u64,
    /// A ping is on its way, since when.
    ping_ms: Option<u64>,
}

impl Link<'_> {
    async fn work(mut self) -> Result<Never, LinkError> {
        loop {
            self.carry_out()?;
            self.tell_when_up().await;
            let (near, far) = self.turn().await?;
            let now_ms = now().mono_ms;
            if far.read {
                (self.heard_ms, self.alive_ms) = (now_ms, now_ms);
            } else if far.freed {
                self.alive_ms = now_ms;
            }
            while let Some(packet) = self.far.take()? {
                self.heard(packet, now_ms);
            }
            if near.read {
                while let Some(packet) = self.near.take()? {
                    self.count_suback(&packet);
                    self.relay.handle_local(packet, now_ms);
                }
            }
            if self.relay.poll_timeout().is_some_and(|due_ms| due_ms <= now_ms) {
                self.relay.handle_timeout(now_ms);
            }
            self.look_after(now_ms)?;
        }
    }

    fn heard(&mut self, packet: Packet, now_ms: u64) {
        if matches!(packet, Packet::Pingresp)
            && let Some(sent_ms) = self.ping_ms.take()
        {
            return self.relay.handle_pong(now_ms.saturating_sub(sent_ms), now_ms);
        }
        self.count_suback(&packet);
        self.relay.handle_remote(packet, now_ms);
    }

    fn count_suback(&mut self, packet: &Packet) {
        if matches!(packet, Packet::Suback(_)) {
            self.subacks_due = self.subacks_due.map(|due| due.saturating_sub(1));
        }
    }

    async fn tell_when_up(&mut self) {
        if self.subacks_due != Some(0) {
            return;
        }
        self.subacks_due = None;
        self.spec.status.connected();
        notify(self.spec, true).await;
        let settings = &self.spec.settings;
        info!("bridge {} to {} is up", settings.name, settings.address());
    }

    /// Pings a broker that says nothing, and gives up one that does not answer.
    fn look_after(&mut self, now_ms: u64) -> Result<(), LinkError> {
        let timeout_ms = self.spec.settings.link_timeout_ms;
        if !self.reads_far() {
            // It may have said a lot.
            (self.heard_ms, self.alive_ms) = (now_ms, now_ms);
            return Ok(());
        }
        if now_ms >= self.alive_ms + timeout_ms {
            return Err(LinkError::Silent { who: remote::WHO, ms: now_ms - self.heard_ms });
        }
        if self.ping_ms.is_none() && now_ms >= self.heard_ms + timeout_ms / 3 {
            self.ping_ms = Some(now_ms);
            put(&mut self.far, &Packet::Pingreq)?;
        }
        Ok(())
    }

    fn reads_far(&self) -> bool {
        self.near.waiting() < WRITE_BYTES_MAX
    }

    fn next_due_ms(&self) -> u64 {
        let timeout_ms = self.spec.settings.link_timeout_ms;
        let dead_ms = self.alive_ms + timeout_ms;
        let ping_ms = self.ping_ms.map_or(self.heard_ms + timeout_ms / 3, |_| dead_ms);
        let relay_ms = self.relay.poll_timeout().unwrap_or(u64::MAX);
        dead_ms.min(ping_ms).min(relay_ms)
    }

    /// Waits until one of the sides moves, or it is time.
    async fn turn(&mut self) -> Result<(Moved, Moved), LinkError> {
        let wait_ms = self.next_due_ms().saturating_sub(now().mono_ms).max(1);
        let mut timer =
            pin!(tokio::time::sleep_until(Instant::now() + Duration::from_millis(wait_ms)));
        let reads_near = self.far.waiting() < WRITE_BYTES_MAX && self.relay.wants_local();
        let reads_far = self.reads_far();
        poll_fn(|cx| {
            let near = self.near.poll(cx, reads_near);
            let far = self.far.poll(cx, reads_far);
            match (near, far) {
                (Poll::Pending, Poll::Pending) => {
                    timer.as_mut().poll(cx).map(|()| Ok((Moved::default(), Moved::default())))
                }
                (Poll::Ready(Err(why)), _) | (_, Poll::Ready(Err(why))) => Poll::Ready(Err(why)),
                (near, far) => {
                    let moved = |side: Poll<Result<Moved, LinkError>>| match side {
                        Poll::Ready(Ok(moved)) => moved,
                        _ => Moved::default(),
                    };
                    Poll::Ready(Ok((moved(near), moved(far))))
                }
            }
        })
        .await
    }

    fn carry_out(&mut self) -> Result<(), LinkError> {
        let mut broken = None;
        while let Some(step) = self.relay.poll_step() {
            match step {
                // What this node says is too large for it came from the broker, which would only send it again.
                Step::ToLocal(packet) => put(&mut self.near, &packet)?,
                Step::ToRemote(packet) => {
                    let fits = self.far.put(&packet).is_ok();
                    if let (false, Packet::Publish(publish)) = (fits, &packet) {
                        self.relay.handle_too_large(publish);
                    }
                }
                Step::Broken(why) => broken = Some(why),
            }
        }
        let (counts, pace) = (self.relay.take_counts(), self.relay.pace());
        self.spec.status.count(&counts, self.relay.in_flight(), pace.window(), pace.rtt_ms());
        broken.map_or(Ok(()), |why| Err(LinkError::Other(why)))
    }
}
