//! The supervisor of all devices: starts them, restarts what fails, quarantines what fails too often.
//!
//! It never waits for a device: opening a line happens in the device's own turn.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outpost_flow::restart::{Health, RestartPolicy, RestartState, Verdict};
use ractor::{
    Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent,
};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::SharedBus;
use crate::board::Boards;
use crate::config::{ConfigError, HardwareConfig};
use crate::device::{DeviceActor, DeviceArgs, DeviceMsg};
use crate::driver::Drivers;

/// How long [`Hardware::stop`] waits for devices to put their outputs into their initial state. Smaller: a slow bus
/// leaves lamps on; greater: a stuck driver delays the end of the node.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// How one device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// Its driver.
    pub driver: String,
    /// Running, waiting for a restart, or in quarantine; times in milliseconds since [`Hardware::start`].
    pub health: Health,
    /// How often it was restarted.
    pub restarts: u64,
    /// Why it failed last, when it ever did.
    pub last_cause: Option<String>,
}

/// Why the hardware was not started. No line was opened.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The supervisor could not be spawned.
    #[error("the hardware supervisor did not start")]
    Supervisor(#[from] ractor::SpawnErr),
}

/// The running devices of a node.
pub struct Hardware {
    supervisor: ActorRef<SupervisorMsg>,
    ended: JoinHandle<()>,
}

impl Hardware {
    /// Starts all devices. A device whose line cannot be opened does not keep the others from starting.
    ///
    /// # Errors
    /// [`StartError`] when the configuration is wrong.
    pub async fn start(
        config: &HardwareConfig,
        drivers: &Drivers,
        boards: &Boards,
        bus: SharedBus,
        policy: RestartPolicy,
    ) -> Result<Self, StartError> {
        config.check(drivers)?;
        let epoch = Instant::now();
        let policy = Arc::new(policy);
        let mut devices = BTreeMap::new();
        for device in &config.device {
            let Some(open) = drivers.get(&device.driver) else { continue }; // checked above
            let args = DeviceArgs {
                config: Arc::new(device.clone()),
                open,
                board: boards.get(device.board),
                bus: Arc::clone(&bus),
                epoch,
            };
            let child =
                Child { args, actor: None, restarts: RestartState::new(Arc::clone(&policy)) };
            devices.insert(device.name.clone(), child);
        }
        let (supervisor, ended) =
            Actor::spawn(None, Supervisor, Children { devices, epoch }).await?;
        Ok(Self { supervisor, ended })
    }

    /// How each device is, by name. Empty when the hardware has stopped.
    pub async fn status(&self) -> Vec<DeviceStatus> {
        ractor::call!(self.supervisor, SupervisorMsg::Status).unwrap_or_default()
    }

    /// Lets a device out of quarantine, or skips its back-off. `false` when it was not waiting.
    pub async fn release(&self, device: &str) -> bool {
        ractor::call!(self.supervisor, SupervisorMsg::Release, device.to_owned()).unwrap_or(false)
    }

    /// Stops all devices; outputs go to their initial state.
    pub async fn stop(self) {
        let _ = self.supervisor.cast(SupervisorMsg::StopAll);
        let _ = self.ended.await;
    }
}

pub(crate) enum SupervisorMsg {
    /// From its own timer: the wait of a device may be over.
    Due(String),
    /// For the console.
    Status(RpcReplyPort<Vec<DeviceStatus>>),
    /// From an operator.
    Release(String, RpcReplyPort<bool>),
    /// From [`Hardware::stop`].
    StopAll,
}

struct Supervisor;

struct Children {
    devices: BTreeMap<String, Child>,
    epoch: Instant,
}

struct Child {
    args: DeviceArgs,
    actor: Option<ActorRef<DeviceMsg>>,
    restarts: RestartState,
}

impl Actor for Supervisor {
    type Msg = SupervisorMsg;
    type State = Children;
    type Arguments = Children;

    async fn pre_start(
        &self,
        myself: ActorRef<SupervisorMsg>,
        all: Children,
    ) -> Result<Children, ActorProcessingErr> {
        let mut all = all;
        let names: Vec<String> = all.devices.keys().cloned().collect();
        for name in names {
            all.start(&name, &myself).await;
        }
        Ok(all)
    }

