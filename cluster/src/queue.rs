//! The bounded queue in front of one lane of one link: encoded frames in, large writes out.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

/// How much is handed to the stream at once. Lower: more system calls. Higher: urgent frames wait behind more bytes.
pub(crate) const WRITE_BYTES_MAX: usize = 64 * 1024;

/// Why a frame was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    Closed,
}

#[derive(Debug)]
pub(crate) struct LaneQueue {
    state: Mutex<State>,
    filled: Notify,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Bytes>,
    bytes: usize,
    closed: bool,
    /// Somebody was refused and waits to hear that there is room.
    refused: bool,
}

impl LaneQueue {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { state: Mutex::default(), filled: Notify::new(), bytes_max }
    }

    /// Takes a frame, or refuses it. An empty queue takes any frame, so that one larger than the limit is not stuck.
    pub(crate) fn push(&self, frame: Bytes) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if state.bytes > 0 && state.bytes + frame.len() > self.bytes_max {
            state.refused = true;
            return Err(Refused::Full);
        }
        state.bytes += frame.len();
        state.frames.push_back(frame);
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.frames = VecDeque::new();
        state.bytes = 0;
        drop(state);
        self.filled.notify_one();
    }

    /// Waits for frames and takes as many as make one write, joined. `None` when closed. Their bytes count as waiting
    /// until [`LaneQueue::written`].
    pub(crate) async fn next(&self) -> Option<(Bytes, u64)> {
        loop {
            let filled = self.filled.notified();
            {
                let mut state = self.lock();
                if state.closed {
                    return None;
                }
                if let Some(first) = state.frames.pop_front() {
                    return Some(join(first, &mut state.frames));
                }
            }
            filled.await;
        }
    }

    /// Gives back the room of a write. `true` when somebody was refused before and half of the room is free again.
    pub(crate) fn written(&self, bytes: usize) -> bool {
        let mut state = self.lock();
        state.bytes = state.bytes.saturating_sub(bytes);
        let tell = state.refused && state.bytes <= self.bytes_max / 2;
        state.refused &= !tell;
        tell
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn join(first: Bytes, rest: &mut VecDeque<Bytes>) -> (Bytes, u64) {
    if rest.is_empty() || first.len() >= WRITE_BYTES_MAX {
        return (first, 1);
    }
    let mut joined = BytesMut::with_capacity(WRITE_BYTES_MAX.min(first.len() + rest.len() * 256));
    joined.extend_from_slice(&first);
    let mut count = 1;
    while let Some(next) = rest.front()
        && joined.len() + next.len() <= WRITE_BYTES_MAX
    {
        joined.extend_from_slice(next);
        rest.pop_front();
        count += 1;
    }
    (joined.freeze(), count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_keep_their_order_and_room_comes_back_after_the_write() {
        let queue = LaneQueue::new(10);
        queue.push(Bytes::from_static(b"abcd")).expect("room");
        queue.push(Bytes::from_static(b"efgh")).expect("room");
        assert_eq!(queue.push(Bytes::from_static(b"ijk")), Err(Refused::Full));
        assert_eq!(queue.next().await, Some((Bytes::from_static(b"abcdefgh"), 2)));
        assert_eq!(queue.push(Bytes::from_static(b"ijk")), Err(Refused::Full), "not written yet");
        assert!(queue.written(8), "whoever was refused must hear of it");
        assert!(!queue.written(0), "once");
        queue
            .push(Bytes::from_static(b"a frame above the limit"))
            .expect("an empty queue takes it");
        queue.close();
        assert_eq!(queue.next().await, None);
        assert_eq!(queue.push(Bytes::new()), Err(Refused::Closed));
        assert_eq!(queue.bytes(), 0);
    }
}
