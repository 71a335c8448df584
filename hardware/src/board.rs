//! What has lines: a GPIO chip, or memory that behaves like one.

#[cfg(target_os = "linux")]
pub mod linux;
pub mod simulated;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::config::{Bias, BoardKind, DeviceConfig};
use simulated::SimulatedBoard;

/// Edges of one input that may wait for its device. Smaller: a burst of bounces loses edges; greater: a line that
/// oscillates keeps the device busy with the past. When full, edges are dropped; the device reads the level anyway.
pub const EDGES_WAITING_MAX: usize = 64;

/// A level changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// What the line is since: `true` is active ("on", "pressed"), whatever the voltage.
    pub active: bool,
}

/// A board whose lines can be opened. Each line has one user at a time.
pub trait Board: Send + Sync {
    /// Opens a line to drive it, at the level `initial`.
    ///
    /// # Errors
    /// [`BoardError`]; the line is as it was.
    fn open_output(
        &self,
        line: &LineRequest,
        initial: bool,
    ) -> Result<Box<dyn OutputLine>, BoardError>;

    /// Opens a line to watch it. Edges arrive in `edges` until the line is dropped; full means dropped.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`BoardError`]; the line is as it was.
    fn open_input(
        &self,
        line: &LineRequest,
        edges: mpsc::Sender<Edge>,
    ) -> Result<Box<dyn InputLine>, BoardError>;
}

/// A line that is driven. Dropping it gives it back.
pub trait OutputLine: Send {
    /// Drives the line.
    ///
    /// # Errors
    /// [`BoardError::Set`]; the level is not known then.
    fn set(&mut self, active: bool) -> Result<(), BoardError>;
}

/// A line that is watched. Dropping it gives it back.
pub trait InputLine: Send {
    /// The level now.
    ///
    /// # Errors
    /// [`BoardError::Read`].
    fn read(&self) -> Result<bool, BoardError>;
}

/// Which line, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineRequest {
    /// The chip's device file; a simulated board ignores it.
    pub chip: PathBuf,
    /// The offset on the chip.
    pub line: u32,
    /// A low voltage means active.
    pub active_low: bool,
    /// The resistor of an input.
    pub bias: Bias,
    /// How long an input must be stable.
    pub debounce_ms: u32,
}

impl From<&DeviceConfig> for LineRequest {
    fn from(device: &DeviceConfig) -> Self {
        Self {
            chip: device.chip.clone(),
            line: device.line,
            active_low: device.active_low,
            bias: device.bias,
            debounce_ms: device.debounce_ms,
        }
    }
}

/// Why a line did not do what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BoardError {
    /// It could not be opened.
    #[error("cannot open line {line} of {chip}: {cause}")]
    Open {
        /// The chip.
        chip: PathBuf,
        /// The line.
        line: u32,
        /// What the system said, with a hint where one helps.
        cause: String,
    },
    /// It could not be driven.
    #[error("cannot set line {line}: {cause}; its level is not known")]
    Set {
        /// The line.
        line: u32,
        /// What the system said.
        cause: String,
    },
    /// It could not be read.
    #[error("cannot read line {line}: {cause}")]
    Read {
        /// The line.
        line: u32,
        /// What the system said.
        cause: String,
    },
}

impl BoardError {
    fn open(request: &LineRequest, cause: impl Into<String>) -> Self {
        Self::Open { chip: request.chip.clone(), line: request.line, cause: cause.into() }
    }
}

/// The boards of a node.
#[derive(Clone, Default)]
pub struct Boards {
    simulated: SimulatedBoard,
}

impl Boards {
    /// The board of this kind.
    pub(crate) fn get(&self, kind: BoardKind) -> Arc<dyn Board> {
        match kind {
            #[cfg(target_os = "linux")]
            BoardKind::Linux => Arc::new(linux::LinuxBoard),
            #[cfg(not(target_os = "linux"))]
            BoardKind::Linux => Arc::new(NoBoard),
            BoardKind::Simulated => Arc::new(self.simulated.clone()),
        }
    }

    /// The simulated board, to press its buttons and look at its lamps.
    pub fn simulated(&self) -> &SimulatedBoard {
        &self.simulated
    }
}

/// A hint for the errors people meet first.
#[cfg(target_os = "linux")]
fn hint(chip: &std::path::Path) -> &'static str {
    match std::fs::File::open(chip).map_err(|e| e.kind()) {
        Err(std::io::ErrorKind::NotFound) => {
            " (there is no such device: see `gpiodetect`; in a container, pass --device)"
        }
        Err(std::io::ErrorKind::PermissionDenied) => {
            " (permission denied: is the user in the group gpio?)"
        }
        _ => "",
    }
}

/// Where there is no GPIO character device.
#[cfg(not(target_os = "linux"))]
struct NoBoard;

#[cfg(not(target_os = "linux"))]
impl Board for NoBoard {
    fn open_output(&self, line: &LineRequest, _: bool) -> Result<Box<dyn OutputLine>, BoardError> {
        Err(BoardError::open(line, "GPIO lines exist on Linux only"))
    }

    fn open_input(
        &self,
        line: &LineRequest,
        _: mpsc::Sender<Edge>,
    ) -> Result<Box<dyn InputLine>, BoardError> {
        Err(BoardError::open(line, "GPIO lines exist on Linux only"))
    }
}