    async fn handle(
        &self,
        myself: ActorRef<SupervisorMsg>,
        message: SupervisorMsg,
        all: &mut Children,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMsg::Due(name) => all.due(&name, &myself).await,
            SupervisorMsg::Status(reply) => reply.send(all.status())?,
            SupervisorMsg::Release(name, reply) => reply.send(all.release(&name, &myself).await)?,
            SupervisorMsg::StopAll => {
                myself.get_cell().stop_children_and_wait(None, Some(STOP_WAIT)).await;
                myself.stop(None);
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<SupervisorMsg>,
        event: SupervisionEvent,
        all: &mut Children,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(who, cause) => {
                all.failed(&who, &cause.to_string(), &myself).await;
            }
            SupervisionEvent::ActorTerminated(who, ..) => all.forget(who.get_id()),
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {}
        }
        Ok(())
    }
}

impl Children {
    async fn start(&mut self, name: &str, myself: &ActorRef<SupervisorMsg>) {
        let Some(child) = self.devices.get_mut(name) else { return };
        match Actor::spawn_linked(None, DeviceActor, child.args.clone(), myself.get_cell()).await {
            Ok((actor, _)) => child.actor = Some(actor),
            Err(error) => self.handle_failure(name, &error.to_string(), myself, false).await,
        }
    }

    async fn failed(&mut self, who: &ActorCell, cause: &str, myself: &ActorRef<SupervisorMsg>) {
        if let Some(name) = self.forget_and_name(who.get_id()) {
            self.handle_failure(&name, cause, myself, true).await;
        }
    }

    /// `may_start`: false where a start has just failed, so that this cannot call itself in a circle.
    async fn handle_failure(
        &mut self,
        name: &str,
        cause: &str,
        myself: &ActorRef<SupervisorMsg>,
        may_start: bool,
    ) {
        let now_ms = self.now_ms();
        let Some(child) = self.devices.get_mut(name) else { return };
        match child.restarts.handle_failure(cause, now_ms) {
            Verdict::RestartNow => {
                info!(device = name, cause, "device failed and is restarted");
                if may_start {
                    Box::pin(self.start(name, myself)).await;
                } else {
                    wake(myself, name, Duration::ZERO);
                }
            }
            Verdict::RestartAfter(ms) => {
                info!(device = name, cause, after_ms = ms, "device failed and will be restarted");
                wake(myself, name, Duration::from_millis(ms));
            }
            Verdict::Quarantine { until_ms, cause } => {
                let for_ms = until_ms.saturating_sub(now_ms);
                warn!(device = name, %cause, for_ms, "device failed too often and is in quarantine");
                wake(myself, name, Duration::from_millis(for_ms));
            }
        }
    }

    async fn due(&mut self, name: &str, myself: &ActorRef<SupervisorMsg>) {
        let now_ms = self.now_ms();
        let Some(child) = self.devices.get_mut(name) else { return };
        let waited = child.restarts.handle_timeout(now_ms);
        let runs_without_actor = child.actor.is_none() && child.restarts.poll_timeout().is_none();
        if child.actor.is_none() && (waited || runs_without_actor) {
            self.start(name, myself).await;
        }
    }

    async fn release(&mut self, name: &str, myself: &ActorRef<SupervisorMsg>) -> bool {
        let now_ms = self.now_ms();
        let released =
            self.devices.get_mut(name).is_some_and(|child| child.restarts.release(now_ms));
        if released {
            self.start(name, myself).await;
        }
        released
    }

    fn status(&self) -> Vec<DeviceStatus> {
        let status = |(name, child): (&String, &Child)| DeviceStatus {
            name: name.clone(),
            driver: child.args.config.driver.clone(),
            health: child.restarts.health(),
            restarts: child.restarts.restarts(),
            last_cause: child.restarts.last_cause().map(str::to_owned),
        };
        self.devices.iter().map(status).collect()
    }

    fn forget(&mut self, id: ActorId) {
        let _ = self.forget_and_name(id);
    }

    fn forget_and_name(&mut self, id: ActorId) -> Option<String> {
        let (name, child) = self
            .devices
            .iter_mut()
            .find(|(_, child)| child.actor.as_ref().is_some_and(|a| a.get_id() == id))?;
        child.actor = None;
        Some(name.clone())
    }

    fn now_ms(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }
}

/// One wake per failure, and a device fails at most once per start: so few are under way.
fn wake(myself: &ActorRef<SupervisorMsg>, name: &str, after: Duration) {
    let (myself, name) = (myself.clone(), name.to_owned());
    tokio::spawn(async move {
        // A millisecond more than asked for: the timer's grain must not wake us just before the time.
        tokio::time::sleep(after + Duration::from_millis(1)).await;
        let _ = myself.cast(SupervisorMsg::Due(name)); // it has stopped: nobody to wake
    });
}
