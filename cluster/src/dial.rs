//! Opens links and opens them again, for ever: one task per seed and per known node, each with a bounded pause.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outpost_model::NodeId;
use quinn::ConnectionError;
use tokio::time::{sleep, timeout};

use crate::cluster::Context;
use crate::link::{self, Ended};
use crate::tls::{self, SERVER_NAME};

/// The node with the greater id lets the other dial first for this long, so that seldom both do.
const YIELD: Duration = Duration::from_millis(250);
/// How long until a seed that turned out to be this node itself is tried again; its name may point elsewhere then.
const SELF_PAUSE: Duration = Duration::from_secs(30);
/// How often a task looks again whether it is needed.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Keeps a link to a node whose id is known, at the address gossip tells.
pub(crate) async fn member(context: Arc<Context>, id: NodeId) {
    let mut pause = Pause::new(&context);
    loop {
        until_unlinked(&context, id).await;
        if context.id > id {
            sleep(YIELD).await;
        }
        let Some(known) = context.roster.get(id) else { return };
        if known.member.addr.ip().is_unspecified() || known.member.addr == context.advertised {
            // It does not know its own address, or two nodes claim the same; only the other side can dial.
            sleep(LOOK_AGAIN).await;
        } else if !context.links.is_linked(id) {
            match attempt(&context, known.member.addr).await {
                Attempt::Ran(_, Ended::WasUp) => pause.reset(),
                _ => pause.wait().await,
            }
        }
    }
}

/// Keeps asking a configured address until some node is linked that is there.
pub(crate) async fn seed(context: Arc<Context>, seed: String) {
    let mut pause = Pause::new(&context);
    let mut found: Option<NodeId> = None;
    loop {
        let Some(addr) = resolve(&context, &seed).await else {
            pause.wait().await;
            continue;
        };
        // A node that gossip knows at this address has its own dial task.
        let known_there =
            context.roster.all().into_values().find(|known| known.member.addr == addr);
        if known_there.is_some() || found.is_some_and(|id| context.links.is_linked(id)) {
            sleep(LOOK_AGAIN).await;
            continue;
        }
        if addr == context.advertised {
            sleep(SELF_PAUSE).await;
            continue;
        }
        match attempt(&context, addr).await {
            Attempt::Ran(_, Ended::Myself) => sleep(SELF_PAUSE).await,
            Attempt::Ran(id, Ended::WasUp) => {
                found = Some(id);
                pause.reset();
            }
            Attempt::Ran(id, Ended::Refused) => {
                found = Some(id);
                pause.wait().await;
            }
            Attempt::Failed => pause.wait().await,
        }
    }
}

async fn until_unlinked(context: &Context, id: NodeId) {
    let mut changes = context.links.changes();
    while context.links.is_linked(id) {
        if changes.changed().await.is_err() {
            return;
        }
    }
}

enum Attempt {
    Failed,
    Ran(NodeId, Ended),
}

/// One connection, from the first packet to its end.
async fn attempt(context: &Arc<Context>, addr: SocketAddr) -> Attempt {
    let Some(_under_way) = context.links.dial(addr) else { return Attempt::Failed };
    let Ok(connecting) = context.endpoint.connect_with(context.client.clone(), addr, SERVER_NAME)
    else {
        return Attempt::Failed;
    };
    let connection = match timeout(context.config.limits.dial_timeout, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            context.note_failure(addr, &error);
            return Attempt::Failed;
        }
        Err(_) => return Attempt::Failed,
    };
    let id = tls::peer_identity(&connection).map_or(NodeId(0), |identity| tls::node_id(&identity));
    // A task of its own: its panic ends this link and nothing else.
    let ran = tokio::spawn(link::run(Arc::clone(context), connection.clone(), true)).await;
    if let Err(error) = &ran
        && error.is_panic()
    {
        context.link_panicked();
    }
    if let Some(reason) = connection.close_reason() {
        context.note_failure(addr, &reason);
    }
    Attempt::Ran(id, ran.unwrap_or(Ended::Refused))
}

async fn resolve(context: &Context, seed: &str) -> Option<SocketAddr> {
    let found = match timeout(Duration::from_secs(5), tokio::net::lookup_host(seed)).await {
        Ok(Ok(found)) => found.collect::<Vec<_>>(),
        _ => Vec::new(),
    };
    let same_family = found.iter().find(|addr| addr.is_ipv4() == context.bound.is_ipv4());
    same_family.or(found.first()).copied()
}

/// Whether an error says that one side does not trust the other's certificate.
pub(crate) fn is_refusal(error: &ConnectionError) -> bool {
    let crypto = |code: u64| (0x100..0x200).contains(&code);
    match error {
        ConnectionError::TransportError(error) => crypto(u64::from(error.code)),
        ConnectionError::ConnectionClosed(close) => crypto(u64::from(close.error_code)),
        _ => false,
    }
}

/// The pause between attempts: doubles up to the limit, with a random part so that nodes do not keep step.
struct Pause {
    next: Duration,
    min: Duration,
    max: Duration,
}

impl Pause {
    fn new(context: &Context) -> Self {
        let limits = &context.config.limits;
        Self { next: limits.redial_min, min: limits.redial_min, max: limits.redial_max }
    }

    fn reset(&mut self) {
        self.next = self.min;
    }

    async fn wait(&mut self) {
        let percent = 50 + (crate::random_u64() % 51) as u32;
        sleep(self.next * percent / 100).await;
        self.next = (self.next * 2).min(self.max);
    }
}
