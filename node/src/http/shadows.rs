//! Shadows by HTTP: the paths, bodies and codes of the AWS IoT data plane, and a list of all of them.

use std::time::{SystemTime, UNIX_EPOCH};

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::{Bytes, Data, Path, Query};
use serde::Deserialize;
use serde_json::json;

use outpost_shadow::ShadowKey;

use super::backend::{ShadowRequest, ShadowVerb};
use super::error::{self, ApiError, Body, BodyMax, ERROR_TYPE, exception, within};
use super::server::Shared;
use super::{HISTORY_PAGE_MAX, SHADOWS_PAGE_MAX};

/// Named shadows in one page at most, as in AWS IoT. More makes one request hold the hub for longer.
pub const NAMED_PAGE_MAX: usize = 100;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NameQuery {
    name: Option<String>,
}

/// `GET /things/{thing}/shadow?name=`.
pub(super) async fn get(
    backend: Data<Shared>,
    thing: Path<String>,
    query: Query<NameQuery>,
) -> Result<HttpResponse, ApiError> {
    request(&backend, thing, query, ShadowVerb::Get, Bytes::new()).await
}

/// `POST /things/{thing}/shadow?name=`; the body is the document, `{"state": {"desired": …}}`.
pub(super) async fn update(
    backend: Data<Shared>,
    thing: Path<String>,
    query: Query<NameQuery>,
    max: Data<BodyMax>,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    request(&backend, thing, query, ShadowVerb::Update, error::body(body, **max)?).await
}

/// `DELETE /things/{thing}/shadow?name=`.
pub(super) async fn delete(
    backend: Data<Shared>,
    thing: Path<String>,
    query: Query<NameQuery>,
) -> Result<HttpResponse, ApiError> {
    request(&backend, thing, query, ShadowVerb::Delete, Bytes::new()).await
}

async fn request(
    backend: &Shared,
    thing: Path<String>,
    query: Query<NameQuery>,
    verb: ShadowVerb,
    payload: Bytes,
) -> Result<HttpResponse, ApiError> {
    let (thing, name) = (thing.into_inner(), query.into_inner().name);
    let key = ShadowKey { thing: thing.clone(), name: name.clone() };
    if let Some(why) = key.wrong_name() {
        let body = json!({ "code": 400, "message": why, "timestamp": now_s() }).to_string();
        return Ok(answer(400, body.into()));
    }
    let reply = within(backend.shadow(ShadowRequest { thing, name, verb, payload })).await?;
    Ok(answer(reply.status, reply.body))
}

