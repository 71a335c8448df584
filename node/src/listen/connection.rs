//! The one read and write loop for every byte stream: TCP, TLS, WebSocket and QUIC streams alike.
//!
//! ```text
//!  stream ──read──▶ shard.receive ──▶ … turn … ──▶ out buffer ──write──▶ stream
//! ```
//! Reading goes through one buffer of the thread; a connection owns memory only while a packet is half here or half
//! gone. Writing happens at the end of a turn, once for all packets of the turn, from [`Connection::flush`].

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use outpost_actors::out_buffer::{OutBuffer, SLICES_MAX};
use outpost_actors::shard::{ConnId, Received};
use outpost_flow::share::{Quantum, is_heavy};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::door::{Refusal, Ticket};
use super::socket::Socket;
use crate::plane::{Bell, Plane};

/// Full read buffers taken from one connection before it is the others' turn, while there are few others (see
/// [`outpost_flow::share`]). More: what one client sends in a burst fills the buffers of those who receive it before any of
/// it is written, and QoS 0 is dropped that they could have taken; fewer: more turns.
const READS_PER_POLL_MAX: usize = 8;

/// How long a connection closed by us waits for the client to close as well. Shorter: on a slow network the client may
/// not get to read why; longer: clients that are gone hold their places.
const LINGER_MAX: Duration = Duration::from_secs(1);

/// A stream of bytes in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin {
    /// The first packet is here: what bounded a stranger holds no longer.
    fn opened(&mut self) {}
}

/// A bridge of this node, through memory.
impl ByteStream for tokio::io::DuplexStream {}

/// A connection's stream. The commonest kind is in the connection itself: a box of its own costs each 48 bytes.
pub enum Stream {
    /// Plain TCP.
    Tcp(Socket),
    /// Anything else.
    Other(Box<dyn ByteStream>),
}

impl Stream {
    fn pin(&mut self) -> Pin<&mut dyn ByteStream> {
        match self {
            Self::Tcp(stream) => Pin::new(stream),
            Self::Other(stream) => Pin::new(&mut **stream),
        }
    }
}

impl<S: ByteStream + 'static> From<Box<S>> for Stream {
    fn from(stream: Box<S>) -> Self {
        Self::Other(stream)
    }
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    /// There is nothing more to read, ever.
    Ended,
    /// The last poll is behind it.
    Served,
}

/// One connection on its shard's thread.
pub struct Connection {
    id: ConnId,
    stream: RefCell<Stream>,
    /// Has it polled: there is something to read, or the stream can be written again.
    bell: Bell,
    life: Cell<Life>,
    paused: Cell<bool>,
    closing: Cell<bool>,
    /// The stream did not take all that was to be written.
    unwritten: Cell<bool>,
    /// A write failed: nobody is there any more.
    broken: Cell<bool>,
    /// It sent much when it was read from last.
    heavy: Cell<bool>,
    /// It has had its share of a turn and waits for its next.
    waits: Cell<bool>,
    /// There may be whole packets in `rest`.
    unread: Cell<bool>,
    /// Its place at the listener's door, where it is a stranger until its first packet is here.
    ticket: Cell<Option<Ticket>>,
    /// The beginning of a packet whose end has not come. Boxed: nearly always there is none.
    #[allow(clippy::box_collection, reason = "one word instead of three in every connection")]
    rest: Cell<Option<Box<Vec<u8>>>>,
}

impl Connection {
    /// Wraps an accepted stream; `bell` has it served.
    pub fn new(id: ConnId, stream: Stream, ticket: Ticket, bell: Bell) -> Self {
        Self {
            id,
            stream: RefCell::new(stream),
            bell,
            life: Cell::new(Life::Open),
            paused: Cell::new(false),
            closing: Cell::new(false),
            unwritten: Cell::new(false),
            broken: Cell::new(false),
            heavy: Cell::new(false),
            waits: Cell::new(false),
            unread: Cell::new(false),
            ticket: Cell::new(Some(ticket)),
            rest: Cell::default(),
        }
    }

    /// Reads, until there is nothing more, or the other side or the shard has had enough.
    pub fn serve(this: &Rc<Self>, plane: &Rc<Plane>) {
        if this.life.get() == Life::Served {
            return;
        }
        if this.poll(&mut Context::from_waker(&this.bell.waker()), plane).is_ready() {
            this.life.set(Life::Served);
            Self::leave(this, plane);
        }
    }

    /// The last bytes are read and written.
    fn leave(this: &Rc<Self>, plane: &Rc<Plane>) {
        this.with_ticket(Ticket::left);
        if this.broken.get() || !this.closing.get() {
            return plane.connection_lost(this.id);
        }
        let (this, host) = (Rc::clone(this), Rc::clone(plane));
        plane.spawn(async move {
            linger(&this.stream, LINGER_MAX).await;
            host.connection_lost(this.id);
        });
    }

