//! The first minutes: `outpost` alone, every line it prints, and what it says when it cannot start.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::Value;
use tokio::process::Command;

use crate::support::client::{Client, Options};
use crate::support::outpost::{Dev, Finished, Running, binary, command, finish, outpost};
use crate::support::tools::{tool, with_path};
use crate::support::{http, until};

#[tokio::test(flavor = "multi_thread")]
async fn every_line_it_prints_works_as_it_stands() {
    let data = tempfile::tempdir().expect("a folder");
    let dev = Dev::start(data.path()).await;
    let said = dev.process.out.all();
    let lines: Vec<String> = said
        .iter()
        .skip_while(|line| !line.starts_with("Try it"))
        .filter_map(|line| line.strip_prefix("  ").map(str::to_owned))
        .collect();
    assert!(lines.len() >= 10, "{said:#?}");
    // Those that print what comes run all the time; each of them must have said something in the end.
    let (watching, doing): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| {
        line.contains("sub") && !line.contains("publish") || line.contains("watch")
    });
    assert_eq!(watching.len(), 3, "{watching:#?}");
    let watching: Vec<(String, Running)> =
        watching.into_iter().map(|line| (line.clone(), Running::start(shell(&line)))).collect();
    until("all are subscribed", async || {
        let (_, stats) = http::get(dev.http, "/api/v1/stats").await;
        stats["mqtt"]["subscriptions"] == 4
    })
    .await;
    for line in &doing {
        let done = finish(shell(line)).await;
        assert_eq!(done.code, Some(0), "{line}\n{}{}", done.stdout, done.stderr);
        // curl shows its progress when it does not print to a terminal.
        assert!(done.stderr.is_empty() || line.starts_with("curl "), "{line}\n{}", done.stderr);
    }
    for (line, mut running) in watching {
        if line.contains("shadow") {
            running.says(r#""on":true"#).await;
        } else {
            running.says("plant/7/temp 21.5").await;
            until("all three publishes", async || running.out.all().len() == 3).await;
        }
        running.kill_9().await;
    }
    assert!(dev.process.terminate().await.success());
}