fn answer(status: u16, body: Bytes) -> HttpResponse {
    let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut answer = HttpResponse::build(code);
    if let Some(exception) = exception(status) {
        answer.insert_header((ERROR_TYPE, exception));
    }
    answer.content_type("application/json").body(body)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NamedQuery {
    #[serde(rename = "pageSize", default = "named_page_default")]
    page_size: usize,
    #[serde(rename = "nextToken")]
    next_token: Option<String>,
}

/// AWS IoT Greengrass's default page.
fn named_page_default() -> usize {
    25
}

/// `GET /api/things/shadow/ListNamedShadowsForThing/{thing}?pageSize=&nextToken=`.
pub(super) async fn list_named(
    backend: Data<Shared>,
    thing: Path<String>,
    query: Query<NamedQuery>,
) -> Result<HttpResponse, ApiError> {
    let (thing, size) = (thing.into_inner(), query.page_size);
    if !(1..=NAMED_PAGE_MAX).contains(&size) {
        return Err(ApiError::bad_request(format!(
            "pageSize is 1 to {NAMED_PAGE_MAX}, not {size}"
        )));
    }
    let after_name = query.next_token.clone();
    let key = ShadowKey { thing: thing.clone(), name: after_name.clone() };
    if let Some(why) = key.wrong_name() {
        return Err(ApiError::bad_request(why));
    }
    let after = Some((thing.clone(), after_name));
    let found = within(backend.shadow_list(thing.clone(), after, size + 1)).await??;
    let mut names: Vec<String> = found
        .into_iter()
        .map(|(key, _)| key)
        .take_while(|(of, _)| *of == thing)
        .filter_map(|(_, name)| name)
        .collect();
    let more = names.len() > size;
    names.truncate(size);
    let mut body = json!({ "results": names, "timestamp": now_s() });
    if let (true, Some(last)) = (more, names.last()) {
        body["nextToken"] = json!(last);
    }
    Ok(HttpResponse::Ok().json(body))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    #[serde(default)]
    prefix: String,
    after_thing: Option<String>,
    after_name: Option<String>,
    #[serde(default = "list_page_default")]
    limit: usize,
}

fn list_page_default() -> usize {
    100
}

/// `GET /api/v1/shadows?prefix=&limit=&after_thing=&after_name=`.
pub(super) async fn list(
    backend: Data<Shared>,
    query: Query<ListQuery>,
) -> Result<HttpResponse, ApiError> {
    let ListQuery { prefix, after_thing, after_name, limit } = query.into_inner();
    if !(1..=SHADOWS_PAGE_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!(
            "limit is 1 to {SHADOWS_PAGE_MAX}, not {limit}"
        )));
    }
    let after = match (after_thing, after_name) {
        (Some(thing), name) => Some((thing, name)),
        (None, None) => None,
        (None, Some(_)) => return Err(ApiError::bad_request("after_name needs after_thing")),
    };
    let mut found = within(backend.shadow_list(prefix, after, limit + 1)).await??;
    let more = found.len() > limit;
    found.truncate(limit);
    let place = |((thing, name), _): &_| json!({ "thing": thing, "name": name });
    let next = if more { found.last().map(place) } else { None };
    let entry =
        |((thing, name), version): &_| json!({ "thing": thing, "name": name, "version": version });
    let shadows: Vec<_> = found.iter().map(entry).collect();
    Ok(HttpResponse::Ok().json(json!({ "shadows": shadows, "next": next })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PastQuery {
    thing: String,
    name: Option<String>,
    /// Of `why`: `desired` or `reported` and the keys below it, with dots between them.
    path: Option<String>,
    #[serde(default = "past_page_default")]
    limit: usize,
}

fn past_page_default() -> usize {
    100
}

/// `GET /api/v1/shadow/history?thing=&name=&limit=`.
pub(super) async fn history(
    backend: Data<Shared>,
    query: Query<PastQuery>,
) -> Result<HttpResponse, ApiError> {
    let query = checked_past(query)?;
    if query.path.is_some() {
        return Err(ApiError::bad_request("a history has no path; ask .../why"));
    }
    let history = within(backend.shadow_history((query.thing, query.name), query.limit)).await??;
    Ok(HttpResponse::Ok().json(json!({ "history": history })))
}

/// `GET /api/v1/shadow/why?thing=&name=&path=&limit=`.
pub(super) async fn why(
    backend: Data<Shared>,
    query: Query<PastQuery>,
) -> Result<HttpResponse, ApiError> {
    let query = checked_past(query)?;
    let path = query.path.unwrap_or_default();
    let path =
        if path.is_empty() { Vec::new() } else { path.split('.').map(str::to_owned).collect() };
    let why = within(backend.shadow_why((query.thing, query.name), path, query.limit)).await??;
    Ok(HttpResponse::Ok().json(json!({ "why": why })))
}

fn checked_past(query: Query<PastQuery>) -> Result<PastQuery, ApiError> {
    let query = query.into_inner();
    if !(1..=HISTORY_PAGE_MAX).contains(&query.limit) {
        let limit = query.limit;
        return Err(ApiError::bad_request(format!(
            "limit is 1 to {HISTORY_PAGE_MAX}, not {limit}"
        )));
    }
    let key = ShadowKey { thing: query.thing.clone(), name: query.name.clone() };
    match key.wrong_name() {
        Some(why) => Err(ApiError::bad_request(why)),
        None => Ok(query),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MoveQuery {
    thing: String,
    name: Option<String>,
    #[serde(default)]
    gone: bool,
}

/// `POST /api/v1/shadows/home?thing=&name=&gone=`.
pub(super) async fn move_home(
    backend: Data<Shared>,
    query: Query<MoveQuery>,
) -> Result<HttpResponse, ApiError> {
    let MoveQuery { thing, name, gone } = query.into_inner();
    let key = ShadowKey { thing, name };
    if let Some(why) = key.wrong_name() {
        return Err(ApiError::bad_request(why));
    }
    match within(backend.shadow_move((key.thing, key.name), gone)).await?? {
        Some((node, sure)) => {
            Ok(HttpResponse::Ok().json(json!({ "home": node.to_string(), "sure": sure })))
        }
        None => Err(ApiError::new(404, "there is no such shadow, or nobody is its home yet")),
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
