//! The side of `outpost` that asks a running node over its HTTP API.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::failure::Failure;

/// Longer than the node's own limit for one request, so that its words arrive.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Larger answers are refused: they are not a node's.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// Which node to ask
#[derive(Debug, Clone, Args)]
pub struct Api {
    /// The node's HTTP address
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:18080",
        env = "OUTPOST_URL",
        hide_env_values = true
    )]
    pub url: String,
    /// File with the node's token, when it wants one
    #[arg(long, value_name = "FILE", env = "OUTPOST_TOKEN_FILE", hide_env_values = true)]
    pub token_file: Option<PathBuf>,
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub enum Method<'a> {
    Get,
    Delete,
    Post(&'a [u8]),
}

/// An answer: the status and the body as JSON.
pub type Answer = (u16, Value);

impl Api {
    /// Asks, and takes any JSON answer, whatever its status.
    ///
    /// # Errors
    /// When there is no answer, or it is no JSON.
    pub fn ask(&self, method: Method<'_>, path: &str) -> Result<Answer, Failure> {
        let url = format!("{}{path}", self.url.trim_end_matches('/'));
        if !url.starts_with("http://") {
            return Err(Failure::usage(format!("--url {}: it must begin with http://", self.url)));
        }
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            .proxy(None)
            .build()
            .into();
        let token = self.token()?.map(|token| format!("Bearer {token}"));
        let answer = match (method, token) {
            (Method::Get, None) => agent.get(&url).call(),
            (Method::Get, Some(token)) => agent.get(&url).header("Authorization", token).call(),
            (Method::Delete, None) => agent.delete(&url).call(),
            (Method::Delete, Some(token)) => {
                agent.delete(&url).header("Authorization", token).call()
            }
            (Method::Post(body), None) => agent.post(&url).send(body),
            (Method::Post(body), Some(token)) => {
                agent.post(&url).header("Authorization", token).send(body)
            }
        };
        let mut answer = answer.map_err(|why| self.no_answer(&why))?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        let body = body
            .map_err(|why| Failure::new(format!("{url} answered {status} and broke off: {why}")))?;
        let json = serde_json::from_slice(&body);
        json.map(|json| (status, json)).map_err(|_| {
            Failure::new(format!("{url} answered {status} and no JSON; is it a node?"))
        })
    }

    /// Asks, and takes a refusal as failure.
    ///
    /// # Errors
    /// When there is no answer, or it is not 200.
    pub fn get(&self, path: &str) -> Result<Value, Failure> {
        accepted(self.ask(Method::Get, path)?)
    }

    fn token(&self) -> Result<Option<String>, Failure> {
        let Some(file) = &self.token_file else { return Ok(None) };
        let token = crate::config::first_line(file);
        token.map(Some).map_err(|why| {
            Failure::new(format!("cannot read the token in {}: {why}", file.display()))
        })
    }

    fn no_answer(&self, why: &ureq::Error) -> Failure {
        Failure::new(format!(
            "no answer from {}: {why}; does a node run there? `outpost dev` starts one, --url names another",
            self.url
        ))
    }
}

/// The body of a 200, or the node's words as failure.
///
/// # Errors
/// When the status is another.
pub fn accepted((status, body): Answer) -> Result<Value, Failure> {
    if status == 200 {
        return Ok(body);
    }
    let message = body["message"].as_str().unwrap_or("no reason given");
    Err(Failure::new(format!("the node refused ({status}): {message}")))
}

/// One path segment or query value.
pub fn encoded(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}
