//! The devices in the words of `outpost_hardware`, and its own checks.

use outpost_hardware::config::{Bias as Resistor, BoardKind};
use outpost_hardware::{DeviceConfig, HardwareConfig};

use super::keys::{Bias, Board, Config, Device};

impl Config {
    /// The devices on this machine.
    pub fn hardware(&self) -> HardwareConfig {
        HardwareConfig { device: self.hardware.device.iter().map(in_its_words).collect() }
    }
}

pub(super) fn in_its_words(device: &Device) -> DeviceConfig {
    DeviceConfig {
        name: device.name.clone(),
        driver: device.driver.clone(),
        board: match device.board {
            Board::Linux => BoardKind::Linux,
            Board::Simulated => BoardKind::Simulated,
        },
        chip: device.chip.clone(),
        line: device.line,
        active_low: device.active_low,
        bias: match device.bias {
            Bias::AsIs => Resistor::AsIs,
            Bias::PullUp => Resistor::PullUp,
            Bias::PullDown => Resistor::PullDown,
            Bias::Disabled => Resistor::Disabled,
        },
        debounce_ms: device.debounce_ms,
        initial: device.initial,
        topic_prefix: device.topic_prefix.clone(),
    }
}
