//! Which sockets of the data thread are ready, and what ends its wait for them.
//!
//! ```text
//!  system ──event──▶ seat ──waker──▶ whoever waits (a connection, an acceptor, a handshake)
//!  other threads ──▶ Rouser ──▶ the wait ends
//! ```

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::task::ArcWake;
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Token};
use slab::Slab;

/// Sockets the system tells of in one go; who is left over is told of next. Fewer: more system calls under load; more:
/// larger turns.
const EVENTS_MAX: usize = 1_024;

/// Of what other threads wake by; no seat has this number.
const ROUSED: Token = Token(usize::MAX);

/// The sockets of one thread.
#[derive(Debug)]
pub struct Reactor {
    poll: RefCell<mio::Poll>,
    events: RefCell<Events>,
    seats: RefCell<Slab<Seat>>,
}

/// What is known of one socket. The system tells of each change once.
#[derive(Debug, Default)]
struct Seat {
    is_readable: bool,
    is_writable: bool,
    /// The other side has closed or is gone: there is an end to be read, for ever, and nothing more is told of.
    has_end: bool,
    /// Who waits for a change, to read or to write: one task does both.
    waker: Option<Waker>,
}

impl Reactor {
    /// A reactor without sockets.
    ///
    /// # Errors
    /// What the system says.
    pub fn new() -> io::Result<Rc<Self>> {
        Ok(Rc::new(Self {
            poll: RefCell::new(mio::Poll::new()?),
            events: RefCell::new(Events::with_capacity(EVENTS_MAX)),
            seats: RefCell::default(),
        }))
    }

    /// What ends a wait of this reactor from any thread.
    ///
    /// # Errors
    /// What the system says.
    pub fn waker(&self) -> io::Result<Waker> {
        struct Rouses(mio::Waker);
        impl Wake for Rouses {
            fn wake(self: Arc<Self>) {
                if let Err(error) = self.0.wake() {
                    tracing::error!("the data thread sleeps on: {error}");
                }
            }
        }
        let waker = mio::Waker::new(self.poll.borrow().registry(), ROUSED)?;
        Ok(Arc::new(Rouses(waker)).into())
    }

    /// Waits until something happens, at most so long, and wakes those whom it concerns: they need not rouse this thread.
    ///
    /// # Errors
    /// When the system cannot tell of anything any more.
    pub fn wait(&self, at_most: Option<Duration>, rouser: &Rouser) -> io::Result<()> {
        let mut events = self.events.borrow_mut();
        let polled = self.poll.borrow_mut().poll(&mut events, at_most);
        rouser.works();
        match polled {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        let mut seats = self.seats.borrow_mut();
        for event in &*events {
            // It has none when the thread was only roused.
            if let Some(seat) = seats.get_mut(event.token().0) {
                seat.note(event);
            }
        }
        Ok(())
    }
}

impl Seat {
    /// A waker of this thread only writes down who is to be polled: nothing comes back here meanwhile.
    fn note(&mut self, event: &Event) {
        self.has_end |= event.is_read_closed();
        self.is_readable |= self.has_end || event.is_readable() || event.is_error();
        self.is_writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn wait(&mut self, cx: &Context<'_>) -> Poll<()> {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl AsRawFd for Reactor {
    fn as_raw_fd(&self) -> RawFd {
        self.poll.borrow().as_raw_fd()
    }
}

/// Not yet a seat: nobody has seen an end of what there is to read.
const NO_SEAT: u32 = u32::MAX;

/// One socket's seat, from when it is needed: until it was read empty it is taken for readable, and until it was full for
/// writable. The descriptor is to be closed with this.
#[derive(Debug)]
pub struct Watch {
    reactor: Rc<Reactor>,
    seat: u32,
}

impl Watch {
    /// For a socket of this reactor's thread.
    pub fn new(reactor: &Rc<Reactor>) -> Self {
        Self { reactor: Rc::clone(reactor), seat: NO_SEAT }
    }

    fn seat<T>(&self, look: impl FnOnce(&mut Seat) -> T) -> Option<T> {
        self.reactor.seats.borrow_mut().get_mut(self.seat as usize).map(look)
    }

    /// Waits for something to read.
    pub fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        let look = |seat: &mut Seat| if seat.is_readable { Poll::Ready(()) } else { seat.wait(cx) };
        self.seat(look).unwrap_or(Poll::Ready(()))
    }

    /// Waits for room to write.
    pub fn poll_writable(&self, cx: &Context<'_>) -> Poll<()> {
        let look = |seat: &mut Seat| if seat.is_writable { Poll::Ready(()) } else { seat.wait(cx) };
        self.seat(look).unwrap_or(Poll::Ready(()))
    }

    /// All there was has been read; the end may be to come.
    ///
    /// # Errors
    /// What the system says when it cannot watch one more.
    pub fn drained(&mut self, socket: &impl AsRawFd) -> io::Result<()> {
        if self.seat == NO_SEAT {
            return self.register(socket, Interest::READABLE);
        }
        self.seat(|seat| seat.is_readable = seat.has_end);
        Ok(())
    }

    /// All there was room for has been written. `is_told`: the system tells of room already.
    ///
    /// # Errors
    /// What the system says when it cannot watch one more.
    pub fn filled(&mut self, socket: &impl AsRawFd, is_told: bool) -> io::Result<()> {
        if !is_told {
            return self.register(socket, Interest::READABLE | Interest::WRITABLE);
        }
        self.seat(|seat| seat.is_writable = false);
        Ok(())
    }

    /// Has the system tell of what there is and of what comes.
    fn register(&mut self, socket: &impl AsRawFd, interest: Interest) -> io::Result<()> {
        let (poll, fd) = (self.reactor.poll.borrow(), socket.as_raw_fd());
        let (registry, mut source) = (poll.registry(), SourceFd(&fd));
        if self.seat != NO_SEAT {
            let token = Token(self.seat as usize);
            return mio::event::Source::reregister(&mut source, registry, token, interest);
        }
        let mut seats = self.reactor.seats.borrow_mut();
        let seat = seats.vacant_entry();
        mio::event::Source::register(&mut source, registry, Token(seat.key()), interest)?;
        // There are no more of them than descriptors.
        self.seat = u32::try_from(seat.key()).unwrap_or(NO_SEAT);
        seat.insert(Seat::default());
        Ok(())
    }
}

impl Drop for Watch {
    /// The system forgets a descriptor that is closed.
    fn drop(&mut self) {
        if self.seat != NO_SEAT {
            self.reactor.seats.borrow_mut().try_remove(self.seat as usize);
        }
    }
}

/// Ends the wait of the data thread, if it waits: while it works it looks by itself, before it waits.
#[derive(Debug)]
pub struct Rouser {
    waker: Waker,
    is_waiting: AtomicBool,
}

impl Rouser {
    /// Ends a wait by waking this.
    pub fn new(waker: Waker) -> Arc<Self> {
        Arc::new(Self { waker, is_waiting: AtomicBool::new(false) })
    }

