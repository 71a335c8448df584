//! The heavy actor in charge of the data thread: starts it, and fails when the thread does, so that it is started again.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use outpost_actors::cell::panic_text;
use outpost_actors::ports::Gate;
use outpost_actors::shard::{Probe, Shard, ShardConfig};
use outpost_flow::Gather;
use outpost_store::disk::DiskStore;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef};
use tokio::sync::{mpsc, oneshot};

use super::handle::{COMMANDS_MAX, Command, PlaneHandle, PlanePorts};
use super::reactor::{Reactor, Rouser};
use super::serving::Serving;
use super::thread::Plane;
use super::together::Together;
use crate::clock::now;
use crate::listen::Listening;

/// Everything a data thread is made of; it can be started from it again and again.
#[derive(Clone)]
pub struct PlaneSpec {
    /// How the shard behaves.
    pub shard: ShardConfig,
    /// What it remembers by.
    pub store: Arc<DiskStore>,
    /// Who comes in.
    pub gate: Arc<dyn Gate>,
    /// The way out.
    pub ports: Arc<dyn PlanePorts>,
    /// The way in.
    pub handle: PlaneHandle,
    /// Where clients come in.
    pub listeners: Vec<Arc<Listening>>,
    /// Longest rest between turns when clients send fast, microseconds.
    pub gather_us: u64,
    /// Connections written to with one system call.
    pub sends_at_once_max: usize,
    /// For tests only.
    pub probe: Option<Probe>,
}

/// What the actor is told.
#[derive(Debug)]
pub enum PlaneMsg {
    /// From the thread: it ended, with what.
    Ended(String),
}

/// The actor.
pub struct PlaneActor;

impl PlaneActor {
    /// Starts the actor and its thread below a supervisor.
    ///
    /// # Errors
    /// Why the data plane could not be started.
    pub async fn start(spec: PlaneSpec, supervisor: ActorCell) -> Result<ActorCell, String> {
        let started = Actor::spawn_linked(None, Self, spec, supervisor).await;
        started.map(|(actor, _)| actor.get_cell()).map_err(|error| error.to_string())
    }
}

impl Actor for PlaneActor {
    type Msg = PlaneMsg;
    type State = ();
    type Arguments = PlaneSpec;

    async fn pre_start(
        &self,
        myself: ActorRef<PlaneMsg>,
        spec: PlaneSpec,
    ) -> Result<(), ActorProcessingErr> {
        let control = tokio::runtime::Handle::current();
        let (ready, is_ready) = oneshot::channel();
        let mut ready = Some(ready);
        std::thread::Builder::new().name("shard-0".to_owned()).spawn(move || {
            let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
                run_thread(&spec, &control, &mut ready)
            }));
            let ended = match result {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(panic) => format!("the data thread panicked: {}", panic_text(&*panic)),
            };
            // Whoever waits is gone only when the node is.
            match ready {
                Some(ready) => drop(ready.send(Err(ended))),
                None => drop(myself.cast(PlaneMsg::Ended(ended))),
            }
        })?;
        is_ready.await?.map_err(Into::into)
    }

    async fn handle(
        &self,
        _: ActorRef<PlaneMsg>,
        message: PlaneMsg,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let PlaneMsg::Ended(cause) = message;
        Err(cause.into())
    }
}

fn run_thread(
    spec: &PlaneSpec,
    control: &tokio::runtime::Handle,
    ready: &mut Option<oneshot::Sender<Result<(), String>>>,
) -> Result<(), String> {
    // What an earlier thread had submitted must be readable before this one reads. A store that has failed is no reason
    // to serve nobody: QoS 0 goes on.
    let failed = spec.store.sync_all().err().map(|error| error.to_string());
    let store: Arc<DiskStore> = Arc::clone(&spec.store);
    let mut shard = Shard::open(spec.shard.clone(), Arc::clone(&spec.gate), store, now())
        .map_err(|error| error.to_string())?;
    if let Some(cause) = failed {
        shard.store_failed(cause, now());
    }
    if let Some(probe) = &spec.probe {
        shard.set_probe(Arc::clone(probe));
    }
    let reactor = Reactor::new().map_err(|error| error.to_string())?;
    let rouser = Rouser::new(reactor.waker().map_err(|error| error.to_string())?);
    keep_rests_short();
    let (sender, commands) = mpsc::channel::<Command>(COMMANDS_MAX);
    spec.handle.connect(sender);
    // Timers of tasks, and whatever else is not of this thread's reactor, wake it from there.
    let _control = control.enter();
    let plane = Plane::new(
        shard,
        (reactor, Arc::clone(&rouser)),
        Gather::new(spec.gather_us),
        Together::new(spec.sends_at_once_max),
        spec.handle.clone(),
        Arc::clone(&spec.ports),
        Arc::clone(&spec.gate),
    );
    let serving = Serving::new(plane, commands, rouser);
    for listening in &spec.listeners {
        let failed = |why| format!("cannot serve listener {}: {why}", listening.door.name);
        serving.listen(listening).map_err(failed)?;
    }
    spec.ports.started();
    // The one who waits is this actor's own start.
    if let Some(ready) = ready.take() {
        let _ = ready.send(Ok(()));
    }
    serving.run().map_err(|error| format!("the data thread hears of no socket any more: {error}"))
}

/// Linux lets a thread that sleeps for 50 µs sleep for 100, to save wake-ups; this one sleeps to save them.
fn keep_rests_short() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1_000)) {
        tracing::debug!("rests between turns last longer than asked for: {error}");
    }
}
