//! Lines as values in memory, with a handle to press buttons, look at lamps and break things.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{Board, BoardError, Edge, InputLine, LineRequest, OutputLine};

/// A board of any number of lines, each known by its offset. Clones are the same board.
#[derive(Clone, Default)]
pub struct SimulatedBoard {
    lines: Arc<Mutex<BTreeMap<u32, SimulatedLine>>>,
}

#[derive(Default)]
struct SimulatedLine {
    active: bool,
    used: bool,
    broken: bool,
    watcher: Option<mpsc::Sender<Edge>>,
    changes: u64,
}

impl SimulatedBoard {
    /// Sets the level of an input as the world outside would; a change is an edge.
    pub fn inject(&self, line: u32, active: bool) {
        let mut lines = self.lines.lock();
        let line = lines.entry(line).or_default();
        if line.change(active)
            && let Some(watcher) = &line.watcher
        {
            // Full: as on a real board, the edge is lost.
            let _ = watcher.try_send(Edge { active });
        }
    }

    /// The level of a line.
    pub fn is_active(&self, line: u32) -> bool {
        self.lines.lock().get(&line).is_some_and(|l| l.active)
    }

    /// How often the level of a line has changed.
    pub fn changes(&self, line: u32) -> u64 {
        self.lines.lock().get(&line).map_or(0, |l| l.changes)
    }

    /// Whether a device has the line open.
    pub fn is_used(&self, line: u32) -> bool {
        self.lines.lock().get(&line).is_some_and(|l| l.used)
    }

    /// While a line is broken, opening, setting and reading it fail, as if its chip were unplugged.
    pub fn set_broken(&self, line: u32, broken: bool) {
        self.lines.lock().entry(line).or_default().broken = broken;
    }

    fn open(
        &self,
        request: &LineRequest,
        watcher: Option<mpsc::Sender<Edge>>,
    ) -> Result<OpenLine, BoardError> {
        let mut lines = self.lines.lock();
        let line = lines.entry(request.line).or_default();
        if line.broken {
            return Err(BoardError::open(request, "the simulated line is broken"));
        }
        if line.used {
            return Err(BoardError::open(request, "the line is in use"));
        }
        line.used = true;
        line.watcher = watcher;
        Ok(OpenLine { board: self.clone(), line: request.line })
    }
}

impl SimulatedLine {
    fn change(&mut self, active: bool) -> bool {
        let changed = self.active != active;
        self.active = active;
        self.changes += u64::from(changed);
        changed
    }
}

impl Board for SimulatedBoard {
    fn open_output(
        &self,
        line: &LineRequest,
        initial: bool,
    ) -> Result<Box<dyn OutputLine>, BoardError> {
        let mut open = self.open(line, None)?;
        open.set(initial)?;
        Ok(Box::new(open))
    }

    fn open_input(
        &self,
        line: &LineRequest,
        edges: mpsc::Sender<Edge>,
    ) -> Result<Box<dyn InputLine>, BoardError> {
        Ok(Box::new(self.open(line, Some(edges))?))
    }
}

struct OpenLine {
    board: SimulatedBoard,
    line: u32,
}

impl OutputLine for OpenLine {
    fn set(&mut self, active: bool) -> Result<(), BoardError> {
        let mut lines = self.board.lines.lock();
        let line = lines.entry(self.line).or_default();
        if line.broken {
            return Err(BoardError::Set {
                line: self.line,
                cause: "the simulated line is broken".into(),
            });
        }
        line.change(active);
        Ok(())
    }
}

impl InputLine for OpenLine {
    fn read(&self) -> Result<bool, BoardError> {
        match self.board.lines.lock().get(&self.line) {
            Some(line) if line.broken => Err(BoardError::Read {
                line: self.line,
                cause: "the simulated line is broken".into(),
            }),
            line => Ok(line.is_some_and(|l| l.active)),
        }
    }
}

impl Drop for OpenLine {
    fn drop(&mut self) {
        if let Some(line) = self.board.lines.lock().get_mut(&self.line) {
            line.used = false;
            line.watcher = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Bias;

    #[test]
    fn a_line_has_one_user_at_a_time() {
        let board = SimulatedBoard::default();
        let first = board.open_output(&request(4), true).expect("free");
        assert!(board.is_active(4) && board.is_used(4));
        assert!(board.open_output(&request(4), true).is_err());
        drop(first);
        assert!(board.open_output(&request(4), false).is_ok());
    }

    #[test]
    fn an_edge_is_a_change_and_nothing_else() {
        let board = SimulatedBoard::default();
        let (edges, mut arrived) = mpsc::channel(8);
        let input = board.open_input(&request(4), edges).expect("free");
        board.inject(4, false);
        board.inject(4, true);
        board.inject(4, true);
        assert_eq!(arrived.try_recv(), Ok(Edge { active: true }));
        assert!(arrived.try_recv().is_err());
        assert_eq!(input.read(), Ok(true));
        board.set_broken(4, true);
        assert!(input.read().is_err());
    }

    fn request(line: u32) -> LineRequest {
        LineRequest {
            chip: "simulated".into(),
            line,
            active_low: false,
            bias: Bias::AsIs,
            debounce_ms: 0,
        }
    }
}
