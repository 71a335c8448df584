//! One HTTP request, as simple as HTTP/1.1 allows.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::within;

/// Status and body of `GET`.
pub async fn get(server: SocketAddr, path: &str) -> (u16, Value) {
    ask(server, "GET", path, "").await
}

/// Status and body of `POST`.
pub async fn post(server: SocketAddr, path: &str, body: &str) -> (u16, Value) {
    ask(server, "POST", path, body).await
}

/// Status and body; a body that is no JSON is a text.
pub async fn ask(server: SocketAddr, method: &str, path: &str, body: &str) -> (u16, Value) {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer =
        within(path, exchange).await.unwrap_or_else(|why| panic!("{method} {path}: {why}"));
    let answer = String::from_utf8(answer).expect("the node speaks UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    assert!(
        !head.to_lowercase().contains("transfer-encoding: chunked"),
        "chunks are not understood here"
    );
    (status, serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned())))
}