/// A line as it is pasted into a shell, with the command on the path.
fn shell(line: &str) -> Command {
    let mut command = tool("bash");
    let folder = binary().parent().expect("it lies in a folder").display();
    // `exec`: the shell becomes the command, so that ending it ends the command.
    command.args(["-c", &format!("PATH={folder}:$PATH; exec {line}")]);
    with_path(&mut command, &["curl", "mosquitto_pub", "mosquitto_sub"]);
    command.env_remove("OUTPOST_URL");
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named_with_a_way_out() {
    let (one, two) =
        (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let dev = Dev::start(one.path()).await;
    let (mqtt, http) = (dev.mqtt.port().to_string(), dev.http.port().to_string());
    let folder = two.path().to_str().expect("UTF-8");
    for (args, flag, port) in [
        (["--mqtt-port", &mqtt, "--http-port", "0"], "--mqtt-port", &mqtt),
        (["--mqtt-port", "0", "--http-port", &http], "--http-port", &http),
    ] {
        let mut all = vec!["dev", "--data-dir", folder];
        all.extend(args);
        let done = outpost(&all).await;
        assert_eq!((done.code, &*done.stdout), (Some(1), ""), "{done:?}");
        assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
        assert!(done.stderr.contains(&format!("port {port} (")), "{}", done.stderr);
        assert!(done.stderr.contains("is in use") && done.stderr.contains(flag), "{}", done.stderr);
    }
    assert!(dev.process.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_another_process_is_left_alone_and_named() {
    let data = tempfile::tempdir().expect("a folder");
    let dev = Dev::start(data.path()).await;
    let client = Client::connect(dev.mqtt, Options::v5("client")).await;
    client.retain("a", "x", 1).await;
    let second = second_on(data.path()).await;
    assert_eq!(second.code, Some(1), "{second:?}");
    assert_eq!(second.stderr.lines().count(), 1, "{}", second.stderr);
    assert!(second.stderr.contains("in use by another process"), "{}", second.stderr);
    assert!(second.stderr.contains(&data.path().display().to_string()), "{}", second.stderr);
    client.publish("a", "the first one goes on", 1).await;
    assert!(dev.process.terminate().await.success());
    let dev = Dev::start(data.path()).await;
    assert!(dev.process.terminate().await.success());
}

async fn second_on(data: &Path) -> Finished {
    let folder = data.to_str().expect("UTF-8");
    outpost(&["dev", "--mqtt-port", "0", "--http-port", "0", "--data-dir", folder]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_starts_and_says_what_was_set_aside() {
    let data = tempfile::tempdir().expect("a folder");
    let dev = Dev::start(data.path()).await;
    let client = Client::connect(dev.mqtt, Options::v5("client")).await;
    for number in 0..500 {
        client.retain(&format!("t/{number}"), &"x".repeat(500), 1).await;
    }
    dev.process.kill_9().await;
    let damaged = damage(data.path());
    assert!(damaged > 0, "there are files to damage");

    let dev = Dev::start(data.path()).await;
    until("it says what happened", async || !dev.process.err.with("WARN").is_empty()).await;
    let said = dev.process.err.all().join("\n");
    assert!(said.contains("damaged"), "{said}");
    assert!(said.contains(&data.path().display().to_string()), "where: {said}");
    let mut client = Client::connect(dev.mqtt, Options::v5("client")).await;
    client.subscribe("fresh", 1).await;
    client.publish("fresh", "it serves", 1).await;
    assert_eq!(client.next().await.payload, "it serves");
    let (status, health) = http::get(dev.http, "/healthz").await;
    assert_eq!(status, 200, "{health}");
    assert!(dev.process.terminate().await.success());
}

/// Overwrites the middle of every file longer than 4 KiB, as a worn-out card does. How many.
fn damage(folder: &Path) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("the folder of the store") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            count += damage(&path);
            continue;
        }
        let mut file =
            std::fs::OpenOptions::new().read(true).write(true).open(&path).expect("ours");
        let used =
            std::fs::read(&path).expect("ours").iter().rposition(|byte| *byte != 0).unwrap_or(0)
                as u64;
        if used > 4096 {
            file.seek(SeekFrom::Start(used / 2)).expect("within the file");
            file.write_all(&[0xa5; 64]).expect("within the file");
            count += 1;
        }
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mistake_in_a_configuration_is_named_with_its_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("outpost.toml");
    let text = "[node]\nname = \"edge-1\"\n\n[listen.mqtt]\nbnd = \"127.0.0.1:1883\"\npacket_max_bytes = 12\n\n[limits]\nconnections_max = \"many\"\n";
    std::fs::write(&file, text).expect("written");
    let path = file.to_str().expect("UTF-8");
    for args in [vec!["config", "check", path], vec!["node", "-c", path]] {
        let done = outpost(&args).await;
        assert_eq!((done.code, &*done.stdout), (Some(3), ""), "{done:?}");
        for words in
            [":5:1", "did you mean", "\"bind\"", ":6:", "1024", ":9:", "whole number", "3 mistakes"]
        {
            assert!(done.stderr.contains(words), "{words:?} is missing in\n{}", done.stderr);
        }
    }
    std::fs::write(
        &file,
        text.replace("bnd", "bind").replace("= 12", "= 1048576").replace("\"many\"", "10"),
    )
    .expect("written");
    let done = outpost(&["config", "check", path]).await;
    assert_eq!((done.code, &*done.stderr), (Some(0), ""), "{done:?}");
    assert!(done.stdout.contains("is valid"), "{}", done.stdout);
    let missing = outpost(&["node", "-c", "no-such-file.toml"]).await;
    assert_eq!(missing.code, Some(3));
    assert!(missing.stderr.contains("no-such-file.toml"), "{}", missing.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn verbs_say_what_is_wrong_when_nobody_answers() {
    let nobody = "127.0.0.1:1";
    for args in [
        vec!["actors", "--url", "http://127.0.0.1:1"],
        vec!["shadow", "get", "lamp", "--url", "http://127.0.0.1:1"],
        vec!["cluster", "status", "--url", "http://127.0.0.1:1"],
        vec!["pub", "-p", "1", "-t", "a", "-m", "x"],
        vec!["sub", "-p", "1", "-t", "a"],
    ] {
        let done = outpost(&args).await;
        assert_eq!((done.code, &*done.stdout), (Some(1), ""), "{args:?}: {done:?}");
        assert_eq!(done.stderr.lines().count(), 1, "{args:?}: {}", done.stderr);
        assert!(done.stderr.contains(nobody), "{args:?} names the address: {}", done.stderr);
    }
    for args in [vec!["pub", "-t", "a/#", "-m", "x"], vec!["frobnicate"], vec!["sub"]] {
        assert_eq!(outpost(&args).await.code, Some(2), "{args:?}");
    }
}

/// MQTT 5: 3.1.4-2
#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_a_password_and_rules() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut passwd = command();
    let input = folder.path().join("password");
    std::fs::write(&input, "correct horse\n").expect("written");
    passwd.args(["passwd", "ann"]).stdin(std::fs::File::open(&input).expect("just written"));
    let user = finish(passwd).await;
    assert_eq!(user.code, Some(0), "{}", user.stderr);
    let file = folder.path().join("outpost.toml");
    let text = format!(
        "node.data_dir = {:?}\nlisten.mqtt = {{ bind = \"127.0.0.1:0\", anonymous = false }}\nlisten.http.bind = \"127.0.0.1:0\"\n\n{}\n[[security.acl]]\neffect = \"allow\"\nwho = \"user:ann\"\nfilter = \"ann/#\"\n",
        folder.path().join("data"),
        user.stdout
    );
    std::fs::write(&file, text).expect("written");
    let mut node = command();
    node.args(["node", "-c"]).arg(&file);
    let node = Running::start(node);
    let mut port = String::new();
    until("the node is up", async || {
        let up = node.err.with("the node is up");
        let address =
            up.first().and_then(|line| line.split("mqtt=127.0.0.1:").nth(1)).unwrap_or_default();
        address.split_whitespace().next().unwrap_or_default().clone_into(&mut port);
        !port.is_empty()
    })
    .await;
    let publish = |args: &[&str]| {
        let mut all = vec!["pub", "-p", &port, "-m", "x", "-q", "1", "-V", "5"];
        all.extend(args);
        let all: Vec<String> = all.into_iter().map(str::to_owned).collect();
        async move { outpost(&all.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    let good = publish(&["-t", "ann/x", "-u", "ann", "-P", "correct horse"]).await;
    assert_eq!((good.code, &*good.stderr), (Some(0), ""));
    for (args, words) in [
        (vec!["-t", "ann/x", "-u", "ann", "-P", "wrong"], "BadUserNamePassword"),
        (vec!["-t", "ann/x"], "NotAuthorized"),
        (vec!["-t", "bob/x", "-u", "ann", "-P", "correct horse"], "NotAuthorized"),
    ] {
        let refused = publish(&args).await;
        assert_eq!(refused.code, Some(1), "{args:?}");
        assert!(refused.stderr.contains(words), "{args:?}: {}", refused.stderr);
    }
    assert!(node.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_health_can_be_read_by_those_who_watch() {
    let data = tempfile::tempdir().expect("a folder");
    let dev = Dev::start(data.path()).await;
    let (status, health) = http::get(dev.http, "/healthz").await;
    assert_eq!((status, &health["status"]), (200, &Value::from("ok")));
    let (status, metrics) = http::get(dev.http, "/metrics").await;
    let metrics = metrics.as_str().expect("a text");
    assert_eq!(status, 200);
    for line in
        ["# TYPE outpost_mqtt_connections gauge", "# TYPE outpost_messages_accepted_total counter"]
    {
        assert!(metrics.contains(line), "{line:?} is missing in\n{metrics}");
    }
    assert!(dev.process.terminate().await.success());
}
