//! Retained messages as people list them.

use outpost_model::{Message, Now, TopicFilter};
use serde::Serialize;

use super::Shard;

/// Retained messages in one page at most.
pub const RETAINED_PAGE_MAX: usize = 1_000;

/// Topics looked at for one page. More: a filter that fits few holds the data thread for longer; fewer: it takes more
/// requests to find them.
pub const RETAINED_SCANNED_MAX: usize = 20_000;

/// One retained message, without its payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RetainedInfo {
    /// Topic.
    pub topic: String,
    /// As published.
    pub qos: u8,
    /// Length of the payload.
    pub payload_bytes: usize,
    /// When it was accepted, milliseconds since 1970 on the node that did.
    pub accepted_wall_ms: u64,
    /// Seconds of life left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_s: Option<u32>,
    /// The node it was published at.
    pub node: String,
}

/// Some of them, in the order of their topics.
#[derive(Debug, Clone, Serialize)]
pub struct RetainedPage {
    /// The messages.
    pub retained: Vec<RetainedInfo>,
    /// The topic to go on after; there may be none left even so.
    pub next: Option<String>,
}

impl Shard {
    /// The message retained on a topic.
    pub fn retained_info(&self, topic: &str, now: Now) -> Option<RetainedInfo> {
        self.retained.get(topic).map(|message| info(message, now))
    }

    /// That message with its payload; nothing when its time is over.
    pub fn retained_message(&self, topic: &str, now: Now) -> Option<Message> {
        let message = self.retained.get(topic)?;
        (message.expiry_left_s(now.wall_ms) != Some(0)).then(|| message.clone())
    }

    /// At most `limit` retained messages whose topic matches and comes after `after`.
    pub fn retained_page(
        &self,
        filter: &TopicFilter,
        after: &str,
        limit: usize,
        now: Now,
    ) -> RetainedPage {
        let mut page = RetainedPage { retained: Vec::new(), next: None };
        let (mut looked, mut last) = (0, None);
        let limit = limit.min(RETAINED_PAGE_MAX);
        for (topic, message) in self.retained.after(after) {
            if page.retained.len() >= limit || looked >= RETAINED_SCANNED_MAX {
                page.next = last;
                return page;
            }
            looked += 1;
            last = Some(topic.to_string());
            if filter.matches(topic) {
                page.retained.extend(message.map(|message| info(message, now)));
            }
        }
        page
    }
}

fn info(message: &Message, now: Now) -> RetainedInfo {
    RetainedInfo {
        topic: message.topic.to_string(),
        qos: message.qos as u8,
        payload_bytes: message.payload.len(),
        accepted_wall_ms: message.accepted_wall_ms,
        expires_in_s: message.expiry_left_s(now.wall_ms),
        node: message.id.node.to_string(),
    }
}
