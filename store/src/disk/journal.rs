//! Reads the engine's journals before the engine does, and cuts off what is no whole, sound batch.
//!
//! fjall refuses to start when a batch in the journal is complete but its checksum is wrong, which an ordinary power
//! cut can leave (pages of one unsynced batch reach the disk in any order), and believes lengths it has not checked.
//! So the longest sound prefix is found here first. Every commit is synced before the next begins, so an honest disk
//! leaves at most one batch to cut.
//!
//! The format (fjall 3, header `FJL` 3; integers little endian):
//! ```text
//! batch = 1 count:u32 seqno:u64  entry × count  3 xxh3(entries):u64 "FJL" 3
//! entry = 2 type:u8 compression:u8 space:u64 key:u16 value:u32 stored:u32  key bytes  stored bytes
//!       | 4 space:u64
//! ```
//! The file is reserved ahead, so zeros follow the last batch.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use xxhash_rust::xxh3::Xxh3;

/// What a journal holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Up to here it is whole, sound batches.
    pub sound: u64,
    /// Up to here something is written: the last byte that is not zero.
    pub written: u64,
}

/// Ends every batch.
pub(super) const TRAILER: &[u8; 4] = b"FJL\x03";

const READ_BYTES: usize = 64 * 1024;

/// Batches are numbered upwards, with gaps for the engine's own changes. The number is outside the checksum, so one
/// that goes down or jumps by more than this is taken for damage: it would hide rows written after it.
const NUMBER_GAP_MAX: u64 = 1 << 20;

/// Finds the longest sound prefix of a journal.
///
/// # Errors
/// What reading the file reports.
pub fn examine(path: &Path) -> io::Result<Extent> {
    examine_below(path, u64::MAX)
}

/// The same, of batches with numbers below `end` only: the others are known not to be synced, whatever they look like.
///
/// # Errors
/// What reading the file reports.
pub fn examine_below(path: &Path, end: u64) -> io::Result<Extent> {
    let mut file = File::open(path)?;
    let written = written_end(&mut file)?;
    file.seek(SeekFrom::Start(0))?;
    let mut input = Input {
        reader: BufReader::with_capacity(READ_BYTES, file.take(written)),
        position: 0,
        last: None,
    };
    let mut sound = 0;
    while input.batch()? && input.last.is_none_or(|number| number < end) {
        sound = input.position;
    }
    // The last byte of a sound batch is not zero, so `sound` is never beyond what is written.
    Ok(Extent { sound, written })
}

/// Searched from the end, for all behind it are reserved zeros.
fn written_end(file: &mut File) -> io::Result<u64> {
    let zeros = vec![0; READ_BYTES];
    let mut chunk = vec![0; READ_BYTES];
    let mut end = file.metadata()?.len();
    while end > 0 {
        let start = end.saturating_sub(READ_BYTES as u64);
        let chunk = &mut chunk[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(chunk)?;
        if chunk == &zeros[..chunk.len()] {
            end = start; // the usual case, and comparing whole slices is fast
            continue;
        }
        let last = chunk.iter().rposition(|byte| *byte != 0).expect("it differs from zeros");
        return Ok(start + last as u64 + 1);
    }
    Ok(0)
}

struct Input<R> {
    reader: R,
    position: u64,
    last: Option<u64>,
}

impl<R: Read> Input<R> {
    /// Reads one batch; false when there is none, or it is cut short or unsound.
    fn batch(&mut self) -> io::Result<bool> {
        match self.batch_or_eof() {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            other => other,
        }
    }

    fn batch_or_eof(&mut self) -> io::Result<bool> {
        if self.u8()? != 1 {
            return Ok(false);
        }
        let count = self.u32()?;
        let number = self.u64()?;
        if self.last.is_some_and(|last| number <= last || number - last > NUMBER_GAP_MAX) {
            return Ok(false);
        }
        let mut hash = Xxh3::new();
        for _ in 0..count {
            if !self.entry(&mut hash)? {
                return Ok(false);
            }
        }
        if self.u8()? != 3 {
            return Ok(false);
        }
        let checksum = self.u64()?;
        self.last = Some(number);
        Ok(checksum == hash.digest() && self.array::<4>()? == *TRAILER)
    }

    fn entry(&mut self, hash: &mut Xxh3) -> io::Result<bool> {
        match self.u8()? {
            2 => {
                let head = self.array::<20>()?;
                let [key, value, stored] = lengths(&head);
                let plain = head[1] == 0;
                if plain && value != stored {
                    return Ok(false);
                }
                hash.update(&[2]);
                hash.update(&head);
                self.skip(key + stored, hash)?;
            }
            4 => {
                let head = self.array::<8>()?;
                hash.update(&[4]);
                hash.update(&head);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn skip(&mut self, mut bytes: u64, hash: &mut Xxh3) -> io::Result<()> {
        let mut chunk = [0; 4096];
        while bytes > 0 {
            let chunk = &mut chunk[..bytes.min(4096) as usize];
            self.fill(chunk)?;
            hash.update(chunk);
            bytes -= chunk.len() as u64;
        }
        Ok(())
    }

    fn u8(&mut self) -> io::Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.reader.read_exact(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

/// Of key, value and stored value, from an entry's head: type, compression, space (8), key (2), value (4), stored (4).
fn lengths(head: &[u8; 20]) -> [u64; 3] {
    let key = u16::from_le_bytes([head[10], head[11]]);
    let value = u32::from_le_bytes([head[12], head[13], head[14], head[15]]);
    let stored = u32::from_le_bytes([head[16], head[17], head[18], head[19]]);
    [key.into(), value.into(), stored.into()]
}
