//! Topic aliases towards a client (MQTT 5, §3.3.2.3.4): which of its topics are sent as a number.
//!
//! The client says how many it keeps; a full table gives the place of a topic that has not been used for a round to the
//! next one (second chance), so that a hot topic stays and a flood of single messages passes through.

/// What to send in place of a topic name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alias {
    /// The name: no alias is free for it.
    None,
    /// The name together with this number, which stands for it once the packet is written: [`SentAliases::set`].
    New(u16),
    /// The number alone; the client knows it.
    Known(u16),
}

/// A name has to be longer than the property that stands for it, or nothing is saved.
const NAME_BYTES_MIN: usize = 4;

/// The aliases one connection has been told. Forgotten with the connection (MQTT-3.3.2-7).
#[derive(Debug, Clone)]
pub struct SentAliases {
    max: u16,
    /// Where the search for a place goes on.
    hand: u16,
    topics: Vec<(Box<str>, bool)>,
}

impl SentAliases {
    /// For a client that keeps `max` aliases; `None` when it keeps none. Nothing is allocated before the first one.
    pub fn new(max: u16) -> Option<Self> {
        (max > 0).then_some(Self { max, hand: 0, topics: Vec::new() })
    }

    /// What to send for this topic.
    pub fn find(&mut self, topic: &str) -> Alias {
        if topic.len() < NAME_BYTES_MIN {
            return Alias::None;
        }
        let known = self.topics.iter_mut().enumerate().find(|(_, (name, _))| **name == *topic);
        if let Some((place, (_, used))) = known {
            *used = true;
            return Alias::Known(place as u16 + 1);
        }
        if self.topics.len() < usize::from(self.max) {
            return Alias::New(self.topics.len() as u16 + 1);
        }
        let place = self.hand;
        self.hand = (self.hand + 1) % self.max;
        let used = &mut self.topics[usize::from(place)].1;
        if std::mem::take(used) { Alias::None } else { Alias::New(place + 1) }
    }

    /// The packet that says so is on its way: from now on `alias` stands for `topic`.
    pub fn set(&mut self, alias: u16, topic: &str) {
        let place = usize::from(alias.saturating_sub(1));
        // Copied: it must not keep the packet it came in alive.
        let entry = (Box::from(topic), true);
        if place < self.topics.len() {
            self.topics[place] = entry;
        } else if place < usize::from(self.max) {
            self.topics.push(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(aliases: &mut SentAliases, topic: &str) -> Alias {
        let alias = aliases.find(topic);
        if let Alias::New(number) = alias {
            aliases.set(number, topic);
        }
        alias
    }

    #[test]
    fn a_client_that_says_0_gets_none_3_1_2_11_5() {
        assert!(SentAliases::new(0).is_none());
    }

    #[test]
    fn the_first_message_sets_it_and_the_next_ones_use_it() {
        let mut aliases = SentAliases::new(2).expect("not 0");
        assert_eq!(send(&mut aliases, "plant/1"), Alias::New(1));
        assert_eq!(send(&mut aliases, "plant/1"), Alias::Known(1));
        assert_eq!(send(&mut aliases, "plant/2"), Alias::New(2));
        assert_eq!(send(&mut aliases, "t"), Alias::None, "longer with an alias than without");
        assert_eq!(send(&mut aliases, "plant/1"), Alias::Known(1));
    }

    #[test]
    fn what_was_not_written_is_not_known() {
        let mut aliases = SentAliases::new(1).expect("not 0");
        assert_eq!(aliases.find("plant/1"), Alias::New(1));
        assert_eq!(aliases.find("plant/1"), Alias::New(1));
    }

    #[test]
    fn never_more_than_the_client_keeps_and_the_hot_one_stays() {
        let mut aliases = SentAliases::new(2).expect("not 0");
        send(&mut aliases, "plant/hot");
        for n in 0..1_000 {
            assert_eq!(send(&mut aliases, "plant/hot"), Alias::Known(1));
            let Alias::New(1) = send(&mut aliases, &format!("cold/{n}")) else { continue };
            panic!("a topic of one message took the place of the hot one");
        }
        assert_eq!(aliases.topics.len(), 2);
    }
}
