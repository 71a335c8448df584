//! One message to many, written with one system call where the system lets us, and without where it does not or fails.

use std::net::SocketAddr;

use crate::support::http;
use crate::support::outpost::{Running, address, binary};
use crate::support::tools::tool;
use crate::support::until;
use crate::support::wire::{Wire, framed};

const SUBSCRIBERS: usize = 40;
const MESSAGES: u32 = 200;

/// A node whose calls of `io_uring` go as `strace` is told: what it serves MQTT and HTTP on.
async fn start(data: &std::path::Path, inject: &[&str]) -> (Running, SocketAddr, SocketAddr) {
    // As a grandchild: the process that is started here is the node itself.
    let mut command = tool("strace");
    command.args([
        "-D",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=io_uring_setup,io_uring_enter",
    ]);
    for inject in inject {
        command.args(["-e", &format!("inject={inject}")]);
    }
    command.arg(binary()).args(["dev", "--mqtt-port", "0", "--http-port", "0", "--data-dir"]);
    command.arg(data).env("NO_COLOR", "1");
    let mut node = Running::start(command);
    node.says("Ctrl-C stops it.").await;
    let at = |words: &str| address(&node.out.with(words)[0]);
    let (mqtt, web) = (at("MQTT 3.1.1 and 5"), at("HTTP  "));
    (node, mqtt, web)
}

async fn subscribe(mqtt: SocketAddr, id: &str) -> Wire {
    let mut wire = Wire::connected_v4(mqtt, id).await;
    wire.send(&framed(0x82, b"\0\x01\0\x01t\0")).await;
    assert_eq!(wire.packet().await.expect("a SUBACK")[0], 0x90);
    wire
}

fn message(number: u32) -> Vec<u8> {
    framed(0x30, &[b"\0\x01t", &number.to_be_bytes()[..]].concat())
}

/// Connections that were written to with others in one call, after each of many has got each of many messages, in order.
async fn written_together(inject: &[&str]) -> u64 {
    let folder = tempfile::tempdir().expect("a folder");
    let (node, mqtt, web) = start(folder.path(), inject).await;
    let mut subscribers = Vec::new();
    for number in 0..SUBSCRIBERS {
        subscribers.push(subscribe(mqtt, &format!("subscriber-{number}")).await);
    }
    let mut publisher = Wire::connected_v4(mqtt, "publisher").await;
    for number in 0..MESSAGES {
        publisher.send(&message(number)).await;
        for subscriber in &mut subscribers {
            assert_eq!(subscriber.packet().await, Some(message(number)), "{inject:?}");
        }
    }
    let all = u64::from(MESSAGES) * SUBSCRIBERS as u64;
    let mut together = 0;
    until("all are counted as delivered", async || {
        let (_, stats) = http::get(web, "/api/v1/stats").await;
        together = stats["sends_together_total"].as_u64().expect("a count");
        stats["messages"]["delivered_total"].as_u64() >= Some(all)
    })
    .await;
    assert!(node.terminate().await.success(), "{inject:?}");
    together
}

#[tokio::test(flavor = "multi_thread")]
async fn many_are_written_to_in_one_call_and_nothing_is_lost_where_that_fails() {
    let all = u64::from(MESSAGES) * SUBSCRIBERS as u64;
    let together = written_together(&[]).await;
    assert!(
        together == 0 || together >= all,
        "all but the first are due at once: {together} of {all}"
    );
    assert_eq!(written_together(&["io_uring_setup:error=EPERM"]).await, 0);
    if together == 0 {
        return eprintln!("this system has no io_uring");
    }
    let interrupted = written_together(&["io_uring_enter:error=EINTR:when=2+2"]).await;
    assert!(interrupted >= all, "{interrupted} of {all}");
    // From the fifth call on it fails for good: the ring is given up, what it did not send is sent by itself.
    let given_up = written_together(&["io_uring_enter:error=ENOMEM:when=5+"]).await;
    assert!((1..all).contains(&given_up), "{given_up} of {all}");
}
