//! `outpost drain`: clients are sent to another server.

use clap::Args;
use serde_json::Value;

use super::api::{Api, Method, accepted, encoded};
use super::failure::Failure;
use super::output;

/// Send clients to another server: all of them until --stop, or some by name; without --to, say whether they are
///
/// MQTT 5 clients hear 0x9C (use another server), with --moved 0x9D, and the server reference; 3.1.1 clients are only
/// cut off, and refused with 0x03. Connected clients go 1,000 a second. Sessions and queues stay on this node. It lasts
/// until --stop or the end of the process; `node.moved_to` in the configuration lasts longer.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  outpost drain --to gateway-2:1883\n  outpost drain --to 'gateway-2:1883 gateway-3:1883' sensor-7\n  outpost drain\n  outpost drain --stop"
)]
pub struct Drain {
    /// Only these clients, this time
    #[arg(requires = "to")]
    ids: Vec<String>,
    /// The other server, or several separated by spaces
    #[arg(long, value_name = "HOST:PORT")]
    to: Option<String>,
    /// It is there for good: clients should not come back
    #[arg(long, requires = "to")]
    moved: bool,
    /// Serve clients again
    #[arg(long, conflicts_with = "to")]
    stop: bool,
    #[command(flatten)]
    api: Api,
}

impl Drain {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] with the node's words.
    pub fn run(self) -> Result<(), Failure> {
        let state = match &self.to {
            None if self.stop => accepted(self.api.ask(Method::Delete, "/api/v1/redirect")?)?,
            None => self.api.get("/api/v1/redirect")?,
            Some(to) if self.ids.is_empty() => self.send(&self.path(to))?,
            Some(to) => return self.send_some(to),
        };
        output::print(&shown(&state))
    }

    fn path(&self, to: &str) -> String {
        format!("/api/v1/redirect?to={}&moved={}", encoded(to), self.moved)
    }

    fn send(&self, path: &str) -> Result<Value, Failure> {
        accepted(self.api.ask(Method::Post(b""), path)?)
    }

    fn send_some(&self, to: &str) -> Result<(), Failure> {
        for id in &self.ids {
            let body = self.send(&format!("{}&id={}", self.path(to), encoded(id)))?;
            let was = if body["disconnected"] == true { "sent there" } else { "was away" };
            output::print(&format!("{id}: {was}\n"))?;
        }
        Ok(())
    }
}

fn shown(state: &Value) -> String {
    let connected = &state["connected"];
    match state["redirect"]["to"].as_str() {
        Some(to) => format!("clients are sent to {to}; {connected} still connected\n"),
        None => format!("clients are served here; {connected} connected\n"),
    }
}