    /// Looks at its place at the door; it has one from beginning to end.
    fn with_ticket<T: Default>(&self, look: impl FnOnce(&mut Ticket) -> T) -> T {
        let mut ticket = self.ticket.take();
        let seen = ticket.as_mut().map(look).unwrap_or_default();
        self.ticket.set(ticket);
        seen
    }

    /// Its name in the shard.
    pub fn id(&self) -> ConnId {
        self.id
    }

    /// Reads again: the shard has room.
    pub fn resume(&self) {
        self.paused.set(false);
        self.bell.ring();
    }

    /// Closes once everything is written.
    pub fn close(&self) {
        self.closing.set(true);
        self.bell.ring();
    }

    /// Writes what waits for this connection, as far as the stream takes it.
    pub fn flush(&self, plane: &Plane) {
        if self.write(&mut Context::from_waker(&self.bell.waker()), plane).is_err() {
            self.broken.set(true);
            self.bell.ring();
        }
    }

    /// Its socket, when what is to be written may be sent on it as it is: the stream is plain TCP and took all so far.
    pub fn socket(&self) -> Option<RawFd> {
        match &*self.stream.borrow() {
            Stream::Tcp(stream) if !self.unwritten.get() => Some(stream.as_raw_fd()),
            _ => None,
        }
    }

    /// Reads its share of a turn it has waited for.
    pub fn take_turn(&self, plane: &Plane) {
        self.waits.set(false);
        let waker = self.bell.waker();
        let mut cx = Context::from_waker(&waker);
        if !self.broken.get() && self.poll_read(&mut cx, plane, true).is_ready() {
            self.life.set(Life::Ended);
            self.bell.ring();
        }
    }

    fn poll(&self, cx: &mut Context<'_>, plane: &Rc<Plane>) -> Poll<()> {
        // What comes of this poll is written at the end of the turn; this is for what did not go then.
        let must_write = self.unwritten.get() || self.closing.get();
        let written = if must_write { self.write(cx, plane) } else { self.flush_stream(cx) };
        let Ok(written) = written else { return Poll::Ready(()) };
        if self.broken.get() || self.life.get() != Life::Open {
            return Poll::Ready(());
        }
        if self.closing.get() {
            // What the client still sends is not looked at: its last words came with the good-bye.
            return if written { self.poll_shutdown(cx) } else { Poll::Pending };
        }
        if self.waits.get() {
            return Poll::Pending;
        }
        self.poll_read(cx, plane, false)
    }

    /// Whether it is the others' turn, after so many reads in a row.
    fn must_wait(&self, plane: &Plane, reads: usize, is_its_turn: bool) -> bool {
        match reads {
            0 => !is_its_turn && self.heavy.get() && plane.is_turn_used_up(),
            READS_PER_POLL_MAX => true,
            _ => plane.is_turn_used_up(),
        }
    }

    fn poll_read(&self, cx: &mut Context<'_>, plane: &Plane, is_its_turn: bool) -> Poll<()> {
        let mut reads = 0;
        while !self.paused.get() && !self.closing.get() {
            if self.must_wait(plane, reads, is_its_turn) {
                self.waits.set(true);
                plane.wait_for_turn(self.id);
                return Poll::Pending;
            }
            reads += 1;
            let quantum = Quantum::of(is_its_turn || !plane.is_turn_used_up());
            if self.unread.take()
                && let Some(rest) = self.rest.take()
            {
                self.receive_rest(plane, rest, &[], quantum);
                continue;
            }
            let mut buffer = plane.read_buffer();
            let most = buffer.len().min(quantum.bytes);
            let mut read = ReadBuf::new(&mut buffer[..most]);
            let result = self.stream.borrow_mut().pin().poll_read(cx, &mut read);
            match result {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => {
                    if error.kind() == io::ErrorKind::QuotaExceeded {
                        self.with_ticket(|ticket| ticket.refused(Refusal::Bytes));
                    }
                    return Poll::Ready(());
                }
                Poll::Ready(Ok(())) if read.filled().is_empty() => return Poll::Ready(()),
                Poll::Ready(Ok(())) => {}
            }
            if let Some(rest) = self.rest.take() {
                self.receive_rest(plane, rest, read.filled(), quantum);
                continue;
            }
            let received = self.hand_in(plane, read.filled(), quantum);
            let rest = &read.filled()[received.used..];
            if !rest.is_empty() {
                self.rest.set(Some(Box::new(rest.to_vec())));
            }
        }
        // A close asked for during this read is looked at in the next poll.
        if self.closing.get() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Hands in what is left over together with what is new.
    #[allow(clippy::box_collection, reason = "it is kept boxed")]
    fn receive_rest(&self, plane: &Plane, mut rest: Box<Vec<u8>>, new: &[u8], quantum: Quantum) {
        rest.extend_from_slice(new);
        let received = self.hand_in(plane, &rest, quantum);
        if received.used < rest.len() {
            rest.drain(..received.used);
            self.rest.set(Some(rest));
        }
    }

    fn hand_in(&self, plane: &Plane, bytes: &[u8], quantum: Quantum) -> Received {
        let received = plane.receive(self.id, bytes, quantum.packets);
        self.paused.set(received.paused);
        self.unread.set(received.paused || received.packets == quantum.packets);
        self.heavy.set(is_heavy(received.packets, received.used));
        if received.used > 0 && self.with_ticket(Ticket::opened) {
            self.stream.borrow_mut().pin().opened();
        }
        received
    }

    /// Writes as much as goes. `true`: everything is written.
    fn write(&self, cx: &mut Context<'_>, plane: &Plane) -> io::Result<bool> {
        plane.with_out_buffer(self.id, |out| {
            self.unwritten.set(true);
            while !out.is_empty() {
                match self.poll_write(cx, out) {
                    Poll::Pending => return Ok(false),
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(count)) => out.advance(count),
                    Poll::Ready(Err(error)) => return Err(error),
                }
            }
            self.unwritten.set(false);
            self.flush_stream(cx)
        })
    }

