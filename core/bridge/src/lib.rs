//! What a bridge to a foreign MQTT broker decides. No IO, no clock, no dice.
//!
//! ```text
//!  shard ◀──MQTT 5, in memory──▶ Relay (topics, path, echo, pace) ◀──MQTT 3.1.1 or 5, a socket──▶ foreign broker
//! ```
//! A bridge is a client of both sides and has no queue of its own: what is owed to the foreign broker is the queue of
//! a durable session here, and what it owes us is the queue of a session there. The relay passes acknowledgements
//! through with the packet ids they came with, so each side lets go of a message only when the other has it.

pub mod echo;
pub mod pace;
pub mod path;
pub mod relay;
pub mod topics;

pub use relay::{Counts, Relay, Remote, Step};
pub use topics::{Direction, Rule, RuleError, Rules};
