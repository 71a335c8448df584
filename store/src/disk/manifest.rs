//! Checks the engine's lists of tables before the engine reads them, and puts back the one it really had.
//!
//! fjall believes the lengths in them before it has compared a checksum, and a flipped bit there makes it ask for
//! more memory than there is, which ends the process. The checksums are there; so they are compared here first.
//!
//! When a sync fails after `current` was switched to a new list, the engine goes on with the list before it, and another of
//! its threads may begin to write a new one under the same number: what `current` says is then true of no file. The rows
//! that only the new list had are in the journals still, so the list before it is whole.
//!
//! In `keyspaces/<id>/` (integers little endian, checksums XXH3 of 128 bits):
//! ```text
//! current  = version:u64 checksum of v<version>:u128 0
//! v<n>     = archive with the section "tables": levels:u8 ( runs:u8 ( tables:u32 ( id:u64 0 checksum:u128 u64 )))
//! tables/* = archives
//! archive  = sections  "TOC!" count:u32 ( position:u64 length:u64 name:u16 name )  trailer
//! trailer  = "SFA!" 1 0 checksum of the table of contents:u128 its position:u64 its length:u64
//! ```

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use fjall::{AbstractTree, Keyspace};
use xxhash_rust::xxh3::xxh3_128;

const TRAILER_BYTES: u64 = 38;

/// A table of contents names a handful of sections; one beyond this is damage, not a reason to read it all.
const CONTENTS_BYTES_MAX: u64 = 64 * 1024;

/// What is wrong with the lists of tables, if anything.
///
/// # Errors
/// What reading the files reports.
pub(super) fn examine(data: &Path) -> io::Result<Option<String>> {
    let entries = match fs::read_dir(data.join("keyspaces")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None), // the engine judges
        Err(error) => return Err(error),
    };
    for entry in entries {
        let folder = entry?.path();
        if !folder.is_dir() {
            continue;
        }
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.parse::<u64>().is_err() {
            return Ok(Some(format!("the key space {name} is none of the engine's")));
        }
        if let Some(why) = examine_space(&folder)? {
            return Ok(Some(format!("key space {name}: {why}")));
        }
    }
    Ok(None)
}

/// The list of tables each key space of an engine had when it ended.
pub(super) struct Lists(Vec<(PathBuf, u64)>);

impl Lists {
    /// Of an engine whose threads are gone. A thread that panicked leaves locks the engine will not take again; what they
    /// guard is left as it is on disk.
    pub(super) fn of(spaces: &[Keyspace]) -> Self {
        let list = |space: &Keyspace| (space.path().to_owned(), space.tree.current_version().id());
        let list = |space| catch_unwind(AssertUnwindSafe(|| list(space))).ok();
        Self(spaces.iter().filter_map(list).collect())
    }

    /// Lets `current` name these lists, where it names another.
    ///
    /// # Errors
    /// What the system reports; then it is to be tried again, before the engine is opened.
    pub(super) fn put_back(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|(folder, version)| put_back(folder, *version))
    }
}

fn put_back(folder: &Path, version: u64) -> io::Result<()> {
    let current = folder.join("current");
    let named = read_if_there(&current)?.filter(|named| named.len() >= 8);
    if named.is_none_or(|named| u64_at(&named, 0) == version) {
        return Ok(());
    }
    let Some(list) = read_if_there(&folder.join(format!("v{version}")))? else { return Ok(()) };
    let content = [&version.to_le_bytes()[..], &xxh3_128(&list).to_le_bytes(), &[0]].concat();
    let next = folder.join("current.next");
    let mut file = File::create(&next)?;
    file.write_all(&content).and_then(|()| file.sync_all())?;
    fs::rename(&next, &current)?;
    File::open(folder)?.sync_all()
}

fn examine_space(folder: &Path) -> io::Result<Option<String>> {
    let tables = folder.join("tables");
    let Some(current) = read_if_there(&folder.join("current"))? else {
        // Without the file the engine takes the space for half made, and deletes it.
        let any = tables.is_dir() && fs::read_dir(&tables)?.next().is_some();
        return Ok(any.then(|| "it has tables, but no list of them".into()));
    };
    let Ok(current) = <[u8; 25]>::try_from(current) else {
        return Ok(Some("the pointer to the list of tables is cut short".into()));
    };
    let version = u64_at(&current, 0);
    let Some(list) = read_if_there(&folder.join(format!("v{version}")))? else {
        return Ok(Some(format!("the list of tables v{version} is missing")));
    };
    if current[24] != 0 || current[8..24] != xxh3_128(&list).to_le_bytes() {
        return Ok(Some(format!("the list of tables v{version} has a wrong checksum")));
    }
    let Some(ids) = table_ids(&list) else {
        return Ok(Some(format!("the list of tables v{version} is unreadable")));
    };
    for id in ids {
        match contents(&tables.join(id.to_string())) {
            Ok(true) => {}
            Ok(false) => return Ok(Some(format!("table {id} has a damaged table of contents"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Some(format!("table {id} is missing")));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn read_if_there(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The tables that a list names. Its checksum was right; what is odd all the same gives `None`.
fn table_ids(list: &[u8]) -> Option<Vec<u64>> {
    let trailer = list.len().checked_sub(TRAILER_BYTES as usize)?;
    let contents = usize::try_from(u64_at(&list[trailer..], 22)).ok()?;
    let mut contents = Cursor(list.get(contents..trailer)?);
    contents.take(4)?;
    for _ in 0..contents.u32()? {
        let (position, length) = (contents.u64()?, contents.u64()?);
        let name = contents.u16()?;
        if contents.take(name.into())? == b"tables" {
            let start = usize::try_from(position).ok()?;
            let end = start.checked_add(usize::try_from(length).ok()?)?;
            return ids_of(Cursor(list.get(start..end)?));
        }
    }
    None
}

fn ids_of(mut section: Cursor) -> Option<Vec<u64>> {
    let mut ids = Vec::new();
    for _level in 0..section.u8()? {
        for _run in 0..section.u8()? {
            for _table in 0..section.u32()? {
                ids.push(section.u64()?);
                section.take(1 + 16 + 8)?;
            }
        }
    }
    Some(ids)
}

/// Whether an archive's table of contents is what was written.
fn contents(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let Some(end) = file.metadata()?.len().checked_sub(TRAILER_BYTES) else { return Ok(false) };
    let mut trailer = [0; TRAILER_BYTES as usize];
    file.seek(SeekFrom::Start(end))?;
    file.read_exact(&mut trailer)?;
    let position = u64_at(&trailer, 22);
    if !trailer.starts_with(b"SFA!\x01\x00")
        || position > end
        || end - position > CONTENTS_BYTES_MAX
    {
        return Ok(false);
    }
    let mut contents = vec![0; (end - position) as usize];
    file.seek(SeekFrom::Start(position))?;
    file.read_exact(&mut contents)?;
    Ok(trailer[6..22] == xxh3_128(&contents).to_le_bytes())
}

/// The caller has made sure that there are 8 bytes at `at`.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes are 8 bytes"))
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
}
