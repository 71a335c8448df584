//! A TCP relay that can stop passing bytes without closing anything: a cable that is cut, as TCP sees it.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A relay at work.
pub struct Stall {
    addr: SocketAddr,
    stalled: Arc<watch::Sender<bool>>,
    _task: JoinSet<()>,
}

impl Stall {
    /// In front of a server.
    pub async fn in_front_of(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("it is bound");
        let (stalled, is_stalled) = watch::channel(false);
        let mut task = JoinSet::new();
        task.spawn(serve(listener, server, is_stalled));
        Self { addr, stalled: Arc::new(stalled), _task: task }
    }

    /// Where clients connect to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Bytes wait, in both directions; what is connected stays so.
    pub fn set_stalled(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }
}

async fn serve(listener: TcpListener, server: SocketAddr, stalled: watch::Receiver<bool>) {
    let mut ways = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = TcpStream::connect(server).await else { continue };
        let ((from_client, to_client), (from_server, to_server)) =
            (client.into_split(), server.into_split());
        ways.spawn(pass(from_client, to_server, stalled.clone()));
        ways.spawn(pass(from_server, to_client, stalled.clone()));
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut stalled: watch::Receiver<bool>) {
    let mut bytes = vec![0; 16_384];
    loop {
        let Ok(count @ 1..) = from.read(&mut bytes).await else { return };
        if stalled.wait_for(|stalled| !stalled).await.is_err()
            || to.write_all(&bytes[..count]).await.is_err()
        {
            return;
        }
    }
}
