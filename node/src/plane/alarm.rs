//! What wakes the data thread when something is due there: a timer of the kernel's own where there is one. While a timer of
//! the runtime runs, each wait for packets is one with a limit: the clock is read and a timer set and taken back for each.

use std::time::Duration;

#[cfg(target_os = "linux")]
use linux::Timer;
#[cfg(not(target_os = "linux"))]
use other::Timer;

/// Waits for one moment at a time.
pub struct Alarm(Option<Timer>);

impl Alarm {
    /// Made on the runtime it is to wake. Where there is no timer to be had the runtime's do.
    pub fn new() -> Self {
        Self(Timer::new().inspect_err(|error| tracing::debug!("no timer: {error}")).ok())
    }

    /// Waits for so long; the time that was waited for before, when that wait was given up, is forgotten.
    pub async fn after(&self, wait: Duration) {
        match &self.0 {
            Some(timer) if timer.set(wait).is_ok() => timer.rung().await,
            _ => tokio::time::sleep(wait).await,
        }
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };
    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;

    use crate::watch::watch;

    pub struct Timer(AsyncFd<OwnedFd>);

    impl Timer {
        pub fn new() -> io::Result<Self> {
            let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
            let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            Ok(Self(watch(timer, Interest::READABLE)?))
        }

        /// Rings once, after this; a wait of nothing would turn it off.
        pub fn set(&self, wait: Duration) -> io::Result<()> {
            let wait = wait.max(Duration::from_nanos(1));
            let it_value = Timespec::try_from(wait).map_err(io::Error::other)?;
            let once = Itimerspec { it_interval: Timespec::default(), it_value };
            timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
            Ok(())
        }

        pub async fn rung(&self) {
            let read = |timer: &AsyncFd<OwnedFd>| {
                rustix::io::read(timer.get_ref(), &mut [0; 8]).map_err(io::Error::from)
            };
            // Set again it has not rung, though it may look so: there is nothing to read then.
            while let Ok(mut ready) = self.0.readable().await {
                if ready.try_io(read).is_ok() {
                    return;
                }
            }
            std::future::pending().await // the runtime ends, and whoever waits with it
        }
    }

    #[cfg(test)]
    mod tests {
        use std::time::Instant;

        use super::*;

        #[tokio::test]
        async fn it_rings_after_the_time_set_last_and_not_before() {
            let (timer, wait) = (Timer::new().expect("a timer"), Duration::from_millis(20));
            for given_up in [Duration::from_hours(1), Duration::from_millis(1)] {
                timer.set(given_up).expect("a timer");
                if given_up < wait {
                    // It has rung, and nobody has heard it.
                    drop(timer.0.readable().await.expect("it is watched"));
                }
                let start = Instant::now();
                timer.set(wait).expect("a timer");
                timer.rung().await;
                assert!(start.elapsed() >= wait, "{given_up:?} was given up");
            }
            timer.set(Duration::ZERO).expect("a timer");
            timer.rung().await;
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::io;
    use std::time::Duration;

    pub enum Timer {}

    impl Timer {
        pub fn new() -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub fn set(&self, _: Duration) -> io::Result<()> {
            match *self {}
        }

        pub async fn rung(&self) {
            match *self {}
        }
    }
}
