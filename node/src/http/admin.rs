//! Clients, their queues and retained messages, for administrators: bounded pages, and the few things to do to them.

use actix_web::HttpResponse;
use actix_web::web::{Data, Query};
use outpost_actors::shard::{
    CLIENTS_PAGE_MAX, ClientFilter, RETAINED_PAGE_MAX, Redirect, TRACE_MS_MAX, TraceTarget,
};
use outpost_model::TopicFilter;
use outpost_model::topic::check_name;
use serde::Deserialize;
use serde_json::Value;

use super::backend::{AdminError, AdminRequest};
use super::error::{ApiError, within};
use super::server::Shared;

/// Entries of a page when the request does not say.
pub(super) const PAGE_DEFAULT: usize = 100;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ClientsQuery {
    prefix: String,
    connected: Option<bool>,
    user: Option<String>,
    listener: Option<String>,
    queued: bool,
    after: usize,
    limit: Option<usize>,
}

/// `GET /api/v1/clients?prefix=&connected=&user=&listener=&queued=&after=&limit=`.
pub(super) async fn clients(
    backend: Data<Shared>,
    query: Query<ClientsQuery>,
) -> Result<HttpResponse, ApiError> {
    let query = query.into_inner();
    let filter = ClientFilter {
        prefix: query.prefix,
        connected: query.connected,
        user: query.user,
        listener: query.listener,
        queued: query.queued,
        after: query.after,
        limit: checked_limit(query.limit, CLIENTS_PAGE_MAX)?,
    };
    answer(&backend, AdminRequest::Clients(filter)).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IdQuery {
    id: String,
}

/// `GET /api/v1/client?id=`.
pub(super) async fn client(
    backend: Data<Shared>,
    query: Query<IdQuery>,
) -> Result<HttpResponse, ApiError> {
    answer(&backend, AdminRequest::Client(query.into_inner().id)).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KickQuery {
    id: String,
    #[serde(default)]
    end_session: bool,
}

/// `POST /api/v1/client/kick?id=&end_session=`.
pub(super) async fn kick(
    backend: Data<Shared>,
    query: Query<KickQuery>,
) -> Result<HttpResponse, ApiError> {
    let KickQuery { id, end_session } = query.into_inner();
    answer(&backend, AdminRequest::Kick(id, end_session)).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RedirectQuery {
    to: String,
    #[serde(default)]
    moved: bool,
    /// One client; left out: all.
    id: Option<String>,
}

/// `GET /api/v1/redirect`.
pub(super) async fn redirection(backend: Data<Shared>) -> Result<HttpResponse, ApiError> {
    answer(&backend, AdminRequest::Redirection).await
}

/// `POST /api/v1/redirect?to=&moved=&id=`.
pub(super) async fn redirect(
    backend: Data<Shared>,
    query: Query<RedirectQuery>,
) -> Result<HttpResponse, ApiError> {
    let RedirectQuery { to, moved, id } = query.into_inner();
    let to = Redirect::new(&to, moved)
        .map_err(|why| ApiError::bad_request(format!("the server reference {to:?} {why}")))?;
    let request = match id {
        Some(id) => AdminRequest::Move(id, to),
        None => AdminRequest::Redirect(Some(to)),
    };
    answer(&backend, request).await
}

/// `DELETE /api/v1/redirect`.
pub(super) async fn serve_again(backend: Data<Shared>) -> Result<HttpResponse, ApiError> {
    answer(&backend, AdminRequest::Redirect(None)).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NodeQuery {
    node: String,
}

/// `DELETE /api/v1/cluster/member?node=`.
pub(super) async fn forget_peer(
    backend: Data<Shared>,
    query: Query<NodeQuery>,
) -> Result<HttpResponse, ApiError> {
    answer(&backend, AdminRequest::ForgetPeer(query.into_inner().node)).await
}

/// `GET /api/v1/client/queue?id=`.
pub(super) async fn queue(
    backend: Data<Shared>,
    query: Query<IdQuery>,
) -> Result<HttpResponse, ApiError> {
    answer(&backend, AdminRequest::Queue(query.into_inner().id)).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlaceQuery {
    id: String,
    #[serde(default)]
    after: u64,
}

/// `GET /api/v1/client/queue/messages?id=&after=`.
pub(super) async fn queue_messages(
    backend: Data<Shared>,
    query: Query<PlaceQuery>,
) -> Result<HttpResponse, ApiError> {
    let PlaceQuery { id, after } = query.into_inner();
    answer(&backend, AdminRequest::QueueMessages(id, after)).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DrainQuery {
    id: String,
    #[serde(default)]
    upto: u64,
}

/// `POST /api/v1/client/queue/drain?id=&upto=`.
pub(super) async fn queue_drain(
    backend: Data<Shared>,
    query: Query<DrainQuery>,
) -> Result<HttpResponse, ApiError> {
    let DrainQuery { id, upto } = query.into_inner();
    answer(&backend, AdminRequest::QueueDrain(id, upto)).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RetainedQuery {
    #[serde(default = "every_topic")]
    filter: String,
    #[serde(default)]
    after: String,
    limit: Option<usize>,
}

fn every_topic() -> String {
    "#".to_owned()
}

/// `GET /api/v1/retained?filter=&after=&limit=`.
pub(super) async fn retained(
    backend: Data<Shared>,
    query: Query<RetainedQuery>,
) -> Result<HttpResponse, ApiError> {
    let RetainedQuery { filter, after, limit } = query.into_inner();
    let parsed = checked_filter(&filter)?;
    let limit = checked_limit(limit, RETAINED_PAGE_MAX)?;
    answer(&backend, AdminRequest::Retained(parsed, after, limit)).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TopicQuery {
    topic: String,
}

/// `DELETE /api/v1/retained?topic=`.
pub(super) async fn retained_remove(
    backend: Data<Shared>,
    query: Query<TopicQuery>,
) -> Result<HttpResponse, ApiError> {
    let topic = query.into_inner().topic;
    check_name(&topic)
        .map_err(|why| ApiError::bad_request(format!("the topic {topic:?} {why}")))?;
    answer(&backend, AdminRequest::RetainedRemove(topic)).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WhyQuery {
    name: String,
    topic: Option<String>,
}

/// `GET /api/v1/why?name=&topic=`.
pub(super) async fn why(
    backend: Data<Shared>,
    query: Query<WhyQuery>,
) -> Result<HttpResponse, ApiError> {
    let WhyQuery { name, topic } = query.into_inner();
    answer(&backend, AdminRequest::Why(name, topic)).await
}

/// `GET /api/v1/traces`.
pub(super) async fn traces(backend: Data<Shared>) -> Result<HttpResponse, ApiError> {
    answer(&backend, AdminRequest::Traces).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TraceQuery {
    client: Option<String>,
    topic: Option<String>,
    #[serde(default = "ten_minutes")]
    for_s: u64,
    #[serde(default)]
    payload: bool,
}

fn ten_minutes() -> u64 {
    600
}

/// `POST /api/v1/traces?client=|topic=&for_s=&payload=`.
pub(super) async fn trace_start(
    backend: Data<Shared>,
    query: Query<TraceQuery>,
) -> Result<HttpResponse, ApiError> {
    let TraceQuery { client, topic, for_s, payload } = query.into_inner();
    let target = match (client, topic) {
        (Some(id), None) => TraceTarget::Client(id),
        (None, Some(filter)) => TraceTarget::Topic(checked_filter(&filter)?),
        _ => return Err(ApiError::bad_request("one of client and topic says what to trace")),
    };
    let for_s_max = TRACE_MS_MAX / 1000;
    if !(1..=for_s_max).contains(&for_s) {
        return Err(ApiError::bad_request(format!("for_s is 1 to {for_s_max}, not {for_s}")));
    }
    answer(&backend, AdminRequest::TraceStart { target, for_s, payload }).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TraceReadQuery {
    id: u64,
    #[serde(default)]
    offset: u64,
}

/// `GET /api/v1/trace?id=&offset=`.
pub(super) async fn trace_read(
    backend: Data<Shared>,
    query: Query<TraceReadQuery>,
) -> Result<HttpResponse, ApiError> {
    answer(&backend, AdminRequest::TraceRead(query.id, query.offset)).await
}

/// `DELETE /api/v1/trace?id=`: it ends; what it has written stays.
pub(super) async fn trace_stop(
    backend: Data<Shared>,
    query: Query<TraceReadQuery>,
) -> Result<HttpResponse, ApiError> {
    answer(&backend, AdminRequest::TraceStop(query.id)).await
}

fn checked_filter(filter: &str) -> Result<TopicFilter, ApiError> {
    TopicFilter::new(filter.to_owned())
        .map_err(|why| ApiError::bad_request(format!("the filter {filter:?} {why}")))
}

/// Asks the node and words the answer.
pub(super) async fn answer(
    backend: &Shared,
    request: AdminRequest,
) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(ask(backend, request).await?))
}

/// Asks the node.
pub(super) async fn ask(backend: &Shared, request: AdminRequest) -> Result<Value, ApiError> {
    within(backend.admin(request)).await?.map_err(|error| {
        let code = match error {
            AdminError::NotFound(_) => 404,
            AdminError::Refused(_) => 400,
            AdminError::Unavailable(_) => 503,
        };
        ApiError::new(code, error.to_string())
    })
}

fn checked_limit(limit: Option<usize>, limit_max: usize) -> Result<usize, ApiError> {
    let limit = limit.unwrap_or(PAGE_DEFAULT);
    if (1..=limit_max).contains(&limit) {
        return Ok(limit);
    }
    Err(ApiError::bad_request(format!("limit is 1 to {limit_max}, not {limit}")))
}
