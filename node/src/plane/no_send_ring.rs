//! Where there is no `io_uring`: each send is a call of its own.

use std::convert::Infallible;
use std::io;
use std::os::fd::RawFd;

/// There is none.
pub struct SendRing(Infallible);

impl SendRing {
    /// Never.
    ///
    /// # Errors
    /// Always.
    pub fn new(_: usize) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn sends_max(&self) -> usize {
        match self.0 {}
    }

    pub fn is_broken(&self) -> bool {
        match self.0 {}
    }

    pub fn sent(&self) -> std::iter::Empty<Option<usize>> {
        match self.0 {}
    }

    pub fn send<'a>(&mut self, _: impl Iterator<Item = (RawFd, &'a [u8])>) {
        match self.0 {}
    }
}
