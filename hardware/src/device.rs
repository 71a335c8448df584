//! The actor of one device: it owns the driver, feeds it commands and edges, and publishes what it is.
//!
//! ```text
//!  bus ─► (bounded) ─┐                       ┌─ DeviceMsg::Command ─┐
//!                    ├─ pump, one at a time ─┤                      ├─► driver ─► state ─► bus
//!  board ─► (bounded)┘    (waits for the     └─ DeviceMsg::Edge ────┘
//!                          permit's return)
//! ```
//! ractor's mailbox has no bound, so the pump sends the next input only when the last one was handled.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, trace};

use crate::board::{Board, EDGES_WAITING_MAX, Edge};
use crate::config::DeviceConfig;
use crate::driver::{COMMAND_BYTES_MAX, Driver, DriverError, OpenDevice, OpenDriver};
use crate::{BusMessage, SharedBus};

/// When the bus was full, the state is offered again after this long.
const PUBLISH_RETRY_MS: u64 = 100;

/// Everything a device needs to start, and to start again.
#[derive(Clone)]
pub(crate) struct DeviceArgs {
    pub config: Arc<DeviceConfig>,
    pub open: OpenDriver,
    pub board: Arc<dyn Board>,
    pub bus: SharedBus,
    /// Zero of the device's milliseconds.
    pub epoch: Instant,
}

pub(crate) enum DeviceMsg {
    /// To itself, first of all: opening may fail or panic, and then the supervisor is told like of any failure.
    Open,
    /// From the pump. The permit lets it send the next.
    Command(BusMessage, OwnedSemaphorePermit),
    /// From the pump.
    Edge(Edge, OwnedSemaphorePermit),
    /// From the pump: the board or the bus has gone.
    InputsEnded(&'static str),
    /// From its own timer.
    Timeout,
}

pub(crate) struct DeviceActor;

pub(crate) struct DeviceState {
    args: DeviceArgs,
    driver: Option<Box<dyn Driver>>,
    published: Option<Bytes>,
    /// States the bus had no room for; the newest is enough.
    unpublished: Option<Bytes>,
    timer: Option<(u64, JoinHandle<()>)>,
    pump: Option<JoinHandle<()>>,
}

impl Actor for DeviceActor {
    type Msg = DeviceMsg;
    type State = DeviceState;
    type Arguments = DeviceArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<DeviceMsg>,
        args: DeviceArgs,
    ) -> Result<DeviceState, ActorProcessingErr> {
        myself.cast(DeviceMsg::Open)?;
        Ok(DeviceState {
            args,
            driver: None,
            published: None,
            unpublished: None,
            timer: None,
            pump: None,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<DeviceMsg>,
        message: DeviceMsg,
        state: &mut DeviceState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DeviceMsg::Open => state.open(&myself)?,
            DeviceMsg::Command(command, _place) => state.command(&command)?,
            DeviceMsg::Edge(edge, _place) => state.edge(edge)?,
            DeviceMsg::InputsEnded(which) => return Err(which.into()),
            DeviceMsg::Timeout => state.timeout()?,
        }
        state.publish_state()?;
        state.arm_timer(&myself);
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<DeviceMsg>,
        state: &mut DeviceState,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(driver) = &mut state.driver {
            driver.stop();
        }
        Ok(())
    }
}

impl DeviceState {
    fn open(&mut self, myself: &ActorRef<DeviceMsg>) -> Result<(), DriverError> {
        let (edges, arriving) = mpsc::channel(EDGES_WAITING_MAX);
        let device = OpenDevice { config: &self.args.config, board: &*self.args.board, edges };
        self.driver = Some((self.args.open)(&device)?);
        // An input's line has kept a sender: only then does the end of the edges mean anything.
        let watches = device.edges.strong_count() > 1;
        drop(device);
        let commands = self.args.bus.subscribe(&self.args.config.set_topic());
        self.pump = Some(tokio::spawn(pump(myself.clone(), commands, watches.then_some(arriving))));
        Ok(())
    }

    fn command(&mut self, command: &BusMessage) -> Result<(), DriverError> {
        let now_ms = self.now_ms();
        let Some(driver) = &mut self.driver else { return Ok(()) };
        let done = if command.payload.len() > COMMAND_BYTES_MAX {
            Err(DriverError::Command { expected: "something shorter" })
        } else {
            driver.handle_command(&command.payload, now_ms)
        };
        match done {
            Err(error @ DriverError::Command { .. }) => {
                debug!(device = self.args.config.name, %error, "command refused");
                Ok(())
            }
            done => done,
        }
    }

