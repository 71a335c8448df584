//! The configuration: one TOML snapshot, checked whole before anything of it is used.
//!
//! ```text
//! default  <  file  <  conf.d/*.toml beside it  <  OUTPOST_LISTEN__MQTT__BIND=…  <  --set listen.mqtt.bind=…
//! ```
//! `keys.rs` declares every key once; the struct, the check with line and column, and `docs/reference/config.md` follow
//! from that declaration.

mod bridge_keys;
mod cross;
mod hardware;
mod issue;
mod keys;
mod listeners;
mod reference;
mod schema;
mod security;
mod source;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

pub use cross::{TOKEN_CHARS_MIN, first_line, line};
pub use issue::{ConfigError, Issue, Origin, closest};
pub use keys::{
    Access, Acl, Bias, Board, Bridge, BridgeDirection, BridgeProtocol, BridgeTopic,
    ClientCertificate, Cluster, Config, Device, Durability, Effect, Hardware, Limits, Listen,
    ListenHttp, ListenMqtt, Listener, Log, LogFormat, Node, OverloadPolicy, OverloadRule,
    PolicyKind, Security, ShadowPolicy, Shadows, Transport, User, UserFrom,
};
pub use listeners::{LISTENERS_MAX, MQTT_LISTENER};
pub use reference::reference;
pub use schema::{Field, Kind};
pub use source::{ENV_PREFIX, FILE_BYTES_MAX};

/// Where to read a configuration from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file, if there is one; `conf.d/*.toml` beside it is read as well.
    pub file: Option<PathBuf>,
    /// Environment variables; [`Sources::with_env`] takes the process's.
    pub env: Vec<(String, String)>,
    /// `key=value` texts.
    pub set: Vec<String>,
}

impl Sources {
    /// Reads from this file.
    pub fn file(path: impl AsRef<Path>) -> Self {
        Self { file: Some(path.as_ref().to_owned()), ..Self::default() }
    }

    /// Adds the variables of this process. Those that are no UTF-8 are left out.
    pub fn with_env(mut self) -> Self {
        self.env = std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect();
        self.env.sort();
        self
    }

    /// Adds `key=value` texts.
    pub fn with_set(mut self, set: Vec<String>) -> Self {
        self.set = set;
        self
    }
}

impl Config {
    /// Reads, merges and checks.
    ///
    /// # Errors
    /// [`ConfigError`] with everything that was found wrong.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let fields = Self::fields();
        let mut tree = source::Tree::default();
        if let Some(file) = &sources.file {
            tree.read_file(file, &fields);
            match source::drop_ins(file) {
                Ok(more) => more.iter().for_each(|path| tree.read_file(path, &fields)),
                Err(cause) => {
                    let origin =
                        Origin::File { path: file.with_file_name("conf.d"), line: 1, column: 1 };
                    tree.issue(origin, "", format!("cannot read this directory: {cause}"), None);
                }
            }
        }
        tree.read_env(sources.env.iter().cloned(), &fields);
        sources.set.iter().for_each(|assignment| tree.read_set(assignment, &fields));
        let config = match Self::deserialize(toml::Value::Table(tree.values.clone())) {
            Ok(config) => {
                cross::check(&config, &mut tree);
                Some(config)
            }
            Err(error) => {
                // The walk has seen every value, so this only happens beside issues it has named already.
                if tree.issues.is_empty() {
                    tree.issue(Origin::Default, "", error.message().to_owned(), None);
                }
                None
            }
        };
        tree.issues.sort_by(|a, b| a.origin.cmp(&b.origin));
        match config {
            Some(config) if tree.issues.is_empty() => Ok(config),
            _ => Err(ConfigError(tree.issues)),
        }
    }

    /// The snapshot as TOML, every key with the value in force.
    ///
    /// # Panics
    /// Never: the struct holds nothing TOML cannot say.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("numbers, texts, lists and tables are all TOML knows")
    }

    /// Names the snapshot: the same for the same values, wherever they came from.
    pub fn sha256(&self) -> String {
        let digest = Sha256::digest(self.to_toml().as_bytes());
        digest.iter().fold(String::with_capacity(64), |mut text, byte| {
            use std::fmt::Write;
            write!(text, "{byte:02x}").expect("writing to a String does not fail");
            text
        })
    }
}

#[cfg(test)]
mod tests;
