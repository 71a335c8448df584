//! `/healthz`, `/metrics`, and what a node says about itself: actors, cluster, stats.

use actix_web::HttpResponse;
use actix_web::web::{Data, Query};
use serde::Deserialize;
use serde_json::json;

use super::error::{ApiError, within};
use super::metrics;
use super::server::Shared;

/// `GET /healthz`: 200 while devices are served as promised, else 503.
pub(super) async fn healthz(backend: Data<Shared>) -> HttpResponse {
    let health = backend.health();
    if health.is_ok() {
        HttpResponse::Ok().json(health)
    } else {
        HttpResponse::ServiceUnavailable().json(health)
    }
}

/// What to list.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ActorQuery {
    role: Option<String>,
    state: Option<String>,
}

/// `GET /api/v1/actors?role=&state=`.
pub(super) async fn actors(
    backend: Data<Shared>,
    query: Query<ActorQuery>,
) -> Result<HttpResponse, ApiError> {
    let mut actors = within(backend.actors()).await?;
    if let Some(role) = &query.role {
        actors.retain(|actor| actor.role == *role);
    }
    if let Some(state) = &query.state {
        actors.retain(|actor| actor.state == *state);
    }
    Ok(HttpResponse::Ok().json(json!({ "actors": actors })))
}

/// `GET /api/v1/cluster`.
pub(super) async fn cluster(backend: Data<Shared>) -> Result<HttpResponse, ApiError> {
    match within(backend.cluster()).await? {
        Some(status) => Ok(HttpResponse::Ok().json(status)),
        None => Err(ApiError::new(
            404,
            "this node is on its own; [cluster] in its configuration makes it one of several",
        )),
    }
}

/// `GET /api/v1/bridges`.
pub(super) async fn bridges(backend: Data<Shared>) -> Result<HttpResponse, ApiError> {
    let bridges = within(backend.bridges()).await?;
    Ok(HttpResponse::Ok().json(json!({ "bridges": bridges })))
}

/// `GET /api/v1/stats`.
pub(super) async fn stats(backend: Data<Shared>) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(within(backend.stats()).await?))
}

/// `POST /api/v1/reload`.
pub(super) async fn reload(backend: Data<Shared>) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(within(backend.reload()).await?))
}

/// `GET /metrics`, for Prometheus.
pub(super) async fn prometheus(backend: Data<Shared>) -> Result<HttpResponse, ApiError> {
    let stats = within(backend.stats()).await?;
    let text = metrics::render(&backend.health(), &stats);
    Ok(HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(text))
}
