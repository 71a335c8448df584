//! What administrators may see and do: the node's answers to [`crate::http::AdminRequest`].

use std::sync::Arc;

use base64ct::{Base64, Encoding};
use bytes::Bytes;
use outpost_actors::ports::{Action, Gate};
use outpost_actors::shard::{Forgotten, LocalPublish, Shard, TRACES_MAX, TraceTarget};
use outpost_model::topic::check_name;
use outpost_model::{NodeId, QoS};
use outpost_mqtt::packet::ReasonCode;
use serde::Serialize;
use serde_json::{Value, json};

use crate::backend::NodeBackend;
use crate::http::{AdminError, AdminRequest};
use crate::plane::{Command, Unavailable};
use crate::shadows::ShadowCommand;
use crate::traces::Traces;

/// Rules shown about one client.
const RULES_SHOWN_MAX: usize = 100;

/// What administrators' requests need beside the data plane.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) gate: Arc<dyn Gate>,
    pub(crate) traces: Traces,
}

type Answer = Result<Value, AdminError>;

impl NodeBackend {
    /// Answers one request.
    pub(crate) async fn administer(&self, request: AdminRequest) -> Answer {
        let plane = &self.plane;
        match request {
            AdminRequest::Clients(filter) => {
                body(plane.with(move |shard, now| shard.clients(&filter, now)).await)
            }
            AdminRequest::Client(id) => {
                let of = id.clone();
                of_client(&of, plane.with(move |shard, now| shard.client(&id, now)).await)
            }
            AdminRequest::Kick(id, end_session) => {
                let of = id.clone();
                let kick = move |shard: &mut Shard, now| shard.kick(&id, end_session, now);
                of_client(&of, plane.with_durable(kick).await)
            }
            AdminRequest::Redirection => {
                body(plane.with(move |shard, _| shard.redirection()).await)
            }
            AdminRequest::Redirect(to) => {
                body(plane.with(move |shard, now| shard.redirect(to, now)).await)
            }
            AdminRequest::Move(id, to) => {
                let of = id.clone();
                let send = move |shard: &mut Shard, now| shard.move_client(&id, &to, now);
                of_client(&of, plane.with_durable(send).await)
            }
            AdminRequest::Queue(id) => {
                let of = id.clone();
                of_client(&of, plane.with(move |shard, _| shard.queue(&id)).await)
            }
            AdminRequest::QueueMessages(id, after) => {
                let of = id.clone();
                let page = plane.with(move |shard, now| shard.queue_page(&id, after, now)).await;
                of_client(&of, page)
            }
            AdminRequest::QueueDrain(id, upto) => {
                let of = id.clone();
                let drain = move |shard: &mut Shard, now| shard.queue_drain(&id, upto, now);
                of_client(&of, plane.with_durable(drain).await)
            }
            AdminRequest::Retained(filter, after, limit) => body(
                plane
                    .with(move |shard, now| shard.retained_page(&filter, &after, limit, now))
                    .await,
            ),
            AdminRequest::RetainedMessage(topic) => self.retained_message(topic).await,
            AdminRequest::RetainedRemove(topic) => self.remove_retained(topic).await,
            AdminRequest::ForgetPeer(name) => self.forget_peer(&name).await,
            AdminRequest::Why(name, topic) => self.why(name, topic).await,
            AdminRequest::Traces => self.traces().await,
            AdminRequest::TraceStart { target, for_s, payload } => {
                self.trace_start(target, for_s, payload).await
            }
            AdminRequest::TraceStop(id) => {
                let stopped = plane.with(move |shard, _| shard.trace_stop(id)).await;
                if stopped.map_err(unavailable)? {
                    Ok(json!({ "stopped": true }))
                } else {
                    Err(AdminError::NotFound(format!("no trace {id} runs")))
                }
            }
            AdminRequest::TraceRead(id, offset) => self.trace_read(id, offset).await,
        }
    }

    /// Only while it has no link here: one that is there would be told everything anew at once.
    async fn forget_peer(&self, name: &str) -> Answer {
        let peer = NodeId::from_name(name);
        let forget = move |shard: &mut Shard, now| shard.forget_peer(peer, now);
        let forgotten = self.plane.with_durable(forget).await.map_err(unavailable)?;
        if forgotten == Forgotten::Linked {
            let text = format!("{name:?} has a link to this node; stop it there first");
            return Err(AdminError::Refused(text));
        }
        if !self.shadows.send(ShadowCommand::ForgetPeer(peer)).await {
            let text = "the shadow service is being restarted and still waits for it; try again";
            return Err(AdminError::Unavailable(text.to_owned()));
        }
        match forgotten {
            Forgotten::Gone { dropped } => Ok(json!({ "dropped": dropped })),
            _ => Err(AdminError::NotFound(format!("no node {name:?} is known here"))),
        }
    }

    /// In the fields of AWS IoT's `GetRetainedMessage`.
    async fn retained_message(&self, topic: String) -> Answer {
        let name = topic.clone();
        let found = self.plane.with(move |shard, now| shard.retained_message(&name, now)).await;
        let Some(message) = found.map_err(unavailable)? else {
            return Err(AdminError::NotFound(format!("no message is retained on {topic:?}")));
        };
        let user = message.properties.as_ref().map_or(&[][..], |found| &found.user);
        let pairs: Vec<Value> =
            user.iter().map(|(name, value)| json!({ &**name: &**value })).collect();
        let user = (!pairs.is_empty())
            .then(|| Base64::encode_string(Value::from(pairs).to_string().as_bytes()));
        Ok(json!({
            "topic": topic,
            "payload": Base64::encode_string(&message.payload),
            "qos": message.qos as u8,
            "lastModifiedTime": message.accepted_wall_ms,
            "userProperties": user,
        }))
    }