    fn edge(&mut self, edge: Edge) -> Result<(), DriverError> {
        let Some(driver) = &mut self.driver else { return Ok(()) };
        if let Some(state) = driver.handle_edge(edge)? {
            self.publish(state);
        }
        Ok(())
    }

    fn timeout(&mut self) -> Result<(), DriverError> {
        let now_ms = self.now_ms();
        self.timer = None;
        if let Some(state) = self.unpublished.take() {
            self.publish(state);
        }
        match &mut self.driver {
            Some(driver) if driver.poll_timeout().is_some_and(|due_ms| due_ms <= now_ms) => {
                driver.handle_timeout(now_ms)
            }
            _ => Ok(()),
        }
    }

    fn publish_state(&mut self) -> Result<(), DriverError> {
        if let Some(driver) = &mut self.driver {
            let state = driver.state()?;
            self.publish(state);
        }
        Ok(())
    }

    fn publish(&mut self, state: Bytes) {
        if self.published.as_ref() == Some(&state) {
            self.unpublished = None;
            return;
        }
        trace!(device = self.args.config.name, ?state, "state");
        match self.args.bus.publish(&self.args.config.state_topic(), state.clone(), true) {
            Ok(()) => (self.published, self.unpublished) = (Some(state), None),
            Err(_full) => self.unpublished = Some(state),
        }
    }

    /// One timer at most is under way.
    fn arm_timer(&mut self, myself: &ActorRef<DeviceMsg>) {
        let now_ms = self.now_ms();
        let retry_ms = self.unpublished.as_ref().map(|_| now_ms + PUBLISH_RETRY_MS);
        let driver_ms = self.driver.as_ref().and_then(|driver| driver.poll_timeout());
        let due_ms = [retry_ms, driver_ms].into_iter().flatten().min();
        match (&self.timer, due_ms) {
            (Some((armed_ms, _)), Some(due_ms)) if *armed_ms <= due_ms => return,
            (Some((_, timer)), _) => timer.abort(),
            (None, _) => {}
        }
        self.timer = due_ms.map(|due_ms| {
            let (myself, at) = (myself.clone(), self.args.epoch + Duration::from_millis(due_ms));
            let timer = tokio::spawn(async move {
                tokio::time::sleep_until(at).await;
                let _ = myself.cast(DeviceMsg::Timeout); // it has stopped: nobody to wake
            });
            (due_ms, timer)
        });
    }

    fn now_ms(&self) -> u64 {
        self.args.epoch.elapsed().as_millis() as u64
    }
}

impl Drop for DeviceState {
    /// Also after a panic: nothing of a dead device goes on.
    fn drop(&mut self) {
        self.pump.iter().for_each(JoinHandle::abort);
        self.timer.iter().for_each(|(_, timer)| timer.abort());
    }
}

/// Carries inputs to the actor, one at a time; ends with the actor or with an input.
async fn pump(
    actor: ActorRef<DeviceMsg>,
    mut commands: mpsc::Receiver<BusMessage>,
    mut edges: Option<mpsc::Receiver<Edge>>,
) {
    let turn = Arc::new(Semaphore::new(1));
    loop {
        let Ok(place) = Arc::clone(&turn).acquire_owned().await else { return };
        let message = tokio::select! {
            biased;
            edge = next_edge(&mut edges) => match edge {
                Some(edge) => DeviceMsg::Edge(edge, place),
                None => DeviceMsg::InputsEnded("the board no longer reports edges of the line"),
            },
            command = commands.recv() => match command {
                Some(command) => DeviceMsg::Command(command, place),
                None => DeviceMsg::InputsEnded("the bus ended the subscription"),
            },
        };
        let last = matches!(message, DeviceMsg::InputsEnded(_));
        if actor.cast(message).is_err() || last {
            return;
        }
    }
}

async fn next_edge(edges: &mut Option<mpsc::Receiver<Edge>>) -> Option<Edge> {
    match edges {
        Some(edges) => edges.recv().await,
        None => std::future::pending().await,
    }
}
