//! The data thread's loop.
//!
//! ```text
//!  ┌▶ wait for sockets ─▶ tasks, commands ─▶ connections that are ready ─▶ end of the turn ─▶ what is due ─┐
//!  └───────────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```

use std::io;
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::waker_ref;
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use super::alarm::Alarm;
use super::handle::Command;
use super::reactor::{Call, Rouser};
use super::tasks::Ticket;
use super::thread::Plane;
use crate::clock::now;
use crate::listen::Listening;

/// Commands carried out before connections have their turn. More: those wait longer while the store or peers are busy;
/// fewer: more turns.
const COMMANDS_AT_ONCE_MAX: usize = 128;

/// Rounds before sockets are looked at again, when one makes work for the next. More: others wait while some are busy;
/// fewer: more system calls.
const ROUNDS_MAX: usize = 8;

/// What the thread does beside waiting.
pub struct Serving {
    plane: Rc<Plane>,
    /// What is too rare for a place of its own: handshakes, acceptors, good-byes.
    tasks: LocalSet,
    for_tasks: Arc<Call>,
    commands: mpsc::Receiver<Command>,
    for_commands: Arc<Call>,
    rouser: Arc<Rouser>,
    alarm: Alarm,
    due: Vec<Arc<Ticket>>,
}

/// What to do after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Look at the sockets, and go on.
    Look,
    /// Wait for something to happen, at most so long.
    Wait(Option<Duration>),
    /// The thread was told to end.
    Stop,
}

impl Serving {
    /// For this plane, and what others ask of it.
    pub fn new(plane: Rc<Plane>, commands: mpsc::Receiver<Command>, rouser: Arc<Rouser>) -> Self {
        let tasks = LocalSet::new();
        let (for_tasks, for_commands) = (Call::new(&rouser), Call::new(&rouser));
        {
            let _tasks = tasks.enter();
            plane.spawn(Rc::clone(&plane).tidies());
        }
        plane.schedule_turn();
        let (alarm, due) = (Alarm::new(plane.reactor()), Vec::new());
        Self { plane, tasks, for_tasks, commands, for_commands, rouser, alarm, due }
    }

    /// Serves this listener too.
    ///
    /// # Errors
    /// When its socket cannot be used on this thread.
    pub fn listen(&self, listening: &Arc<Listening>) -> io::Result<()> {
        let _tasks = self.tasks.enter();
        Arc::clone(listening).serve(&self.plane).map(drop)
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    /// When the system does not tell of sockets any more.
    pub fn run(mut self) -> io::Result<()> {
        let reactor = Rc::clone(self.plane.reactor());
        let _tasks = self.tasks.enter();
        loop {
            match self.turn() {
                Next::Look => reactor.wait(Some(Duration::ZERO), &self.rouser)?,
                Next::Wait(at_most) => reactor.wait(at_most, &self.rouser)?,
                Next::Stop => return Ok(()),
            }
        }
    }

    /// Does what there is to do. When it says that there is nothing, whoever has something rouses the thread.
    pub fn turn(&mut self) -> Next {
        let mut now_ms = None;
        for _ in 0..ROUNDS_MAX {
            if self.for_tasks.take() {
                let waker = waker_ref(&self.for_tasks);
                // Whether there are any.
                let _ = Pin::new(&mut self.tasks).poll(&mut Context::from_waker(&waker));
            }
            if let Some(panic) = self.plane.panic.take() {
                resume_unwind(panic);
            }
            if self.for_commands.take() && self.carry_out_commands().is_break() {
                return Next::Stop;
            }
            let plane = &self.plane;
            plane.ready.poll(&mut self.due, |place| plane.serve(place));
            now_ms = plane.end_round().or(now_ms);
            // Who waits for a share of a turn waits for a look at the sockets too.
            if plane.someone_waits() || !self.has_work() {
                break;
            }
        }
        let now_ms = now_ms.unwrap_or_else(|| now().mono_ms);
        let due_ms = self.plane.keep_time(now_ms);
        if self.has_work() {
            return Next::Look;
        }
        self.rouser.waits();
        if self.has_work() {
            return Next::Look;
        }
        Next::Wait(self.alarm.set(now_ms, due_ms))
    }

    fn has_work(&self) -> bool {
        self.plane.has_work()
            || !self.plane.ready.is_empty()
            || self.for_tasks.is_made()
            || self.for_commands.is_made()
    }

    /// `Break`: the last of them ends the thread.
    fn carry_out_commands(&mut self) -> ControlFlow<()> {
        let waker = Arc::clone(&self.for_commands);
        let (waker, plane) = (waker_ref(&waker), &self.plane);
        let mut cx = Context::from_waker(&waker);
        for _ in 0..COMMANDS_AT_ONCE_MAX {
            match self.commands.poll_recv(&mut cx) {
                Poll::Pending => return ControlFlow::Continue(()),
                Poll::Ready(None) => return ControlFlow::Break(()),
                Poll::Ready(Some(Command::Stop(done))) => {
                    plane.end_turn();
                    // Nobody waits for the answer when the node is already gone.
                    let _ = done.send(());
                    return ControlFlow::Break(());
                }
                Poll::Ready(Some(Command::Attach(origin, stream, ticket))) => {
                    plane.accept(origin, Box::new(stream).into(), ticket);
                }
                Poll::Ready(Some(command)) => plane.command(command),
            }
        }
        cx.waker().wake_by_ref();
        ControlFlow::Continue(())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.plane.ready.forget();
    }
}
