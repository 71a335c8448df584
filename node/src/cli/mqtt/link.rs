//! One connection: commands go in at [`Link`], events come out of its bounded queue.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::options::{Target, Version};
use super::properties::PublishProperties;
use super::{link_v5, link_v311};

/// Events that wait for the verb. Fewer: reading stops and starts; more: memory while standard output is slow.
pub const EVENTS_MAX: usize = 256;
/// Commands that wait for the connection.
pub const COMMANDS_MAX: usize = 64;
/// Pause before connecting again.
pub const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// Largest packet taken: the protocol's own limit, so that what the server accepted also arrives.
pub const PACKET_BYTES_MAX: u32 = 268_435_455;

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// CONNACK said yes.
    Connected {
        /// The server kept the session.
        session_present: bool,
    },
    /// SUBACK: for each filter the QoS granted, or why not.
    Subscribed(Vec<Result<u8, String>>),
    /// UNSUBACK.
    Unsubscribed,
    /// PUBLISH.
    Message(Box<Received>),
    /// The connection broke; the link connects again.
    Lost(Broken),
    /// Something for `--debug`.
    Note(String),
}

/// A message that came.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Received {
    pub topic: String,
    pub payload: Bytes,
    pub qos: u8,
    pub retain: bool,
    pub dup: bool,
    /// Packet id; 0 with QoS 0.
    pub packet_id: u16,
    pub properties: PublishProperties,
}

/// A message to send.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outgoing {
    pub topic: String,
    pub payload: Bytes,
    pub qos: u8,
    pub retain: bool,
    pub properties: PublishProperties,
}

/// A filter to subscribe to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    pub filter: String,
    pub qos: u8,
    pub no_local: bool,
    pub retain_as_published: bool,
    /// 0 always, 1 when new, 2 never (MQTT 5, §3.8.3.1).
    pub retain_handling: u8,
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The server said no in CONNACK; connecting again will not help.
    #[error("{0} refused the connection: {1}")]
    Refused(String, String),
    /// It cannot be reached, or went away.
    #[error("{0}: {1}")]
    Network(String, String),
}

/// How a publish ends: acknowledged, or the server's reason.
pub type Outcome = std::pin::Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// A connection. Dropping it drops the connection without DISCONNECT, so that a will is sent.
#[derive(Debug)]
pub struct Link {
    client: Client,
    pump: tokio::task::JoinHandle<()>,
    events: mpsc::Receiver<Event>,
}

#[derive(Debug)]
enum Client {
    V311(link_v311::Client),
    V5(Box<link_v5::Client>),
}

impl Link {
    /// Begins to connect; needs a tokio runtime.
    pub fn open(target: &Target) -> Self {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let (client, pump) = match target.version {
            Version::V311 => {
                let (client, pump) = link_v311::open(target, sender);
                (Client::V311(client), pump)
            }
            Version::V5 => {
                let (client, pump) = link_v5::open(target, sender);
                (Client::V5(Box::new(client)), pump)
            }
        };
        Self { client, pump, events }
    }

    /// The next event; `None` once the link has ended.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Hands a message over. The outcome comes with the acknowledgement, with QoS 0 when it is on its way.
    ///
    /// # Errors
    /// What the client library refuses.
    pub async fn publish(&self, message: Outgoing) -> Result<Outcome, String> {
        match &self.client {
            Client::V311(client) => client.publish(message).await,
            Client::V5(client) => client.publish(message).await,
        }
    }

    /// Subscribes; [`Event::Subscribed`] answers.
    ///
    /// # Errors
    /// What the client library refuses.
    pub async fn subscribe(&self, subscriptions: &[Subscription]) -> Result<(), String> {
        match &self.client {
            Client::V311(client) => client.subscribe(subscriptions).await,
            Client::V5(client) => client.subscribe(subscriptions).await,
        }
    }

    /// Unsubscribes; [`Event::Unsubscribed`] answers.
    ///
    /// # Errors
    /// What the client library refuses.
    pub async fn unsubscribe(&self, filters: &[String]) -> Result<(), String> {
        match &self.client {
            Client::V311(client) => client.unsubscribe(filters).await,
            Client::V5(client) => client.unsubscribe(filters).await,
        }
    }

    /// Says good-bye after what was handed over has been sent, and waits for the end, a few seconds at most.
    pub async fn close(mut self) {
        let said = match &self.client {
            Client::V311(client) => client.disconnect().await,
            Client::V5(client) => client.disconnect().await,
        };
        if said {
            let end = async {
                while let Some(event) = self.events.recv().await {
                    if matches!(event, Event::Lost(_)) {
                        break;
                    }
                }
            };
            let _ = tokio::time::timeout(Duration::from_secs(5), end).await;
        }
        self.pump.abort();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

/// A command that the library did not take.
pub(super) fn refused(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Words a network error without the library's wrapping.
pub(super) fn network(address: &str, error: &std::io::Error) -> Broken {
    let text = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => {
            "nothing listens there (connection refused)".to_owned()
        }
        std::io::ErrorKind::ConnectionReset
        | std::io::ErrorKind::ConnectionAborted
        | std::io::ErrorKind::UnexpectedEof => "the connection was closed".to_owned(),
        _ => error.to_string(),
    };
    Broken::Network(address.to_owned(), text)
}
