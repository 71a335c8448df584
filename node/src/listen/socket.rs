//! A TCP connection. The system tells of it when there is something to read, and of room to write only once there was none:
//! told of room from the beginning, the thread is woken for each new connection once more, for nothing.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::arrival;
use super::connection::ByteStream;
use crate::plane::{Reactor, Watch};

/// Of what may still be read from a client.
const NO_LIMIT: u32 = u32::MAX;

/// One connection, from its first byte on. Until its first packet is here only so many bytes are read from it: whatever
/// buffers lie above hold no more than was read here, so this bounds what a stranger can make the node remember.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    watch: Watch,
    /// So many bytes may still be read.
    left: u32,
    /// There was no room to write once: the system tells when there is some.
    is_told_of_room: bool,
}

impl Socket {
    /// Takes an accepted connection, which does not block.
    pub fn new(stream: TcpStream, bytes_max: usize, reactor: &Rc<Reactor>) -> Self {
        let left = u32::try_from(bytes_max).unwrap_or(NO_LIMIT);
        Self { stream, watch: Watch::new(reactor), left, is_told_of_room: false }
    }

    /// At most so many of the bytes that are left.
    pub fn at_most(&mut self, bytes_max: usize) {
        self.left = self.left.min(u32::try_from(bytes_max).unwrap_or(NO_LIMIT));
    }

    fn poll_take(&mut self, cx: &Context<'_>, part: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.watch.poll_readable(cx));
            let result = self.stream.read(part);
            // Less than there was room for is all there was.
            if is_blocked(&result) || is_part(&result, part.len()) {
                self.watch.drained(&self.stream)?;
            }
            if !is_blocked(&result) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_put(
        &mut self,
        cx: &Context<'_>,
        put: impl Fn(&TcpStream) -> io::Result<usize>,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.is_told_of_room {
                ready!(self.watch.poll_writable(cx));
            }
            let result = put(&self.stream);
            if is_blocked(&result) || (self.is_told_of_room && is_part(&result, length)) {
                self.watch.filled(&self.stream, self.is_told_of_room)?;
                self.is_told_of_room = true;
            }
            if !is_blocked(&result) {
                return Poll::Ready(result);
            }
        }
    }
}

fn is_blocked(result: &io::Result<usize>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

fn is_part(result: &io::Result<usize>, length: usize) -> bool {
    result.as_ref().is_ok_and(|count| (1..length).contains(count))
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

impl ByteStream for Socket {
    fn opened(&mut self) {
        self.left = NO_LIMIT;
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
        Poll::Ready(self.stream.shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::TcpListener;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::plane::reactor::tests::block_on;

    const BYTES_MAX: usize = 8;

    fn pair(reactor: &Rc<Reactor>) -> (TcpStream, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let server = listener.accept().expect("a client").0;
        server.set_nonblocking(true).expect("a socket");
        (client, Socket::new(server, BYTES_MAX, reactor))
    }

    #[test]
    fn a_stranger_is_read_up_to_its_limit_and_a_client_without() {
        block_on(async |reactor| {
            let (mut client, mut server) = pair(&reactor);
            client.write_all(b"first, and more").expect("open");
            let mut got = [0; 32];
            assert_eq!(server.read(&mut got).await.expect("the first eight"), BYTES_MAX);
            assert!(server.read(&mut got).await.is_err(), "no more from a stranger");
            server.opened();
            assert_eq!(server.read(&mut got).await.expect("the rest"), 7);
            assert_eq!(&got[..7], b"nd more");
            client.write_all(b"later").expect("open");
            assert_eq!(server.read(&mut got).await.expect("what came after it"), 5);
            // What comes together with the end is told of once.
            client.write_all(b"last").expect("open");
            drop(client);
            assert_eq!(server.read(&mut got).await.expect("what came before the end"), 4);
            for _ in 0..2 {
                assert_eq!(server.read(&mut got).await.expect("the end"), 0);
            }
        });
    }

    #[test]
    fn who_waits_to_read_and_finds_no_room_to_write_hears_of_both() {
        block_on(async |reactor| {
            let (mut client, mut server) = pair(&reactor);
            server.opened();
            let (mut reads, mut writes) = tokio::io::split(server);
            let much = vec![7; 16 << 20];
            let length = much.len();
            let mut word = [0; 4];
            let taking = std::thread::spawn(move || {
                client.write_all(b"word").expect("open");
                let mut got = vec![0; length];
                client.read_exact(&mut got).expect("all of it");
                got
            });
            let both_ways =
                async { tokio::join!(reads.read_exact(&mut word), writes.write_all(&much)) };
            let (read, written) = both_ways.await;
            assert!(read.is_ok() && written.is_ok(), "{read:?}, {written:?}");
            assert_eq!((&word, taking.join().expect("it is read") == much), (b"word", true));
        });
    }

    #[test]
    fn who_has_closed_its_half_and_reads_late_gets_all() {
        block_on(async |reactor| {
            let (mut client, mut server) = pair(&reactor);
            let mut byte = [0];
            let (ended, ()) = tokio::join!(server.read(&mut byte), async {
                client.shutdown(Shutdown::Write).expect("open");
            });
            assert_eq!(ended.expect("the end"), 0);
            let much = vec![7; 16 << 20];
            let length = much.len();
            let mut writing = std::pin::pin!(server.write_all(&much));
            let waits = poll_fn(|cx| Poll::Ready(writing.as_mut().poll(cx).is_pending()));
            assert!(waits.await, "there is no room for all");
            let taking = std::thread::spawn(move || {
                let mut got = vec![0; length];
                client.read_exact(&mut got).map(|()| got)
            });
            writing.await.expect("it reads");
            assert!(taking.join().expect("no panic").expect("all of it") == much);
        });
    }
}
