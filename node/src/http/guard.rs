//! Who may ask. On loopback anybody on this machine, but no web page that points a name or a form at it; elsewhere
//! only who brings the token. When in doubt the answer is no.

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{AUTHORIZATION, HOST, HeaderName, ORIGIN};
use actix_web::middleware::Next;
use actix_web::web::Data;
use sha2::{Digest, Sha256};

use super::error::ApiError;

/// Where the SDKs of AWS put the session token of their credentials; their `Authorization` is a signature.
const SESSION_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// What is asked of a request before its handler sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Guard {
    /// The listener is on loopback: the request must name a loopback host, against DNS rebinding, and must not come
    /// from a page of another origin.
    Loopback,
    /// The request must bring the token whose SHA-256 this is.
    Token([u8; 32]),
}

impl Guard {
    pub fn token(token: &str) -> Self {
        Self::Token(Sha256::digest(token.as_bytes()).into())
    }

    fn check(&self, request: &ServiceRequest) -> Result<(), ApiError> {
        match self {
            Self::Loopback => {
                let host = header(request, HOST)
                    .ok_or_else(|| ApiError::new(403, "the request names no host"))?;
                if !is_loopback(host) {
                    return Err(ApiError::new(
                        403,
                        format!("the host {host:?} is not this machine's loopback; use 127.0.0.1"),
                    ));
                }
                match header(request, ORIGIN) {
                    Some(origin)
                        if !origin.split_once("://").is_some_and(|(_, host)| is_loopback(host)) =>
                    {
                        Err(ApiError::new(
                            403,
                            format!("pages of {origin:?} may not ask this node"),
                        ))
                    }
                    _ => Ok(()),
                }
            }
            Self::Token(expected) => {
                let bearer =
                    header(request, AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
                let given = bearer.or_else(|| header(request, SESSION_TOKEN));
                // Digests are compared, so the time it takes tells nothing about the token.
                match given.map(|token| <[u8; 32]>::from(Sha256::digest(token.trim().as_bytes()))) {
                    Some(digest) if digest == *expected => Ok(()),
                    _ => Err(ApiError::new(
                        401,
                        "this needs the header `Authorization: Bearer <token>` with the node's token",
                    )),
                }
            }
        }
    }
}

/// The middleware.
pub(super) async fn check(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    match request.app_data::<Data<Guard>>() {
        Some(guard) => guard.check(&request)?,
        None => return Err(ApiError::new(500, "the API has no guard; nothing is served").into()),
    }
    next.call(request).await
}

fn header(request: &ServiceRequest, name: HeaderName) -> Option<&str> {
    request.headers().get(name)?.to_str().ok()
}

/// `localhost`, `127.…` or `[::1]`, with or without a port.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inside, _port)) => inside,
        None => host.rsplit_once(':').map_or(host, |(name, _port)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machines_own_names_are_loopback() {
        for yes in [
            "127.0.0.1",
            "127.0.0.1:18080",
            "localhost:18080",
            "LOCALHOST",
            "[::1]:18080",
            "[::1]",
            "127.9.9.9:1",
        ] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in [
            "evil.example",
            "evil.example:18080",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "10.0.0.1",
            "",
            "[::2]",
        ] {
            assert!(!is_loopback(no), "{no}");
        }
    }
}
