//! The actor of one bridge: starts its task, and fails when the task does, so that it is started again.

use outpost_actors::cell::panic_text;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef};
use tokio::task::AbortHandle;

use super::{Spec, run};

/// What the actor is told.
#[derive(Debug)]
pub(super) enum BridgeMsg {
    /// From its task: it ended, with what.
    Ended(String),
}

/// The actor.
pub(super) struct BridgeActor;

/// Ends the task with the actor, however that ends.
pub(super) struct Running(AbortHandle);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl BridgeActor {
    /// Starts the actor below a supervisor.
    ///
    /// # Errors
    /// Why it could not be started.
    pub(super) async fn start(spec: Spec, supervisor: ActorCell) -> Result<ActorCell, String> {
        let started = Actor::spawn_linked(None, Self, spec, supervisor).await;
        started.map(|(actor, _)| actor.get_cell()).map_err(|error| error.to_string())
    }
}

impl Actor for BridgeActor {
    type Msg = BridgeMsg;
    type State = Running;
    type Arguments = Spec;

    async fn pre_start(
        &self,
        myself: ActorRef<BridgeMsg>,
        spec: Spec,
    ) -> Result<Running, ActorProcessingErr> {
        let task = tokio::spawn(run::run(spec));
        let running = Running(task.abort_handle());
        tokio::spawn(async move {
            let cause = match task.await {
                Err(error) if error.is_panic() => {
                    format!("the bridge panicked: {}", panic_text(&*error.into_panic()))
                }
                _ => "the bridge's task ended".to_owned(),
            };
            // The actor is gone when it was told to stop.
            let _ = myself.cast(BridgeMsg::Ended(cause));
        });
        Ok(running)
    }

    async fn handle(
        &self,
        _: ActorRef<BridgeMsg>,
        message: BridgeMsg,
        _: &mut Running,
    ) -> Result<(), ActorProcessingErr> {
        let BridgeMsg::Ended(cause) = message;
        Err(cause.into())
    }
}
