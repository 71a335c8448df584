//! Which connections of the data thread are to be polled.
//!
//! ```text
//!  socket is ready ──wake──▶ ready list ──▶ the thread's next round ──poll──▶ connections, then the end of the turn
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::task::{ArcWake, WakerRef, waker_ref};
use parking_lot::Mutex;

use super::reactor::Rouser;

/// Connections polled before commands and other tasks have their turn. More: those wait longer under load; fewer: more,
/// smaller turns of the shard.
pub const POLLED_AT_ONCE_MAX: usize = 1_024;

/// Which connections want to be polled. Each stands in the list once at most, so their number bounds it.
#[derive(Debug)]
pub struct Ready {
    waiting: Mutex<Vec<Arc<Ticket>>>,
    rouser: Arc<Rouser>,
}

/// What wakes one connection.
#[derive(Debug)]
pub struct Ticket {
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

    fn wake(self: Arc<Self>) {
        if !self.is_waiting.swap(true, Ordering::AcqRel) {
            Arc::clone(&self.ready).push(self);
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
    /// Nobody; `rouser` wakes whoever is to poll them.
    pub fn new(rouser: Arc<Rouser>) -> Arc<Self> {
        Arc::new(Self { waiting: Mutex::default(), rouser })
    }

    /// What wakes the connection at this place.
    pub fn bell(self: &Arc<Self>, place: u32) -> Bell {
        let is_waiting = AtomicBool::new(false);
        Bell(Arc::new(Ticket { place, is_waiting, ready: Arc::clone(self) }))
    }

    fn push(&self, ticket: Arc<Ticket>) {
        self.waiting.lock().push(ticket);
        self.rouser.rouse();
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.lock().is_empty()
    }

    /// Polls those who wait now, by their places; `due` is room for their names.
    pub fn poll(&self, due: &mut Vec<Arc<Ticket>>, mut poll: impl FnMut(u32)) {
        {
            let mut waiting = self.waiting.lock();
            if waiting.len() <= POLLED_AT_ONCE_MAX {
                std::mem::swap(&mut *waiting, due);
            } else {
                due.extend(waiting.drain(..POLLED_AT_ONCE_MAX));
            }
        }
        for ticket in due.drain(..) {
            // Before it is polled: what becomes ready meanwhile is not to be missed.
            ticket.is_waiting.store(false, Ordering::Release);
            poll(ticket.place);
        }
        due.shrink_to(POLLED_AT_ONCE_MAX);
    }

    /// The thread ends: those who wait point back here.
    pub fn forget(&self) {
        self.waiting.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn ready() -> Arc<Ready> {
        Ready::new(Rouser::new(Waker::noop().clone()))
    }

    #[test]
    fn who_is_woken_is_polled_once_and_again_when_woken_meanwhile() {
        let (ready, mut polled) = (ready(), Vec::new());
        let bells: Vec<Bell> = (0..3).map(|place| ready.bell(place)).collect();
        let mut round = || {
            polled.clear();
            ready.poll(&mut Vec::new(), |place| {
                polled.push(place);
                if place == 2 {
                    bells[1].ring();
                }
            });
            polled.clone()
        };
        assert!(round().is_empty(), "nobody was woken");
        [1, 2, 1].into_iter().for_each(|place: usize| bells[place].ring());
        let waker = bells[2].waker().clone();
        waker.wake();
        assert_eq!(round(), [1, 2]);
        assert_eq!(round(), [1], "woken while it was polled");
        assert!(ready.is_empty());
    }

    #[test]
    fn a_crowd_is_polled_in_parts() {
        let (ready, mut due) = (ready(), Vec::new());
        let crowd = POLLED_AT_ONCE_MAX + 1;
        (0..crowd).for_each(|place| ready.bell(place as u32).ring());
        let mut places = Vec::new();
        ready.poll(&mut due, |place| places.push(place as usize));
        assert_eq!(places.len(), POLLED_AT_ONCE_MAX);
        ready.poll(&mut due, |place| places.push(place as usize));
        assert!(places.into_iter().eq(0..crowd));
    }
}
