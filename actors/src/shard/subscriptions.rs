//! The subscriptions of one session, in order of their filters. Most sessions have one: it costs no list.

use std::sync::Arc;

use crate::cell::CellId;

/// A filter, share group included, and the cell of its subscriber.
type Entry = (Arc<str>, CellId);

/// All of one session.
#[derive(Debug)]
pub(super) enum Subscriptions {
    One(Entry),
    /// Boxed: it must not make the one larger.
    #[allow(clippy::box_collection, reason = "one word instead of three in every session")]
    Many(Option<Box<Vec<Entry>>>),
}

impl Default for Subscriptions {
    fn default() -> Self {
        Self::Many(None)
    }
}

impl Subscriptions {
    pub(super) fn len(&self) -> usize {
        self.as_slice().len()
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, Entry> {
        self.as_slice().iter()
    }

    /// The cell of a filter's subscriber.
    pub(super) fn get(&self, filter: &str) -> Option<CellId> {
        self.find(filter).ok().map(|place| self.as_slice()[place].1)
    }

    /// The filter a cell is the subscriber of, for people.
    pub(super) fn filter_of(&self, cell: CellId) -> Option<&Arc<str>> {
        self.iter().find(|(_, of)| *of == cell).map(|(filter, _)| filter)
    }

    /// Puts in a filter that is not there yet.
    pub(super) fn insert(&mut self, filter: Arc<str>, cell: CellId) {
        let place = self.find(&filter).unwrap_or_else(|place| place);
        let new = (filter, cell);
        *self = match std::mem::take(self) {
            Self::Many(None) => Self::One(new),
            Self::One(old) => {
                let mut many = vec![old];
                many.insert(place, new);
                Self::Many(Some(Box::new(many)))
            }
            Self::Many(Some(mut many)) => {
                many.insert(place, new);
                Self::Many(Some(many))
            }
        };
    }

    /// Takes a filter out, with its cell.
    pub(super) fn remove(&mut self, filter: &str) -> Option<Entry> {
        let place = self.find(filter).ok()?;
        match std::mem::take(self) {
            Self::One(old) => Some(old),
            Self::Many(None) => None,
            Self::Many(Some(mut many)) => {
                let old = many.remove(place);
                if !many.is_empty() {
                    *self = Self::Many(Some(many));
                }
                Some(old)
            }
        }
    }

    fn find(&self, filter: &str) -> Result<usize, usize> {
        self.as_slice().binary_search_by(|(at, _)| (**at).cmp(filter))
    }

    fn as_slice(&self) -> &[Entry] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many.as_deref().map_or(&[], Vec::as_slice),
        }
    }
}

#[cfg(test)]
mod tests {
    use outpost_flow::RestartPolicy;

    use super::*;
    use crate::cell::Cells;

    #[test]
    fn filters_come_and_go_in_order() {
        let mut cells: Cells<(), (), ()> = Cells::new(RestartPolicy::default());
        let mut all = Subscriptions::default();
        let ids: Vec<CellId> = (0..3).map(|_| cells.spawn((), ())).collect();
        for (filter, cell) in ["b", "a/+", "c"].into_iter().zip(&ids) {
            assert_eq!(all.get(filter), None);
            all.insert(filter.into(), *cell);
        }
        assert_eq!(all.iter().map(|(f, _)| &**f).collect::<Vec<_>>(), ["a/+", "b", "c"]);
        assert_eq!((all.get("b"), all.filter_of(ids[1])), (Some(ids[0]), Some(&"a/+".into())));
        for (left, filter) in [(2, "b"), (1, "a/+"), (0, "c")] {
            assert!(all.remove(filter).is_some() && all.remove(filter).is_none());
            assert_eq!(all.len(), left);
        }
    }

    #[test]
    fn one_subscription_costs_three_words() {
        assert_eq!(size_of::<Subscriptions>(), 24);
    }
}
