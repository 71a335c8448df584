//! MQTT over plain TCP.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outpost_actors::ports::Origin;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tracing::warn;

use crate::plane::Plane;

/// Connections the kernel keeps ready for us. Smaller: a fleet that comes back at once is refused by the kernel.
const BACKLOG: i32 = 4_096;

/// How long to rest when the process has no file descriptors left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Opens a listening socket; it outlives the shard that serves it.
///
/// # Errors
/// What the operating system says, for example that the port is in use.
pub fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts connections for ever.
pub async fn serve(listener: TcpListener, name: Arc<str>, plane: Rc<Plane>) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                // Without it small answers wait for the client's next packet.
                if let Err(error) = stream.set_nodelay(true) {
                    warn!("cannot set TCP_NODELAY for {remote}: {error}");
                }
                let origin = Origin { listener: Arc::clone(&name), remote, certificate: None };
                plane.accept(origin, Box::new(stream));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                warn!(
                    "cannot accept on listener {name}: {error}; trying again in {EXHAUSTED_PAUSE:?}"
                );
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

/// The client was gone before we looked: nothing to wait for.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}
