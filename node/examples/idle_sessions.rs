//! Opens many idle clients over TCP, mutual TLS or QUIC, and says what each costs a running node in resident memory.
//!
//! ```sh
//! cargo run --release -p outpost-node --example idle_sessions -- tls 127.0.0.1:8883 1000 $(pidof outpost) ca.pem lamp.pem lamp.key
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

type Failure = Box<dyn std::error::Error>;

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [transport, server, count, pid, ca, cert, key] = arguments.as_slice() else {
        return Err("arguments: tcp|tls|quic ADDRESS COUNT PID CA CERT KEY".into());
    };
    let server: SocketAddr = server.parse()?;
    let count: u64 = count.parse()?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(
            CertificateDer::pem_file_iter(cert)?.collect::<Result<_, _>>()?,
            PrivateKeyDer::from_pem_file(key)?,
        )?;
    config.alpn_protocols = vec![b"mqtt".to_vec()];
    let quic = quinn::crypto::rustls::QuicClientConfig::try_from(config.clone())?;
    let quic = quinn::ClientConfig::new(Arc::new(quic));
    let endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config));

    let mut clients: Vec<Box<dyn Stream>> = Vec::new();
    // The first hundred warm up what all share: the allocator, tables, code.
    let mut before = 0;
    for number in 0..count + 100 {
        if number == 100 {
            before = resident_bytes(pid)?;
        }
        let mut stream: Box<dyn Stream> = match transport.as_str() {
            "tcp" => Box::new(TcpStream::connect(server).await?),
            "tls" => {
                let name = ServerName::try_from("localhost")?;
                Box::new(tls.connect(name, TcpStream::connect(server).await?).await?)
            }
            "quic" => {
                let connecting = endpoint.connect_with(quic.clone(), server, "localhost")?;
                let (send, receive) = connecting.await?.open_bi().await?;
                Box::new(tokio::io::join(receive, send))
            }
            other => return Err(format!("{other}: known are tcp, tls, quic").into()),
        };
        enter(&mut stream, &format!("idle-{number:06}")).await?;
        clients.push(stream);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = resident_bytes(pid)?;
    let each = after.saturating_sub(before) / count;
    println!(
        "{transport}: {count} idle sessions with one subscription, {each} bytes each ({before} before, {after} after)"
    );
    Ok(())
}

/// CONNECT of MQTT 3.1.1, and a subscription.
async fn enter(stream: &mut Box<dyn Stream>, id: &str) -> Result<(), Failure> {
    let mut connect = b"\x10\x17\x00\x04MQTT\x04\x02\x00\x00\x00\x0b".to_vec();
    connect.extend_from_slice(id.as_bytes());
    let subscribe = [&b"\x82\x10\x00\x01\x00\x0b"[..], id.as_bytes(), b"\0"].concat();
    stream.write_all(&connect).await?;
    stream.flush().await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    if answer != [0x20, 2, 0, 0] {
        return Err(format!("CONNACK is {answer:x?}").into());
    }
    stream.write_all(&subscribe).await?;
    stream.flush().await?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await?;
    Ok(())
}

fn resident_bytes(pid: &str) -> Result<u64, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
    Ok(kilobytes * 1024)
}
