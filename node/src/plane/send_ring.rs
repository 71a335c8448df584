//! Sends on many sockets with one system call, through an `io_uring`.
//!
//! The ring waits for nothing: no send in it does (`MSG_DONTWAIT`), so each is over when the call that makes it returns, and
//! the bytes are lent for no longer than that.
#![allow(unsafe_code, reason = "the kernel is given addresses of what is to be sent")]

use std::io;
use std::os::fd::RawFd;

use io_uring::{IoUring, opcode, types};
use rustix::net::SendFlags;

/// Tells a send that was not made from every count and every error.
const NOT_MADE: i32 = i32::MIN;

/// Calls for one set of sends: the first makes them all unless a signal comes.
const CALLS_MAX: usize = 8;

/// The sends of one thread.
pub struct SendRing {
    ring: IoUring,
    sends_max: usize,
    sent: Vec<i32>,
    is_broken: bool,
}

impl SendRing {
    /// A ring for so many sends at once, for the calling thread only.
    ///
    /// # Errors
    /// There is none: an old kernel, or a container or a setting that forbids it.
    pub fn new(sends_max: usize) -> io::Result<Self> {
        let entries = u32::try_from(sends_max).unwrap_or(u32::MAX);
        // A kernel before 6.1 does not know what it may leave out for one thread.
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(entries)
            .or_else(|_| IoUring::new(entries))?;
        Ok(Self { ring, sends_max, sent: Vec::with_capacity(sends_max), is_broken: false })
    }

    /// Most sends of one call.
    pub fn sends_max(&self) -> usize {
        self.sends_max
    }

    /// Whether it failed: what it had not sent it never will, and it is of no use any more.
    pub fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// How many bytes of each of the last sends went, in order. `None`: none; a send by itself says why.
    pub fn sent(&self) -> impl Iterator<Item = Option<usize>> {
        self.sent.iter().map(|sent| usize::try_from(*sent).ok())
    }

    /// Sends on each socket what goes at once. No more than [`SendRing::sends_max`] are taken.
    pub fn send<'a>(&mut self, sends: impl Iterator<Item = (RawFd, &'a [u8])>) {
        let flags = (SendFlags::DONTWAIT | SendFlags::NOSIGNAL).bits() as i32;
        self.sent.clear();
        let mut queue = self.ring.submission();
        for (socket, bytes) in sends.take(self.sends_max) {
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let send = opcode::Send::new(types::Fd(socket), bytes.as_ptr(), length).flags(flags);
            let send = send.build().user_data(self.sent.len() as u64);
            // SAFETY: the bytes outlive this call. A send that does not wait is over when the call that makes it returns,
            // and one that was not made never is: the ring is broken then.
            if unsafe { queue.push(&send) }.is_err() {
                break;
            }
            self.sent.push(NOT_MADE);
        }
        drop(queue);
        self.is_broken |= !self.make_all();
    }

    /// `false`: some were not made.
    fn make_all(&mut self) -> bool {
        let mut left = self.sent.len();
        for _ in 0..CALLS_MAX {
            if left == 0 {
                break;
            }
            // Why it failed does not matter: what was made is in the completions.
            let _ = self.ring.submit_and_wait(left);
            for made in self.ring.completion() {
                self.sent[made.user_data() as usize] = made.result();
                left -= 1;
            }
        }
        left == 0
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    use super::*;

    /// `None`, and says so, where the system has no ring: the sends are made one by one there.
    fn ring(sends_max: usize) -> Option<SendRing> {
        SendRing::new(sends_max).inspect_err(|error| eprintln!("no ring here: {error}")).ok()
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let server = listener.accept().expect("a client").0;
        server.set_nonblocking(true).expect("a socket");
        (server, client)
    }

    #[test]
    fn each_gets_its_own_bytes_and_no_more_than_fit_are_taken() {
        let Some(mut ring) = ring(8) else { return };
        let pairs: Vec<_> = (0..9).map(|_| pair()).collect();
        for round in 0..3_u8 {
            let texts: Vec<Vec<u8>> = (0..9).map(|to| vec![to; 3 + to as usize]).collect();
            let sends =
                pairs.iter().zip(&texts).map(|(pair, text)| (pair.0.as_raw_fd(), &text[..]));
            ring.send(sends);
            let sent: Vec<_> = ring.sent().collect();
            assert_eq!(sent, (3..11).map(Some).collect::<Vec<_>>(), "round {round}");
            for ((_, client), text) in pairs.iter().zip(&texts).take(8) {
                let (mut client, mut read) = (client, vec![0; text.len()]);
                client.read_exact(&mut read).expect("it was sent");
                assert_eq!(read, *text);
            }
        }
        pairs[8].1.set_nonblocking(true).expect("a socket");
        let nothing = (&pairs[8].1).read(&mut [0]).expect_err("the ninth was not sent to");
        assert_eq!((nothing.kind(), ring.is_broken()), (io::ErrorKind::WouldBlock, false));
    }

    #[test]
    fn who_is_full_gone_or_no_socket_hinders_nobody() {
        let Some(mut ring) = ring(8) else { return };
        let (full, gone, well) = (pair(), pair(), pair());
        let much = vec![7; 1 << 20];
        while (&full.0).write(&much).is_ok() {}
        drop(gone.1);
        // The first write learns that nobody is there.
        while (&gone.0).write(b"x").is_ok() {}
        let sockets = [full.0.as_raw_fd(), gone.0.as_raw_fd(), -1, well.0.as_raw_fd()];
        ring.send(sockets.into_iter().map(|socket| (socket, &b"word"[..])));
        let sent: Vec<_> = ring.sent().collect();
        assert_eq!((sent, ring.is_broken()), (vec![None, None, None, Some(4)], false));
        let mut read = [0; 4];
        (&well.1).read_exact(&mut read).expect("it was sent");
        assert_eq!(&read, b"word");
    }

    #[test]
    fn what_goes_in_part_is_said_to_have_gone_in_part() {
        let Some(mut ring) = ring(4) else { return };
        let (server, mut client) = pair();
        let much = vec![7; 64 << 20];
        ring.send([(server.as_raw_fd(), &much[..])].into_iter());
        let sent = ring.sent().next().flatten().expect("some of it goes");
        assert!(sent > 0 && sent < much.len(), "{sent}");
        drop(server);
        let mut read = Vec::new();
        client.read_to_end(&mut read).expect("it is closed");
        assert_eq!(read.len(), sent);
    }
}
