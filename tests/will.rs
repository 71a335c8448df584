//! A client's last words are said when it breaks off, and only then.

use crate::support::client::{BOTH, Client, Options, Will};
use crate::support::node::TestNode;

fn will(delay_s: u32) -> Will {
    Will { topic: "status".into(), payload: "gone".into(), retain: true, delay_s }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_said_when_the_cable_breaks_and_retained_as_asked() {
    let node = TestNode::start().await;
    for version in BOTH {
        let mut watcher = Client::connect(node.mqtt(), Options::new(version, "watcher")).await;
        watcher.subscribe("status", 1).await;
        let device =
            Client::connect(node.mqtt(), Options::new(version, "device").will(will(0))).await;
        drop(device);
        let said = watcher.next().await;
        assert_eq!((&*said.payload, said.qos, said.retain), ("gone", 1, false));
        let mut late = Client::connect(node.mqtt(), Options::new(version, "late")).await;
        late.subscribe("status", 1).await;
        assert!(late.next().await.retain);
        late.retain("status", "", 1).await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_bye_takes_it_back() {
    let node = TestNode::start().await;
    for version in BOTH {
        let mut watcher = Client::connect(node.mqtt(), Options::new(version, "watcher")).await;
        watcher.subscribe("status", 1).await;
        let device =
            Client::connect(node.mqtt(), Options::new(version, "device").will(will(0))).await;
        device.disconnect().await;
        // Takes the same way as a will would have: the device is known to be gone once it can come back.
        let device = Client::connect(node.mqtt(), Options::new(version, "device")).await;
        watcher.expect_only(&device, "status", "back").await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_comes_back_within_the_delay_leaves_it_unsaid() {
    let node = TestNode::start().await;
    let mut watcher = Client::connect(node.mqtt(), Options::v5("watcher")).await;
    watcher.subscribe("status", 1).await;
    let device =
        Client::connect(node.mqtt(), Options::v5("device").kept(600).will(will(300))).await;
    drop(device);
    let device = Client::connect(node.mqtt(), Options::v5("device").kept(600)).await;
    assert!(device.session_present);
    let other = Client::connect(node.mqtt(), Options::v5("other")).await;
    watcher.expect_only(&other, "status", "still unsaid").await;
    drop(device); // this time without a will
    watcher.expect_only(&other, "status", "and now").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_session_says_it_before_the_delay_is_over() {
    let node = TestNode::start().await;
    let mut watcher = Client::connect(node.mqtt(), Options::v5("watcher")).await;
    watcher.subscribe("status", 1).await;
    // The delay is an hour, the session ends with the connection (MQTT 5, §3.1.3.2.2).
    drop(Client::connect(node.mqtt(), Options::v5("device").will(will(3600))).await);
    assert_eq!(watcher.next().await.payload, "gone");
    // And a clean start ends a session that was kept.
    drop(Client::connect(node.mqtt(), Options::v5("device").kept(7200).will(will(3600))).await);
    let fresh = Client::connect(node.mqtt(), Options::v5("device")).await;
    assert!(!fresh.session_present);
    assert_eq!(watcher.next().await.payload, "gone");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_one_is_said_when_its_time_comes() {
    let node = TestNode::start().await;
    let mut watcher = Client::connect(node.mqtt(), Options::v5("watcher")).await;
    watcher.subscribe("status", 1).await;
    let began = std::time::Instant::now();
    drop(Client::connect(node.mqtt(), Options::v5("device").kept(600).will(will(1))).await);
    assert_eq!(watcher.next().await.payload, "gone");
    assert!(began.elapsed().as_millis() >= 1000, "not before: {:?}", began.elapsed());
    node.stop().await;
}
