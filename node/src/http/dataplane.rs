//! What the data plane of AWS IoT can do by HTTP beside shadows, for the SDKs made for it: publish, read retained
//! messages, cut a client off. Paths, parameters and fields are those of its service model.

use actix_web::web::{Data, Path, Query};
use actix_web::{HttpRequest, HttpResponse};
use base64ct::{Base64, Encoding};
use outpost_actors::shard::RETAINED_PAGE_MAX;
use outpost_model::{MessageProperties, TopicFilter};
use serde::Deserialize;
use serde_json::{Value, json};

use super::backend::AdminRequest;
use super::error::{self, ApiError, Body, BodyMax};
use super::publish::{Wanted, checked_name, send};
use super::server::Shared;
use super::{admin, backend::PublishRequest};

/// Bytes of one text in a property at most: its length has two bytes on the wire (MQTT 5, §1.5.4).
const PROPERTY_BYTES_MAX: usize = 65_535;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct TopicQuery {
    #[serde(default)]
    qos: u8,
    #[serde(default)]
    retain: bool,
    content_type: Option<String>,
    response_topic: Option<String>,
    message_expiry: Option<u32>,
}

/// `POST /topics/{topic}?qos=&retain=&contentType=&responseTopic=&messageExpiry=`; the body is the payload, the other
/// properties of MQTT 5 are headers.
pub(super) async fn publish(
    backend: Data<Shared>,
    topic: Path<String>,
    query: Query<TopicQuery>,
    request: HttpRequest,
    max: Data<BodyMax>,
    payload: Body,
) -> Result<HttpResponse, ApiError> {
    let payload = error::body(payload, **max)?;
    let query = query.into_inner();
    let TopicQuery { qos, retain, message_expiry, .. } = query;
    let properties = properties(query, &request)?;
    let wanted = Wanted { topic: topic.into_inner(), qos, retain };
    let message = PublishRequest {
        properties,
        expiry_s: message_expiry.filter(|seconds| *seconds > 0),
        ..wanted.with(payload)?
    };
    send(&backend, message).await?;
    Ok(HttpResponse::Ok().json(json!({ "message": "OK" })))
}

fn properties(
    query: TopicQuery,
    request: &HttpRequest,
) -> Result<Option<Box<MessageProperties>>, ApiError> {
    let header = |name: &str| {
        let value = request.headers().get(name).map(|value| value.to_str());
        value.transpose().map_err(|_| ApiError::bad_request(format!("{name} is no text")))
    };
    let decoded = |name: &str| {
        let bytes = header(name)?.map(|text| Base64::decode_vec(text.trim()));
        bytes.transpose().map_err(|_| ApiError::bad_request(format!("{name} is not base64")))
    };
    let format = header("x-amz-mqtt5-payload-format-indicator")?;
    let payload_is_utf8 = match format {
        None => None,
        Some("UNSPECIFIED_BYTES") => Some(false),
        Some("UTF8_DATA") => Some(true),
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "the payload format indicator is UNSPECIFIED_BYTES or UTF8_DATA, not {other:?}"
            )));
        }
    };
    if let Some(topic) = &query.response_topic {
        checked_name(topic)?;
    }
    let correlation_data = decoded("x-amz-mqtt5-correlation-data")?;
    let user = match decoded("x-amz-mqtt5-user-properties")? {
        Some(json) => user_properties(&json)?,
        None => Vec::new(),
    };
    let texts = user.iter().flat_map(|(name, value)| [name, value]);
    if let Some(bad) = texts.chain(&query.content_type).find(|text| !fits(text)) {
        return Err(ApiError::bad_request(format!(
            "{bad:?} is no text of MQTT: a NUL, or too long"
        )));
    }
    let properties = MessageProperties {
        payload_is_utf8,
        content_type: query.content_type.map(Into::into),
        response_topic: query.response_topic.map(Into::into),
        correlation_data: correlation_data.map(Into::into),
        user: user.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
    };
    Ok((properties != MessageProperties::default()).then(|| Box::new(properties)))
}

fn fits(text: &str) -> bool {
    text.len() <= PROPERTY_BYTES_MAX && !text.contains('\0')
}

/// `[{"name": "value"}, …]`. Some SDKs encode the text once more, as a JSON string.
fn user_properties(json: &[u8]) -> Result<Vec<(String, String)>, ApiError> {
    let wrong = || ApiError::bad_request("the user properties are not [{\"name\": \"value\"}, …]");
    let mut found: Value = serde_json::from_slice(json).map_err(|_| wrong())?;
    if let Value::String(inner) = &found {
        found = serde_json::from_str(inner).map_err(|_| wrong())?;
    }
    let Value::Array(entries) = found else { return Err(wrong()) };
    let mut user = Vec::new();
    for entry in entries {
        let Value::Object(pairs) = entry else { return Err(wrong()) };
        for (name, value) in pairs {
            let Value::String(value) = value else { return Err(wrong()) };
            user.push((name, value));
        }
    }
    Ok(user)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RetainedQuery {
    max_results: Option<usize>,
    #[serde(default)]
    next_token: String,
}

/// `GET /retainedMessage?maxResults=&nextToken=`.
pub(super) async fn list_retained(
    backend: Data<Shared>,
    query: Query<RetainedQuery>,
) -> Result<HttpResponse, ApiError> {
    let RetainedQuery { max_results, next_token } = query.into_inner();
    let limit = max_results.unwrap_or(admin::PAGE_DEFAULT);
    if !(1..=RETAINED_PAGE_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!(
            "maxResults is 1 to {RETAINED_PAGE_MAX}, not {limit}"
        )));
    }
    let every = TopicFilter::new("#".to_owned())
        .map_err(|why| ApiError::new(500, format!("the filter # {why}")))?;
    let page = admin::ask(&backend, AdminRequest::Retained(every, next_token, limit)).await?;
    let summary = |entry: &Value| {
        json!({
            "topic": entry["topic"],
            "payloadSize": entry["payload_bytes"],
            "qos": entry["qos"],
            "lastModifiedTime": entry["accepted_wall_ms"],
        })
    };
    let topics: Vec<Value> =
        page["retained"].as_array().into_iter().flatten().map(summary).collect();
    let mut body = json!({ "retainedTopics": topics });
    if let Value::String(next) = &page["next"] {
        body["nextToken"] = json!(next);
    }
    Ok(HttpResponse::Ok().json(body))
}

/// `GET /retainedMessage/{topic}`.
pub(super) async fn retained(
    backend: Data<Shared>,
    topic: Path<String>,
) -> Result<HttpResponse, ApiError> {
    let topic = topic.into_inner();
    checked_name(&topic)?;
    admin::answer(&backend, AdminRequest::RetainedMessage(topic)).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ConnectionQuery {
    #[serde(default)]
    clean_session: bool,
    #[serde(default)]
    prevent_will_message: bool,
}

/// `DELETE /connections/{clientId}?cleanSession=&preventWillMessage=`.
pub(super) async fn disconnect(
    backend: Data<Shared>,
    client: Path<String>,
    query: Query<ConnectionQuery>,
) -> Result<HttpResponse, ApiError> {
    let ConnectionQuery { clean_session, prevent_will_message } = query.into_inner();
    if prevent_will_message {
        return Err(ApiError::bad_request("the will of a client that is cut off is always said"));
    }
    let client = client.into_inner();
    let done = admin::ask(&backend, AdminRequest::Kick(client.clone(), clean_session)).await?;
    if done["disconnected"] == json!(false) && !clean_session {
        return Err(ApiError::new(404, format!("{client:?} is not connected")));
    }
    Ok(HttpResponse::Ok().json(json!({})))
}
