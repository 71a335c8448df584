//! Clients that come back at another node of a cluster: one client, one session, whatever node it is at.

use std::collections::BTreeSet;

use tokio::task::JoinSet;

use crate::cluster::{Member, Site, linked};
use crate::support::client::{BOTH, Client, Options};
use crate::support::{http, until};

/// Three nodes that know each other.
async fn three(site: &Site) -> [Member; 3] {
    let a = site.start("a", &[]).await;
    let b = site.start("b", &[&a]).await;
    let c = site.start("c", &[&a, &b]).await;
    linked(&[&a, &b, &c]).await;
    [a, b, c]
}

/// How many nodes have a session of this client.
async fn sessions(members: &[Member; 3], client: &str) -> usize {
    let mut found = 0;
    for member in members {
        let (status, _) = http::get(member.http(), &format!("/api/v1/client?id={client}")).await;
        found += usize::from(status == 200);
    }
    found
}

/// Whether a node knows of a receiver of this topic.
async fn wants(member: &Member, topic: &str) -> bool {
    let (_, why) = http::get(member.http(), &format!("/api/v1/why?name={topic}")).await;
    why["topic"]["receivers"].as_array().is_some_and(|receivers| !receivers.is_empty())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_finds_its_subscriptions_and_its_messages_at_another_node() {
    let site = Site::new();
    let members = three(&site).await;
    let [a, b, c] = &members;
    for (version, name) in BOTH.into_iter().zip(["old", "new"]) {
        let options = || Options::new(version, name).kept(3600);
        let device = Client::connect(a.mqtt(), options()).await;
        device.subscribe(&format!("to/{name}"), 1).await;
        // Its node keeps for it what the third one takes: that one has to know of the subscription first.
        let publisher = Client::connect(c.mqtt(), Options::v5("publisher")).await;
        until("the third node knows what it wants", async || wants(c, &format!("to/{name}")).await)
            .await;
        device.disconnect().await;
        let mut expected = BTreeSet::new();
        for number in 0..300 {
            publisher.publish(&format!("to/{name}"), &number.to_string(), 1).await;
            expected.insert(number.to_string());
        }
        let mut device = Client::connect(b.mqtt(), options()).await;
        assert!(device.session_present, "{name}");
        assert_eq!(device.collect(300).await, (expected, 300), "{name}");
        publisher.publish(&format!("to/{name}"), "later", 1).await;
        assert_eq!(device.next().await.payload, "later");
        until("one node has it", async || sessions(&members, name).await == 1).await;
        // The one at the new node is told to go when the client is back at the old one.
        let _back = Client::connect(a.mqtt(), options()).await;
        device.ended().await;
    }
    for member in members {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_connects_at_three_nodes_at_once_one_stays_and_nothing_is_lost() {
    let site = Site::new();
    let members = three(&site).await;
    let addresses = members.each_ref().map(Member::mqtt);
    let device = Client::connect(addresses[0], Options::v5("device").kept(3600)).await;
    device.subscribe("jobs", 2).await;
    until("the others know what it wants", async || wants(&members[2], "jobs").await).await;
    let publisher = Client::connect(addresses[2], Options::v5("publisher")).await;
    let mut storm = JoinSet::new();
    for attempt in 0..100 {
        let address = addresses[attempt % 3];
        storm.spawn(Client::try_connect(address, Options::v5("device").kept(3600)));
    }
    let mut expected = BTreeSet::new();
    for number in 0..50 {
        publisher.publish("jobs", &number.to_string(), 2).await;
        expected.insert(number.to_string());
    }
    let mut attempts: Vec<Client> =
        storm.join_all().await.into_iter().filter_map(Result::ok).collect();
    let mut got = BTreeSet::new();
    until("one is left", async || {
        for client in &mut attempts {
            while let Some(message) = client.next_soon().await {
                got.insert(message.payload);
            }
        }
        attempts.retain(Client::is_connected);
        attempts.len() <= 1 && sessions(&members, "device").await == 1
    })
    .await;
    let mut last = match attempts.pop() {
        Some(client) => client,
        None => Client::connect(addresses[1], Options::v5("device").kept(3600)).await,
    };
    until("all has come", async || {
        if let Some(message) = last.next_soon().await {
            got.insert(message.payload);
        }
        got.is_superset(&expected)
    })
    .await;
    for member in members {
        member.stop().await;
    }
}