    fn poll_write(&self, cx: &mut Context<'_>, out: &OutBuffer) -> Poll<io::Result<usize>> {
        let mut stream = self.stream.borrow_mut();
        let stream = stream.pin();
        if let Some(bytes) = out.as_one() {
            return stream.poll_write(cx, bytes);
        }
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(SLICES_MAX);
        out.slices(&mut slices);
        stream.poll_write_vectored(cx, &slices)
    }

    /// What the stream itself holds back (TLS, WebSocket) goes as far as it can.
    fn flush_stream(&self, cx: &mut Context<'_>) -> io::Result<bool> {
        match self.stream.borrow_mut().pin().poll_flush(cx) {
            Poll::Ready(Err(error)) => Err(error),
            _ => Ok(true),
        }
    }

    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.borrow_mut().pin().poll_shutdown(cx).map(|_| ())
    }
}

/// Reads and drops what a client still sends until it closes too. A socket that is closed with unread bytes is reset,
/// and a reset takes from the client what it has not read yet: the DISCONNECT that says why.
async fn linger(stream: &RefCell<Stream>, at_most: Duration) {
    let rest = poll_fn(|cx| {
        let mut buffer = [0; 1_024];
        for _ in 0..READS_PER_POLL_MAX {
            let mut read = ReadBuf::new(&mut buffer);
            match stream.borrow_mut().pin().poll_read(cx, &mut read) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    });
    // Who has not closed by then never hears it.
    let _ = tokio::time::timeout(at_most, rest).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    impl ByteStream for TcpStream {}

    /// Longer than anything here takes; only a test that fails waits for it.
    const PATIENCE: Duration = Duration::from_secs(20);

    const GOOD_BYE: &[u8] = b"\xe0\x01\x93";

    /// A client and the server's end of its connection, on which the good-bye is written and nothing was read.
    async fn closing() -> (TcpStream, RefCell<Stream>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let mut client = TcpStream::connect(address).await.expect("it listens");
        let (mut server, _) = listener.accept().await.expect("a client");
        client.write_all(b"more than the server wants").await.expect("it is open");
        server.write_all(GOOD_BYE).await.expect("it is open");
        server.shutdown().await.expect("it is open");
        (client, RefCell::new(Box::new(server).into()))
    }

    #[test]
    fn an_idle_connection_keeps_little() {
        assert!(size_of::<Connection>() <= 104, "{}", size_of::<Connection>());
    }

    #[tokio::test]
    async fn a_client_that_still_sends_hears_why_it_is_cut_off_4_13_1() {
        let (mut client, server) = closing().await;
        let served = async move {
            linger(&server, PATIENCE).await;
            drop(server);
        };
        let heard = async move {
            client.write_all(&vec![0; 100_000]).await.expect("nothing is reset");
            let mut heard = Vec::new();
            client.read_to_end(&mut heard).await.expect("nothing is reset");
            heard
        };
        assert_eq!(tokio::join!(served, heard).1, GOOD_BYE);
    }

    #[tokio::test]
    async fn who_never_closes_is_not_waited_for() {
        let (client, server) = closing().await;
        let linger = linger(&server, Duration::from_millis(1));
        tokio::time::timeout(PATIENCE, linger).await.expect("it ends by itself");
        drop(client);
    }
}
