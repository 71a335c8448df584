//! A node as a service: what it tells systemd, over the socket systemd gives it.

use std::process::Command as Process;

use tokio::net::UnixDatagram;

use crate::support::outpost::{Running, address, binary};
use crate::support::tools::tool;
use crate::support::wire::Wire;
use crate::support::within;

/// The next thing it tells that has `words` in it.
async fn told(socket: &UnixDatagram, words: &str) -> String {
    let listen = async {
        let mut buffer = [0; 1_024];
        loop {
            let length = socket.recv(&mut buffer).await.expect("a socket");
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.contains(words) {
                return text;
            }
        }
    };
    within(words, listen).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_says_when_it_serves_reloads_lives_and_stops() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a path of its own");
    let mut command = tool(&binary().display().to_string());
    command.args(["dev", "--mqtt-port", "0", "--http-port", "0", "--data-dir"]);
    command.arg(folder.path().join("data")).env("NO_COLOR", "1");
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "3000000");
    let mut node = Running::start(command);
    let ready = told(&socket, "READY=1").await;
    assert!(ready.contains("STATUS=serving clients"), "{ready}");
    // What it printed before may arrive after.
    node.says("Ctrl-C stops it.").await;
    let mqtt = address(&node.out.with("MQTT 3.1.1 and 5")[0]);
    assert!(Wire::connected(mqtt, "first").await.ping().await, "it serves");
    for _ in 0..3 {
        told(&socket, "WATCHDOG=1").await;
    }
    let hang_up = Process::new("kill").args(["-HUP", &node.id().to_string()]).status();
    assert!(hang_up.expect("it runs").success());
    let reloading = told(&socket, "RELOADING=1").await;
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    told(&socket, "READY=1").await;
    let id = node.id();
    let (stopped, ()) = tokio::join!(node.terminate(), async {
        told(&socket, "STOPPING=1").await;
    });
    assert!(stopped.success(), "{id}");
}
