//! The connections of the data thread, polled by one task of the runtime, which ends the turn as well: a task each would
//! cost 256 bytes each, and a task for the turn one more wake-up for each.
//!
//! ```text
//!  socket is ready ──wake──▶ ready list ──▶ driver (one task) ──poll──▶ connections, then the end of the turn
//! ```

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use futures_util::task::{ArcWake, WakerRef, waker_ref};
use parking_lot::Mutex;

/// Connections polled before the runtime's other tasks have their turn. More: what the others do (commands, timers) waits
/// longer under load; fewer: more, smaller turns of the shard.
pub const POLLED_AT_ONCE_MAX: usize = 1_024;

/// Which connections want to be polled. Each stands in the list once at most, so their number bounds it.
#[derive(Debug, Default)]
pub struct Ready(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    waiting: Vec<Arc<Ticket>>,
    driver: Option<Waker>,
}

/// What wakes one connection.
#[derive(Debug)]
struct Ticket {
    /// Its place among the connections.
    place: u32,
    is_waiting: AtomicBool,
    ready: Arc<Ready>,
}

impl ArcWake for Ticket {
    fn wake_by_ref(this: &Arc<Self>) {
        if !this.is_waiting.swap(true, Ordering::AcqRel) {
            this.ready.push(Arc::clone(this));
        }
    }
}

/// Has one connection polled. One word; a waker of the standard library takes two.
#[derive(Debug, Clone)]
pub struct Bell(Arc<Ticket>);

impl Bell {
    /// Has it polled.
    pub fn ring(&self) {
        ArcWake::wake_by_ref(&self.0);
    }

    /// The same for whoever wants to be given a waker.
    pub fn waker(&self) -> WakerRef<'_> {
        waker_ref(&self.0)
    }
}

impl Ready {
    /// What wakes the connection at this place.
    pub fn bell(self: &Arc<Self>, place: u32) -> Bell {
        let is_waiting = AtomicBool::new(false);
        Bell(Arc::new(Ticket { place, is_waiting, ready: Arc::clone(self) }))
    }

    fn push(&self, ticket: Arc<Ticket>) {
        let driver = {
            let mut list = self.0.lock();
            list.waiting.push(ticket);
            list.driver.take()
        };
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// Has the driver polled, if it is idle: a turn is to be ended. One that is not ends it by itself.
    pub fn wake_driver(&self) {
        let driver = self.0.lock().driver.take();
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// Those who wait now, into `due`.
    fn take(&self, due: &mut Vec<Arc<Ticket>>) {
        let mut list = self.0.lock();
        if list.waiting.len() <= POLLED_AT_ONCE_MAX {
            std::mem::swap(&mut list.waiting, due);
        } else {
            due.extend(list.waiting.drain(..POLLED_AT_ONCE_MAX));
        }
    }

    /// `true`, and whoever is next wakes the driver, when nobody waits.
    fn is_idle(&self, driver: &Waker) -> bool {
        let mut list = self.0.lock();
        if !list.waiting.is_empty() {
            return false;
        }
        list.driver = Some(driver.clone());
        true
    }
}

/// What the driver has to do after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing, until somebody wakes it.
    Rest,
    /// Another round, behind the other tasks.
    Again,
    /// Another round, behind the other tasks and a look at the sockets.
    AfterSockets,
}

/// Polls those who are ready, for ever.
pub struct Driver<P, E> {
    ready: Arc<Ready>,
    poll: P,
    end: E,
    due: Vec<Arc<Ticket>>,
}

impl<P: FnMut(u32) + Unpin, E: FnMut() -> Next + Unpin> Driver<P, E> {
    /// `poll` is given the place of each; `end` ends a round.
    pub fn new(ready: Arc<Ready>, poll: P, end: E) -> Self {
        Self { ready, poll, end, due: Vec::new() }
    }
}

impl<P: FnMut(u32) + Unpin, E: FnMut() -> Next + Unpin> Future for Driver<P, E> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { ready, poll, end, due } = &mut *self;
        ready.take(due);
        for ticket in due.drain(..) {
            // Before it is polled: what becomes ready meanwhile is not to be missed.
            ticket.is_waiting.store(false, Ordering::Release);
            poll(ticket.place);
        }
        due.shrink_to(POLLED_AT_ONCE_MAX);
        match end() {
            Next::AfterSockets => {
                // Polled once, it has this task woken when the sockets have been looked at.
                let _ = pin!(tokio::task::yield_now()).poll(cx);
            }
            Next::Rest if ready.is_idle(cx.waker()) => {}
            // The others first; who became ready meanwhile is next.
            Next::Rest | Next::Again => cx.waker().wake_by_ref(),
        }
        Poll::Pending
    }
}

