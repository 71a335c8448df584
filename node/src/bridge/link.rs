//! One side of a bridge as packets: a stream, what has come of the next packet, and what is not written yet.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use outpost_mqtt::codec::{Decoder, encode_within};
use outpost_mqtt::error::{DecodeError, TooLarge};
use outpost_mqtt::packet::{Packet, ReasonCode, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Read at once.
const READ_BYTES: usize = 16 * 1024;
/// Reads before it is the other side's turn. More: one side's flood waits longer in the other's buffer; fewer: more turns.
const READS_PER_TURN_MAX: usize = 8;

/// Why a link ended. What was not acknowledged is sent again on the next.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No address, or no answer.
    #[error("cannot connect to {address}: {why}")]
    Connect {
        /// Where to.
        address: String,
        /// What the operating system says.
        why: String,
    },
    /// No TLS session.
    #[error("no TLS with {address}: {source}")]
    Tls {
        /// Who with.
        address: String,
        /// What rustls says.
        source: io::Error,
    },
    /// CONNACK with a refusal.
    #[error("{who} refused the connection: {reason:?}{text}")]
    Refused {
        /// The broker, or this node.
        who: String,
        /// Why.
        reason: ReasonCode,
        /// In its words.
        text: String,
    },
    /// It closed the connection without a word.
    #[error("{0} closed the connection")]
    Closed(&'static str),
    /// The connection broke.
    #[error("the connection to {who} broke: {source}")]
    Broke {
        /// The broker, or this node.
        who: &'static str,
        /// How.
        source: io::Error,
    },
    /// What it sent is no MQTT.
    #[error("{who} sent what cannot be read: {source}")]
    Unreadable {
        /// The broker, or this node.
        who: &'static str,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// It did not answer in time.
    #[error("nothing was heard from {who} for {ms} ms")]
    Silent {
        /// The broker, or this node.
        who: &'static str,
        /// How long.
        ms: u64,
    },
    /// The data plane is being restarted.
    #[error("this node's data plane does not take connections now")]
    Plane,
    /// Something else, in words.
    #[error("{0}")]
    Other(String),
}

/// What moved in a turn.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moved {
    /// Bytes came.
    pub read: bool,
    /// Bytes left that had had to wait: the other end takes them.
    pub freed: bool,
    any: bool,
}

/// A stream of packets.
pub struct Wire<S> {
    who: &'static str,
    stream: S,
    decoder: Decoder,
    version: Version,
    packet_max: u32,
    input: Vec<u8>,
    /// So many bytes of it are taken already.
    taken: usize,
    output: Vec<u8>,
    written: usize,
    blocked: bool,
    unflushed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// The client's end of a stream. `packet_max` bounds what is taken; the other's limit comes with its CONNACK.
    pub fn new(who: &'static str, stream: S, version: Version, packet_max: u32) -> Self {
        Self {
            who,
            stream,
            decoder: Decoder::for_client(version, packet_max),
            version,
            packet_max: u32::MAX,
            input: Vec::new(),
            taken: 0,
            output: Vec::new(),
            written: 0,
            blocked: false,
            unflushed: false,
        }
    }

    /// The other side takes packets of at most this size.
    pub fn set_packet_max(&mut self, packet_max: Option<u32>) {
        self.packet_max = packet_max.unwrap_or(u32::MAX);
    }

    /// Queues a packet.
    ///
    /// # Errors
    /// [`TooLarge`]; nothing was queued.
    pub fn put(&mut self, packet: &Packet) -> Result<(), TooLarge> {
        encode_within(packet, self.version, self.packet_max, &mut self.output)
    }

    /// Bytes that are not written yet.
    pub fn waiting(&self) -> usize {
        self.output.len() - self.written
    }

    /// The next whole packet that has come.
    ///
    /// # Errors
    /// [`LinkError::Unreadable`].
    pub fn take(&mut self) -> Result<Option<Packet>, LinkError> {
        let mut rest = &self.input[self.taken..];
        let packet = self.decoder.decode(&mut rest);
        self.taken = self.input.len() - rest.len();
        packet.map_err(|source| LinkError::Unreadable { who: self.who, source })
    }

    /// Writes what waits, and reads when `read`, as far as the stream goes along.
    pub fn poll(&mut self, cx: &mut Context<'_>, read: bool) -> Poll<Result<Moved, LinkError>> {
        let mut moved = Moved::default();
        self.write(cx, &mut moved).map_err(|source| LinkError::Broke { who: self.who, source })?;
        if read {
            self.read(cx, &mut moved)?;
        }
        if moved.any { Poll::Ready(Ok(moved)) } else { Poll::Pending }
    }

    /// Waits for the next packet, for handshakes.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn next(&mut self) -> Result<Packet, LinkError> {
        loop {
            if let Some(packet) = self.take()? {
                return Ok(packet);
            }
            std::future::poll_fn(|cx| self.poll(cx, true)).await?;
        }
    }

    fn write(&mut self, cx: &mut Context<'_>, moved: &mut Moved) -> io::Result<()> {
        while self.written < self.output.len() {
            let rest = &self.output[self.written..];
            match Pin::new(&mut self.stream).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(result) => {
                    self.written += result?;
                    moved.freed |= std::mem::take(&mut self.blocked);
                    (moved.any, self.unflushed) = (true, true);
                }
                Poll::Pending => {
                    self.blocked = true;
                    break;
                }
            }
        }
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
        }
        if self.unflushed
            && let Poll::Ready(result) = Pin::new(&mut self.stream).poll_flush(cx)
        {
            result?;
            self.unflushed = false;
        }
        Ok(())
    }

    fn read(&mut self, cx: &mut Context<'_>, moved: &mut Moved) -> Result<(), LinkError> {
        self.input.drain(..std::mem::take(&mut self.taken));
        let mut buffer = [0; READ_BYTES];
        for _ in 0..READS_PER_TURN_MAX {
            let mut read = ReadBuf::new(&mut buffer);
            match Pin::new(&mut self.stream).poll_read(cx, &mut read) {
                Poll::Pending => break,
                Poll::Ready(Err(source)) => {
                    return Err(LinkError::Broke { who: self.who, source });
                }
                // What came before the end is looked at first.
                Poll::Ready(Ok(())) if read.filled().is_empty() && moved.read => break,
                Poll::Ready(Ok(())) if read.filled().is_empty() => {
                    return Err(LinkError::Closed(self.who));
                }
                Poll::Ready(Ok(())) => {
                    self.input.extend_from_slice(read.filled());
                    (moved.read, moved.any) = (true, true);
                }
            }
        }
        Ok(())
    }

    /// Writes everything that waits and says good-bye to the stream.
    ///
    /// # Errors
    /// [`LinkError::Broke`].
    pub async fn close(mut self) -> Result<(), LinkError> {
        let who = self.who;
        std::future::poll_fn(|cx| {
            let mut moved = Moved::default();
            self.write(cx, &mut moved)?;
            if self.waiting() > 0 || self.unflushed {
                return Poll::Pending;
            }
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            Poll::Ready(Ok(()))
        })
        .await
        .map_err(|source| LinkError::Broke { who, source })
    }
}
