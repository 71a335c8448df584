//! Clients over TLS or QUIC that do nothing: what an idle session costs in memory, and what somebody costs who has shaken
//! hands and says no more.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::server::{Reading, resident};
use crate::{Figures, wire};

/// The first load the code and the tables that all share.
const FIRST: usize = 100;

/// What they cost is looked at after this, before a server cuts strangers off.
const SETTLE: Duration = Duration::from_millis(1_500);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Over {
    Tls,
    Quic,
}

#[derive(Debug, Clone, Args)]
pub struct Secured {
    #[arg(long, value_enum)]
    over: Over,
    #[arg(long, default_value_t = 1_000)]
    connections: usize,
    /// They shake hands and do not say CONNECT.
    #[arg(long)]
    strangers: bool,
    /// PEM files: who signed the server's certificate, and the clients' own.
    #[arg(long)]
    ca: PathBuf,
    #[arg(long)]
    cert: PathBuf,
    #[arg(long)]
    key: PathBuf,
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// What keeps one connection open.
enum Client {
    Session { _stream: Box<dyn Stream> },
    Stranger { connection: quinn::Connection },
}

/// How clients come in.
struct Way {
    server: SocketAddr,
    over: Over,
    tls: TlsConnector,
    quic: quinn::ClientConfig,
    endpoint: quinn::Endpoint,
}

pub fn run(server: SocketAddr, pid: u32, asked: &Secured) -> io::Result<Figures> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(server, pid, asked))
}

async fn measure(server: SocketAddr, pid: u32, asked: &Secured) -> io::Result<Figures> {
    let way = Way::new(server, asked)?;
    let mut clients = Vec::with_capacity(asked.connections + FIRST);
    for number in 0..FIRST {
        clients.push(way.enter(number, false).await?);
    }
    tokio::time::sleep(SETTLE).await;
    let (reading, before) = (Reading::new(pid), resident(pid));
    for number in FIRST..FIRST + asked.connections {
        clients.push(way.enter(number, asked.strangers).await?);
    }
    tokio::time::sleep(SETTLE).await;
    let after = resident(pid);
    let gone = clients.iter().filter(|client| client.is_gone()).count();
    let mut figures = vec![
        ("rss_bytes_per_connection", (after - before) / asked.connections as f64),
        ("rss_mb", after / 1e6),
        ("lost", gone as f64),
    ];
    figures.extend(reading.since(pid, asked.connections as u64).into_iter().skip(1));
    Ok(figures)
}

impl Client {
    fn is_gone(&self) -> bool {
        matches!(self, Self::Stranger { connection } if connection.close_reason().is_some())
    }
}

impl Way {
    fn new(server: SocketAddr, asked: &Secured) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(&asked.ca).map_err(io::Error::other)?)
            .map_err(io::Error::other)?;
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_file_iter(&asked.cert).map_err(io::Error::other)?.collect();
        let key = PrivateKeyDer::from_pem_file(&asked.key).map_err(io::Error::other)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain.map_err(io::Error::other)?, key)
            .map_err(io::Error::other)?;
        config.alpn_protocols = vec![b"mqtt".to_vec()];
        let quic = QuicClientConfig::try_from(config.clone()).map_err(io::Error::other)?;
        Ok(Self {
            server,
            over: asked.over,
            tls: TlsConnector::from(Arc::new(config)),
            quic: quinn::ClientConfig::new(Arc::new(quic)),
            endpoint: quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0)))?,
        })
    }

    async fn enter(&self, number: usize, is_stranger: bool) -> io::Result<Client> {
        let mut stream: Box<dyn Stream> = match self.over {
            Over::Tls => {
                let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
                Box::new(self.tls.connect(name, TcpStream::connect(self.server).await?).await?)
            }
            Over::Quic => {
                let config = self.quic.clone();
                let connecting = self.endpoint.connect_with(config, self.server, "localhost");
                let connection = connecting.map_err(io::Error::other)?.await?;
                if is_stranger {
                    return Ok(Client::Stranger { connection });
                }
                let (send, receive) = connection.open_bi().await?;
                Box::new(tokio::io::join(receive, send))
            }
        };
        if !is_stranger {
            let (id, filter) = (format!("idle-{number}"), format!("idle/{number}/command"));
            let mut out = Vec::new();
            wire::connect(&mut out, &id, true);
            ask(&mut stream, &out, wire::CONNACK).await?;
            out.clear();
            wire::subscribe(&mut out, &filter, 0);
            ask(&mut stream, &out, wire::SUBACK).await?;
        }
        Ok(Client::Session { _stream: stream })
    }
}

/// Sends a packet and waits for the answer.
async fn ask(stream: &mut Box<dyn Stream>, packet: &[u8], answer: u8) -> io::Result<()> {
    stream.write_all(packet).await?;
    stream.flush().await?;
    let mut got = Vec::new();
    loop {
        if stream.read_buf(&mut got).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(frame) = wire::Frame::take(&mut &got[..]) {
            let is_it = frame.kind == answer;
            let other =
                || io::Error::other(format!("instead of packet type {answer} came {frame:?}"));
            return is_it.then_some(()).ok_or_else(other);
        }
    }
}
