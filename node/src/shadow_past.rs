//! What the shadow hub remembers, for HTTP: nodes by their names instead of their ids.

use std::collections::BTreeMap;

use outpost_shadow::{Entry, Reason, ShadowKey};

use crate::backend::NodeBackend;
use crate::http::ShadowsDown;
use crate::shadows::ShadowCommand;

impl NodeBackend {
    pub(crate) async fn past(
        &self,
        key: ShadowKey,
        limit: usize,
    ) -> Result<Vec<Entry>, ShadowsDown> {
        let asked = self.shadows.ask(|reply| ShadowCommand::History { key, limit, reply }).await;
        let mut entries = asked.ok_or(ShadowsDown)?;
        let names = self.names();
        entries.iter_mut().for_each(|entry| name_entry(entry, &names));
        Ok(entries)
    }

    pub(crate) async fn reasons(
        &self,
        key: ShadowKey,
        path: Vec<String>,
        limit: usize,
    ) -> Result<Vec<Reason>, ShadowsDown> {
        let asked = self.shadows.ask(|reply| ShadowCommand::Why { key, path, limit, reply }).await;
        let mut reasons = asked.ok_or(ShadowsDown)?;
        let names = self.names();
        for reason in &mut reasons {
            name(&mut reason.node, &names);
            reason.history.iter_mut().for_each(|entry| name_entry(entry, &names));
        }
        Ok(reasons)
    }

    /// Names of nodes by their ids, as far as this node knows them.
    fn names(&self) -> BTreeMap<String, String> {
        let own = outpost_model::NodeId::from_name(&self.name).to_string();
        let cluster = self.cluster.lock().clone();
        let members = cluster.map(|cluster| cluster.status().members).unwrap_or_default();
        let members = members.into_iter().map(|member| (member.id, member.name));
        members.chain([(own, self.name.clone())]).collect()
    }
}

fn name_entry(entry: &mut Entry, names: &BTreeMap<String, String>) {
    if let Some(from) = &mut entry.from {
        name(from, names);
    }
    entry.changes.iter_mut().for_each(|change| name(&mut change.node, names));
}

fn name(node: &mut String, names: &BTreeMap<String, String>) {
    if let Some(known) = names.get(node) {
        node.clone_from(known);
    }
}