impl<P, E> Drop for Driver<P, E> {
    /// Those who wait point back here.
    fn drop(&mut self) {
        self.ready.0.lock().waiting = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::task::Wake;

    use super::*;

    #[test]
    fn who_is_woken_is_polled_once_and_again_when_woken_meanwhile() {
        let ready = Arc::new(Ready::default());
        let bells: Vec<Bell> = (0..3).map(|place| ready.bell(place)).collect();
        let polled = Rc::new(RefCell::new(Vec::new()));
        let (seen, again) = (Rc::clone(&polled), bells[1].clone());
        let poll = move |place| {
            seen.borrow_mut().push(place);
            if place == 2 {
                again.ring();
            }
        };
        let mut driver = Driver::new(Arc::clone(&ready), poll, || Next::Rest);
        let mut cx = Context::from_waker(Waker::noop());
        let mut turn = || Pin::new(&mut driver).poll(&mut cx);
        assert!(turn().is_pending());
        assert!(polled.borrow().is_empty(), "nobody was woken");
        [1, 2, 1].into_iter().for_each(|place: usize| bells[place].ring());
        assert!(turn().is_pending());
        assert_eq!(*polled.borrow(), [1, 2]);
        assert!(turn().is_pending());
        assert_eq!(*polled.borrow(), [1, 2, 1], "woken while it was polled");
    }

    #[test]
    fn a_crowd_is_polled_in_parts() {
        let ready = Arc::new(Ready::default());
        let crowd = POLLED_AT_ONCE_MAX + 1;
        (0..crowd).for_each(|place| ready.bell(place as u32).ring());
        let count = Rc::new(RefCell::new(0));
        let counted = Rc::clone(&count);
        let mut driver = Driver::new(ready, move |_| *counted.borrow_mut() += 1, || Next::Rest);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut driver).poll(&mut cx).is_pending());
        assert_eq!(*count.borrow(), POLLED_AT_ONCE_MAX);
        assert!(Pin::new(&mut driver).poll(&mut cx).is_pending());
        assert_eq!(*count.borrow(), crowd);
    }

    #[test]
    fn a_round_ends_after_those_who_were_ready_and_when_asked_for() {
        let ready = Arc::new(Ready::default());
        let seen = Rc::new(RefCell::new(Vec::new()));
        let (polled, ended) = (Rc::clone(&seen), Rc::clone(&seen));
        let poll = move |place| polled.borrow_mut().push(Some(place));
        let mut driver = Driver::new(Arc::clone(&ready), poll, move || {
            ended.borrow_mut().push(None);
            Next::Rest
        });
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        [0, 1].into_iter().for_each(|place| ready.bell(place).ring());
        assert!(Pin::new(&mut driver).poll(&mut cx).is_pending());
        assert_eq!(*seen.borrow(), [Some(0), Some(1), None]);
        assert!(!woken.0.load(Ordering::Relaxed), "there is nothing to do");
        ready.wake_driver();
        assert!(woken.0.load(Ordering::Relaxed), "a turn is to be ended");
        assert!(Pin::new(&mut driver).poll(&mut cx).is_pending());
        assert_eq!(*seen.borrow(), [Some(0), Some(1), None, None]);
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}
