//! The MQTT client behind `outpost pub`, `outpost sub` and `outpost shadow watch`: rumqttc in both versions, one face.

pub(crate) mod dial;
pub mod format;
mod kept;
pub mod link;
mod link_v311;
mod link_v5;
pub mod options;
pub mod properties;

pub use link::{Broken, Event, Link, Outgoing, Received, Subscription};
pub use options::Connection;
