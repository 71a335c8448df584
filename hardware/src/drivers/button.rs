//! A push button or contact: publishes `pressed` and `released`, takes no commands.

use bytes::Bytes;

use crate::board::{Edge, InputLine};
use crate::driver::{Driver, DriverError, OpenDevice};

struct Button {
    line: Box<dyn InputLine>,
}

/// Opens the line as an input with both edges.
///
/// # Errors
/// [`DriverError::Board`] when the line cannot be opened.
pub fn open(device: &OpenDevice<'_>) -> Result<Box<dyn Driver>, DriverError> {
    let line = device.board.open_input(&device.line(), device.edges.clone())?;
    Ok(Box::new(Button { line }))
}

impl Driver for Button {
    fn state(&mut self) -> Result<Bytes, DriverError> {
        Ok(word(self.line.read()?))
    }

    fn handle_command(&mut self, _: &[u8], _: u64) -> Result<(), DriverError> {
        Err(DriverError::Command { expected: "nothing, it is an input" })
    }

    /// Each edge is told, so that a short press is not lost; the state read afterwards corrects what was dropped.
    fn handle_edge(&mut self, edge: Edge) -> Result<Option<Bytes>, DriverError> {
        Ok(Some(word(edge.active)))
    }
}

fn word(active: bool) -> Bytes {
    Bytes::from_static(if active { b"pressed" } else { b"released" })
}
