//! Which session a client id names. The ids themselves stand in the sessions; this holds their places only.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
use slab::Slab;

use super::Shard;
use super::slot::SessionSlot;

/// Sessions by client id.
#[derive(Debug, Default)]
pub(super) struct Names {
    hasher: DefaultHashBuilder,
    places: HashTable<u32>,
}

impl Names {
    fn find(&self, sessions: &Slab<SessionSlot>, client_id: &str) -> Option<u32> {
        let is_it = |place: &u32| *sessions[*place as usize].client_id == *client_id;
        self.places.find(self.hasher.hash_one(client_id), is_it).copied()
    }

    fn insert(&mut self, sessions: &Slab<SessionSlot>, session: u32) {
        let hash_of = |place: &u32| self.hasher.hash_one(&*sessions[*place as usize].client_id);
        self.places.insert_unique(hash_of(&session), session, hash_of);
    }

    fn remove(&mut self, client_id: &str, session: u32) {
        let found = self.places.find_entry(self.hasher.hash_one(client_id), |at| *at == session);
        if let Ok(found) = found {
            found.remove();
        }
    }

    fn shrink(&mut self, sessions: &Slab<SessionSlot>) {
        let hash_of = |place: &u32| self.hasher.hash_one(&*sessions[*place as usize].client_id);
        self.places.shrink_to_fit(hash_of);
    }
}

impl Shard {
    /// The session of a client.
    pub(super) fn session_of(&self, client_id: &str) -> Option<u32> {
        self.names.find(&self.sessions, client_id)
    }

    /// A session is in its place: it can be found.
    pub(super) fn name_session(&mut self, session: u32) {
        self.names.insert(&self.sessions, session);
    }

    /// A session has left its place.
    pub(super) fn unname_session(&mut self, client_id: &str, session: u32) {
        self.names.remove(client_id, session);
    }

    pub(super) fn shrink_names(&mut self) {
        self.names.shrink(&self.sessions);
    }
}
