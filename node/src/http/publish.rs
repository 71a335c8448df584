//! `POST /api/v1/publish?topic=a/b&qos=1&retain=true`: the body is the payload, byte for byte.

use actix_web::HttpResponse;
use actix_web::web::{Bytes, Data, Query};
use outpost_model::{QoS, topic::check_name};
use serde::Deserialize;
use serde_json::json;

use super::backend::{PublishError, PublishRequest};
use super::error::{self, ApiError, Body, BodyMax, within};
use super::server::Shared;

/// What to do with the body.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PublishQuery {
    topic: String,
    #[serde(default)]
    qos: u8,
    #[serde(default)]
    retain: bool,
}

/// Answers 200 once the message is as durable as a PUBACK promises.
pub(super) async fn publish(
    backend: Data<Shared>,
    query: Query<PublishQuery>,
    max: Data<BodyMax>,
    payload: Body,
) -> Result<HttpResponse, ApiError> {
    let payload = error::body(payload, **max)?;
    let PublishQuery { topic, qos, retain } = query.into_inner();
    send(&backend, Wanted { topic, qos, retain }.with(payload)?).await?;
    Ok(HttpResponse::Ok().json(json!({ "published": true })))
}

/// What a request asks to publish, not checked yet.
pub(super) struct Wanted {
    pub topic: String,
    pub qos: u8,
    pub retain: bool,
}

impl Wanted {
    /// As a message with this payload, when it can be published.
    pub fn with(self, payload: Bytes) -> Result<PublishRequest, ApiError> {
        let Self { topic, qos, retain } = self;
        checked_name(&topic)?;
        if topic.starts_with("$SYS/") {
            return Err(ApiError::bad_request("what stands below $SYS/ the node says itself"));
        }
        let qos = QoS::from_bits(qos)
            .ok_or_else(|| ApiError::bad_request(format!("qos is 0, 1 or 2, not {qos}")))?;
        Ok(PublishRequest { topic, payload, qos, retain, expiry_s: None, properties: None })
    }
}

pub(super) fn checked_name(topic: &str) -> Result<(), ApiError> {
    check_name(topic).map_err(|why| ApiError::bad_request(format!("the topic {topic:?} {why}")))
}

/// Waits until the message is as durable as a PUBACK promises.
pub(super) async fn send(backend: &Shared, message: PublishRequest) -> Result<(), ApiError> {
    let sent = within(backend.publish(message)).await?;
    sent.map_err(|error| ApiError::new(code(&error), error.to_string()))
}

fn code(error: &PublishError) -> u16 {
    match error {
        PublishError::Busy(_) => 429,
        PublishError::Refused(_) => 400,
        PublishError::Failed(_) => 503,
    }
}
