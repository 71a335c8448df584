//! What HTTP may see and do: the node's answers to [`crate::http::Backend`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use outpost_actors::shard::{ActorInfo as Actor, ListenerStats, LocalPublish, Totals};
use outpost_actors::tree::TreeMsg;
use outpost_cluster::Cluster;
use outpost_flow::Health as ActorHealth;
use outpost_hardware::{DeviceStatus, Hardware};
use outpost_model::NodeId;
use outpost_mqtt::packet::ReasonCode;
use outpost_shadow::{Entry, Reason, ShadowKey as HubKey, Verb};
use outpost_store::disk::DiskStore;
use parking_lot::Mutex;
use ractor::ActorRef;
use serde_json::json;

use crate::admin::Desk;
use crate::bridge::{Bridges, Shown, stats};
use crate::http::{
    ActorInfo, AdminError, AdminRequest, Backend, BoxFuture, Health, LedgerPage, PublishError,
    PublishRequest, ShadowKey, ShadowReply, ShadowRequest, ShadowVerb, ShadowsDown,
};
use crate::listeners::Listeners;
use crate::peers::Links;
use crate::plane::{Command, PlaneHandle};
use crate::shadows::{ShadowCommand, ShadowHandle, Unheard};

/// Cells shown at most; those in trouble come first.
pub const ACTORS_MAX: usize = 10_000;

/// The node behind its HTTP API.
pub struct NodeBackend {
    pub(crate) bridges: Bridges,
    pub(crate) name: String,
    pub(crate) config_sha256: String,
    pub(crate) started: Instant,
    pub(crate) store: Arc<DiskStore>,
    pub(crate) store_failed: Arc<Mutex<Option<String>>>,
    pub(crate) plane: PlaneHandle,
    pub(crate) shadows: ShadowHandle,
    pub(crate) links: Links,
    pub(crate) tree: ActorRef<TreeMsg>,
    pub(crate) cluster: Arc<Mutex<Option<Arc<Cluster>>>>,
    pub(crate) hardware: Option<Arc<Hardware>>,
    pub(crate) listeners: Listeners,
    pub(crate) desk: Desk,
}

