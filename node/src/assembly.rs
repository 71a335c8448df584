//! Starts a node from its configuration, and stops it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use bytestring::ByteString;
use outpost_actors::shard::{Probe, Redirect, ShardConfig, TraceRecord};
use outpost_actors::tree::{ChildSpec, Tree, TreeMsg};
use outpost_cluster::{Cluster, ClusterConfig};
use outpost_flow::{AdmissionLimits, Class, Overload, PaceLimits, RestartPolicy};
use outpost_hardware::{Boards, Drivers, Hardware};
use outpost_membership::PeerFrame;
use outpost_model::{NodeId, TopicFilter};
use outpost_mqtt::session::SessionLimits;
use outpost_shadow::HubConfig;
use outpost_store::disk::{DiskStore, Options};
use outpost_store::{Store, StoreEvent};
use parking_lot::Mutex;
use ractor::ActorRef;
use tracing::{error, info, warn};

use crate::admin::Desk;
use crate::backend::NodeBackend;
use crate::bridge::{self, Bridges, Settings};
use crate::bus::PlaneBus;
use crate::config::{Config, Durability, OverloadPolicy, OverloadRule, Shadows};
use crate::gate::ConfigGate;
use crate::http::HttpServer;
use crate::listeners::{Listeners, OpenError};
use crate::memory;
use crate::peers::{Links, NodeSink, Speaker};
use crate::plane::{Command, PlaneActor, PlaneHandle, PlanePorts, PlaneSpec};
use crate::shadows::{ShadowActor, ShadowCommand, ShadowHandle, ShadowSpec, policy_rule};
use crate::traces::Traces;

/// A shadow stamp from a peer further in the future than this is refused.
const CLOCK_AHEAD_MS_MAX: u64 = 60_000;

