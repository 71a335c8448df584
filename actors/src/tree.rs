//! The supervision tree of the heavy actors: one supervisor, children that it starts, watches and starts again.
//!
//! ```text
//!  supervisor ─┬─ shard (runs its cells on a thread of its own)
//!              ├─ shadow hub
//!              └─ …
//! ```
//! A child that fails is restarted by the same policy as a cell ([`outpost_flow::restart`]); its siblings do not notice.
//! A supervisor never waits for a child: a start runs in a task of its own and reports back.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outpost_flow::{Health, RestartPolicy, RestartState, Verdict};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tracing::{error, info, warn};

use crate::shard::ActorInfo;

/// Starts a child below the supervisor it is given; a failure is tried again as a failure of the child.
pub type StartChild = Arc<
    dyn Fn(ActorCell) -> Pin<Box<dyn Future<Output = Result<ActorCell, String>> + Send>>
        + Send
        + Sync,
>;

/// A child to be supervised.
#[derive(Clone)]
pub struct ChildSpec {
    /// What it is: `shard`, `shadows`, …
    pub role: &'static str,
    /// Which one.
    pub name: String,
    /// How it is started, the first time and after a failure.
    pub start: StartChild,
}

/// What the supervisor is told.
pub enum TreeMsg {
    /// From a start: the child runs, or could not be started.
    Started(usize, Result<ActorCell, String>),
    /// From a timer: the wait of a child may be over.
    Timeout(usize),
    /// From people: the children and how they are.
    List(RpcReplyPort<Vec<ActorInfo>>),
}

/// The root of a node's tree.
#[derive(Debug, Default)]
pub struct Tree;

struct Child {
    spec: ChildSpec,
    actor: Option<ActorCell>,
    restarts: RestartState,
}

/// What the supervisor knows.
pub struct TreeState {
    children: Vec<Child>,
    by_actor: BTreeMap<u64, usize>,
    /// Children that failed before this supervisor heard that they were started. At most one for each start under way.
    failed_early: BTreeMap<u64, String>,
    epoch: Instant,
}

impl Tree {
    /// Starts the supervisor and its children.
    ///
    /// # Errors
    /// When the supervisor itself cannot be spawned.
    pub async fn start(
        children: Vec<ChildSpec>,
        policy: RestartPolicy,
    ) -> Result<ActorRef<TreeMsg>, ractor::SpawnErr> {
        let (tree, _) = Actor::spawn(None, Self, (children, policy)).await?;
        Ok(tree)
    }
}

impl Actor for Tree {
    type Msg = TreeMsg;
    type State = TreeState;
    type Arguments = (Vec<ChildSpec>, RestartPolicy);

    async fn pre_start(
        &self,
        myself: ActorRef<TreeMsg>,
        (specs, policy): Self::Arguments,
    ) -> Result<TreeState, ActorProcessingErr> {
        let policy = Arc::new(policy);
        let children = specs.into_iter().map(|spec| Child {
            spec,
            actor: None,
            restarts: RestartState::new(Arc::clone(&policy)),
        });
        let state = TreeState {
            children: children.collect(),
            by_actor: BTreeMap::new(),
            failed_early: BTreeMap::new(),
            epoch: Instant::now(),
        };
        (0..state.children.len()).for_each(|index| state.start_child(&myself, index));
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<TreeMsg>,
        message: TreeMsg,
        state: &mut TreeState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            TreeMsg::Started(index, result) => state.handle_started(&myself, index, result),
            TreeMsg::Timeout(index) => state.handle_timeout(&myself, index),
            // Who asked may have gone; that is no failure of the root of everything.
            TreeMsg::List(reply) => drop(reply.send(state.list())),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<TreeMsg>,
        event: SupervisionEvent,
        state: &mut TreeState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(actor, cause) => {
                state.handle_failed(&myself, &actor, &cause.to_string())
            }
            SupervisionEvent::ActorTerminated(actor, _, Some(cause)) if cause != "stop" => {
                state.handle_failed(&myself, &actor, &cause)
            }
            _ => {}
        }
        Ok(())
    }
}

