//! One link: a QUIC connection between two nodes that know each other, from its admission to its end.
//!
//! ```text
//!   try_send ─► queue per lane ─► one unidirectional stream per lane ~~~► read task per lane ─► PeerSink::frame
//!   Swim ─────────────────────► datagrams ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~► Swim
//! ```
//! The side that was dialled admits first and opens its streams; the dialler takes that as its welcome.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use outpost_membership::Lane;
use quinn::{Connection, RecvStream, SendStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::cluster::Context;
use crate::frame::{self, FrameError, HEADER_BYTES, Header};
use crate::links::new_one_wins;
use crate::membership::Gossip;
use crate::sink::{
    CLOSED_BAD_FRAME, CLOSED_BY_NODE, CLOSED_DUPLICATE, CLOSED_NOT_A_NODE, CLOSED_SELF, LinkHandle,
    PeerInfo,
};
use crate::stats::{LANES, bump, lane_index, lane_name};
use crate::tls;

/// How long a peer may take to open its three streams. Longer: a stuck peer is kept as a half-open link.
const WELCOME_MAX: Duration = Duration::from_secs(3);
/// How long a new connection waits for the one it replaces to say goodbye.
const SEAT_MAX: Duration = Duration::from_secs(5);

/// How a connection ended, for whoever dialled it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was a link for a while.
    WasUp,
    /// It never became one.
    Refused,
    /// The node at that address is this node.
    Myself,
}

/// Runs a connection until it ends.
pub(crate) async fn run(context: Arc<Context>, connection: Connection, dialled: bool) -> Ended {
    let Some(identity) = tls::peer_identity(&connection) else {
        context.refuse(connection.remote_address(), "it showed no certificate of a node");
        connection.close(CLOSED_NOT_A_NODE, b"a link needs a node's certificate");
        return Ended::Refused;
    };
    let peer = PeerInfo {
        id: tls::node_id(&identity),
        name: identity.name,
        addr: connection.remote_address(),
        certificate_expires_s: identity.not_after_s,
        dialled,
    };
    if peer.id == context.id {
        connection.close(CLOSED_SELF, b"that is me");
        return Ended::Myself;
    }
    let mut incoming = Vec::new();
    let mut under_way = None;
    if dialled {
        under_way = context.links.answered(peer.id);
        match timeout(WELCOME_MAX, connection.accept_uni()).await {
            Ok(Ok(first)) => incoming.push(first),
            _ => return Ended::Refused,
        }
    }
    if !dialled && context.id < peer.id && context.links.is_answering(peer.id) {
        connection.close(CLOSED_DUPLICATE, b"my own connection to you is about to be the link");
        return Ended::Refused;
    }
    let old = context.links.get(peer.id).map(|old| old.peer().dialled);
    if !new_one_wins(context.id, peer.id, old, dialled) {
        connection.close(CLOSED_DUPLICATE, b"there is a link already");
        return Ended::Refused;
    }
    let Some((counters, seat)) = context.links.peer(peer.id, &peer.name) else {
        connection.close(CLOSED_BY_NODE, b"too many links");
        return Ended::Refused;
    };
    if let Some(old) = context.links.get(peer.id) {
        old.shared().connection.close(CLOSED_DUPLICATE, b"replaced by a newer connection");
    }
    let Ok(_seat) = timeout(SEAT_MAX, seat.lock_owned()).await else { return Ended::Refused };
    let link = LinkHandle::new(peer, connection.clone(), counters, &context.config.limits);
    let Ok(streams) = open_streams(&connection).await else { return Ended::Refused };
    let _up = Up::begin(&context, &link);
    drop(under_way);
    carry(&context, &link, streams, incoming).await;
    Ended::WasUp
}

/// While this lives the link is in the table and the node knows of it; a panic too ends in `drop`.
struct Up {
    context: Arc<Context>,
    link: LinkHandle,
}

impl Up {
    fn begin(context: &Arc<Context>, link: &LinkHandle) -> Self {
        let peer = link.peer();
        tracing::info!(peer = %peer.name, addr = %peer.addr, dialled = peer.dialled, "link is up");
        bump(&context.counters.links_opened);
        context.links.set(peer.id, Some(link.clone()));
        let up = Self { context: Arc::clone(context), link: link.clone() };
        context.sink.peer_up(peer.clone(), link.clone());
        context.gossip(Gossip::LinkUp(peer.id));
        up
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let peer = self.link.peer();
        let connection = &self.link.shared().connection;
        let why = connection
            .close_reason()
            .map_or_else(|| "its task ended".to_owned(), |reason| reason.to_string());
        connection.close(CLOSED_BY_NODE, b"the link's task ended");
        self.link.close_queues();
        self.context.links.set(peer.id, None);
        bump(&self.context.counters.links_lost);
        tracing::info!(peer = %peer.name, %why, "link is down");
        let sink = &self.context.sink;
        if std::panic::catch_unwind(AssertUnwindSafe(|| sink.peer_down(peer.id))).is_err() {
            tracing::error!(peer = %peer.name, "the node panicked when it heard that the link is down");
        }
    }
}

