//! The writes at the end of a turn: many connections with one system call where the system can, each by itself where not.

use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;

use outpost_actors::out_buffer::OutBuffer;
use outpost_actors::shard::{ConnId, Shard};
use tracing::{debug, warn};

use super::send_ring::SendRing;
use super::thread::Plane;
use crate::listen::connection::Connection;

/// Fewer are written to one by one: the ring costs about as much as it saves.
const TOGETHER_FROM: usize = 4;

/// What writes to many connections at once.
pub struct Together {
    ring: SendRing,
    asked: Vec<ConnId>,
    /// Who is written to now.
    due: Vec<ConnId>,
    /// Who is to be written to by itself: not a plain socket, or it did not take all.
    alone: Vec<ConnId>,
}

impl Together {
    /// For at most so many connections at once. `None`: for none, or the system has no such call.
    pub fn new(sends_max: usize) -> Option<Self> {
        if sends_max < TOGETHER_FROM {
            return None;
        }
        let ring = SendRing::new(sends_max).inspect_err(|error| {
            debug!("each connection is written to by itself: no io_uring here: {error}");
        });
        ring.ok().map(|ring| Self { ring, asked: Vec::new(), due: Vec::new(), alone: Vec::new() })
    }
}

impl Plane {
    /// Lets `write` take from a connection's out buffer.
    ///
    /// # Errors
    /// What `write` returns.
    pub fn with_out_buffer(
        &self,
        id: ConnId,
        write: impl FnOnce(&mut OutBuffer) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let mut shard = self.shard.borrow_mut();
        let Some(out) = shard.out_buffer(id) else { return Ok(true) };
        let before = out.len();
        let written = write(out)?;
        let has_room = out.len() < before;
        shard.written(id);
        if has_room && !self.in_turn.get() {
            // What the room sets free (reading on, retained messages) is carried out by a turn.
            self.schedule_turn();
        }
        Ok(written)
    }

    /// Writes to all who wait, as long as there are enough of them.
    pub(super) fn flush_together(&self) {
        let mut together = self.together.borrow_mut();
        while let Some(those) = together.as_mut()
            && self.shard.borrow().flushes_waiting() >= TOGETHER_FROM
        {
            self.flush_some(those);
            if those.ring.is_broken() {
                warn!("each connection is written to by itself from now on: the io_uring failed");
                *together = None;
            }
        }
    }

    fn flush_some(&self, Together { ring, asked, due, alone }: &mut Together) {
        self.shard.borrow_mut().poll_flushes(ring.sends_max(), asked);
        {
            let (shard, connections) = (self.shard.borrow(), self.connections.borrow());
            let sends = asked.drain(..).filter_map(|id| {
                let send = send_of(id, &connections, &shard);
                if send.is_some() { &mut *due } else { &mut *alone }.push(id);
                send
            });
            ring.send(sends);
        }
        self.handle.turns().count_sends(due.len());
        let mut shard = self.shard.borrow_mut();
        for (id, sent) in due.drain(..).zip(ring.sent().chain(std::iter::repeat(None))) {
            if !sent.is_some_and(|count| is_all_sent(&mut shard, id, count)) {
                alone.push(id);
            }
        }
        drop(shard);
        for id in alone.drain(..) {
            self.with_connection(id, |connection| connection.flush(self));
        }
    }
}

/// What is to be sent where, when it is in one piece and for a plain socket that takes more.
fn send_of<'a>(
    id: ConnId,
    connections: &[Option<Rc<Connection>>],
    shard: &'a Shard,
) -> Option<(RawFd, &'a [u8])> {
    let connection = connections.get(id.index() as usize)?.as_ref()?;
    let socket = connection.socket().filter(|_| connection.id() == id)?;
    let bytes = shard.out_bytes(id)?;
    (!bytes.is_empty()).then_some((socket, bytes))
}

/// Takes what was sent from the buffer. `false`: there is more.
fn is_all_sent(shard: &mut Shard, id: ConnId, count: usize) -> bool {
    let Some(out) = shard.out_buffer(id) else { return true };
    out.advance(count);
    let is_all = out.is_empty();
    shard.written(id);
    is_all
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use socket2::SockRef;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::task::LocalSet;

    use super::*;
    use crate::plane::PlaneHandle;
    use crate::plane::tests::{Bench, CONNECT, PINGREQ, PINGRESP, SUBSCRIBE_ALL, publish};

    const READERS: u8 = 12;
    const ROUNDS: u32 = 300;
    const PAYLOAD_BYTES: usize = 1_000;

    fn message(round: u32) -> Vec<u8> {
        publish("t", 0, &round.to_be_bytes().repeat(PAYLOAD_BYTES / 4))
    }

    async fn subscribe(mut client: TcpStream, number: u8) -> TcpStream {
        let connect = [&CONNECT[..CONNECT.len() - 1], &[b'A' + number]].concat();
        client.write_all(&[&connect, SUBSCRIBE_ALL].concat()).await.expect("open");
        client.read_exact(&mut [0; 9]).await.expect("CONNACK and SUBACK");
        client
    }

    #[tokio::test]
    async fn all_get_all_in_one_call_and_who_is_full_gets_whole_packets() {
        let story = async {
            let bench = Bench::start(PlaneHandle::default(), 64);
            let mut readers = Vec::new();
            for number in 0..READERS {
                readers.push(subscribe(bench.connect_tcp(|_| ()).await, number).await);
            }
            let small = |server: &TcpStream| {
                SockRef::from(server).set_send_buffer_size(4_096).expect("a socket");
            };
            let mut stopped = subscribe(bench.connect_tcp(small).await, READERS).await;
            let mut sender = bench.connect_tcp(|_| ()).await;
            sender.write_all(CONNECT).await.expect("open");
            sender.read_exact(&mut [0; 4]).await.expect("a CONNACK");
            for round in 0..ROUNDS {
                let message = message(round);
                sender.write_all(&message).await.expect("open");
                for reader in &mut readers {
                    let mut read = vec![0; message.len()];
                    reader.read_exact(&mut read).await.expect("open");
                    assert!(read == message, "round {round}");
                }
            }
            let together = bench.handle.turns().sends_together();
            let expected = u64::from(READERS) * u64::from(ROUNDS);
            assert!(SendRing::new(4).is_err() || together >= expected, "{together} sends");
            stopped.write_all(PINGREQ).await.expect("open");
            let mut rest = Vec::new();
            while !rest.ends_with(PINGRESP) {
                assert_ne!(stopped.read_buf(&mut rest).await.expect("open"), 0, "it stays open");
            }
            rest.truncate(rest.len() - PINGRESP.len());
            let got = rest.chunks(message(0).len()).map(|packet| {
                let round =
                    u32::from_be_bytes(packet[packet.len() - 4..].try_into().expect("four"));
                (round, packet == message(round))
            });
            let got: Vec<_> = got.collect();
            assert!(got.is_sorted() && got.iter().all(|(_, is_whole)| *is_whole), "{got:?}");
            assert!((1..ROUNDS as usize).contains(&got.len()), "{} of {ROUNDS}", got.len());
            bench.stop().await;
        };
        let stories = LocalSet::new();
        let within = tokio::time::timeout(Duration::from_mins(1), stories.run_until(story));
        within.await.expect("nobody waits for ever");
    }
}
