//! A plain TCP connection. The system tells of it when there is something to read, and of room to write only once there was
//! none: told of room from the beginning, the thread is woken for each new connection once more, for nothing.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use super::arrival;
use super::connection::ByteStream;
use crate::watch::watch;

/// Of what may still be read from a client.
const NO_LIMIT: u32 = u32::MAX;

/// One connection, from its first byte on. Until its first packet is here only so many bytes are read from it.
#[derive(Debug)]
pub struct Socket {
    /// `None` only while it is registered anew.
    io: Option<AsyncFd<TcpStream>>,
    /// So many bytes may still be read.
    left: u32,
    /// Nothing was read from it yet, and nobody has looked.
    is_new: bool,
    /// There was no room to write once: the system tells when there is some.
    is_told_of_room: bool,
}

impl Socket {
    /// Takes an accepted connection, which does not block.
    ///
    /// # Errors
    /// What the system says when it cannot watch one more.
    pub fn new(stream: TcpStream, bytes_max: usize) -> io::Result<Self> {
        Ok(Self {
            io: Some(watch(stream, Interest::READABLE)?),
            left: u32::try_from(bytes_max).unwrap_or(NO_LIMIT),
            is_new: true,
            is_told_of_room: false,
        })
    }

    fn io(&self) -> io::Result<&AsyncFd<TcpStream>> {
        self.io.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn poll_take(&mut self, cx: &mut Context<'_>, part: &mut [u8]) -> Poll<io::Result<usize>> {
        if std::mem::take(&mut self.is_new) {
            // As a rule its CONNECT has come while it was accepted.
            let first = self.io()?.get_ref().read(part);
            if !is_blocked(&first) {
                return Poll::Ready(first);
            }
        }
        loop {
            let mut ready = ready!(self.io()?.poll_read_ready(cx))?;
            let result = ready.get_inner().read(part);
            if !is_blocked(&result) {
                // Less than there was room for is all there was.
                if result.as_ref().is_ok_and(|count| (1..part.len()).contains(count)) {
                    ready.clear_ready();
                }
                return Poll::Ready(result);
            }
            ready.clear_ready();
        }
    }

    fn poll_put(
        &mut self,
        cx: &mut Context<'_>,
        put: impl Fn(&TcpStream) -> io::Result<usize>,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        if !self.is_told_of_room {
            let result = put(self.io()?.get_ref());
            if !is_blocked(&result) {
                return Poll::Ready(result);
            }
            self.ask_for_room(cx)?;
        }
        loop {
            let mut ready = ready!(self.io()?.poll_write_ready(cx))?;
            let result = put(ready.get_inner());
            if !is_blocked(&result) {
                if result.as_ref().is_ok_and(|count| (1..length).contains(count)) {
                    ready.clear_ready();
                }
                return Poll::Ready(result);
            }
            ready.clear_ready();
        }
    }

    /// Has the system tell of room to write as well, from now on.
    fn ask_for_room(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(io) = self.io.take() {
            let both = Interest::READABLE | Interest::WRITABLE;
            self.io = Some(watch(io.into_inner(), both)?);
            self.is_told_of_room = true;
        }
        // Who waited to read waited for the registration that is gone. One task polls it both ways.
        let _ = self.io()?.poll_read_ready(cx)?;
        Ok(())
    }
}

fn is_blocked<T>(result: &io::Result<T>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.io.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

impl ByteStream for Socket {
    fn opened(&mut self) {
        self.left = NO_LIMIT;
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let io = self.io()?;
        if self.is_told_of_room {
            return io.try_io(Interest::WRITABLE, |mut stream| stream.write(bytes));
        }
        io.get_ref().write(bytes)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return Poll::Ready(Err(arrival::too_many_bytes()));
        }
        let allowed = buffer.remaining().min(self.left as usize);
        let count = ready!(self.poll_take(cx, buffer.initialize_unfilled_to(allowed)))?;
        buffer.advance(count);
        if self.left != NO_LIMIT {
            self.left -= count as u32; // no more than was allowed
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_put(cx, |mut stream| stream.write(bytes), bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        self.poll_put(cx, |mut stream| stream.write_vectored(slices), length)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.io().and_then(|io| io.get_ref().shutdown(Shutdown::Write)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const BYTES_MAX: usize = 8;

    fn pair() -> (TcpStream, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let server = listener.accept().expect("a client").0;
        server.set_nonblocking(true).expect("a socket");
        (client, Socket::new(server, BYTES_MAX).expect("it can be watched"))
    }

    #[tokio::test]
    async fn a_stranger_is_read_up_to_its_limit_and_a_client_without() {
        let (mut client, mut server) = pair();
        client.write_all(b"first, and more").expect("open");
        let mut got = [0; 32];
        assert_eq!(server.read(&mut got).await.expect("the first eight"), BYTES_MAX);
        assert!(server.read(&mut got).await.is_err(), "no more from a stranger");
        server.opened();
        assert_eq!(server.read(&mut got).await.expect("the rest"), 7);
        assert_eq!(&got[..7], b"nd more");
        client.write_all(b"later").expect("open");
        assert_eq!(server.read(&mut got).await.expect("what came after it"), 5);
        drop(client);
        assert_eq!(server.read(&mut got).await.expect("the end"), 0);
    }

    #[tokio::test]
    async fn who_waits_to_read_and_finds_no_room_to_write_hears_of_both() {
        let (mut client, server) = pair();
        let (mut reads, mut writes) = tokio::io::split(server);
        let much = vec![7; 16 << 20];
        let length = much.len();
        let mut word = [0; 4];
        let both_ways =
            async { tokio::join!(reads.read_exact(&mut word), writes.write_all(&much)) };
        let taking = tokio::task::spawn_blocking(move || {
            client.write_all(b"word").expect("open");
            let mut got = vec![0; length];
            client.read_exact(&mut got).expect("all of it");
            got
        });
        let (read, written) = both_ways.await;
        assert!(read.is_ok() && written.is_ok(), "{read:?}, {written:?}");
        assert_eq!((&word, taking.await.expect("it is read") == much), (b"word", true));
    }
}
