//! Device shadows: AWS IoT outside, mergeable inside, and pure: no disk, network, clock or dice.
//!
//! ```text
//!  hub ─┬─ serve ──── request (what a client may ask), document (what it is answered)
//!       ├─ home ───── whose a shadow is, and whose numbers its versions are
//!       ├─ exchange ─ sync (frames), pack (shadows in them), peer (how far each has read)
//!       ├─ feed ───── pace (how fast a backlog is sent)
//!       ├─ reconcile ─ sketch (what two sets differ in)
//!       ├─ quarantine (peers that are not honest), history
//!       ├─ shelf (an index of all shadows, and those used lately)
//!       ├─ sweep ──── overrides (knobs turned by hand), policy (whose word counts)
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
mod event;
mod exchange;
mod feed;
mod history;
mod home;
mod in_flight;
mod leaves;
#[cfg(test)]
mod meter;
mod overrides;
mod pace;
mod pack;
mod peer;
mod planted;
mod policy;
mod quarantine;
mod reconcile;
mod renounce;
mod request;
mod serve;
mod shelf;
mod sketch;
mod sweep;
mod sync;
mod time;
mod version;
mod wire;

pub use event::Event;
pub use history::{Change, Entry, Reason, What};
pub use home::{Home, OldHome};
pub use hub::{Effect, Hub, HubConfig, HubStats, Limits, LoadError, Output, PeerError, Rules};
pub use in_flight::InFlight;
pub use key::{ShadowKey, Verb, parse_topic};
pub use pace::{LOSSY_FRAME_BYTES_MAX, PACE_BYTES_S_MAX, Path, WINDOW_BYTES_MAX};
pub use policy::{POLICIES_MAX, Policies, Policy, PolicyError, PolicyRule};
pub use quarantine::Quarantine;
pub use shelf::Rows;
pub use stamp::Stamp;

#[cfg(test)]
extern crate self as outpost_shadow;

/// Frames no honest peer sends; here and not in `tests/` itself because checksums are switched off.
#[cfg(test)]
#[path = "../tests/hostile_frames/mod.rs"]
mod hostile_frames;

/// Random schedules, here and not in `tests/` itself because they plant bugs.
#[cfg(test)]
#[path = "../tests/schedules/mod.rs"]
mod schedules;
