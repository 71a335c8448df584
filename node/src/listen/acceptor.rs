//! Takes connections from a listening socket.

use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::plane::{Reactor, Watch};

/// A listening socket on the thread that serves it.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    watch: Watch,
    /// One was taken since the system last told of any; whether there is another is to be seen.
    has_taken: bool,
}

impl Acceptor {
    /// For a socket that listens and does not block.
    pub fn new(listener: TcpListener, reactor: &Rc<Reactor>) -> Self {
        Self { listener, watch: Watch::new(reactor), has_taken: false }
    }

    /// The next connection; it does not block.
    ///
    /// # Errors
    /// What the system says of this one, or of all.
    pub async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            poll_fn(|cx| self.watch.poll_readable(cx)).await;
            // Asked in vain, the system makes a socket and throws it away: ten times the price of a look.
            if self.has_taken && !is_one_waiting(&self.listener) {
                self.has_taken = false;
                self.watch.drained(&self.listener)?;
                continue;
            }
            match self.listener.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.has_taken = false;
                    self.watch.drained(&self.listener)?;
                }
                accepted => {
                    let (stream, remote) = accepted?;
                    self.has_taken = true;
                    stream.set_nonblocking(true)?;
                    return Ok((stream, remote));
                }
            }
        }
    }

    /// One that waits now, if there is one.
    pub fn accept_now(&self) -> Option<TcpStream> {
        self.listener.accept().ok().map(|(stream, _)| stream)
    }
}

/// When the system does not say, whoever asks for it finds out.
fn is_one_waiting(listener: &TcpListener) -> bool {
    let mut sockets = [PollFd::new(listener, PollFlags::IN)];
    !matches!(poll(&mut sockets, Some(&Timespec::default())), Ok(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plane::reactor::tests::block_on;

    #[test]
    fn all_who_come_together_and_all_who_come_later_are_taken() {
        block_on(async |reactor| {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.set_nonblocking(true).expect("a socket");
            let address = listener.local_addr().expect("bound");
            let mut acceptor = Acceptor::new(listener, &reactor);
            for crowd in [1, 5, 1, 3] {
                let clients: Vec<_> =
                    (0..crowd).map(|_| TcpStream::connect(address).expect("it listens")).collect();
                for client in &clients {
                    let (_, remote) = acceptor.accept().await.expect("a client");
                    assert_eq!(remote, client.local_addr().expect("connected"));
                }
                assert!(acceptor.accept_now().is_none(), "all {crowd} were taken");
            }
        });
    }
}
