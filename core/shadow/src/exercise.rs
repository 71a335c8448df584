//! What runs outside the ordinary way: any bytes as requests to a fresh hub (the fuzz target `shadow_json`, the corpus
//! test), and a write without its request (the bench `report`).

use std::collections::BTreeMap;

use outpost_model::{Hlc, HlcClock, NodeId, Now};

use crate::desired::Pen;
use crate::document::Shadow;
use crate::request::{Update, parse_update};
use crate::stamp::Stamp;
use crate::version::Class;
use crate::{Effect, Hub, HubConfig, Limits, Output, Rules, ShadowKey, Verb};

/// Sends the bytes as updates, as a get and as a delete.
///
/// # Panics
/// When a request has not exactly one answer, an answer is not JSON, or the rows written do not make the same hub again.
pub fn exercise(request: &[u8]) {
    let now = Now { mono_ms: 0, wall_ms: 1_700_000_000_000 };
    let mut hub = Hub::new(config(), 1, Hlc::default());
    let mut rows = BTreeMap::new();
    for (id, verb) in [Verb::Update, Verb::Update, Verb::Get, Verb::Delete].into_iter().enumerate()
    {
        hub.request(ShadowKey::classic("lamp"), verb, request, id as u64, now);
        assert_eq!(answers(&mut hub, &mut rows), 1, "{verb:?} has one answer");
    }
    let mut again = Hub::new(config(), 2, Hlc::default());
    for (key, value) in rows {
        again.load_row(&key, &value).expect("a hub reads its own rows");
    }
    assert_eq!(again.fingerprint(), hub.fingerprint(), "the rows are the hub");
}

/// One shadow in memory and a small update of it that was read from its request.
#[derive(Debug)]
pub struct Written {
    shadow: Shadow,
    update: Update,
    clock: HlcClock,
}

impl Written {
    /// The shadow is what one update makes, and another one is written again and again.
    ///
    /// # Panics
    /// When a payload is no update.
    pub fn new(first: &[u8], update: &[u8]) -> Self {
        let read = |payload| parse_update(payload, &Limits::default()).expect("an update");
        let (shadow, clock) = (Shadow::default(), HlcClock::new(Hlc::default()));
        let mut written = Self { shadow, update: read(first), clock };
        written.write(Now { mono_ms: 0, wall_ms: 1_700_000_000_000 });
        Self { update: read(update), ..written }
    }

    /// Stamps the write, joins its registers, counts the version and renews the print of the visible state. The version.
    pub fn write(&mut self, now: Now) -> u64 {
        let stamp = Stamp::new(self.clock.tick(now), NodeId(1));
        let pen = Pen { stamp, actor: [1; 16], seq: self.shadow.seq + 1, rebase_at: 64 };
        self.shadow.update(&self.update, &pen, Class::Owner);
        self.shadow.version
    }
}

fn config() -> HubConfig {
    let limits = Limits::default();
    HubConfig {
        node: NodeId(1),
        node_name: "fuzz".to_owned(),
        limits,
        hlc_ahead_ms_max: 60_000,
        rules: Rules::default(),
    }
}

/// Takes over what is to be written; how many answers there were.
fn answers(hub: &mut Hub, rows: &mut BTreeMap<Vec<u8>, Vec<u8>>) -> usize {
    let mut count = 0;
    while let Some(effect) = hub.poll_effect() {
        let Effect::Commit { rows: changed, then, .. } = effect else {
            panic!("nothing goes out before it is durable")
        };
        for (key, value) in changed {
            match value {
                Some(value) => _ = rows.insert(key, value),
                None => _ = rows.remove(&key),
            }
        }
        for output in then {
            if let Output::Reply { body, .. } = output {
                count += 1;
                serde_json::from_slice::<serde_json::Value>(&body).expect("an answer is JSON");
            }
        }
    }
    count
}
