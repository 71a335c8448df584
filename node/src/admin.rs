//! What administrators may see and do: the node's answers to [`crate::http::AdminRequest`].

use bytes::Bytes;
use outpost_actors::shard::LocalPublish;
use outpost_model::QoS;
use outpost_mqtt::packet::ReasonCode;
use serde::Serialize;
use serde_json::{Value, json};

use crate::backend::NodeBackend;
use crate::http::{AdminError, AdminRequest};
use crate::plane::{Command, Unavailable};

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
                let kick = move |shard: &mut outpost_actors::shard::Shard, now| {
                    shard.kick(&id, end_session, now)
                };
                of_client(&of, plane.with_durable(kick).await)
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
                let drain = move |shard: &mut outpost_actors::shard::Shard, now| {
                    shard.queue_drain(&id, upto, now)
                };
                of_client(&of, plane.with_durable(drain).await)
            }
            AdminRequest::Retained(filter, after, limit) => body(
                plane
                    .with(move |shard, now| shard.retained_page(&filter, &after, limit, now))
                    .await,
            ),
            AdminRequest::RetainedRemove(topic) => self.remove_retained(topic).await,
        }
    }

    /// As a client would do it: an empty retained message, which subscribers hear of and other nodes learn.
    async fn remove_retained(&self, topic: String) -> Answer {
        let name = topic.clone();
        let is_there = self.plane.with(move |shard, _| shard.has_retained(&name)).await;
        if !is_there.map_err(unavailable)? {
            return Err(AdminError::NotFound(format!("no message is retained on {topic:?}")));
        }
        let publish = LocalPublish {
            topic: topic.into(),
            payload: Bytes::new(),
            qos: QoS::AtLeastOnce,
            retain: true,
            here_only: false,
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
