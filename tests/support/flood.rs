//! Clients for overload: many that do nothing, one that reads nothing, and those that send without end. Raw bytes, so that
//! no library's own limits stand before the node's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::wire::{Wire, connect, framed};

/// What flooders saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Bytes the node took.
    pub bytes: AtomicU64,
    /// PUBACKs that said success.
    pub taken: AtomicU64,
    /// PUBACKs that said 0x97.
    pub refused: AtomicU64,
    /// Writes that TCP held back for longer than [`HELD_BACK`].
    pub held_back: AtomicU64,
    /// Connections that ended.
    pub ended: AtomicU64,
    pub stop: AtomicBool,
}

/// A write that takes longer was held back.
pub const HELD_BACK: Duration = Duration::from_millis(100);

/// How many publishes one flooder of QoS 1 has open: the node's receive maximum.
const WINDOW: u16 = 64;

const PAYLOAD_BYTES: usize = 256;

/// Sends a CONNECT with a keep alive that outlasts every story.
pub async fn silent(server: SocketAddr, id: &str) -> Wire {
    let mut wire = Wire::open(server).await;
    let mut packet = connect(5, id);
    packet[10..12].copy_from_slice(&3_600_u16.to_be_bytes());
    wire.send(&packet).await;
    wire
}

/// Clients that connect and then say nothing.
pub async fn idle(server: SocketAddr, count: usize) -> Vec<Wire> {
    let mut clients = Vec::with_capacity(count);
    for number in 0..count {
        clients.push(silent(server, &format!("idle-{number}")).await);
        if clients.len() % 100 == 0 {
            for wire in clients.iter_mut().rev().take(100) {
                assert_eq!(wire.packet().await.expect("CONNACK")[0], 0x20);
            }
        }
    }
    clients
}

/// Sends QoS 0 (even numbers) or QoS 1 (odd) to a topic until told to stop.
pub async fn flooder(server: SocketAddr, number: usize, topic: String, seen: Arc<Seen>) {
    let result = match number % 2 {
        0 => flood_0(server, number, &topic, &seen).await,
        _ => flood_1(server, number, &topic, &seen).await,
    };
    if result.is_err() {
        seen.ended.fetch_add(1, Ordering::Relaxed);
    }
}

async fn open(server: SocketAddr, number: usize) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&connect(5, &format!("flooder-{number}"))).await?;
    let mut head = [0; 2];
    stream.read_exact(&mut head).await?;
    let mut rest = vec![0; usize::from(head[1])];
    stream.read_exact(&mut rest).await?;
    Ok(stream)
}

fn publish(topic: &str, qos: u8, id: u16) -> Vec<u8> {
    let mut body = (topic.len() as u16).to_be_bytes().to_vec();
    body.extend_from_slice(topic.as_bytes());
    if qos > 0 {
        body.extend_from_slice(&id.to_be_bytes());
    }
    body.push(0);
    body.resize(body.len() + PAYLOAD_BYTES, b'x');
    framed(0x30 | qos << 1, &body)
}

async fn write(stream: &mut TcpStream, bytes: &[u8], seen: &Seen) -> std::io::Result<()> {
    let began = Instant::now();
    // In pieces: to stop must not have to wait for a node that does not read.
    for piece in bytes.chunks(4_096) {
        loop {
            match tokio::time::timeout(Duration::from_millis(500), stream.write(piece)).await {
                // What is not whole breaks the framing; only the last write of all may be so.
                Ok(written) => {
                    let written = written?;
                    stream_rest(stream, &piece[written..], seen).await?;
                    break;
                }
                Err(_) if seen.stop.load(Ordering::Relaxed) => return Ok(()),
                Err(_) => {}
            }
        }
    }
    seen.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    if began.elapsed() > HELD_BACK {
        seen.held_back.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

async fn stream_rest(stream: &mut TcpStream, mut rest: &[u8], seen: &Seen) -> std::io::Result<()> {
    while !rest.is_empty() {
        match tokio::time::timeout(Duration::from_millis(500), stream.write(rest)).await {
            Ok(written) => rest = &rest[written?..],
            Err(_) if seen.stop.load(Ordering::Relaxed) => return Ok(()),
            Err(_) => {}
        }
    }
    Ok(())
}

async fn flood_0(
    server: SocketAddr,
    number: usize,
    topic: &str,
    seen: &Seen,
) -> std::io::Result<()> {
    let mut stream = open(server, number).await?;
    let burst = publish(topic, 0, 0).repeat(200);
    while !seen.stop.load(Ordering::Relaxed) {
        write(&mut stream, &burst, seen).await?;
    }
    Ok(())
}

async fn flood_1(
    server: SocketAddr,
    number: usize,
    topic: &str,
    seen: &Seen,
) -> std::io::Result<()> {
    let mut stream = open(server, number).await?;
    let burst: Vec<u8> = (1..=WINDOW).flat_map(|id| publish(topic, 1, id)).collect();
    while !seen.stop.load(Ordering::Relaxed) {
        write(&mut stream, &burst, seen).await?;
        for _ in 0..WINDOW {
            let Some(reason) = puback(&mut stream, seen).await? else { return Ok(()) };
            let counter = if reason < 0x80 { &seen.taken } else { &seen.refused };
            assert!(reason < 0x80 || reason == 0x97, "PUBACK says {reason:#x}");
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// The reason in the next PUBACK; `None`: it is time to stop.
async fn puback(stream: &mut TcpStream, seen: &Seen) -> std::io::Result<Option<u8>> {
    let mut head = [0; 2];
    loop {
        match tokio::time::timeout(Duration::from_millis(500), stream.readable()).await {
            Ok(ready) => {
                ready?;
                break;
            }
            Err(_) if seen.stop.load(Ordering::Relaxed) => return Ok(None),
            Err(_) => {}
        }
    }
    stream.read_exact(&mut head).await?;
    let mut rest = vec![0; usize::from(head[1])];
    stream.read_exact(&mut rest).await?;
    Ok(Some(rest.get(2).copied().unwrap_or(0)))
}
