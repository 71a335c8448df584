//! Traces on disk: one file of JSON lines each, written by a thread of its own so that the data thread never waits.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use outpost_actors::shard::TraceRecord;
use tracing::warn;

/// Lines that may wait for the disk. Full: the newest is left out and counted.
const LINES_WAITING_MAX: usize = 4_096;

/// Traces kept; the oldest goes when one more begins. More: the disk fills with what nobody reads.
pub const TRACE_FILES_MAX: usize = 16;

/// Bytes of a trace read at once, and the rest of a line.
pub const TRACE_PAGE_BYTES_MAX: usize = 256 * 1024;

/// The folder of the traces, and the way to their writer.
#[derive(Debug, Clone)]
pub struct Traces {
    folder: Arc<Path>,
    writer: SyncSender<Line>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Line {
    Record(u64, Box<TraceRecord>),
    End(u64),
}

impl Traces {
    /// Starts the writer; it ends with the last clone of this.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn start(data_dir: &Path) -> io::Result<Self> {
        let folder: Arc<Path> = data_dir.join("traces").into();
        let (writer, lines) = sync_channel(LINES_WAITING_MAX);
        let mine = Arc::clone(&folder);
        std::thread::Builder::new()
            .name("traces".into())
            .spawn(move || write_all(&mine, &lines))?;
        Ok(Self { folder, writer, lost: Arc::default() })
    }

    /// Makes the file of a new trace with a number from `id` on that no other has; the oldest of too many go.
    ///
    /// # Errors
    /// When the folder cannot be written to.
    pub fn create(&self, id: u64) -> io::Result<u64> {
        fs::create_dir_all(&self.folder)?;
        let all = self.list()?;
        let id = all.last().map_or(id, |(last, _)| id.max(last + 1));
        for (old, _) in all.iter().take((all.len() + 1).saturating_sub(TRACE_FILES_MAX)) {
            fs::remove_file(self.path(*old))?;
        }
        File::create(self.path(id))?;
        Ok(id)
    }

    /// Takes the file of a trace away.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn remove(&self, id: u64) -> io::Result<()> {
        fs::remove_file(self.path(id))
    }

    /// From the data thread: something to write down, or the end. Never waits.
    pub fn hand_over(&self, id: u64, record: Option<&TraceRecord>) {
        let line = match record {
            Some(record) => Line::Record(id, Box::new(record.clone())),
            None => Line::End(id),
        };
        if self.writer.try_send(line).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines left out because the disk was too slow.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// All traces on disk with their length in bytes, the oldest first.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> io::Result<Vec<(u64, u64)>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".jsonl")?.parse().ok());
            if let Some(id) = id {
                all.push((id, entry.metadata()?.len()));
            }
        }
        all.sort_unstable();
        Ok(all)
    }

    /// Whole lines of a trace from a byte on, and where to go on. `None` when there is no such trace.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self, id: u64, offset: u64) -> io::Result<Option<(String, u64)>> {
        let mut file = match File::open(self.path(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(TRACE_PAGE_BYTES_MAX as u64).read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        bytes.truncate(whole);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Some((text, offset + whole as u64)))
    }

    /// Where a trace is written.
    pub fn path(&self, id: u64) -> PathBuf {
        self.folder.join(format!("{id}.jsonl"))
    }
}

fn write_all(folder: &Path, lines: &Receiver<Line>) {
    let mut open: BTreeMap<u64, BufWriter<File>> = BTreeMap::new();
    while let Ok(first) = lines.recv() {
        for line in std::iter::once(first).chain(lines.try_iter().take(LINES_WAITING_MAX)) {
            if let Err(error) = write_line(folder, &mut open, line) {
                warn!("a line of a trace is lost: {error}");
            }
        }
        for (id, file) in &mut open {
            if let Err(error) = file.flush() {
                warn!("lines of trace {id} are lost: {error}");
            }
        }
    }
}

fn write_line(
    folder: &Path,
    open: &mut BTreeMap<u64, BufWriter<File>>,
    line: Line,
) -> io::Result<()> {
    match line {
        Line::Record(id, record) => {
            let file = match open.entry(id) {
                std::collections::btree_map::Entry::Occupied(file) => file.into_mut(),
                std::collections::btree_map::Entry::Vacant(place) => {
                    let path = folder.join(format!("{id}.jsonl"));
                    place.insert(BufWriter::new(File::options().append(true).open(path)?))
                }
            };
            serde_json::to_writer(&mut *file, &record)?;
            file.write_all(b"\n")
        }
        Line::End(id) => match open.remove(&id) {
            Some(mut file) => file.flush(),
            None => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_are_read_and_old_traces_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let traces = Traces::start(folder.path()).expect("a thread");
        for id in 0..20 {
            traces.create(id).expect("a file");
        }
        let ids: Vec<u64> = traces.list().expect("a folder").iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, (4..20).collect::<Vec<_>>());
        fs::write(traces.path(19), "one\ntwo\nthr").expect("written");
        assert_eq!(traces.read(19, 0).expect("read"), Some(("one\ntwo\n".to_owned(), 8)));
        assert_eq!(traces.read(19, 8).expect("read"), Some((String::new(), 8)));
        assert_eq!(traces.read(1, 0).expect("read"), None);
    }
}
