//! What a device means: the trait every driver implements, and the list of those there are.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::board::{Board, BoardError, Edge, LineRequest};
use crate::config::DeviceConfig;
use crate::drivers;

/// A command longer than this is refused unread; the longest real one has some 20 bytes.
pub const COMMAND_BYTES_MAX: usize = 1_024;

/// The driver of one device. Its actor calls it, one call at a time, and publishes [`Driver::state`] when it changed.
///
/// Calls should last microseconds; an error or a panic restarts the device by the node's restart policy.
pub trait Driver: Send {
    /// What the device is now, as it is published.
    ///
    /// # Errors
    /// [`DriverError::Board`] when the line cannot be read.
    fn state(&mut self) -> Result<Bytes, DriverError>;

    /// Someone published to the device's `set` topic.
    ///
    /// # Errors
    /// [`DriverError::Command`] leaves the device as it was; others restart it.
    fn handle_command(&mut self, command: &[u8], now_ms: u64) -> Result<(), DriverError>;

    /// The level of the device's input changed. Returns a state to publish even if it is over by now.
    ///
    /// # Errors
    /// [`DriverError::Board`].
    fn handle_edge(&mut self, edge: Edge) -> Result<Option<Bytes>, DriverError> {
        let _ = edge;
        Ok(None)
    }

    /// When the driver wants to be woken.
    fn poll_timeout(&self) -> Option<u64> {
        None
    }

    /// The moment asked for has come.
    ///
    /// # Errors
    /// [`DriverError::Board`].
    fn handle_timeout(&mut self, now_ms: u64) -> Result<(), DriverError> {
        let _ = now_ms;
        Ok(())
    }

    /// The node stops in order: leave the device as it should be without it.
    fn stop(&mut self) {}
}

/// Why a driver did not do as told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// The command makes no sense; the device is as it was.
    #[error("the command is not one of: {expected}; the device is as it was")]
    Command {
        /// What would be understood.
        expected: &'static str,
    },
    /// The line failed.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// Anything else that makes the device useless until it is restarted.
    #[error("{0}")]
    Failed(String),
}

/// What a driver gets to open itself with.
pub struct OpenDevice<'a> {
    /// Its section of the configuration.
    pub config: &'a DeviceConfig,
    /// The board its line is on.
    pub board: &'a dyn Board,
    /// Where edges of an input go.
    pub edges: mpsc::Sender<Edge>,
}

impl OpenDevice<'_> {
    /// The line of the configuration.
    pub fn line(&self) -> LineRequest {
        LineRequest::from(self.config)
    }
}

/// Makes a driver: opens its line and brings the device into its first state.
pub type OpenDriver = fn(&OpenDevice<'_>) -> Result<Box<dyn Driver>, DriverError>;

/// The drivers there are, by name.
#[derive(Clone)]
pub struct Drivers {
    by_name: BTreeMap<&'static str, OpenDriver>,
}

impl Drivers {
    /// Those that come with the node.
    pub fn built_in() -> Self {
        let mut drivers = Self { by_name: BTreeMap::new() };
        drivers.register("button", drivers::button::open);
        drivers.register("led", drivers::led::open);
        drivers.register("relay", drivers::relay::open);
        drivers
    }

    /// Adds a driver, or replaces the one of that name.
    pub fn register(&mut self, name: &'static str, open: OpenDriver) {
        self.by_name.insert(name, open);
    }

    /// Whether there is one of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Their names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.by_name.keys().copied()
    }

    pub(crate) fn get(&self, name: &str) -> Option<OpenDriver> {
        self.by_name.get(name).copied()
    }
}
