//! The section `[[hardware.device]]`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use outpost_model::topic::{TopicError, check_name};
use serde::Deserialize;

use crate::driver::Drivers;

/// Devices a node may have. Smaller: large panels do not fit; greater: a mistake in a generated file starts more
/// actors (7 KB each) than a board has lines.
pub const DEVICES_MAX: usize = 1_024;

/// The longest debounce. Greater: the button seems dead.
pub const DEBOUNCE_MS_MAX: u32 = 10_000;

/// All hardware of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HardwareConfig {
    /// The devices, in no particular order.
    pub device: Vec<DeviceConfig>,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// Its name, one level of its topics. Unique on the node.
    pub name: String,
    /// What it is: `led`, `relay`, `button`.
    pub driver: String,
    /// What its line belongs to.
    #[serde(default)]
    pub board: BoardKind,
    /// The GPIO chip of a Linux board.
    #[serde(default = "first_chip")]
    pub chip: PathBuf,
    /// The line's offset on the chip, as `gpioinfo` counts.
    pub line: u32,
    /// A low voltage means "on".
    #[serde(default)]
    pub active_low: bool,
    /// The resistor of an input.
    #[serde(default)]
    pub bias: Bias,
    /// An input's level counts after it was stable for so long. 0: every bounce of a contact is an event; too great:
    /// short presses are missed.
    #[serde(default = "usual_debounce_ms")]
    pub debounce_ms: u32,
    /// What an output is when the node starts, and when it stops in order.
    #[serde(default)]
    pub initial: bool,
    /// The topics are `<topic_prefix>/<name>/state` and `…/set`.
    #[serde(default = "usual_prefix")]
    pub topic_prefix: String,
}

/// What a line belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BoardKind {
    /// A GPIO chip of this machine, through the character device.
    #[default]
    Linux,
    /// Memory: for trying things out and for tests.
    Simulated,
}

/// The resistor of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// As the board or the boot loader left it.
    #[default]
    AsIs,
    /// To the supply.
    PullUp,
    /// To ground.
    PullDown,
    /// None.
    Disabled,
}

/// What is wrong with the hardware section. Nothing was started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// More than [`DEVICES_MAX`].
    #[error("{0} hardware devices are configured, the limit is {DEVICES_MAX}")]
    TooMany(usize),
    /// The name does not fit one topic level.
    #[error("hardware device {0:?}: the name must be one topic level, not empty and without / + #")]
    Name(String),
    /// The prefix makes no topic.
    #[error("hardware device {device}: the topic prefix {source}")]
    Prefix {
        /// Name of the device.
        device: String,
        /// What is wrong.
        source: TopicError,
    },
    /// Two devices of one name.
    #[error("hardware device {0}: the name is used twice")]
    Twice(String),
    /// No such driver.
    #[error("hardware device {device}: there is no driver {driver:?}; there are: {known}")]
    Driver {
        /// Name of the device.
        device: String,
        /// As written.
        driver: String,
        /// Those that exist.
        known: String,
    },
    /// Above [`DEBOUNCE_MS_MAX`].
    #[error(
        "hardware device {device}: debounce_ms is {debounce_ms}, the limit is {DEBOUNCE_MS_MAX}"
    )]
    Debounce {
        /// Name of the device.
        device: String,
        /// As written.
        debounce_ms: u32,
    },
}

impl HardwareConfig {
    /// Checks all that can be known without touching a line.
    ///
    /// # Errors
    /// The first [`ConfigError`] in the order written.
    pub fn check(&self, drivers: &Drivers) -> Result<(), ConfigError> {
        if self.device.len() > DEVICES_MAX {
            return Err(ConfigError::TooMany(self.device.len()));
        }
        let mut names = BTreeSet::new();
        for device in &self.device {
            device.check(drivers)?;
            if !names.insert(&device.name) {
                return Err(ConfigError::Twice(device.name.clone()));
            }
        }
        Ok(())
    }
}

impl DeviceConfig {
    /// Where it publishes what it is; retained.
    pub fn state_topic(&self) -> String {
        format!("{}/{}/state", self.topic_prefix, self.name)
    }

    /// Where it takes commands.
    pub fn set_topic(&self) -> String {
        format!("{}/{}/set", self.topic_prefix, self.name)
    }

    fn check(&self, drivers: &Drivers) -> Result<(), ConfigError> {
        if self.name.is_empty() || self.name.contains('/') || check_name(&self.name).is_err() {
            return Err(ConfigError::Name(self.name.clone()));
        }
        check_name(&self.topic_prefix)
            .and_then(|()| check_name(&self.state_topic()))
            .map_err(|source| ConfigError::Prefix { device: self.name.clone(), source })?;
        if !drivers.contains(&self.driver) {
            let (device, driver) = (self.name.clone(), self.driver.clone());
            return Err(ConfigError::Driver {
                device,
                driver,
                known: drivers.names().collect::<Vec<_>>().join(", "),
            });
        }
        if self.debounce_ms > DEBOUNCE_MS_MAX {
            return Err(ConfigError::Debounce {
                device: self.name.clone(),
                debounce_ms: self.debounce_ms,
            });
        }
        Ok(())
    }
}

fn first_chip() -> PathBuf {
    "/dev/gpiochip0".into()
}

fn usual_debounce_ms() -> u32 {
    10
}

fn usual_prefix() -> String {
    "hw".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_section_gets_the_usual_values() {
        let config = read("[[device]]\nname = 'porch'\ndriver = 'led'\nline = 17").expect("valid");
        assert_eq!(config.check(&Drivers::built_in()), Ok(()));
        let porch = &config.device[0];
        assert_eq!(
            (porch.board, porch.debounce_ms, porch.bias),
            (BoardKind::Linux, 10, Bias::AsIs)
        );
        assert_eq!(
            (&*porch.state_topic(), &*porch.set_topic()),
            ("hw/porch/state", "hw/porch/set")
        );
    }

    #[test]
    fn misspelt_keys_are_refused() {
        assert!(
            read("[[device]]\nname = 'a'\ndriver = 'led'\nline = 1\nactivelow = true").is_err()
        );
        assert!(read("[[devices]]\nname = 'a'").is_err());
    }

    #[test]
    fn what_can_be_known_beforehand_is_checked() {
        for (more, expected) in [
            ("name = 'a/b'", ConfigError::Name("a/b".into())),
            ("name = '+'", ConfigError::Name("+".into())),
            (
                "name = 'a'\ndebounce_ms = 10001",
                ConfigError::Debounce { device: "a".into(), debounce_ms: 10_001 },
            ),
            (
                "name = 'a'\ntopic_prefix = 'x/#'",
                ConfigError::Prefix { device: "a".into(), source: TopicError::WildcardInName },
            ),
        ] {
            let config =
                read(&format!("[[device]]\ndriver = 'led'\nline = 1\n{more}")).expect("readable");
            assert_eq!(config.check(&Drivers::built_in()), Err(expected));
        }
        let twice = read(
            "[[device]]\nname='a'\ndriver='led'\nline=1\n[[device]]\nname='a'\ndriver='led'\nline=2",
        );
        assert_eq!(
            twice.expect("readable").check(&Drivers::built_in()),
            Err(ConfigError::Twice("a".into()))
        );
        let unknown = read("[[device]]\nname='a'\ndriver='laser'\nline=1").expect("readable");
        let error = unknown.check(&Drivers::built_in()).expect_err("there is no laser");
        assert!(error.to_string().ends_with("there are: button, led, relay"), "{error}");
    }

    fn read(text: &str) -> Result<HardwareConfig, toml::de::Error> {
        toml::from_str(text)
    }
}