    /// From now on whoever has something for the thread has to wake it; what came before is to be looked for after this.
    pub fn waits(&self) {
        self.is_waiting.store(true, Ordering::SeqCst);
    }

    /// The wait is over.
    fn works(&self) {
        self.is_waiting.store(false, Ordering::SeqCst);
    }

    /// There is something for the thread, to be found by now. A crowd of these is one wake-up.
    pub fn rouse(&self) {
        if self.is_waiting.load(Ordering::SeqCst) && self.is_waiting.swap(false, Ordering::SeqCst) {
            self.waker.wake_by_ref();
        }
    }
}

/// Tells the data thread to look at one thing.
#[derive(Debug)]
pub struct Call {
    is_made: AtomicBool,
    rouser: Arc<Rouser>,
}

impl Call {
    /// One that is made already: what has come before it was known to anybody is to be seen.
    pub fn new(rouser: &Arc<Rouser>) -> Arc<Self> {
        Arc::new(Self { is_made: AtomicBool::new(true), rouser: Arc::clone(rouser) })
    }

    /// Whether it was made.
    pub fn is_made(&self) -> bool {
        self.is_made.load(Ordering::SeqCst)
    }

    /// Whether it was made since this was asked last.
    pub fn take(&self) -> bool {
        self.is_made() && self.is_made.swap(false, Ordering::SeqCst)
    }
}

impl ArcWake for Call {
    fn wake_by_ref(this: &Arc<Self>) {
        if !this.is_made.swap(true, Ordering::SeqCst) {
            this.rouser.rouse();
        }
    }
}

#[cfg(test)]
pub mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use futures_util::task::waker_ref;

    use super::*;

    /// Runs a story, with a reactor for its sockets.
    pub fn block_on(story: impl AsyncFnOnce(Rc<Reactor>)) {
        let reactor = Reactor::new().expect("the system has one");
        let mut story = std::pin::pin!(story(Rc::clone(&reactor)));
        let (rouser, mut cx) = (rouser(&reactor), Context::from_waker(Waker::noop()));
        while story.as_mut().poll(&mut cx).is_pending() {
            reactor.wait(None, &rouser).expect("it tells of sockets");
        }
    }

    fn rouser(reactor: &Reactor) -> Arc<Rouser> {
        Rouser::new(reactor.waker().expect("one more descriptor"))
    }

    #[test]
    fn who_has_something_wakes_the_thread_only_while_it_waits_and_once() {
        let reactor = Reactor::new().expect("the system has one");
        let rouser = rouser(&reactor);
        let call = Call::new(&rouser);
        let has_rung = || {
            reactor.wait(Some(Duration::ZERO), &rouser).expect("it tells of sockets");
            !reactor.events.borrow().is_empty()
        };
        assert!(call.take(), "at first all is to be looked at");
        ArcWake::wake_by_ref(&call);
        assert!(!has_rung() && call.take() && !call.take(), "it is found without a wake-up");
        rouser.waits();
        let others = [(); 3].map(|()| {
            let call = Arc::clone(&call);
            std::thread::spawn(move || ArcWake::wake_by_ref(&call))
        });
        others.into_iter().for_each(|other| other.join().expect("it has called"));
        reactor.wait(None, &rouser).expect("it tells of sockets");
        assert!(call.take());
        assert!(!has_rung(), "three calls are one wake-up");
    }

    #[test]
    fn what_a_wait_itself_finds_does_not_rouse_the_thread() {
        let reactor = Reactor::new().expect("the system has one");
        let rouser = rouser(&reactor);
        let call = Call::new(&rouser);
        let (mut here, mut there) = UnixStream::pair().expect("two more descriptors");
        there.set_nonblocking(true).expect("a socket");
        let mut watch = Watch::new(&reactor);
        watch.drained(&there).expect("it can be watched");
        for _ in 0..2 {
            let waker = waker_ref(&call);
            let cx = Context::from_waker(&waker);
            assert!(call.take() && watch.poll_readable(&cx).is_pending());
            rouser.waits();
            here.write_all(b"word").expect("open");
            reactor.wait(None, &rouser).expect("it tells of sockets");
            assert!(call.is_made() && watch.poll_readable(&cx).is_ready());
            assert_eq!(there.read(&mut [0; 8]).expect("it is there"), 4);
            watch.drained(&there).expect("it is watched");
            reactor.wait(Some(Duration::ZERO), &rouser).expect("it tells of sockets");
            assert!(reactor.events.borrow().is_empty(), "nobody has rung");
        }
    }
}
