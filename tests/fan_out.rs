//! One message to many, written with one system call where the system lets us, and without where it does not or fails.

use std::net::SocketAddr;
use std::path::Path;

use crate::support::http;
use crate::support::outpost::{Running, address, binary};
use crate::support::tools::tool;
use crate::support::until;
use crate::support::wire::{Wire, framed};

const SUBSCRIBERS: usize = 40;
const MESSAGES: u32 = 200;

/// A node whose calls of `io_uring` go as `strace` is told, which writes them down: what it serves MQTT and HTTP on.
async fn start(folder: &Path, inject: &[&str]) -> (Running, SocketAddr, SocketAddr) {
    // As a grandchild: the process that is started here is the node itself.
    let mut command = tool("strace");
    command.args(["-D", "-f", "-qq", "-e", "trace=io_uring_setup,io_uring_enter", "-o"]);
    command.arg(folder.join("calls"));
    for inject in inject {
        command.args(["-e", &format!("inject={inject}")]);
    }
    command.arg(binary()).args(["dev", "--mqtt-port", "0", "--http-port", "0", "--data-dir"]);
    command.arg(folder.join("data")).env("NO_COLOR", "1");
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

/// Whether the system has given a node what it asked for to write to many at once; it has asked in any case.
async fn is_granted(folder: &Path) -> bool {
    let mut answers = Vec::new();
    until("what the node asked for is written down", async || {
        let calls = std::fs::read_to_string(folder.join("calls")).unwrap_or_default();
        let setups = calls.lines().filter(|line| line.contains("io_uring_setup"));
        answers = setups.filter_map(|line| Some(line.rsplit_once(") = ")?.1.to_owned())).collect();
        !answers.is_empty()
    })
    .await;
    answers.iter().any(|answer| !answer.starts_with('-'))
}

/// Whether the node can write to many in one call, and to how many connections it did, after each of many has got each of
/// many messages, in order.
async fn written_together(inject: &[&str]) -> (bool, u64) {
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
    (is_granted(folder.path()).await, together)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_are_written_to_in_one_call_and_nothing_is_lost_where_that_fails() {
    let all = u64::from(MESSAGES) * SUBSCRIBERS as u64;
    let (is_granted, together) = written_together(&[]).await;
    if is_granted {
        assert!(together >= all, "all but the first are due at once: {together} of {all}");
    } else {
        assert_eq!(together, 0);
    }
    assert_eq!(written_together(&["io_uring_setup:error=EPERM"]).await, (false, 0));
    if !is_granted {
        return; // there is nothing to fail
    }
    let (_, interrupted) = written_together(&["io_uring_enter:error=EINTR:when=2+2"]).await;
    assert!(interrupted >= all, "{interrupted} of {all}");
    // From the fifth call on it fails for good: the ring is given up, what it did not send is sent by itself.
    let (_, given_up) = written_together(&["io_uring_enter:error=ENOMEM:when=5+"]).await;
    assert!((1..all).contains(&given_up), "{given_up} of {all}");
}