impl Backend for NodeBackend {
    fn actors(&self) -> BoxFuture<'_, Vec<ActorInfo>> {
        Box::pin(async move {
            let root = Actor {
                id: "node".to_owned(),
                parent: None,
                weight: "ractor",
                role: "node",
                name: self.name.clone(),
                state: "running",
                mailbox: 0,
                mailbox_max: 0,
                restarts: 0,
                cause: None,
                detail: String::new(),
            };
            let heavy = ractor::call!(self.tree, TreeMsg::List).unwrap_or_default();
            let cells = self
                .plane
                .ask(|reply| Command::Actors(ACTORS_MAX, reply))
                .await
                .unwrap_or_default();
            let devices = match &self.hardware {
                Some(hardware) => hardware.status().await,
                None => Vec::new(),
            };
            let devices = devices.into_iter().map(device_info);
            std::iter::once(root).chain(heavy).chain(devices).chain(cells).map(actor_info).collect()
        })
    }

    fn bridges(&self) -> BoxFuture<'_, Vec<Shown>> {
        Box::pin(self.bridges.show(&self.plane))
    }

    fn cluster(&self) -> BoxFuture<'_, Option<serde_json::Value>> {
        Box::pin(async move {
            let cluster = self.cluster.lock().clone()?;
            let mut status = serde_json::to_value(cluster.status()).ok()?;
            let stats = self.plane.ask(Command::Stats).await.unwrap_or_default();
            tell_rules(&mut status, &stats.rules_epochs);
            for unheard in self.unheard().await {
                let id = unheard.peer.to_string();
                let mut members = status["members"].as_array_mut()?.iter_mut();
                if let Some(member) = members.find(|member| member["id"] == *id) {
                    let Unheard { reason, left_s, .. } = unheard;
                    member["shadows_quarantined"] = json!({ "reason": reason, "left_s": left_s });
                }
            }
            Some(status)
        })
    }

    fn shadow(&self, request: ShadowRequest) -> BoxFuture<'_, ShadowReply> {
        Box::pin(async move {
            let key = HubKey { thing: request.thing, name: request.name };
            let verb = match request.verb {
                ShadowVerb::Get => Verb::Get,
                ShadowVerb::Update => Verb::Update,
                ShadowVerb::Delete => Verb::Delete,
            };
            let payload = request.payload;
            let answer =
                self.shadows.ask(|reply| ShadowCommand::Ask { key, verb, payload, reply }).await;
            let (status, body) = answer.unwrap_or_else(|| {
                (
                    503,
                    b"{\"code\":503,\"message\":\"the shadow service is being restarted\"}"
                        .to_vec(),
                )
            });
            ShadowReply { status, body: body.into() }
        })
    }

    fn shadow_move(
        &self,
        (thing, name): ShadowKey,
        gone: bool,
    ) -> BoxFuture<'_, Result<Option<(NodeId, bool)>, ShadowsDown>> {
        Box::pin(async move {
            let key = HubKey { thing, name };
            let home = self.shadows.ask(|reply| ShadowCommand::Move { key, gone, reply }).await;
            Ok(home.ok_or(ShadowsDown)?.map(|home| (home.node, home.sure)))
        })
    }

    fn shadow_list(
        &self,
        prefix: String,
        after: Option<ShadowKey>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<(ShadowKey, u64)>, ShadowsDown>> {
        Box::pin(async move {
            let after = after.map(|(thing, name)| HubKey { thing, name });
            let found =
                self.shadows.ask(|reply| ShadowCommand::List { prefix, after, limit, reply }).await;
            let named = |(key, version): (HubKey, u64)| ((key.thing, key.name), version);
            Ok(found.ok_or(ShadowsDown)?.into_iter().map(named).collect())
        })
    }

    fn shadow_history(
        &self,
        of: ShadowKey,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Entry>, ShadowsDown>> {
        Box::pin(self.past(HubKey { thing: of.0, name: of.1 }, limit))
    }

    fn shadow_why(
        &self,
        of: ShadowKey,
        path: Vec<String>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Reason>, ShadowsDown>> {
        Box::pin(self.reasons(HubKey { thing: of.0, name: of.1 }, path, limit))
    }

    fn publish(&self, message: PublishRequest) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(async move {
            let publish = LocalPublish {
                here_only: false,
                topic: message.topic.into(),
                payload: message.payload,
                qos: message.qos,
                retain: message.retain,
                expiry_s: message.expiry_s,
                properties: message.properties,
            };
            match self.plane.ask(|reply| Command::Publish(publish, Some(reply))).await {
                Ok(ReasonCode::Success) => Ok(()),
                Ok(ReasonCode::QuotaExceeded) => {
                    Err(PublishError::Busy("a receiver's queue is full".to_owned()))
                }
                Ok(reason) => Err(PublishError::Refused(format!("{reason:?}"))),
                Err(error) => Err(PublishError::Failed(error.to_string())),
            }
        })
    }

    fn stats(&self) -> BoxFuture<'_, serde_json::Value> {
        Box::pin(async move {
            let shard = self.plane.ask(Command::Stats).await.unwrap_or_default();
            let hub = self.shadows.ask(ShadowCommand::Stats).await.unwrap_or_default();
            let unheard = self.unheard().await.len();
            let bridges = self.bridges.show(&self.plane).await;
            let ledger = &shard.ledger;
            let drops = self.plane.drops();
            let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
            let charged: serde_json::Map<_, _> = outpost_flow::Class::ALL
                .iter()
                .map(|class| (class.name().to_owned(), shard.memory[*class as usize].into()))
                .collect();
            let dropped: serde_json::Map<_, _> = outpost_actors::ledger::Drop::ALL
                .iter()
                .map(|why| (why.name().to_owned(), ledger.dropped[*why as usize].into()))
                .collect();
            let turns: serde_json::Map<_, _> = self
                .plane
                .turns()
                .by_length()
                .map(|(ms, count)| (ms.to_owned(), count.into()))
                .collect();
            let memory = crate::telemetry::memory::resident();
            json!({
                "process": memory.map(|memory| json!({
                    "resident_bytes": memory.bytes,
                    "resident_bytes_max": memory.peak_bytes,
                })),
                "traffic": traffic(&shard.totals),
                "mqtt": {
                    "connections": shard.connections,
                    "connections_total": ledger.connections,
                    "connects_refused_total": ledger.refused_connects,
                    "connections_refused_total": self.listeners.refused(),
                    "protocol_errors_total": ledger.protocol_errors,
                    "sessions": shard.sessions,
                    "sessions_connected": shard.sessions_connected,
                    "sessions_connected_max": shard.totals.connected_peak,
                    "sessions_expired_total": shard.totals.sessions_expired,
                    "connects_total": shard.totals.connects,
                    "subscriptions": shard.subscriptions,
                    "subscriptions_refused_total": ledger.refused_subscriptions,
                    "checks_late_total": load(&drops.late_checks),
                    "retained": shard.retained,
                    "directory": shard.directory,
                    "directory_tombstones": shard.directory_tombstones,
                    "directory_refused_total": shard.directory_refused,
                    "sessions_moving": shard.sessions_moving,
                    "sessions_arrived_total": shard.sessions_arrived,
                    "sessions_left_total": shard.sessions_left,
                    "retained_tombstones": shard.retained_tombstones,
                    "retained_tombstones_forgotten_total": shard.retained_forgotten,
                    "queued": shard.queued,
                    "queues_full": shard.queues_full,
                    "queues_high": shard.queues_high,
                    "queue_marks_total": shard.queue_marks,
                    "queued_bytes": shard.queued_bytes,
                    "node_queue_full": shard.node_queue_full,
                    "node_queue_marks_total": shard.node_queue_marks,
                },
                "listener": with_traffic(self.listeners.stats(), &shard.listeners),
                "messages": {
                    "accepted_total": ledger.accepted,
                    "refused_total": ledger.refused,
                    "wanted_total": ledger.wanted,
                    "unwanted_total": ledger.unwanted,
                    "kept_total": ledger.kept,
                    "requests_total": ledger.requests,
                    "held_back": shard.held_back,
                    "missing": shard.missing(),
                    "owed_total": ledger.owed,
                    "delivered_total": ledger.delivered,
                    "dropped_total": { "by_reason": dropped },
                },
                "memory": {
                    "limit_bytes": shard.memory_limit,
                    "used_bytes": { "by_class": charged },
                    "pressure": shard.pressure as u8,
                    "pressure_changes_total": ledger.pressure_changes,
                },
                "pacing": {
                    "waits_total": ledger.paced,
                    "in_vain_total": ledger.in_vain,
                    "demoted_total": ledger.demoted,
                },
                "turns_total": { "by_below_ms": turns },
                "turns_waited_total": self.plane.turns().waited(),
                "sends_together_total": self.plane.turns().sends_together(),
                "turn_longest_seconds": self.plane.turns().longest_us() as f64 / 1e6,
                "actors": { "channels": shard.channels, "panics_total": ledger.panics },
                "peers": {
                    "outbox": shard.outbox,
                    "outbox_bytes": shard.outbox_bytes,
                    "outboxes_full": shard.outboxes_full,
                    "outboxes_high": shard.outboxes_high,
                    "outbox_marks_total": shard.outbox_marks,
                    "events_in_total": shard.peer_events_in,
                    "events_out_total": shard.peer_events_out,
                    "duplicates_in_total": shard.peer_duplicates_in,
                    "dropped_total": self.links.dropped(),
                },
                "traces": { "lines_lost_total": self.desk.traces.lost() },
                "bridge": stats(&bridges),
                "hardware": { "dropped_total": load(&drops.local) },
                "shadows": {
                    "requests_dropped_total": load(&drops.shadow_requests),
                    "stored": hub.shadows,
                    "hot": hub.hot,
                    "reads_total": hub.reads,
                    "accepted_total": hub.accepted,
                    "rejected_total": hub.rejected,
                    "merged_total": hub.merged,
                    "conflicts_total": hub.conflicts,
                    "frames_refused_total": hub.frames_refused,
                    "peers_quarantined": unheard,
                    "pace_bytes_per_second": hub.pace_bytes_s,
                    "paced_total": hub.paced,
                },
                "store": {
                    "disk_bytes": self.store.disk_bytes().unwrap_or_default(),
                    "backlog_bytes": self.store.backlog_bytes(),
                    "bodies": shard.bodies,
                    "stalled": u8::from(self.store.stall().is_some()),
                    "stalls_total": self.store.stalls(),
                    "free_bytes": self.store.free_bytes(),
                },
            })
        })
    }

    fn ledger(&self) -> BoxFuture<'_, Option<LedgerPage>> {
        Box::pin(async move {
            let stats = self.plane.ask(Command::Stats).await.ok();
            stats.as_ref().map(LedgerPage::new)
        })
    }

    fn admin(&self, request: AdminRequest) -> BoxFuture<'_, Result<serde_json::Value, AdminError>> {
        Box::pin(self.administer(request))
    }

    fn reload(&self) -> BoxFuture<'_, serde_json::Value> {
        Box::pin(async move {
            let listeners = self.listeners.clone();
            let reloaded = tokio::task::spawn_blocking(move || listeners.reload()).await;
            let listeners: Vec<_> = reloaded
                .unwrap_or_default()
                .into_iter()
                .map(|one| json!({ "name": one.listener, "reloaded": one.outcome.is_ok(), "why": one.outcome.err() }))
                .collect();
            json!({ "listeners": listeners })
        })
    }

    fn health(&self) -> Health {
        let failed = self.store_failed.lock().clone();
        let stall = self.store.stall();
        Health {
            status: match (&failed, &stall) {
                (Some(_), _) => "store_failed",
                (None, Some(stall)) if stall.full => "disk_full",
                (None, Some(_)) => "store_stalled",
                (None, None) => "ok",
            }
            .to_owned(),
            node: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config_sha256: self.config_sha256.clone(),
            uptime_s: self.started.elapsed().as_secs(),
            store: failed.or(stall.map(|stall| stall.cause)).unwrap_or_else(|| "ok".to_owned()),
        }
    }
}

