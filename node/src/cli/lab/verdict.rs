//! The check at the end: what was acknowledged and accepted against what is there.

use serde_json::Value;

use super::report::Kill;
use super::shadow::{Document, Documents, Edit, differences, expected};

/// Everything the verdict rests on.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// Messages PUBACKed and not at the other side's subscriber: of the edge's devices, of the cloud's.
    pub missing: [usize; 2],
    /// All shadows before the cut.
    pub before: &'a Documents,
    /// All shadows at the edge in the end.
    pub edge: &'a Documents,
    /// All shadows in the cloud in the end.
    pub cloud: &'a Documents,
    /// The writes accepted while cut, in their order.
    pub edits: &'a [Edit],
    /// The shadow that both sides wrote, as each had it while cut.
    pub apart: [&'a Document; 2],
    /// The edge's death and return.
    pub kill: Option<&'a Kill>,
}

impl Evidence<'_> {
    /// Everything that is not as promised, in words.
    pub fn problems(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (count, [from, to]) in
            self.missing.into_iter().zip([["edge", "cloud"], ["cloud", "edge"]])
        {
            if count > 0 {
                found.push(format!(
                    "{count} messages PUBACKed by the {from} are not at the {to}'s durable subscriber"
                ));
            }
        }
        found.extend(differences(self.edge, self.cloud));
        self.states(&mut found);
        self.versions(&mut found);
        if let Some(kill) =
            self.kill.filter(|it| !it.shadow_kept || it.outbox_after < it.outbox_before)
        {
            found.push(format!(
                "after kill -9 the edge had {} of {} messages for the cloud, and its shadow was {}",
                kill.outbox_after,
                kill.outbox_before,
                if kill.shadow_kept { "kept" } else { "changed" }
            ));
        }
        found
    }

    /// Each state must be the one before the cut with all accepted writes applied, the later over the earlier.
    fn states(&self, found: &mut Vec<String>) {
        for (thing, state) in expected(self.before, self.edits) {
            let now = self.edge.get(&thing).map_or(&Value::Null, |document| &document.state);
            if *now != state {
                found.push(format!("{thing} is {now}, though what was accepted makes it {state}"));
            }
        }
    }

    /// Versions never fall, and two different states never share one.
    fn versions(&self, found: &mut Vec<String>) {
        let accepted = self.edits.iter().map(|edit| (&edit.thing, edit.version));
        let earlier = self.before.iter().map(|(thing, document)| (thing, document.version));
        for (thing, version) in earlier.chain(accepted) {
            let now = self.edge.get(thing).map_or(0, |document| document.version);
            if now < version {
                found.push(format!("{thing} is at version {now}, though it had version {version}"));
            }
        }
        let [edge, cloud] = self.apart;
        if edge.version == cloud.version && edge.state != cloud.state {
            found.push(format!(
                "while cut, version {} stood for two different states",
                edge.version
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::shadow::{Side, edits};
    use super::*;

    fn document(version: u64, mode: &str) -> Document {
        Document {
            version,
            state: json!({ "desired": { "mode": mode, "site": "north" } }),
            ..Document::default()
        }
    }

    fn documents(version: u64, mode: &str) -> Documents {
        Documents::from([("t".to_owned(), document(version, mode))])
    }

    fn problems(
        missing: [usize; 2],
        edge: &Documents,
        cloud: &Documents,
        kill: Option<&Kill>,
    ) -> Vec<String> {
        let write = |side, mode: &str, version: u64| {
            edits(
                side,
                "t",
                &json!({ "desired": { "mode": mode } }),
                &json!({ "version": version }),
            )
        };
        let edits = [write(Side::Edge, "manual", 2), write(Side::Cloud, "eco", 963)].concat();
        let apart = [&document(2, "manual"), &document(963, "eco")];
        let before = &documents(1, "auto");
        Evidence { missing, before, edge, cloud, edits: &edits, apart, kill }.problems()
    }

    #[test]
    fn all_is_well_when_the_later_write_stands_on_both_sides() {
        let after = documents(1987, "eco");
        assert_eq!(problems([0, 0], &after, &after, None), Vec::<String>::new());
    }

    #[test]
    fn every_broken_promise_is_named() {
        let after = documents(1987, "eco");
        let check = |found: Vec<String>, words: &str| {
            assert!(found.iter().any(|it| it.contains(words)), "{words:?} is not in {found:?}");
        };
        check(problems([0, 7], &after, &after, None), "7 messages PUBACKed by the cloud");
        check(problems([0, 0], &after, &documents(1988, "eco"), None), "the cloud version 1988");
        let older = documents(1987, "manual");
        check(problems([0, 0], &older, &older, None), "what was accepted makes it");
        let fallen = documents(900, "eco");
        check(problems([0, 0], &fallen, &fallen, None), "though it had version 963");
        let gone = Documents::new();
        check(problems([0, 0], &gone, &gone, None), "t is null");
        let kill = Kill { restart_s: 0.2, outbox_before: 200, outbox_after: 0, shadow_kept: true };
        check(problems([0, 0], &after, &after, Some(&kill)), "0 of 200 messages");
    }

    #[test]
    fn one_version_for_two_states_is_seen() {
        let after = documents(3, "eco");
        let apart = [&document(2, "manual"), &document(2, "eco")];
        let evidence = Evidence {
            missing: [0, 0],
            before: &after,
            edge: &after,
            cloud: &after,
            edits: &[],
            apart,
            kill: None,
        };
        assert_eq!(evidence.problems(), ["while cut, version 2 stood for two different states"]);
    }
}
