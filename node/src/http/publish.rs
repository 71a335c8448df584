//! `POST /api/v1/publish?topic=a/b&qos=1&retain=true`: the body is the payload, byte for byte.

use actix_web::HttpResponse;
use actix_web::web::{Data, Query};
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
    check_name(&topic)
        .map_err(|why| ApiError::bad_request(format!("the topic {topic:?} {why}")))?;
    if topic.starts_with("$SYS/") {
        return Err(ApiError::bad_request("what stands below $SYS/ the node says itself"));
    }
    let qos = QoS::from_bits(qos)
        .ok_or_else(|| ApiError::bad_request(format!("qos is 0, 1 or 2, not {qos}")))?;
    let message = PublishRequest { topic, payload, qos, retain };
    match within(backend.publish(message)).await? {
        Ok(()) => Ok(HttpResponse::Ok().json(json!({ "published": true }))),
        Err(error) => Err(ApiError::new(code(&error), error.to_string())),
    }
}

fn code(error: &PublishError) -> u16 {
    match error {
        PublishError::Busy(_) => 429,
        PublishError::Refused(_) => 400,
        PublishError::Failed(_) => 503,
    }
}
