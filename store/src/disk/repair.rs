//! What the writer does when the disk is full or fails: it waits for room, opens the engine anew, and says so.

use std::{io, path::Path, sync::atomic::Ordering, time::Duration, time::Instant};

use fjall::LsmError;

use super::manifest::Lists;
use super::open::{self, Problem};
use super::writer::Writer;
use super::{Slot, open::OpenError};
use crate::Stall;

/// Between two looks at the free space. Shorter asks the file system more often; longer leaves clients refused for longer
/// than need be, and lets more in that must then wait for room.
pub const SPACE_POLL: Duration = Duration::from_millis(500);

/// The longest pause between two attempts to open a failed engine again. Shorter keeps a broken disk busy; longer
/// leaves clients refused for longer than need be.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);

const RETRY_PAUSE_FIRST: Duration = Duration::from_millis(20);

/// A full engine is not opened again before there is so much room: it needs some to open.
const REOPEN_BYTES_MIN: u64 = 1024 * 1024;

/// The writer's view of the disk: whether it has room, and how often it has failed in a row.
pub(super) struct Repair<'a> {
    writer: &'a Writer,
    slot: &'a Slot,
    /// There is less than the reserve.
    low: bool,
    /// The engine failed and nothing has been written since.
    broken: bool,
    pause: Duration,
    looked: Option<Instant>,
    /// What the engine that failed had, until it is put back.
    lists: Option<Lists>,
}

impl<'a> Repair<'a> {
    pub(super) fn new(writer: &'a Writer, slot: &'a Slot) -> Self {
        let pause = RETRY_PAUSE_FIRST;
        Self { writer, slot, low: false, broken: false, pause, looked: None, lists: None }
    }

    /// A group is on disk.
    pub(super) fn written(&mut self) {
        self.pause = RETRY_PAUSE_FIRST;
        if std::mem::take(&mut self.broken) {
            self.looked = None;
            self.low = false;
            if !self.look_at_space() {
                self.writer.resume();
            }
        } else {
            self.look_at_space();
        }
    }

    /// Compares the free space with the reserve, not more often than every [`SPACE_POLL`]. True when there is too little.
    pub(super) fn look_at_space(&mut self) -> bool {
        let reserve = self.writer.options.reserve_bytes;
        if reserve == 0 || self.looked.is_some_and(|at| at.elapsed() < SPACE_POLL) {
            return self.low;
        }
        self.looked = Some(Instant::now());
        let Some(free) = free_bytes(&self.writer.path) else { return self.low };
        // A little more than the reserve ends the stall, so that it does not come and go with each table.
        let enough = if self.low { reserve + reserve / 8 } else { reserve };
        let low = free < enough;
        if low && !self.low {
            let cause = format!(
                "{free} bytes are free on the disk of {}, less than the reserve of {reserve}; what is accepted \
                 already is still written",
                self.writer.path.display()
            );
            self.writer.stall(Stall { full: true, cause });
        } else if self.low && !low {
            self.writer.resume();
        }
        self.low = low;
        low
    }

    /// After a failed commit: returns when it is worth trying again.
    ///
    /// # Errors
    /// Why it never will be in this process.
    pub(super) fn after(&mut self, cause: &fjall::Error) -> Result<(), String> {
        let full = is_full(cause) || self.lacks_room();
        if !self.broken || full {
            let cause = format!(
                "cannot write a batch and sync it: {cause}; it and all that follows wait in memory and are written \
                 when the disk takes them"
            );
            self.writer.stall(Stall { full, cause });
        }
        // The first time at once: what failed may have been one flush.
        if std::mem::replace(&mut self.broken, true) || full {
            self.rest()?;
        }
        loop {
            while self.lacks_room() {
                if self.writer.pause(SPACE_POLL) {
                    return Err(closed());
                }
            }
            match self.reopen() {
                Ok(()) => return Ok(()),
                Err(Problem::Stop(error @ OpenError::Newer { .. })) => {
                    return Err(error.to_string());
                }
                Err(Problem::Damage(why)) => {
                    return Err(format!("damage was found while opening the engine again: {why}"));
                }
                Err(Problem::Stop(error)) => {
                    tracing::warn!(%error, "the engine cannot be opened again yet");
                    self.rest()?;
                }
            }
        }
    }

    fn rest(&mut self) -> Result<(), String> {
        let pause = self.pause;
        self.pause = (pause * 2).min(RETRY_PAUSE_MAX);
        if self.writer.pause(pause) { Err(closed()) } else { Ok(()) }
    }

    fn lacks_room(&self) -> bool {
        free_bytes(&self.writer.path).is_some_and(|free| free < REOPEN_BYTES_MIN)
    }

    fn reopen(&mut self) -> Result<(), Problem> {
        let mut slot = self.slot.write();
        if let Some(engine) = slot.take() {
            self.lists = Some(engine.close());
        }
        if let Some(lists) = &self.lists {
            let path = &self.writer.path;
            lists.put_back().map_err(|error| {
                Problem::Stop(open::io_error("name the lists of tables in", path, error))
            })?;
            self.lists = None;
        }
        let end = self.writer.next_number.load(Ordering::Acquire);
        let engine = open::reopen(&self.writer.path, &self.writer.options, end)?;
        // Not below what it was: numbers of batches that were cut off come again, with what is written again.
        self.writer.next_number.store(engine.database.seqno(), Ordering::Release);
        *slot = Some(engine);
        Ok(())
    }
}

fn closed() -> String {
    "the store was closed while the disk did not take what was submitted; that is lost, and was never acknowledged"
        .to_owned()
}

/// What the system calls full: no room, no quota, no more of a file.
fn is_full(error: &fjall::Error) -> bool {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(LsmError::Io(error)) => matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        ),
        _ => false,
    }
}

/// Bytes an ordinary user may still write on the file system of `path`.
pub(super) fn free_bytes(path: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(path).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}
