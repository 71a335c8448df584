//! `outpost lab cut`: the command that shows people what a cut cable costs, as they run it.

use serde_json::Value;

use crate::support::DEADLINE;
use crate::support::outpost::{Finished, command, finish_in};

/// It waits half a minute for each of its steps at most.
async fn outpost(args: &[&str]) -> Finished {
    let mut lab = command();
    lab.args(args);
    finish_in(6 * DEADLINE, lab).await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_well_and_prints_what_each_side_held() {
    let done =
        outpost(&["lab", "cut", "--seconds", "0", "--messages", "50", "--things", "10"]).await;
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    for words in
        ["WHAT EACH SIDE HELD", "WRITTEN WHILE CUT", "ON THE CABLE", "both sides were equal"]
    {
        assert!(done.stdout.contains(words), "{words:?} is missing in\n{}", done.stdout);
    }
    let acknowledged = done.stdout.lines().find(|line| line.starts_with("messages acknowledged"));
    let figures: Vec<&str> = acknowledged.unwrap_or_default().split_whitespace().skip(2).collect();
    assert_eq!(figures, ["30", "30", "80", "80", "80", "80"], "{}", done.stdout);
    assert!(done.stdout.contains("160 messages acknowledged, 160 delivered"), "{}", done.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_is_cut_off_the_edge_loses_nothing() {
    let args =
        ["lab", "cut", "--kill", "--json", "--seconds", "0", "--messages", "50", "--things", "10"];
    let done = outpost(&args).await;
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    let report: Value =
        serde_json::from_str(&done.stdout).expect("--json prints JSON and nothing else");
    assert_eq!((&report["ok"], &report["problems"]), (&true.into(), &Value::Array(Vec::new())));
    assert_eq!(report["kill"]["outbox_before"], report["kill"]["outbox_after"], "{report}");
    assert_eq!(report["kill"]["shadow_kept"], true, "{report}");
    for way in ["edge_to_cloud", "cloud_to_edge"] {
        assert_eq!(report["wire"]["cut"][way]["packets"], 0, "nothing passes: {}", report["wire"]);
    }
    let healed = &report["moments"][2];
    assert_eq!(healed["shadows_different"], 0, "{healed}");
    for side in ["edge", "cloud"] {
        assert_eq!(healed[side]["received"], 80, "{healed}");
        assert_eq!(healed[side]["outbox"], 0, "{healed}");
    }
}