impl NodeBackend {
    async fn unheard(&self) -> Vec<Unheard> {
        self.shadows.ask(ShadowCommand::Quarantined).await.unwrap_or_default()
    }
}

fn traffic(totals: &Totals) -> serde_json::Value {
    let messages = &totals.messages;
    json!({
        "packets_received_total": totals.packets_received,
        "packets_sent_total": totals.packets_sent,
        "bytes_received_total": totals.bytes_received,
        "bytes_sent_total": totals.bytes_sent,
        "publishes_received_total": { "by_qos": by_qos(messages.received) },
        "publishes_sent_total": { "by_qos": by_qos(messages.sent) },
        "payload_bytes_received_total": messages.payload_bytes_received,
        "payload_bytes_sent_total": messages.payload_bytes_sent,
    })
}

fn by_qos(counts: [u64; 3]) -> serde_json::Value {
    json!({ "0": counts[0], "1": counts[1], "2": counts[2] })
}

/// The sockets' figures and what went over them: one object a subject, so that a scraper sees the listener as label.
fn with_traffic(mut figures: serde_json::Value, all: &[ListenerStats]) -> serde_json::Value {
    let mut add = |subject: &str, figure: fn(&ListenerStats) -> u64| {
        let by: serde_json::Map<_, _> =
            all.iter().map(|l| (l.name.to_string(), figure(l).into())).collect();
        figures[subject] = json!({ "by_listener": by });
    };
    add("bytes_received_total", |l| l.bytes_received);
    add("bytes_sent_total", |l| l.bytes_sent);
    add("publishes_received_total", |l| l.messages.received.iter().sum());
    add("publishes_sent_total", |l| l.messages.sent.iter().sum());
    add("payload_bytes_received_total", |l| l.messages.payload_bytes_received);
    add("payload_bytes_sent_total", |l| l.messages.payload_bytes_sent);
    figures
}

