//! Many cores under one virtual clock: three nodes, their disks, links and devices in one thread, with every fault drawn
//! from a seed. The same seed gives the same run, to the last byte.
//!
//! ```text
//!  workload ─▶ clients ⇄ bytes ⇄ Node(Shard, Hub, Disk) ⇄ frames ⇄ Node …      faults strike all of them
//!                 └──────────── history ◀── interest, versions ──┘
//!                                  └─▶ checkers, once everything is healed and at rest
//! ```
//! What is real: the shard, the shadow hub, the MQTT codec, the peers' protocol, the memory store. What is played: sockets,
//! QUIC, disks, clocks and threads.

pub mod checkers;
pub mod client;
pub mod clock;
pub mod dice;
pub mod disk;
pub mod faults;
pub mod history;
pub mod links;
pub mod network;
pub mod node;
pub mod roaming;
pub mod workload;
pub mod world;

use std::collections::BTreeMap;

use world::World;

/// A bug planted in the driver's part, to prove that the checkers see it. The cores stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The driver reports batches as synced before they are.
    AcksBeforeSync,
    /// Answers and frames of the hub leave before their rows are durable.
    ShadowBeforeSync,
    /// After a crash the disk is empty.
    DiskKeepsNothing,
    /// After a crash it is forgotten which events of peers were seen: they are taken twice.
    CursorsLost,
    /// After a crash nothing is owed to peers.
    OutboxLost,
    /// After a crash nobody is subscribed.
    SubscriptionsLost,
    /// After a crash the QoS 2 packet ids of clients are forgotten.
    ReceivedIdsLost,
    /// A link that lives loses an event now and then.
    EventsVanish,
    /// A link that lives loses a shadow frame now and then.
    ShadowFramesVanish,
    /// Frames of one lane overtake each other.
    LanesReorder,
    /// A retained slot gets the receiver's wall clock as its stamp.
    RetainedByWallClock,
    /// A link that lives loses a change of a retained message now and then.
    RetainedVanishes,
    /// An event arrives without the names of the share groups it is for.
    ShareNamesLost,
    /// Each node that gets an event serves all share groups with it.
    SharesEverywhere,
}

impl Mutant {
    /// All of them, with the name the command line uses.
    pub const ALL: [(&'static str, Self); 14] = [
        ("acks-before-sync", Self::AcksBeforeSync),
        ("shadow-before-sync", Self::ShadowBeforeSync),
        ("disk-keeps-nothing", Self::DiskKeepsNothing),
        ("cursors-lost", Self::CursorsLost),
        ("outbox-lost", Self::OutboxLost),
        ("subscriptions-lost", Self::SubscriptionsLost),
        ("received-ids-lost", Self::ReceivedIdsLost),
        ("events-vanish", Self::EventsVanish),
        ("shadow-frames-vanish", Self::ShadowFramesVanish),
        ("lanes-reorder", Self::LanesReorder),
        ("retained-by-wall-clock", Self::RetainedByWallClock),
        ("retained-vanishes", Self::RetainedVanishes),
        ("share-names-lost", Self::ShareNamesLost),
        ("shares-everywhere", Self::SharesEverywhere),
    ];
}

/// How to run a seed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Print each step.
    pub trace: bool,
    /// Let clients come back at other nodes; without it a seed is the run that it was before they did.
    pub roam: bool,
    /// Plant a bug.
    pub mutant: Option<Mutant>,
}

/// How a run went.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What was broken; empty when all is well.
    pub violations: Vec<String>,
    /// The hash of all steps.
    pub hash: u64,
    /// Steps taken.
    pub steps: u64,
    /// How often each fault struck.
    pub faults: BTreeMap<&'static str, u64>,
    /// Messages published, and delivered.
    pub messages: (usize, usize),
}

/// Runs one seed: breaks things, heals them, waits for rest, and checks.
pub fn run(seed: u64, options: Options) -> Outcome {
    let mut world = World::new(seed, options);
    world.run();
    let history = world.history;
    Outcome {
        hash: history.hash(),
        steps: history.steps,
        faults: history.faults,
        messages: (history.publishes.len(), history.deliveries.len()),
        violations: history.violations,
    }
}