/// Opens the three streams, each with a first byte that says its lane.
async fn open_streams(connection: &Connection) -> Result<[SendStream; 3], quinn::ConnectionError> {
    let mut streams = Vec::with_capacity(3);
    for lane in LANES {
        let mut stream = connection.open_uni().await?;
        let _ = stream.set_priority(2 - lane_index(lane) as i32);
        // An error here is an error of the connection, and the writer meets it again.
        let _ = stream.write_all(&[lane_index(lane) as u8]).await;
        streams.push(stream);
    }
    Ok(streams.try_into().unwrap_or_else(|_| unreachable!("one stream per lane")))
}

/// Moves frames until the connection ends; whatever task ends first ends it.
async fn carry(
    context: &Arc<Context>,
    link: &LinkHandle,
    outgoing: [SendStream; 3],
    incoming: Vec<RecvStream>,
) {
    let mut tasks = JoinSet::new();
    for (lane, stream) in LANES.into_iter().zip(outgoing) {
        tasks.spawn(write_lane(Arc::clone(context), link.clone(), lane, stream));
    }
    tasks.spawn(read_datagrams(Arc::clone(context), link.clone()));
    let connection = &link.shared().connection;
    let mut readers = incoming.len();
    for stream in incoming {
        tasks.spawn(read_lane(Arc::clone(context), link.clone(), stream));
    }
    loop {
        tokio::select! {
            biased;
            ended = tasks.join_next() => {
                if let Some(Err(error)) = ended && error.is_panic() {
                    bump(&context.counters.link_panics);
                    tracing::error!(peer = %link.peer().name, "a task of the link panicked; the link restarts");
                }
                break;
            }
            stream = connection.accept_uni(), if readers < LANES.len() => {
                let Ok(stream) = stream else { break };
                readers += 1;
                tasks.spawn(read_lane(Arc::clone(context), link.clone(), stream));
            }
        }
    }
    // Not before the last frame under way is handed over may the node hear that the link is down.
    tasks.shutdown().await;
}

async fn write_lane(context: Arc<Context>, link: LinkHandle, lane: Lane, mut stream: SendStream) {
    while let Some((bytes, frames)) = link.queue(lane).next().await {
        let length = bytes.len();
        if stream.write_chunk(bytes).await.is_err() {
            return;
        }
        link.shared().counters.sent(lane).count(length, frames);
        if link.queue(lane).written(length) {
            context.sink.writable(link.peer().id, lane);
        }
    }
}

async fn read_lane(context: Arc<Context>, link: LinkHandle, mut stream: RecvStream) {
    let Some(lane) = lane_of(&mut stream).await else { return };
    let mut stream = FrameReader { stream, buffer: BytesMut::new() };
    loop {
        let (header, body) = match stream.next().await {
            Ok(Some(next)) => next,
            Ok(None) => return,
            Err(error) => return bad_frame(&context, &link, lane, &error),
        };
        link.shared().counters.received(lane).count(HEADER_BYTES + body.len(), 1);
        match frame::decode_body(header, &body) {
            Ok(Some(frame)) if frame.lane() == lane => {
                context.sink.frame(link.peer().id, frame).await
            }
            Ok(None) => {
                tracing::debug!(peer = %link.peer().name, kind = header.kind, "skipped a frame newer than this node")
            }
            Ok(Some(_)) => {
                return bad_frame(
                    &context,
                    &link,
                    lane,
                    &FrameError::Invalid { kind: header.kind, field: "lane" },
                );
            }
            Err(error) => return bad_frame(&context, &link, lane, &error),
        }
    }
}

fn bad_frame(context: &Context, link: &LinkHandle, lane: Lane, error: &FrameError) {
    bump(&context.counters.bad_frames);
    tracing::warn!(peer = %link.peer().name, lane = lane_name(lane), %error, "the link is closed for a bad frame");
    link.shared().connection.close(CLOSED_BAD_FRAME, error.to_string().as_bytes());
}

async fn lane_of(stream: &mut RecvStream) -> Option<Lane> {
    let mut index = [0];
    stream.read_exact(&mut index).await.ok()?;
    LANES.get(usize::from(index[0])).copied()
}

/// Cuts a stream into frames with few reads; never holds more than one frame and one read.
struct FrameReader {
    stream: RecvStream,
    buffer: BytesMut,
}

/// How much is read at once. Lower: more wake-ups. Higher: more memory per lane.
const READ_BYTES_MAX: usize = 64 * 1024;

impl FrameReader {
    /// The next frame, or nothing when the stream ended.
    async fn next(&mut self) -> Result<Option<(Header, Bytes)>, FrameError> {
        if !self.fill(HEADER_BYTES).await {
            return Ok(None);
        }
        let header: [u8; HEADER_BYTES] =
            self.buffer[..HEADER_BYTES].try_into().expect("just filled");
        let header = frame::decode_header(header)?;
        if !self.fill(HEADER_BYTES + header.length).await {
            return Ok(None);
        }
        let mut whole = self.buffer.split_to(HEADER_BYTES + header.length).freeze();
        Ok(Some((header, whole.split_off(HEADER_BYTES))))
    }

    /// Reads until the buffer holds this much; `false` when the stream ends before.
    async fn fill(&mut self, wanted: usize) -> bool {
        while self.buffer.len() < wanted {
            match self.stream.read_chunk(READ_BYTES_MAX, true).await {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk.bytes),
                _ => return false,
            }
        }
        true
    }
}

async fn read_datagrams(context: Arc<Context>, link: LinkHandle) {
    while let Ok(packet) = link.shared().connection.read_datagram().await {
        context.gossip(Gossip::Packet(link.peer().id, packet));
    }
}
