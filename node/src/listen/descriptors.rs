//! File descriptors: how many clients may have, and one in reserve to turn them away with.

use std::fs::File;
use std::io;
use std::net::TcpStream;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::acceptor::Acceptor;

/// Descriptors kept for the store's files, peers, HTTP and the log. Fewer: clients take what the store needs to write
/// with, and it fails; more: fewer clients. With a small limit it is half of it.
const KEPT: u64 = 768;

/// Lets the process have as many descriptors as the system allows it. What cannot be raised stays.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // Refused by a sandbox: the soft limit holds then, and counts below.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    }
}

/// How many client sockets fit beside what the node itself needs.
pub fn sockets_max() -> usize {
    match getrlimit(Resource::Nofile).current {
        None => usize::MAX,
        Some(limit) => beside(limit),
    }
}

fn beside(limit: u64) -> usize {
    usize::try_from(limit - KEPT.min(limit / 2)).unwrap_or(usize::MAX)
}

/// A descriptor to give up when there is no other: without one, a client that waits to be accepted can neither be
/// accepted nor sent away, and the listener is ready for ever.
#[derive(Debug)]
pub struct Reserve(Option<File>);

impl Reserve {
    /// Takes one.
    pub fn take() -> Self {
        Self(File::open("/dev/null").ok())
    }

    /// Accepts one waiting client with it. The caller drops the stream before it takes a new reserve.
    pub fn accept(self, listener: &Acceptor) -> Option<TcpStream> {
        self.0?;
        listener.accept_now()
    }
}

/// Whether the process or the system has no descriptor left (EMFILE, ENFILE).
pub fn is_exhausted(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let code = error.raw_os_error();
    code == Some(Errno::MFILE.raw_os_error()) || code == Some(Errno::NFILE.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_keeps_its_files_and_small_limits_are_halved() {
        assert_eq!(beside(1_048_576), 1_048_576 - 768);
        assert_eq!(beside(1_024), 512);
        assert_eq!(beside(0), 0);
    }
}
