//! The data plane: a shard on a thread of its own, its sockets, and the way in for everybody else.
//!
//! ```text
//!  control plane (tokio, ractor)                         data thread (its own loop on epoll)
//!  http, hub, links, store ──PlaneHandle──▶ commands ──▶ Plane { Shard, connections } ──events──▶ sockets, PlanePorts
//! ```

mod actor;
mod alarm;
mod checks;
mod handle;
pub(crate) mod reactor;
#[cfg_attr(not(target_os = "linux"), path = "no_send_ring.rs")]
mod send_ring;
mod serving;
mod tasks;
#[cfg(test)]
pub(crate) mod tests;
mod thread;
mod together;
mod turns;

pub use actor::{PlaneActor, PlaneSpec};
pub use handle::{Command, Drops, PlaneHandle, PlanePorts, ShardWork, Unavailable};
pub use reactor::{Reactor, Watch};
pub use tasks::Bell;
pub use thread::Plane;
pub use turns::Turns;
