//! Pins and wires as devices of the node.
//!
//! ```text
//!            hw/<device>/set                 hw/<device>/state (retained)
//!   bus ───────────────────► device actor ─────────────────────────────► bus
//!                             │  ▲ edges
//!                      driver ▼  │            a driver that fails or panics is restarted, then quarantined,
//!                             board           by `outpost_flow::restart`; its neighbours never notice
//! ```
//! The crate knows neither MQTT nor the cluster: what it needs of them is the small port [`Bus`].

pub mod board;
pub mod config;
mod device;
pub mod driver;
pub mod drivers;
mod supervisor;

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

pub use board::{Board, Boards};
pub use config::{ConfigError, DeviceConfig, HardwareConfig};
pub use driver::{Driver, DriverError, Drivers};
pub use supervisor::{DeviceStatus, Hardware, StartError};

/// What the hardware needs of the broker: the node plugs in a session-like subscriber.
pub trait Bus: Send + Sync + 'static {
    /// Publishes a message as the device. Never waits.
    ///
    /// # Errors
    /// [`BusFull`] when the broker has no room now; nothing was published, and the device tries again later.
    fn publish(&self, topic: &str, payload: Bytes, retain: bool) -> Result<(), BusFull>;

    /// Messages that match `filter`, from now on. Dropping the receiver ends the subscription.
    ///
    /// The channel is bounded; what the device is too slow to take is dropped by the broker, and counted there.
    fn subscribe(&self, filter: &str) -> mpsc::Receiver<BusMessage>;
}

/// A message a device receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BusMessage {
    /// Where it was published.
    pub topic: String,
    /// What was published.
    pub payload: Bytes,
}

/// The broker has no room for the message now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bus has no room for the message now; it was not published")]
pub struct BusFull;

/// The bus as the actors share it.
pub type SharedBus = Arc<dyn Bus>;
