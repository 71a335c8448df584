//! mosquitto as it comes from Debian, with a configuration of the story's own.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use super::outpost::Running;
use super::tools::tool;
use super::until;

/// mosquitto on a port of its own, with what else its configuration says.
pub struct Mosquitto {
    pub process: Running,
    pub addr: SocketAddr,
    _folder: TempDir,
}

impl Mosquitto {
    pub async fn start(more: &str) -> Self {
        Self::start_at(free_port(), more).await
    }

    pub async fn start_at(addr: SocketAddr, more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mosquitto.conf");
        let text = format!(
            "per_listener_settings false\nlistener {} 127.0.0.1\npersistence false\nmax_queued_messages 0\n{more}\n",
            addr.port()
        );
        std::fs::write(&path, text).expect("writable");
        let mut command = tool("mosquitto");
        command.arg("-c").arg(&path);
        let process = Running::start(command);
        until("mosquitto listens", async || tokio::net::TcpStream::connect(addr).await.is_ok())
            .await;
        Self { process, addr, _folder: folder }
    }
}

/// A port nobody has now, and that the system gives to nobody who leaves the choice to it: those begin at 32768.
pub fn free_port() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let ports = (0..20_000).map(|_| {
        let place =
            std::process::id().wrapping_mul(61).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        SocketAddr::from(([127, 0, 0, 1], 10_000 + (place % 20_000) as u16))
    });
    let mut free = ports.filter(|addr| std::net::TcpListener::bind(addr).is_ok());
    free.next().expect("one of so many is free")
}

/// Anybody may come in.
pub const OPEN: &str = "allow_anonymous true";