    /// As a client would do it: an empty retained message, which subscribers hear of and other nodes learn.
    async fn remove_retained(&self, topic: String) -> Answer {
        let name = topic.clone();
        let is_there =
            self.plane.with(move |shard, now| shard.retained_info(&name, now).is_some()).await;
        if !is_there.map_err(unavailable)? {
            return Err(AdminError::NotFound(format!("no message is retained on {topic:?}")));
        }
        let publish = LocalPublish {
            topic: topic.into(),
            payload: Bytes::new(),
            qos: QoS::AtLeastOnce,
            retain: true,
            here_only: false,
            expiry_s: None,
            properties: None,
        };
        let answer = self.plane.ask(|reply| Command::Publish(publish, Some(reply))).await;
        match answer.map_err(unavailable)? {
            reason if reason.is_error() => Err(AdminError::Unavailable(format!(
                "not cleared: {reason:?}{}",
                if reason == ReasonCode::QuotaExceeded {
                    ", the queue of a subscriber is full"
                } else {
                    ""
                }
            ))),
            _ => Ok(json!({ "removed": true })),
        }
    }
}

impl NodeBackend {
    /// Everything there is to say about a name, as client id and as topic.
    async fn why(&self, name: String, topic: Option<String>) -> Answer {
        let id = name.clone();
        let of_client = self.plane.with(move |shard, now| {
            (shard.identity_of(&id), shard.client(&id, now), shard.decisions_about(&id))
        });
        let (identity, session, recent) = of_client.await.map_err(unavailable)?;
        let mut client = json!({ "session": session, "recent": recent });
        if let Some(who) = &identity {
            client["rules"] = json!(self.desk.gate.rules_about(who, RULES_SHOWN_MAX));
            if let Some(topic) = &topic {
                client["publish"] = json!(self.desk.gate.explain(who, Action::Publish, topic));
                client["subscribe"] = json!(self.desk.gate.explain(who, Action::Subscribe, topic));
            }
        }
        let asked = topic.unwrap_or_else(|| name.clone());
        let mut answer = json!({ "name": name, "client": client });
        if check_name(&asked).is_ok() {
            let of = asked.clone();
            let found = self.plane.with(move |shard, now| shard.why_topic(&of, now)).await;
            answer["topic"] = body(found)?;
            answer["topic"]["name"] = json!(asked);
        }
        Ok(answer)
    }

    async fn traces(&self) -> Answer {
        let running = self.plane.with(|shard, now| shard.trace_list(now)).await;
        let running = running.map_err(unavailable)?;
        let kept = self.on_disk(Traces::list).await?;
        let kept: Vec<Value> = kept
            .into_iter()
            .map(|(id, bytes)| {
                let file = self.desk.traces.path(id).display().to_string();
                let run = running.iter().find(|trace| trace.id == id);
                json!({ "id": id, "bytes": bytes, "file": file, "running": run })
            })
            .collect();
        Ok(json!({ "traces": kept }))
    }

    async fn trace_start(&self, target: TraceTarget, for_s: u64, payload: bool) -> Answer {
        // The time of its start names it, so that no later trace gets its file.
        let wall_ms = crate::clock::now().wall_ms;
        let id = self.on_disk(move |traces| traces.create(wall_ms)).await?;
        let start = move |shard: &mut Shard, now| {
            shard.trace_start(id, target, for_s.saturating_mul(1000), payload, now)
        };
        let started = self.plane.with(start).await.map_err(unavailable)?;
        if !started {
            self.on_disk(move |traces| traces.remove(id)).await?;
            return Err(AdminError::Refused(format!(
                "{TRACES_MAX} traces run already; stop one of them"
            )));
        }
        let file = self.desk.traces.path(id).display().to_string();
        Ok(json!({ "id": id, "file": file }))
    }

    async fn trace_read(&self, id: u64, offset: u64) -> Answer {
        // Whether it runs is asked first: what it wrote before it ended is read after that.
        let running = self.plane.with(|shard, now| shard.trace_list(now)).await;
        let running = running.map_err(unavailable)?.iter().any(|trace| trace.id == id);
        match self.on_disk(move |traces| traces.read(id, offset)).await? {
            Some((lines, next)) => Ok(json!({ "lines": lines, "next": next, "running": running })),
            None => Err(AdminError::NotFound(format!("there is no trace {id}"))),
        }
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Traces) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, AdminError> {
        let traces = self.desk.traces.clone();
        match tokio::task::spawn_blocking(move || work(&traces)).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                Err(AdminError::Unavailable(format!("the folder of the traces: {error}")))
            }
            Err(error) => Err(AdminError::Unavailable(error.to_string())),
        }
    }
}

fn body<T: Serialize>(answer: Result<T, Unavailable>) -> Answer {
    let answer = answer.map_err(unavailable)?;
    serde_json::to_value(answer).map_err(|error| AdminError::Unavailable(error.to_string()))
}

fn of_client<T: Serialize>(client_id: &str, answer: Result<Option<T>, Unavailable>) -> Answer {
    match answer.map_err(unavailable)? {
        Some(found) => body(Ok(found)),
        None => Err(AdminError::NotFound(format!("no client {client_id:?} has a session here"))),
    }
}

#[allow(clippy::needless_pass_by_value)] // map_err calls it so
fn unavailable(error: Unavailable) -> AdminError {
    AdminError::Unavailable(error.to_string())
}