fn device_info(device: DeviceStatus) -> Actor {
    let state = match device.health {
        ActorHealth::Running => "running",
        ActorHealth::Restarting { .. } => "restarting",
        ActorHealth::Quarantined { .. } => "quarantined",
    };
    Actor {
        id: format!("device/{}", device.name),
        parent: Some("node".to_owned()),
        weight: "ractor",
        role: "device",
        name: device.name,
        state,
        mailbox: 0,
        mailbox_max: crate::bus::DEVICE_MESSAGES_MAX,
        restarts: device.restarts,
        cause: device.last_cause,
        detail: format!("driver {}", device.driver),
    }
}

/// Whose access rules are others than this node's.
fn tell_rules(status: &mut serde_json::Value, epochs: &[(NodeId, u64)]) {
    let epochs: BTreeMap<String, u64> =
        epochs.iter().map(|(node, epoch)| (node.to_string(), *epoch)).collect();
    let of = |id: &serde_json::Value| epochs.get(id.as_str()?).copied();
    let Some(ours) = of(&status["id"]) else { return };
    for member in status["members"].as_array_mut().into_iter().flatten() {
        if let Some(theirs) = of(&member["id"]) {
            member["same_rules"] = json!(theirs == ours);
        }
    }
}

fn actor_info(actor: Actor) -> ActorInfo {
    ActorInfo {
        id: actor.id,
        parent: actor.parent,
        kind: actor.weight.to_owned(),
        role: actor.role.to_owned(),
        name: actor.name,
        state: actor.state.to_owned(),
        mailbox: actor.mailbox,
        mailbox_max: actor.mailbox_max,
        restarts: actor.restarts,
        cause: actor.cause,
        detail: (!actor.detail.is_empty()).then_some(actor.detail),
    }
}
