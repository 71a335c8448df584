//! Accepting over TCP, for every transport that runs on it.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tracing::warn;

use super::acceptor::Acceptor;
use super::courtesy::Courtesies;
use super::descriptors::{self, Reserve};
use super::door::Refusal;
use super::{Listening, arrival};
use crate::clock::now;
use crate::plane::Plane;

/// Connections the kernel keeps ready for us. Smaller: a fleet that comes back at once is refused by the kernel.
const BACKLOG: i32 = 4_096;

/// How long to rest when the process has no file descriptors left, not even the reserve.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Opens a listening socket; it outlives the shard that serves it.
///
/// # Errors
/// What the operating system says, for example that the port is in use.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Without it small answers wait for the client's next packet. Linux gives it to each connection that is accepted.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts connections for ever, from when the node is open.
pub async fn serve(mut socket: Acceptor, listening: Arc<Listening>, plane: Rc<Plane>) {
    if !listening.opened().await {
        return;
    }
    let mut reserve = Reserve::take();
    let courtesies = Courtesies::default();
    let mut admission = plane.admission();
    loop {
        let wait_ms = admission.wait_ms(now().mono_ms);
        if wait_ms > 0 {
            // The others wait in the kernel's queue meanwhile.
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            continue;
        }
        match socket.accept().await {
            Ok((_, remote)) if !admission.admits(remote.ip(), now().mono_ms) => {
                arrival::refuse(&listening.door, Some(remote), Refusal::Address, "");
            }
            Ok((stream, remote)) => {
                if let Err(error) = arrived(stream, remote, &listening, &plane, &courtesies) {
                    warn!("cannot serve {remote}: {error}");
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) if descriptors::is_exhausted(&error) => {
                let turned_away = reserve.accept(&socket);
                if turned_away.is_none() {
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                } else {
                    arrival::refuse(
                        &listening.door,
                        None,
                        Refusal::Descriptors,
                        &error.to_string(),
                    );
                }
                drop(turned_away);
                reserve = Reserve::take();
            }
            Err(error) => {
                let name = &listening.door.name;
                warn!(
                    "cannot accept on listener {name}: {error}; trying again in {EXHAUSTED_PAUSE:?}"
                );
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

fn arrived(
    stream: TcpStream,
    remote: SocketAddr,
    listening: &Arc<Listening>,
    plane: &Rc<Plane>,
    courtesies: &Courtesies,
) -> io::Result<()> {
    let ticket = match listening.door.arrive() {
        Ok(ticket) => ticket,
        Err(why) => {
            arrival::refuse(&listening.door, Some(remote), why, "");
            let is_full = matches!(why, Refusal::Descriptors | Refusal::Connections);
            let is_plain = arrival::is_plain(listening);
            if is_full
                && is_plain
                && let Some(telling) =
                    courtesies.tell(stream.try_into()?, listening.door.limits.bytes_max)
            {
                plane.spawn(telling);
            }
            return Ok(());
        }
    };
    #[cfg(not(target_os = "linux"))]
    if let Err(error) = stream.set_nodelay(true) {
        warn!("cannot set TCP_NODELAY for {remote}: {error}");
    }
    arrival::over_tcp(stream, remote, ticket, listening, plane);
    Ok(())
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