/// How long the parts of a stopped node may take to let go of the store. Shorter: a slow card is left behind open;
/// longer: a part that hangs keeps the process.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// Why a node did not start. Nothing runs then; what was on disk is untouched.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener cannot be opened.
    #[error(transparent)]
    Listen(#[from] OpenError),
    /// The store cannot be opened.
    #[error("cannot open the store in {path}: {source}", path = path.display())]
    Store {
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: outpost_store::disk::OpenError,
    },
    /// The cluster part cannot be started.
    #[error("cannot take part in the cluster: {0}")]
    Cluster(#[from] outpost_cluster::StartError),
    /// The HTTP API cannot be started.
    #[error(transparent)]
    Http(#[from] crate::http::HttpError),
    /// The devices of this machine cannot be started.
    #[error("cannot start the hardware: {0}")]
    Hardware(#[from] outpost_hardware::StartError),
    /// A part could not be started.
    #[error("{0}")]
    Part(String),
}

/// What tests may put into a node.
#[derive(Clone, Default)]
pub struct Hooks {
    /// Shown every turn of a cell; may panic in its place.
    pub probe: Option<Probe>,
    /// The boards devices are on; keep a clone to press simulated buttons.
    pub boards: Boards,
}

/// A running node.
pub struct Node {
    listeners: Listeners,
    watching: tokio::task::JoinHandle<()>,
    plane: PlaneHandle,
    shadows: ShadowHandle,
    tree: ActorRef<TreeMsg>,
    cluster: Arc<Mutex<Option<Arc<Cluster>>>>,
    hardware: Option<Arc<Hardware>>,
    http: Option<HttpServer>,
    desk: Desk,
    store: Arc<DiskStore>,
}

/// What the data plane says to the rest of the node.
struct Ports {
    traces: Traces,
    links: Links,
    shadows: ShadowHandle,
    store: Arc<DiskStore>,
}

impl PlanePorts for Ports {
    fn peer(&self, peer: NodeId, frame: PeerFrame) -> bool {
        self.links.send(Speaker::Plane, peer, frame)
    }

    fn peer_up(&self, peer: NodeId, link: u64) {
        self.links.heard(Speaker::Plane, peer, link);
    }

    fn shadow(&self, topic: ByteString, payload: Bytes, client: ByteString, job: u64) -> bool {
        self.shadows.try_send(ShadowCommand::Request { topic, payload, client, job })
    }

    fn traced(&self, trace: u64, record: Option<&TraceRecord>) {
        self.traces.hand_over(trace, record);
    }

    fn peer_failed(&self, peer: NodeId, why: &str) {
        warn!("closing the link to peer {peer}: {why}");
        self.links.close(peer, why);
    }

    fn charges(&self) -> [(Class, u64); 2] {
        let (store, shadows) = (self.store.backlog_bytes(), self.shadows.bytes());
        [(Class::Store, store as u64), (Class::Shadows, shadows as u64)]
    }

    fn memory_is_short(&self, is: bool) {
        self.shadows.memory_is_short(is);
    }

    fn started(&self) {
        // The shard is new and knows no link: each comes up again and says hello.
        self.links.close_all("this node's data plane has started anew");
    }
}

impl Node {
    /// Starts a node. When it returns, devices are served.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, Hooks::default()).await
    }

    /// Starts a node with hooks for tests.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn start_with(config: Config, hooks: Hooks) -> Result<Self, StartError> {
        let listeners = Listeners::open(&config)?;
        let store = open_store(&config).await?;
        let gate = Arc::new(ConfigGate::new(&config).map_err(StartError::Part)?);
        let traces = Traces::start(&config.node.data_dir)
            .map_err(|error| StartError::Part(format!("cannot start the traces: {error}")))?;
        let desk = Desk { gate: gate.clone(), traces };
        let (plane, shadows, links) =
            (PlaneHandle::default(), ShadowHandle::default(), Links::default());
        let store_failed = watch_store(&store, &plane, &shadows);
        let id = NodeId::from_name(&config.node.name);

        let plane_spec = PlaneSpec {
            shard: shard_config(&config, id, store.store_id()),
            store: Arc::clone(&store),
            gate,
            ports: Arc::new(Ports {
                traces: desk.traces.clone(),
                links: links.clone(),
                shadows: shadows.clone(),
                store: Arc::clone(&store),
            }),
            handle: plane.clone(),
            listeners: listeners.all().to_vec(),
            gather_us: u64::from(config.limits.gather_us_max),
            sends_at_once_max: config.limits.sends_at_once_max,
            probe: hooks.probe.clone(),
        };
        let shadow_spec = ShadowSpec {
            hub: hub_config(&config, id),
            store: Arc::clone(&store),
            plane: plane.clone(),
            links: links.clone(),
            handle: shadows.clone(),
        };
        let bridges = bridges(&config, &plane, hooks.probe.as_ref())?;
        let mut parts = children(plane_spec, shadow_spec);
        parts.extend(bridges.children());
        let tree = Tree::start(parts, RestartPolicy::default()).await.map_err(|error| {
            StartError::Part(format!("cannot start the supervision tree: {error}"))
        })?;
        let config_sha256 = config.sha256();
        let mut node = Self {
            watching: tokio::spawn(listeners.clone().watch()),
            listeners,
            plane,
            shadows,
            tree,
            cluster: Arc::default(),
            hardware: None,
            http: None,
            desk,
            store,
        };
        if let Err(error) =
            node.start_rim(&config, &hooks, links, bridges, store_failed, config_sha256).await
        {
            node.shutdown().await;
            return Err(error);
        }
        for listening in node.listeners.all() {
            info!("node {:?} serves {}", config.node.name, listening.words());
        }
        Ok(node)
    }

    /// Waits for the shard and the hub, then starts what stands around them: bridges, links to peers, devices,
    /// and last clients and HTTP.
    async fn start_rim(
        &mut self,
        config: &Config,
        hooks: &Hooks,
        links: Links,
        bridges: Bridges,
        store_failed: Arc<Mutex<Option<String>>>,
        config_sha256: String,
    ) -> Result<(), StartError> {
        all_running(&self.tree).await?;
        bridges.forget_removed(&self.plane).await;
        bridges.prepared().await;
        if let Some(cluster_config) = cluster_config(config) {
            let sink = NodeSink::start(links.clone(), self.plane.clone(), self.shadows.clone());
            let incarnation = crate::clock::now().wall_ms;
            let cluster = Cluster::start(cluster_config, sink, incarnation).await?;
            *self.cluster.lock() = Some(Arc::new(cluster));
        }
        self.hardware = start_hardware(config, &hooks.boards, &self.plane).await?;
        self.listeners.let_in();
        let backend = NodeBackend {
            bridges,
            name: config.node.name.clone(),
            config_sha256,
            started: Instant::now(),
            store: Arc::clone(&self.store),
            store_failed,
            plane: self.plane.clone(),
            shadows: self.shadows.clone(),
            links,
            tree: self.tree.clone(),
            cluster: Arc::clone(&self.cluster),
            hardware: self.hardware.clone(),
            listeners: self.listeners.clone(),
            desk: self.desk.clone(),
        };
        self.http = Some(HttpServer::start(&config.listen.http, Arc::new(backend))?);
        Ok(())
    }

    /// Where MQTT is served: the first listener, which is that of `[listen.mqtt]` when there is one.
    pub fn mqtt_addr(&self) -> SocketAddr {
        self.listeners.all().first().expect("a checked configuration has one").address
    }

    /// Every way in for clients.
    pub fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// Where HTTP is served.
    pub fn http_addr(&self) -> SocketAddr {
        self.http.as_ref().expect("there until shutdown").address()
    }

    /// Where the cluster is served, when the node takes part in one.
    pub fn cluster_addr(&self) -> Option<SocketAddr> {
        self.cluster.lock().as_ref().map(|cluster| cluster.local_addr())
    }

    /// The way into the data plane, for tests.
    pub fn plane(&self) -> &PlaneHandle {
        &self.plane
    }

    /// Stops serving; what was acknowledged is on disk already.
    pub async fn shutdown(mut self) {
        self.watching.abort();
        if let Some(http) = self.http.take() {
            http.stop().await;
        }
        if let Some(hardware) = self.hardware.take().and_then(Arc::into_inner) {
            hardware.stop().await;
        }
        let cluster = self.cluster.lock().take();
        if let Some(cluster) = cluster.and_then(Arc::into_inner) {
            cluster.shutdown().await;
        }
        // A part that is down has nothing left to say.
        let _ = self.plane.ask(Command::Stop).await;
        let _ = self.shadows.ask(ShadowCommand::Stop).await;
        if let Err(error) = self.tree.stop_and_wait(Some("stop".to_owned()), None).await {
            error!("the supervision tree did not stop in order: {error}");
        }
        let store = Arc::clone(&self.store);
        let synced = tokio::task::spawn_blocking(move || store.sync_unless_stalled()).await;
        if let Ok(Err(error)) = synced {
            error!("the last writes were not synced: {error}");
        }
        close(self.store).await;
    }
}

/// Waits until the threads that were told to stop have let go of the store, and closes it: whoever starts a node on the
/// same directory next finds it free.
async fn close(store: Arc<DiskStore>) {
    let began = Instant::now();
    while Arc::strong_count(&store) > 1 {
        if began.elapsed() > CLOSE_PATIENCE {
            return error!("a part of this node has not stopped and keeps the store open");
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    if let Err(error) = tokio::task::spawn_blocking(move || drop(store)).await {
        error!("closing the store failed: {error}");
    }
}

async fn open_store(config: &Config) -> Result<Arc<DiskStore>, StartError> {
    let path = config.node.data_dir.clone();
    let options = Options {
        backlog_bytes_max: config.limits.store_backlog_bytes_max,
        reserve_bytes: config.limits.disk_reserve_bytes as u64,
        ..Options::default()
    };
    let opened = tokio::task::spawn_blocking({
        let path = path.clone();
        move || DiskStore::open(path, options)
    });
    let store = match opened.await {
        Ok(Ok(store)) => store,
        Ok(Err(source)) => return Err(StartError::Store { path, source }),
        Err(error) => return Err(StartError::Part(format!("opening the store failed: {error}"))),
    };
    if store.report().may_have_lost() {
        warn!("the store in {} was damaged: {:?}", path.display(), store.report());
    }
    Ok(Arc::new(store))
}

/// Tells the shard and the hub what has become durable.
fn watch_store(
    store: &Arc<DiskStore>,
    plane: &PlaneHandle,
    shadows: &ShadowHandle,
) -> Arc<Mutex<Option<String>>> {
    let failed = Arc::new(Mutex::new(None));
    let handle = plane;
    let (plane, shadows, failure) = (plane.clone(), shadows.clone(), Arc::clone(&failed));
    store.listen(Arc::new(move |event: StoreEvent| {
        let command = match &event {
            StoreEvent::Synced(_) | StoreEvent::Stalled(_) | StoreEvent::Resumed => {
                ShadowCommand::Synced
            }
            StoreEvent::Failed(cause) => {
                *failure.lock() = Some(cause.clone());
                ShadowCommand::StoreFailed(cause.clone())
            }
        };
        plane.store_event(event);
        // A hub with a full queue looks at the store after each command.
        shadows.try_send(command);
    }));
    if let Some(stall) = store.stall() {
        handle.store_event(StoreEvent::Stalled(stall)); // before there was a listener
    }
    failed
}

fn children(plane: PlaneSpec, shadows: ShadowSpec) -> Vec<ChildSpec> {
    let start_plane = move |supervisor| {
        let spec = plane.clone();
        Box::pin(PlaneActor::start(spec, supervisor))
            as std::pin::Pin<Box<dyn Future<Output = _> + Send>>
    };
    let start_shadows = move |supervisor| {
        let spec = shadows.clone();
        Box::pin(ShadowActor::start(spec, supervisor))
            as std::pin::Pin<Box<dyn Future<Output = _> + Send>>
    };
    vec![
        ChildSpec { role: "shard", name: "shard-0".to_owned(), start: Arc::new(start_plane) },
        ChildSpec { role: "shadows", name: "shadows".to_owned(), start: Arc::new(start_shadows) },
    ]
}

/// Waits until every child runs, or one has given up. What a bridge does is no concern of the node's start.
async fn all_running(tree: &ActorRef<TreeMsg>) -> Result<(), StartError> {
    loop {
        let mut children = ractor::call!(tree, TreeMsg::List)
            .map_err(|error| StartError::Part(format!("the supervision tree ended: {error}")))?;
        children.retain(|child| child.role != bridge::ROLE);
        if let Some(down) =
            children.iter().find(|child| child.cause.is_some() && child.state != "running")
        {
            return Err(StartError::Part(format!(
                "{} does not start: {}",
                down.name,
                down.cause.clone().unwrap_or_default()
            )));
        }
        if children.iter().all(|child| child.state == "running") {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Starts the devices of this machine, when there are any.
async fn start_hardware(
    config: &Config,
    boards: &Boards,
    plane: &PlaneHandle,
) -> Result<Option<Arc<Hardware>>, StartError> {
    let hardware = config.hardware();
    if hardware.device.is_empty() {
        return Ok(None);
    }
    let bus = Arc::new(PlaneBus(plane.clone()));
    let drivers = Drivers::built_in();
    let started = Hardware::start(&hardware, &drivers, boards, bus, RestartPolicy::default());
    Ok(Some(Arc::new(started.await?)))
}

fn shard_config(config: &Config, node: NodeId, store_id: u64) -> ShardConfig {
    let limits = &config.limits;
    ShardConfig {
        durable: config.listen.mqtt.durability == Durability::Disk,
        session: SessionLimits {
            receive_max: limits.receive_max,
            in_flight_max: limits.inflight_max,
            packet_bytes_max: config.listen.mqtt.packet_max_bytes,
            topic_alias_max: limits.topic_alias_max,
            topic_alias_out_max: limits.topic_alias_out_max,
            keep_alive_s_max: limits.keep_alive_s_max,
            session_expiry_s_max: limits.session_expiry_s_max,
        },
        connections_max: limits.connections_max,
        sessions_max: limits.sessions_max,
        subscriptions_max: limits.subscriptions_max,
        queue_messages_max: limits.queue_messages_max as u32,
        queue_bytes_max: limits.queue_bytes_max as u64,
        node_queue_messages_max: limits.node_queue_messages_max as u64,
        node_queue_bytes_max: limits.node_queue_bytes_max as u64,
        outbox_messages_max: limits.outbox_messages_max as u64,
        outbox_bytes_max: limits.outbox_bytes_max as u64,
        out_bytes_max: limits.write_buffer_bytes_max,
        connect_timeout_ms: u64::from(limits.connect_timeout_s) * 1000,
        retained_max: limits.retained_max,
        directory_max: limits.directory_max,
        memory_bytes_max: limits.memory_bytes_max.map_or_else(memory::budget_bytes, |b| b as u64),
        overload: limits.overload.iter().filter_map(overload_rule).collect(),
        admission: AdmissionLimits {
            all: limits.connect_rate_max as u64,
            address: limits.connect_rate_per_address_max as u64,
        },
        pace: PaceLimits {
            agreed: limits.publish_rate as u64,
            messages: limits.publish_rate_max as u64,
            bytes: limits.publish_bytes_rate_max as u64,
        },
        sys_interval_ms: u64::from(config.node.sys_interval_s) * 1000,
        payload_format_check: config.security.payload_format_check,
        response_information: config.security.response_information.clone(),
        // Checked with the configuration.
        redirect: config.node.moved_to.as_deref().and_then(|to| Redirect::new(to, true).ok()),
        ..ShardConfig::new(node, store_id)
    }
}

/// Filters were checked with the configuration.
fn overload_rule(rule: &OverloadRule) -> Option<(TopicFilter, Overload)> {
    let policy = match rule.policy {
        OverloadPolicy::DropNew => Overload::DropNew,
        OverloadPolicy::DropOld => Overload::DropOld,
        OverloadPolicy::Block => Overload::Block,
        OverloadPolicy::Disconnect => Overload::Disconnect,
    };
    TopicFilter::new(rule.filter.as_str()).ok().map(|filter| (filter, policy))
}

fn bridges(
    config: &Config,
    plane: &PlaneHandle,
    probe: Option<&Probe>,
) -> Result<Bridges, StartError> {
    let packet_max = config.listen.mqtt.packet_max_bytes;
    let settings = config.bridge.iter().map(|bridge| {
        Settings::new(bridge, &config.node.name, packet_max).map_err(|wrong| {
            let wrong: Vec<String> = wrong.iter().map(ToString::to_string).collect();
            StartError::Part(format!("cannot start bridge {:?}: {}", bridge.name, wrong.join("; ")))
        })
    });
    Ok(Bridges::new(settings.collect::<Result<_, _>>()?, plane, probe))
}

fn hub_config(config: &Config, node: NodeId) -> HubConfig {
    HubConfig {
        node,
        node_name: config.node.name.clone(),
        limits: outpost_shadow::Limits {
            state_bytes_max: config.limits.shadow_bytes_max,
            shadows_max: config.limits.shadows_max,
            hot_shadows_max: config.limits.shadows_hot_max,
            depth_max: config.limits.shadow_depth_max,
            history_max: config.limits.shadow_history_max,
            history_each_max: config.limits.shadow_history_each_max,
            in_flight_max: config.limits.shadow_in_flight_max,
            deleted_keep_ms: u64::from(config.limits.shadow_deleted_keep_h) * 3_600_000,
            ..outpost_shadow::Limits::default()
        },
        hlc_ahead_ms_max: CLOCK_AHEAD_MS_MAX,
        rules: shadow_rules(&config.shadows),
    }
}

fn shadow_rules(config: &Shadows) -> outpost_shadow::Rules {
    let rules = config.policy.iter().filter_map(|rule| policy_rule(rule).ok());
    // Checked with the configuration.
    let policies = outpost_shadow::Policies::new(rules.collect()).unwrap_or_default();
    outpost_shadow::Rules { strict: config.strict, policies }
}

fn cluster_config(config: &Config) -> Option<ClusterConfig> {
    let cluster = config.cluster.as_ref()?;
    Some(ClusterConfig {
        cluster: cluster.name.clone(),
        name: config.node.name.clone(),
        bind: cluster.bind,
        advertise: cluster.advertise,
        seeds: cluster.seeds.clone(),
        // A checked configuration has all three.
        ca_pem: cluster.ca.clone().unwrap_or_default(),
        cert_pem: cluster.cert.clone().unwrap_or_default(),
        key_pem: cluster.key.clone().unwrap_or_default(),
        ca_key: cluster.ca_key.clone(),
        lossy_links: cluster.lossy_links,
        limits: outpost_cluster::LinkLimits::default(),
    })
}
