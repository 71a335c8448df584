//! What the shadow hub reads again: rows of shadows that have left its memory.

use std::sync::Arc;

use outpost_shadow::Rows;
use outpost_store::{DiskStore, Space, Store};
use tracing::warn;

/// How often a read is tried. Fewer and a store that opens its engine anew costs a restart of the hub; more and one whose
/// disk fails is found out later.
const READ_TRIES: usize = 3;

/// The store, for reading.
pub struct StoredRows(pub Arc<DiskStore>);

impl Rows for StoredRows {
    fn read(&self, key: &[u8]) -> Option<Vec<u8>> {
        let mut tries = 1;
        loop {
            match self.0.get(Space::Shadows, key) {
                Ok(row) => return row.map(|row| row.to_vec()),
                // A store that stalls may be opening its engine anew, and shows it when it writes again.
                Err(error) if tries < READ_TRIES && self.0.sync_all().is_ok() => {
                    warn!("{error}; trying again");
                    tries += 1;
                }
                // Whoever goes on without the row writes over it: the supervisor starts the hub again, from the disk.
                Err(error) => panic!(
                    "a shadow cannot be read ({error}, tried {tries} times); nothing was changed"
                ),
            }
        }
    }
}