impl TreeState {
    fn start_child(&self, myself: &ActorRef<TreeMsg>, index: usize) {
        let (start, myself) = (Arc::clone(&self.children[index].spec.start), myself.clone());
        tokio::spawn(async move {
            let result = start(myself.get_cell()).await;
            // The supervisor is gone only when the node is.
            let _ = myself.cast(TreeMsg::Started(index, result));
        });
    }

    fn handle_started(
        &mut self,
        myself: &ActorRef<TreeMsg>,
        index: usize,
        result: Result<ActorCell, String>,
    ) {
        match result {
            Ok(actor) => {
                let pid = actor.get_id().pid();
                if let Some(cause) = self.failed_early.remove(&pid) {
                    return self.fail(myself, index, &cause);
                }
                self.by_actor.insert(pid, index);
                self.children[index].actor = Some(actor);
            }
            Err(cause) => self.fail(myself, index, &cause),
        }
    }

    fn handle_failed(&mut self, myself: &ActorRef<TreeMsg>, actor: &ActorCell, cause: &str) {
        let pid = actor.get_id().pid();
        if let Some(index) = self.by_actor.remove(&pid) {
            self.children[index].actor = None;
            self.fail(myself, index, cause);
        } else {
            self.failed_early.insert(pid, cause.to_owned());
        }
    }

    fn fail(&mut self, myself: &ActorRef<TreeMsg>, index: usize, cause: &str) {
        let now_ms = self.now_ms();
        let child = &mut self.children[index];
        let (role, name) = (child.spec.role, child.spec.name.clone());
        let wait_ms = match child.restarts.handle_failure(cause, now_ms) {
            Verdict::RestartNow => {
                warn!("{role} {name} failed: {cause}; it starts again at once");
                return self.start_child(myself, index);
            }
            Verdict::RestartAfter(ms) => {
                warn!("{role} {name} failed: {cause}; it starts again in {ms} ms");
                ms
            }
            Verdict::Quarantine { until_ms, .. } => {
                let ms = until_ms.saturating_sub(now_ms);
                error!("{role} {name} failed too often: {cause}; it stays down for {ms} ms");
                ms
            }
        };
        myself.send_after(Duration::from_millis(wait_ms), move || TreeMsg::Timeout(index));
    }

    fn handle_timeout(&mut self, myself: &ActorRef<TreeMsg>, index: usize) {
        let now_ms = self.now_ms();
        let child = &mut self.children[index];
        if child.restarts.handle_timeout(now_ms) {
            info!("{} {} starts again", child.spec.role, child.spec.name);
            self.start_child(myself, index);
        } else if let Some(due_ms) = child.restarts.poll_timeout() {
            myself.send_after(
                Duration::from_millis(due_ms.saturating_sub(now_ms).max(1)),
                move || TreeMsg::Timeout(index),
            );
        }
    }

    fn list(&self) -> Vec<ActorInfo> {
        self.children.iter().map(Child::info).collect()
    }

    fn now_ms(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }
}

