//! Has the runtime watch a descriptor of ours.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches it for as long as it lives.
///
/// # Errors
/// What the system says when it cannot watch one more.
#[allow(
    deprecated,
    reason = "its successor is unsafe, for descriptors that change or are not owned; what becomes an `OwnedFd` is neither"
)]
pub fn watch<T: AsRawFd + Into<OwnedFd>>(what: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(what, interest)
}
