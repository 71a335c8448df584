//! How the API says no: always JSON, `{"code": 404, "message": "…"}`, as AWS IoT words its shadow errors.

use std::fmt;
use std::future::Future;

use actix_web::http::StatusCode;
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, ResponseError};
use serde_json::json;

use super::REQUEST_TIMEOUT;
use super::backend::ShadowsDown;

/// An answer that is not 2xx.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    pub code: u16,
    pub message: String,
}

impl ApiError {
    pub fn new(code: u16, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, message)
    }
}

impl From<ShadowsDown> for ApiError {
    fn from(down: ShadowsDown) -> Self {
        Self::new(503, down.to_string())
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        if self.code == 401 {
            response.insert_header(("WWW-Authenticate", "Bearer"));
        }
        if let Some(exception) = exception(self.code) {
            response.insert_header((ERROR_TYPE, exception));
        }
        response.json(json!({ "code": self.code, "message": self.message }))
    }
}

/// By this header clients made from AWS's service model know which exception a refusal is.
pub(super) const ERROR_TYPE: &str = "x-amzn-ErrorType";

/// The exception of the AWS IoT data plane that has this status.
pub(super) fn exception(status: u16) -> Option<&'static str> {
    Some(match status {
        400 => "InvalidRequestException",
        401 | 403 => "UnauthorizedException",
        404 => "ResourceNotFoundException",
        405 => "MethodNotAllowedException",
        409 => "ConflictException",
        413 => "RequestEntityTooLargeException",
        415 => "UnsupportedDocumentEncodingException",
        429 => "ThrottlingException",
        503 => "ServiceUnavailableException",
        500.. => "InternalFailureException",
        _ => return None,
    })
}

/// Waits for the node, but not for ever.
pub(super) async fn within<T>(work: impl Future<Output = T>) -> Result<T, ApiError> {
    tokio::time::timeout(REQUEST_TIMEOUT, work).await.map_err(|_| {
        let seconds = REQUEST_TIMEOUT.as_secs();
        ApiError::new(504, format!("the node did not answer within {seconds} s; whether the request took effect is not known"))
    })
}

/// The wording for a query that does not parse.
#[allow(clippy::needless_pass_by_value)] // actix-web calls it so
pub(super) fn query(
    error: actix_web::error::QueryPayloadError,
    _request: &HttpRequest,
) -> actix_web::Error {
    ApiError::bad_request(error.to_string()).into()
}

/// The wording for a path that leads nowhere.
pub(super) async fn not_found(request: HttpRequest) -> HttpResponse {
    let message = format!(
        "nothing answers {} {}; see docs/reference/http.md",
        request.method(),
        request.path()
    );
    ApiError::new(404, message).error_response()
}

/// A request's body, or why it was not taken. Handlers ask for this, so that the refusal is worded here.
pub(super) type Body = Result<Bytes, actix_web::Error>;

/// The body, or the wording for one that is too large or broke off.
pub(super) fn body(body: Body, bytes_max: BodyMax) -> Result<Bytes, ApiError> {
    body.map_err(|error| {
        let code = error.as_response_error().status_code().as_u16();
        let limit = bytes_max.0;
        ApiError::new(
            code,
            format!("{error}; at most {limit} bytes are taken (listen.http.body_max_bytes)"),
        )
    })
}

/// The limit of bodies, for the wording.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyMax(pub usize);

/// Answers whatever comes with 405, naming what is allowed.
pub(super) fn method_not_allowed(allowed: &'static str) -> actix_web::Route {
    actix_web::web::to(move || async move {
        let error = ApiError::new(405, format!("this path takes {allowed}"));
        let mut response = error.error_response();
        let value = actix_web::http::header::HeaderValue::from_static(allowed);
        response.headers_mut().insert(actix_web::http::header::ALLOW, value);
        response
    })
}