impl Child {
    fn info(&self) -> ActorInfo {
        let state = match self.restarts.health() {
            Health::Running if self.actor.is_some() => "running",
            Health::Running | Health::Restarting { .. } => "restarting",
            Health::Quarantined { .. } => "quarantined",
        };
        ActorInfo {
            id: self.spec.name.clone(),
            parent: Some("node".to_owned()),
            weight: "ractor",
            role: self.spec.role,
            name: self.spec.name.clone(),
            state,
            mailbox: 0,
            mailbox_max: 0,
            restarts: self.restarts.restarts(),
            cause: self.restarts.last_cause().map(ToOwned::to_owned),
            detail: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Fragile;

    impl Actor for Fragile {
        type Msg = ();
        type State = ();
        type Arguments = ();

        async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }

        async fn handle(
            &self,
            _: ActorRef<()>,
            (): (),
            (): &mut (),
        ) -> Result<(), ActorProcessingErr> {
            panic!("a bad message")
        }
    }

    /// A child that can be told to panic, and how often it was started.
    fn fragile(
        name: &str,
        starts: &Arc<AtomicU32>,
        last: &Arc<parking_lot::Mutex<Option<ActorCell>>>,
    ) -> ChildSpec {
        let (starts, last) = (Arc::clone(starts), Arc::clone(last));
        let start: StartChild = Arc::new(move |supervisor| {
            let (starts, last) = (Arc::clone(&starts), Arc::clone(&last));
            Box::pin(async move {
                let (actor, _) = Actor::spawn_linked(None, Fragile, (), supervisor)
                    .await
                    .map_err(|e| e.to_string())?;
                *last.lock() = Some(actor.get_cell());
                starts.fetch_add(1, Ordering::SeqCst);
                Ok(actor.get_cell())
            })
        });
        ChildSpec { role: "test", name: name.to_owned(), start }
    }

    async fn list(tree: &ActorRef<TreeMsg>) -> Vec<ActorInfo> {
        ractor::call!(tree, TreeMsg::List).expect("the tree runs")
    }

    #[tokio::test]
    async fn a_child_that_panics_is_started_again_and_its_sibling_stays() {
        let (bad_starts, good_starts) = (Arc::default(), Arc::default());
        let (bad, good) = (Arc::default(), Arc::default());
        let children =
            vec![fragile("bad", &bad_starts, &bad), fragile("good", &good_starts, &good)];
        let tree = Tree::start(children, RestartPolicy::default()).await.expect("spawns");
        while list(&tree).await.iter().any(|child| child.state != "running") {
            tokio::task::yield_now().await;
        }
        let actor = bad.lock().clone().expect("started");
        ActorRef::<()>::from(actor).cast(()).expect("alive");
        while bad_starts.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        while list(&tree).await[0].state != "running" {
            tokio::task::yield_now().await;
        }
        let children = list(&tree).await;
        assert_eq!(children[0].restarts, 1);
        assert!(children[0].cause.as_deref().is_some_and(|cause| cause.contains("a bad message")));
        assert_eq!((children[1].restarts, good_starts.load(Ordering::SeqCst)), (0, 1));
    }

    #[tokio::test]
    async fn who_asks_and_goes_away_does_no_harm() {
        let (starts, actor) = (Arc::default(), Arc::default());
        let children = vec![fragile("one", &starts, &actor)];
        let tree = Tree::start(children, RestartPolicy::default()).await.expect("spawns");
        let (reply, asker) = ractor::concurrency::oneshot();
        drop(asker);
        tree.cast(TreeMsg::List(reply.into())).expect("alive");
        assert_eq!(list(&tree).await.len(), 1, "it answers the next one");
    }

    #[tokio::test]
    async fn a_child_that_fails_before_its_start_is_heard_of_is_started_again() {
        let starts = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&starts);
        let start: StartChild = Arc::new(move |supervisor| {
            let is_first = counted.fetch_add(1, Ordering::SeqCst) == 0;
            Box::pin(async move {
                let (actor, end) = Actor::spawn_linked(None, Fragile, (), supervisor)
                    .await
                    .map_err(|e| e.to_string())?;
                if is_first {
                    actor.cast(()).map_err(|e| e.to_string())?;
                    end.await.map_err(|e| e.to_string())?;
                }
                Ok(actor.get_cell())
            })
        });
        let children = vec![ChildSpec { role: "test", name: "hasty".to_owned(), start }];
        let tree = Tree::start(children, RestartPolicy::default()).await.expect("spawns");
        while starts.load(Ordering::SeqCst) < 2 || list(&tree).await[0].state != "running" {
            tokio::task::yield_now().await;
        }
        assert_eq!(list(&tree).await[0].restarts, 1);
    }
}
