//! A client there is no room for hears so, where it costs little: over plain TCP its CONNECT is read and answered.

use std::sync::Arc;
use std::time::Duration;

use outpost_mqtt::codec::{Decoder, encode};
use outpost_mqtt::packet::{Connack, Packet, ReasonCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Clients of one listener that are told at once; others are closed without a word. Fewer: in a storm hardly anybody hears
/// why; more: file descriptors that the store may need.
pub const COURTESIES_MAX: usize = 16;

/// How long one may take. Shorter: a client far away does not hear it; longer: whoever says nothing holds a place.
const TIME_MAX: Duration = Duration::from_secs(1);

/// Read at once.
const READ_BYTES: usize = 1_024;

/// Who is being told.
#[derive(Debug, Clone)]
pub struct Courtesies(Arc<Semaphore>);

impl Default for Courtesies {
    /// Nobody yet.
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(COURTESIES_MAX)))
    }
}

impl Courtesies {
    /// What to do with a client there is no room for: tell it, when there is room for that. `bytes_max` bounds what is read.
    pub fn tell(
        &self,
        stream: TcpStream,
        bytes_max: usize,
    ) -> Option<impl Future<Output = ()> + use<>> {
        let place = Arc::clone(&self.0).try_acquire_owned().ok()?;
        Some(async move {
            // One that is slow or breaks the rules goes without.
            let _ = timeout(TIME_MAX, answer(stream, bytes_max)).await;
            drop(place);
        })
    }
}

async fn answer(mut stream: TcpStream, bytes_max: usize) -> std::io::Result<()> {
    let mut decoder = Decoder::new(u32::try_from(bytes_max).unwrap_or(u32::MAX));
    let mut input = Vec::new();
    let version = loop {
        let before = input.len();
        input.resize(before + READ_BYTES, 0);
        let count = stream.read(&mut input[before..]).await?;
        input.truncate(before + count);
        match decoder.decode(&mut &input[..]) {
            Ok(Some(Packet::Connect(connect))) => break connect.version,
            Ok(None) if count > 0 && input.len() < bytes_max => {}
            _ => return Ok(()),
        }
    };
    // 3.1.1 hears 0x03, server unavailable.
    let connack = Connack { reason: ReasonCode::QuotaExceeded, ..Connack::default() };
    let mut output = Vec::new();
    encode(&Packet::Connack(Box::new(connack)), version, &mut output);
    stream.write_all(&output).await?;
    stream.shutdown().await?;
    // Closed with something unread, the answer could be lost.
    let mut rest = [0; READ_BYTES];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}
