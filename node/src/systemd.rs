//! Tells systemd how this process is (`sd_notify(3)`): up, taking up new files, going, and alive as long as the data thread
//! answers. Nothing is told when something else has started it.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::plane::{Command, PlaneHandle};

/// Clients are served.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Files are being taken up; [`ready`] ends it.
pub fn reloading() {
    // systemd pairs it with its own request by the time.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!("could not tell systemd that files are taken up: {error}"),
    }
}

/// The node is going.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Says so for as long as the data thread answers, when systemd wants to hear it (`WatchdogSec=`). For ever.
pub async fn alive(plane: PlaneHandle) {
    match sd_notify::watchdog_enabled() {
        Some(within) => answer(&plane, within, || tell(&[NotifyState::Watchdog])).await,
        None => std::future::pending().await,
    }
}

/// Three times as often as is asked for: one answer may be late.
async fn answer(plane: &PlaneHandle, within: Duration, mut say: impl FnMut()) {
    let mut turns = interval((within / 3).max(Duration::from_millis(1)));
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        if let Ok(Ok(_)) = timeout(within, plane.ask(Command::Stats)).await {
            say();
        }
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("could not tell systemd how the node is: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::task::LocalSet;
    use tokio::time::sleep;

    use super::*;
    use crate::plane::tests::Bench;

    const WITHIN: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_not_said_to_be_alive() {
        let story = async {
            let (plane, said) = (PlaneHandle::default(), Cell::new(0));
            let bench = Bench::start(plane.clone(), 8);
            let alive = answer(&plane, WITHIN, || said.set(said.get() + 1));
            let watched = async {
                sleep(WITHIN * 4).await;
                bench.stop().await;
                sleep(WITHIN).await; // an answer may have been under way
                let while_it_ran = said.get();
                sleep(WITHIN * 1_000).await;
                (while_it_ran, said.get())
            };
            let (while_it_ran, in_the_end) = tokio::select! {
                () = alive => unreachable!("for ever"),
                counts = watched => counts,
            };
            assert!((11..=14).contains(&while_it_ran), "{while_it_ran} in 120 s");
            assert_eq!(in_the_end, while_it_ran, "nobody answered any more");
        };
        LocalSet::new().run_until(story).await;
    }
}
