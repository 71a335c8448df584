//! Nodes in this process: ports by the system, data in a folder that goes away.

use std::net::SocketAddr;
use std::path::Path;

use outpost_node::config::Config;
use outpost_node::listeners::Listeners;
use outpost_node::{Hooks, Node};
use tempfile::TempDir;

/// A node on its own, with its data.
pub struct TestNode {
    node: Node,
    /// Kept until the node has stopped.
    data: TempDir,
}

impl TestNode {
    pub async fn start() -> Self {
        Self::start_with(|_| {}, Hooks::default()).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config), hooks: Hooks) -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let mut config = config(data.path());
        change(&mut config);
        let node = Node::start_with(config, hooks).await.unwrap_or_else(|why| panic!("{why}"));
        Self { node, data }
    }

    pub fn mqtt(&self) -> SocketAddr {
        self.node.mqtt_addr()
    }

    pub fn http(&self) -> SocketAddr {
        self.node.http_addr()
    }

    /// Where a `[[listener]]` is.
    pub fn listener(&self, name: &str) -> SocketAddr {
        self.listeners().named(name).expect("it is configured").address
    }

    pub fn listeners(&self) -> &Listeners {
        self.node.listeners()
    }

    /// Stops it and starts it again on the same data.
    pub async fn restart(self) -> Self {
        self.restart_with(|_| {}).await
    }

    /// The same with another configuration.
    pub async fn restart_with(self, change: impl FnOnce(&mut Config)) -> Self {
        self.node.shutdown().await;
        let mut config = config(self.data.path());
        change(&mut config);
        let node = Node::start(config).await.unwrap_or_else(|why| panic!("{why}"));
        Self { node, data: self.data }
    }

    pub async fn stop(self) {
        self.node.shutdown().await;
    }
}

/// The defaults, with ports by the system and this folder for data.
pub fn config(data: &Path) -> Config {
    let mut config = Config::default();
    data.clone_into(&mut config.node.data_dir);
    config.listen.mqtt.bind.set_port(0);
    config.listen.http.bind.set_port(0);
    config
}
