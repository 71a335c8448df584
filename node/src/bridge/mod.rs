//! Bridges to foreign MQTT brokers: one supervised actor each, around the decisions of [`outpost_bridge`].
//!
//! ```text
//!  shard ◀─ local.rs (a client through memory) ◀─ run.rs (Relay) ─▶ remote.rs (TCP, TLS) ─▶ foreign broker
//! ```
//! What is owed to the foreign broker is the queue of the durable session `$bridge/<name>` on this node, like that of any
//! client that is away; what it owes us is the queue of a session there.

mod actor;
mod link;
mod local;
mod remote;
mod run;
mod settings;
mod status;
mod tls;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outpost_actors::ports::BRIDGE_CLIENTS;
use outpost_actors::shard::{Probe, SessionView};
use outpost_actors::tree::ChildSpec;
use tracing::{info, warn};

use crate::plane::{Command, PlaneHandle};
use actor::BridgeActor;
pub use settings::{Settings, SettingsError};
pub use status::{Shown, Status, stats};

/// Of a bridge in the supervision tree.
pub(crate) const ROLE: &str = "bridge";

/// Bridges of one node. More are refused with the configuration: each is a task, two buffers and 20 metrics.
pub const BRIDGES_MAX: usize = 32;

/// How long clients wait for the sessions of bridges. Shorter: on a slow disk their queues begin late; longer: a bridge
/// that cannot start keeps clients out.
const PREPARED_WITHIN: Duration = Duration::from_secs(10);

/// What a bridge is started with, again and again.
#[derive(Clone)]
pub(crate) struct Spec {
    pub(crate) settings: Arc<Settings>,
    pub(crate) plane: PlaneHandle,
    pub(crate) status: Arc<Status>,
    /// Shown each attempt to connect; may panic in its place. For tests only.
    pub(crate) probe: Option<Probe>,
}

/// The bridges of a node.
#[derive(Clone, Default)]
pub struct Bridges {
    specs: Vec<Spec>,
}

impl Bridges {
    /// From checked settings; nothing runs yet.
    pub fn new(settings: Vec<Settings>, plane: &PlaneHandle, probe: Option<&Probe>) -> Self {
        let spec = |settings: Settings| Spec {
            status: Arc::new(Status::new(&settings)),
            settings: Arc::new(settings),
            plane: plane.clone(),
            probe: probe.cloned(),
        };
        Self { specs: settings.into_iter().map(spec).collect() }
    }

    /// The actors, for the supervision tree.
    pub fn children(&self) -> Vec<ChildSpec> {
        let child = |spec: &Spec| {
            let spec = spec.clone();
            let name = spec.settings.name.clone();
            let start = move |supervisor| {
                let spec = spec.clone();
                Box::pin(BridgeActor::start(spec, supervisor))
                    as std::pin::Pin<Box<dyn Future<Output = _> + Send>>
            };
            ChildSpec { role: ROLE, name, start: Arc::new(start) }
        };
        self.specs.iter().map(child).collect()
    }

    /// Waits until each has its session on this node, so that nothing a client publishes is missing in its queue. A bridge
    /// that gets none tries again by itself, and holds nobody up: clients come first.
    pub async fn prepared(&self) {
        let all = async {
            for spec in &self.specs {
                spec.status.wait_prepared().await;
            }
        };
        if tokio::time::timeout(PREPARED_WITHIN, all).await.is_err() {
            warn!("a bridge has no session on this node yet; what is published now may pass it by");
        }
    }

    /// How they are.
    pub async fn show(&self, plane: &PlaneHandle) -> Vec<Shown> {
        if self.specs.is_empty() {
            return Vec::new();
        }
        let sessions = sessions(plane).await;
        let show = |spec: &Spec| spec.status.show(sessions.get(&spec.settings.client_id));
        self.specs.iter().map(show).collect()
    }

    /// Ends the sessions of bridges that are no longer configured: nobody will ever read their queues.
    pub async fn forget_removed(&self, plane: &PlaneHandle) {
        for (client_id, session) in sessions(plane).await {
            if self.specs.iter().any(|spec| spec.settings.client_id == client_id) {
                continue;
            }
            let count = session.queued;
            match local::forget(plane, &client_id).await {
                Ok(()) => info!(
                    "{client_id} is no longer configured; its queue of {count} messages is given up"
                ),
                Err(why) => warn!("{client_id} is no longer configured, its queue stays: {why}"),
            }
        }
    }
}

async fn sessions(plane: &PlaneHandle) -> BTreeMap<String, SessionView> {
    let views = plane.ask(|reply| Command::Sessions(BRIDGE_CLIENTS.to_owned(), reply)).await;
    views.unwrap_or_default().into_iter().map(|view| (view.client_id.to_string(), view)).collect()
}
