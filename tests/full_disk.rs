//! A full disk is a mode, not a crash: a node on a tiny file system of its own, filled to the brim and freed again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::support::client::{Client, Options, Properties};
use crate::support::outpost::{Running, address, binary};
use crate::support::{http, until, within};

/// Of the file system the node keeps its data on. Above the reserve of free bytes, 16 MiB.
const DISK_MIB: u32 = 28;

/// Times the disk is full; more with `OUTPOST_FULL_DISK_CYCLES`.
fn cycles() -> usize {
    std::env::var("OUTPOST_FULL_DISK_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(3)
}

/// A node in a mount namespace, with a tmpfs nobody else has. `None` where the system permits no namespaces.
async fn start(folder: &Path) -> Option<(Running, PathBuf)> {
    let may = Command::new("unshare").args(["-rm", "true"]).output().await;
    if !may.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this system permits no mount namespaces (unshare -rm)");
        return None;
    }
    let script = format!(
        "mount -t tmpfs -o size={DISK_MIB}m tmpfs {0} && exec {1} dev --mqtt-port 0 --http-port 0 --data-dir {0}/data",
        folder.display(),
        binary().display()
    );
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", &script]).kill_on_drop(true);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut process = Running::start(command);
    process.says("Ctrl-C stops it.").await;
    let root = format!("/proc/{}/root{}", process.id(), folder.display());
    Some((process, root.into()))
}

/// Takes all the room there is.
fn fill(disk: &Path) {
    let mut file = std::fs::File::create(disk.join("ballast")).expect("a free name");
    let chunk = vec![1; 64 * 1024];
    while std::io::Write::write_all(&mut file, &chunk).is_ok() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_what_it_must_keep_and_recovers_by_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some((process, disk)) = start(folder.path()).await else { return };
    let mqtt = address(&process.out.with("MQTT 3.1.1 and 5")[0]);
    let admin = address(&process.out.with("HTTP  ")[0]);
    let away = Client::connect(mqtt, Options::v5("away").kept(3600)).await;
    away.subscribe("job", 1).await;
    away.disconnect().await;
    let mut live = Client::connect(mqtt, Options::v5("live")).await;
    live.subscribe("live", 0).await;
    let old = Client::connect(mqtt, Options::v4("old")).await;
    let new = Client::connect(mqtt, Options::v5("new")).await;
    let racer = Client::connect(mqtt, Options::v5("racer")).await;
    let mut acknowledged = BTreeSet::new();
    for cycle in 0..cycles() {
        fill(&disk);
        // Caught in between: it waits for room with its answer, or is refused.
        let caught =
            racer.publish_with("job", format!("racer-{cycle}"), 1, false, Properties::default());
        let caught = tokio::spawn(caught.await);
        until("the node knows", async || {
            http::get(admin, "/api/v1/stats").await.1["store"]["stalled"] == 1
        })
        .await;
        for payload in ["no", "nor this"] {
            let why = new.try_publish("job", payload, 1).await.expect_err("there is no room");
            assert!(why.contains("QuotaExceeded"), "{why}");
        }
        let waits =
            old.publish_with("job", format!("old-{cycle}"), 1, false, Properties::default());
        let waits = tokio::spawn(waits.await);
        new.publish("live", "still here", 0).await;
        assert_eq!(live.next().await.payload, "still here");
        assert!(!waits.is_finished(), "3.1.1 has no word for no: it waits");

        std::fs::remove_file(disk.join("ballast")).expect("it is there");
        let answer = within("an answer once there is room", waits).await.expect("no panic");
        answer.expect("it is accepted");
        acknowledged.insert(format!("old-{cycle}"));
        if within("an answer to who was caught", caught).await.expect("no panic").is_ok() {
            acknowledged.insert(format!("racer-{cycle}"));
        }
        until("the node accepts again", async || {
            let payload = format!("after-{cycle}");
            let accepted = new.try_publish("job", &payload, 1).await.is_ok();
            accepted && acknowledged.insert(payload)
        })
        .await;
    }
    let mut away = Client::connect(mqtt, Options::v5("away").kept(3600)).await;
    let mut missing = acknowledged;
    while !missing.is_empty() {
        missing.remove(&away.next().await.payload);
    }
    assert!(process.terminate().await.success(), "it ends in order");
}
