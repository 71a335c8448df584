//! Device shadows: AWS IoT outside, mergeable inside, and pure: no disk, network, clock or dice.
//!
//! ```text
//!  hub ─┬─ serve ──── request (what a client may ask), document (what it is answered)
//!       ├─ exchange ─ sync (frames), pack (shadows in them), peer (how far each has read)
//!       ├─ reconcile ─ sketch (what two sets differ in)
//!       ├─ sweep
//!       └─ document ─ desired (automerge in epochs), leaves (registers), version
//! ```
//! Start reading at [`hub`].

pub mod exercise;
pub mod hub;
pub mod key;
pub mod stamp;

mod change;
mod desired;
mod document;
mod exchange;
mod history;
mod in_flight;
mod leaves;
mod pack;
mod peer;
mod reconcile;
mod request;
mod serve;
mod sketch;
mod sweep;
mod sync;
mod version;
mod wire;

pub use history::{Change, Entry, Reason, What};
pub use hub::{Effect, Event, Hub, HubConfig, HubStats, Limits, LoadError, Output, PeerError};
pub use in_flight::InFlight;
pub use key::{ShadowKey, Verb, parse_topic};
pub use stamp::Stamp;
