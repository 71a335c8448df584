//! All listeners of a node: opening them, counting who comes in, and taking up new certificates.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::{Config, Listener, Transport};
use crate::listen::Listening;
use crate::listen::descriptors;
use crate::listen::door::{Door, Refusal, Sockets, StrangerLimits};
use crate::listen::tls::{FilesError, Tls};

/// How often the files of certificates are looked at. Shorter: more looks for nothing; longer: a renewed certificate
/// waits.
pub const CERTIFICATES_EVERY: Duration = Duration::from_secs(10);

/// A client may put several packets into one WebSocket message; it may be this much longer than one packet.
const MESSAGE_HEADROOM_BYTES: usize = 64 << 10;

/// The listeners of a node.
#[derive(Debug, Clone)]
pub struct Listeners {
    all: Arc<[Arc<Listening>]>,
    is_open: watch::Sender<bool>,
}

/// Why a listener was not opened. None is open then.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address.
    #[error(
        "cannot listen on {address} for listener {name:?}: {source}; choose another address with {key}"
    )]
    Address {
        /// Its name.
        name: String,
        /// Where.
        address: std::net::SocketAddr,
        /// The key that names it.
        key: &'static str,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// Its certificates.
    #[error("listener {name:?}: {source}")]
    Files {
        /// Its name.
        name: String,
        /// What is wrong.
        source: Box<FilesError>,
    },
}

/// What became of one listener's certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// Name of the listener.
    pub listener: String,
    /// `Err`: why the new files were not taken; the old ones are still in use.
    pub outcome: Result<(), String>,
}

impl Listeners {
    /// Opens the sockets of all listeners of a checked configuration. Nobody is let in before [`Self::let_in`].
    ///
    /// # Errors
    /// [`OpenError`] for the first that cannot be opened.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        let sockets = Sockets::new(descriptors::sockets_max());
        let is_open = watch::Sender::new(false);
        let opened = config
            .listeners()
            .into_iter()
            .map(|one| open_one(one, config, &sockets, is_open.subscribe()));
        Ok(Self { all: opened.collect::<Result<_, _>>()?, is_open })
    }

    /// Lets clients in: those that have come already, and all that come, for ever.
    pub fn let_in(&self) {
        self.is_open.send_replace(true);
    }

    /// All of them.
    pub fn all(&self) -> &[Arc<Listening>] {
        &self.all
    }

    /// By its name in the configuration.
    pub fn named(&self, name: &str) -> Option<&Arc<Listening>> {
        self.all.iter().find(|listening| listening.config.name == name)
    }

    /// Loads the certificates of all listeners again.
    pub fn reload(&self) -> Vec<Reloaded> {
        self.each_tls(|tls| Some(tls.reload()))
    }

    /// Loads the certificates whose files have changed.
    pub fn reload_changed(&self) -> Vec<Reloaded> {
        self.each_tls(Tls::reload_if_changed)
    }

    /// Looks at the files now and then, for ever.
    pub async fn watch(self) {
        if self.all.iter().all(|listening| listening.tls.is_none()) {
            return;
        }
        loop {
            tokio::time::sleep(CERTIFICATES_EVERY).await;
            let listeners = self.clone();
            // A file may be on a slow disk; a panic there is told by the next look.
            let _ = tokio::task::spawn_blocking(move || listeners.reload_changed()).await;
        }
    }

    fn each_tls(&self, load: impl Fn(&Tls) -> Option<Result<(), FilesError>>) -> Vec<Reloaded> {
        let mut all = Vec::new();
        for listening in self.all.iter() {
            let Some(outcome) = listening.tls.as_ref().and_then(|tls| load(tls)) else { continue };
            let name = &listening.config.name;
            match &outcome {
                Ok(()) => info!(
                    "listener {name}: new connections use the certificates that are in its files now"
                ),
                Err(why) => {
                    warn!("listener {name}: {why}; it goes on with the certificates it has")
                }
            }
            all.push(Reloaded {
                listener: name.clone(),
                outcome: outcome.map_err(|why| why.to_string()),
            });
        }
        all
    }

    /// Connections refused at all doors since the node started.
    pub fn refused(&self) -> u64 {
        let doors = self.all.iter().map(|listening| &listening.door);
        doors.flat_map(|door| Refusal::ALL.map(|why| door.refusals(why))).sum()
    }

    /// For `/metrics` and `/api/v1/stats`.
    pub fn stats(&self) -> Value {
        let by_listener = |value: &dyn Fn(&Listening) -> Option<Value>| {
            let entries = self.all.iter();
            let entries: Map<_, _> =
                entries.filter_map(|one| Some((one.config.name.clone(), value(one)?))).collect();
            json!({ "by_listener": entries })
        };
        let refused = |listening: &Listening| {
            let reasons: Map<_, _> = Refusal::ALL
                .iter()
                .map(|why| (why.name().to_owned(), listening.door.refusals(*why).into()))
                .collect();
            Some(json!({ "by_reason": reasons }))
        };
        json!({
            "connections": by_listener(&|one| Some(one.door.open().into())),
            "connections_pending": by_listener(&|one| Some(one.door.pending().into())),
            "accepted_total": by_listener(&|one| Some(one.door.accepted().into())),
            "refused_total": by_listener(&refused),
            "certificate_expires_timestamp_seconds":
                by_listener(&|one| Some(one.tls.as_ref()?.current().expires_s.into())),
        })
    }
}

fn open_one(
    listener: Listener,
    config: &Config,
    sockets: &Arc<Sockets>,
    is_open: watch::Receiver<bool>,
) -> Result<Arc<Listening>, OpenError> {
    let (name, address) = (listener.name.clone(), listener.address());
    let limits = StrangerLimits {
        pending_max: config.limits.pending_connect_max,
        bytes_max: config.limits.connect_bytes_max,
        time_max: Duration::from_secs(config.limits.connect_timeout_s.into()),
    };
    let has_sockets = listener.transport != Transport::Quic;
    let door = Door::new(
        &name,
        limits,
        listener.connections_max.unwrap_or(config.limits.connections_max),
        has_sockets.then(|| Arc::clone(sockets)),
    );
    let files = |source| OpenError::Files { name: name.clone(), source: Box::new(source) };
    let tls = listener.transport.has_tls().then(|| Tls::load(&listener)).transpose();
    let tls = tls.map_err(files)?;
    let key = if name == crate::config::MQTT_LISTENER {
        "listen.mqtt.bind (--mqtt-port)"
    } else {
        "its bind"
    };
    let message_bytes_max = config.listen.mqtt.packet_max_bytes as usize + MESSAGE_HEADROOM_BYTES;
    Listening::open(listener, door, tls, message_bytes_max, is_open)
        .map(Arc::new)
        .map_err(|source| OpenError::Address { name, address, key, source })
}
