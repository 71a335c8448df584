//! One process: everything below put together.
//!
//! ```text
//!  Config ─▶ Node::start ─┬─ store (group commit thread)
//!                         ├─ tree ─┬─ shard-0 (data thread: MQTT, cells)
//!                         │        ├─ shadows (hub thread)
//!                         │        └─ bridges (to foreign brokers)  only with [[bridge]]
//!                         ├─ cluster (QUIC links)      only with [cluster]
//!                         ├─ hardware (devices)        only with [[hardware.device]]
//!                         └─ http (its own thread)
//! ```

mod admin;
mod allocator;
pub mod backend;
pub mod bridge;
pub mod bus;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dice;
pub mod gate;
pub mod http;
pub mod listen;
pub mod listeners;
pub mod memory;
pub mod peers;
pub mod plane;
pub mod scram;
mod shadow_handle;
mod shadow_past;
mod shadow_rows;
pub mod shadows;
mod systemd;
pub mod telemetry;
mod traces;

mod assembly;

pub use assembly::{Hooks, Node, StartError};
