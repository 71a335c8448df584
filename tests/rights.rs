//! Access rules that others take the place of: what kept sessions were granted before does not outlive them.

use outpost_node::Hooks;
use outpost_node::config::{Access, Acl, Config, Effect};

use crate::support::client::{Client, Options};
use crate::support::http;
use crate::support::node::TestNode;
use crate::support::outpost::outpost;

/// Anonymous clients may do everything below these levels.
fn only(levels: &'static [&'static str]) -> impl FnOnce(&mut Config) {
    move |config| {
        config.listen.mqtt.anonymous = Some(true);
        let rule = |level: &&str| Acl {
            effect: Effect::Allow,
            who: "anonymous".into(),
            access: Access::ReadWrite,
            filter: format!("{level}/#"),
        };
        config.security.acl = levels.iter().map(rule).collect();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_session_gets_nothing_by_rules_of_yesterday() {
    let node = TestNode::start_with(only(&["open", "plans"]), Hooks::default()).await;
    let options = || Options::v5("reader").kept(3_600);
    let reader = Client::connect(node.mqtt(), options()).await;
    reader.subscribe("open/#", 1).await;
    reader.subscribe("plans/#", 1).await;
    reader.disconnect().await;
    let boss = Client::connect(node.mqtt(), Options::v5("boss")).await;
    boss.publish("plans/a", "queued", 1).await;
    boss.publish("open/a", "for everybody", 1).await;

    let node = node.restart_with(only(&["open", "staff"])).await;
    let mut reader = Client::connect(node.mqtt(), options()).await;
    assert!(reader.session_present);
    assert_eq!(reader.next().await.payload, "for everybody");
    let boss = Client::connect(node.mqtt(), Options::v5("boss")).await;
    reader.expect_only(&boss, "open/b", "still subscribed").await;
    let url = format!("http://{}", node.http());
    let why = outpost(&["why", "plans/a", "--url", &url]).await.stdout;
    for words in [
        "nobody would get it",
        "subscription revoked: NotAuthorized client reader topic plans/#, the access rules have changed",
        "dropped: revoked client reader topic plans/a",
    ] {
        assert!(why.contains(words), "{words} in\n{why}");
    }
    let (_, stats) = http::get(node.http(), "/api/v1/stats").await;
    assert_eq!(stats["messages"]["dropped_total"]["by_reason"]["revoked"], 1);
    node.stop().await;
}
