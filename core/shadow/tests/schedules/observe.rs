//! What leaves the hubs, looked at after each step.

use outpost_shadow::{Event, ShadowKey};
use serde_json::{Map, Value};

use super::model::{difference, shows};
use super::run::Run;

impl Run {
    /// Looks at everything that left the hubs since the last look.
    pub fn observe(&mut self) {
        for node in 0..self.net.nodes.len() {
            for (topic, message) in std::mem::take(&mut self.net.nodes[node].published) {
                let key = self.keys[usize::from(topic.contains("/name/"))].clone();
                let tail = topic.trim_start_matches(&key.topic(""));
                self.observe_message(node, &key, tail, &message);
            }
            assert!(self.delta.is_empty(), "a delta without documents: {:?}", self.delta);
            for event in std::mem::take(&mut self.net.nodes[node].events) {
                self.observe_event(node, event);
            }
            for (id, _, _) in std::mem::take(&mut self.net.nodes[node].replies) {
                let asked = &mut self.asked[id as usize];
                asked.answers += 1;
                assert_eq!(asked.answers, 1, "a request was answered twice");
            }
        }
    }

    fn observe_event(&mut self, node: usize, event: Event) {
        match event {
            Event::Written { key, version, stamp, apart } => {
                let before = self.stamps.insert((key.clone(), version), stamp);
                assert!(before.is_none(), "one version for two writes");
                let token = self.made.get(&(key, version));
                let state = token.and_then(|token| self.asked[*token].state.as_ref());
                let intends = state.is_some_and(|s| s.is_null() || s.get("desired").is_some());
                assert!(!(self.strict && apart && intends), "a strict node decided apart");
            }
            Event::Merged { key, version, .. } => assert!(
                self.shown.contains(&(node, key, version)),
                "a merge changed the state and told nobody"
            ),
            Event::TakenOver { .. } => self.totals.taken_over += 1,
            _ => {}
        }
    }

    fn observe_message(&mut self, node: usize, key: &ShadowKey, kind: &str, message: &Value) {
        match kind {
            "update/documents" => self.observe_documents(node, key, message),
            "update/delta" => {
                let version = message["version"].as_u64().expect("a version");
                self.delta.insert((node, key.clone()), (version, message["state"].clone()));
            }
            "update/accepted" => {
                let asked = &mut self.asked[token(message).expect("accepted echoes the token")];
                asked.accepted += 1;
                assert_eq!(asked.accepted, 1, "an update was accepted twice");
            }
            "get/accepted" => {
                let mut state = message["state"].clone();
                state.as_object_mut().expect("an object").remove("delta");
                let version = message["version"].as_u64().expect("a version");
                self.mean(key, version, &state);
                self.read.push((key.clone(), version, state));
            }
            "delete/accepted" => {
                let version = message["version"].as_u64().expect("a version");
                self.mean(key, version, &Value::Null);
                self.made.insert((key.clone(), version), token(message).expect("our token"));
            }
            _ => {}
        }
    }

    fn observe_documents(&mut self, node: usize, key: &ShadowKey, message: &Value) {
        let (state, version) =
            (&message["current"]["state"], message["current"]["version"].as_u64().expect("one"));
        let last = self.last.insert((node, key.clone()), (version, state.clone()));
        let last = last.map_or(0, |(version, _)| version);
        assert!(version > last, "node {node} published version {version} after {last}");
        self.shown.insert((node, key.clone(), version));
        // A merge that leaves the shadow deleted publishes an empty document, as get answers 404.
        self.mean(key, version, state);
        let delta = self.delta.remove(&(node, key.clone()));
        let wanted = difference(&state["desired"], &state["reported"]).map(|d| (version, d));
        assert_eq!(delta, wanted, "the delta is not what the device has still to do");
        let Some(token) = token(message) else { return };
        self.made.insert((key.clone(), version), token);
        let asked = &self.asked[token];
        let patch = asked.state.as_ref().expect("documents follow an update");
        assert!(shows(state, patch), "{patch} was accepted, and the state is {state}");
        if let Some((expected_version, expected_state)) = &asked.expects {
            let previous = &message["previous"];
            let read = (previous["version"].as_u64(), &previous["state"]);
            assert_eq!(read, (Some(*expected_version), expected_state), "not what was read");
        }
    }

    fn mean(&mut self, key: &ShadowKey, version: u64, state: &Value) {
        let state =
            if state.as_object().is_some_and(Map::is_empty) { Value::Null } else { state.clone() };
        let known = self.meaning.entry((key.clone(), version)).or_insert_with(|| state.clone());
        assert_eq!(*known, state, "version {version} of {key:?} stands for two states");
    }
}

fn token(message: &Value) -> Option<usize> {
    message["clientToken"].as_str().and_then(|token| token.parse().ok())
}
