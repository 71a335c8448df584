//! What ends a wait of the data thread when something is due there: a timer of the kernel's own where there is one. A wait
//! with a limit would have the kernel set a timer and take it back each time.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use super::reactor::{Reactor, Watch};

/// Rings once, at a time of the monotonic clock.
#[derive(Debug)]
pub struct Alarm {
    timer: Option<(OwnedFd, Watch)>,
    /// When it rings, or has rung.
    rings_ms: u64,
}

impl Alarm {
    /// For the waits of this reactor.
    pub fn new(reactor: &Rc<Reactor>) -> Self {
        let mut watch = Watch::new(reactor);
        let timer = timer().and_then(|timer| {
            watch.drained(&timer)?;
            Ok((timer, watch))
        });
        let timer = timer.inspect_err(|error| tracing::debug!("no timer: {error}")).ok();
        Self { timer, rings_ms: 0 }
    }

    /// Has the next wait end when this is due, or earlier. What limit it needs besides.
    pub fn set(&mut self, now_ms: u64, due_ms: u64) -> Option<Duration> {
        let wait = Duration::from_millis(due_ms.saturating_sub(now_ms).max(1));
        if self.rings_ms <= now_ms || due_ms < self.rings_ms {
            let is_set = self.timer.as_ref().is_some_and(|(timer, _)| ring(timer, wait).is_ok());
            if !is_set {
                return Some(wait);
            }
            self.rings_ms = due_ms;
        }
        None
    }
}

#[cfg(target_os = "linux")]
use linux::{ring, timer};
#[cfg(not(target_os = "linux"))]
use other::{ring, timer};

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };

    pub fn timer() -> io::Result<OwnedFd> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(timerfd_create(TimerfdClockId::Monotonic, flags)?)
    }

    /// Each time it rings is told of once, whether it is read or not.
    pub fn ring(timer: &OwnedFd, after: Duration) -> io::Result<()> {
        let it_value = Timespec::try_from(after).map_err(io::Error::other)?;
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::io;
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    pub fn timer() -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn ring(_: &OwnedFd, _: Duration) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;
    use std::time::Instant;

    use super::*;
    use crate::plane::reactor::Rouser;

    #[test]
    fn it_ends_each_wait_at_the_time_set_last_and_not_before() {
        let reactor = Reactor::new().expect("the system has one");
        let (mut alarm, rouser) = (Alarm::new(&reactor), Rouser::new(Waker::noop().clone()));
        // The first is given up: something is due before.
        for (now_ms, due_ms, wait_ms) in
            [(0, 3_600_000, 0), (1, 11, 10), (11, 31, 20), (31, 46, 15)]
        {
            let start = Instant::now();
            let limit = alarm.set(now_ms, due_ms);
            assert!(limit.is_none() || cfg!(not(target_os = "linux")), "{limit:?}");
            if wait_ms > 0 {
                reactor.wait(limit, &rouser).expect("it tells of sockets");
                assert!(start.elapsed() >= Duration::from_millis(wait_ms), "{now_ms}");
            }
        }
    }
}
