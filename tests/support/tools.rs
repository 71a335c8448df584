//! Clients other people wrote, as commands. One that is missing fails the story and says what to install.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::Command;

/// Names a Python that has paho-mqtt, when `python3` has not.
pub const PYTHON_VARIABLE: &str = "OUTPOST_TEST_PYTHON";

/// A command on the path, ready for arguments.
pub fn tool(name: &str, package: &str) -> Command {
    let path = on_the_path(name);
    let path = path.unwrap_or_else(|| panic!("{name} is missing: apt-get install {package}"));
    let mut command = Command::new(path);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// mosquitto_pub or mosquitto_sub.
pub fn mosquitto(name: &str) -> Command {
    tool(name, "mosquitto-clients")
}

/// A Python that has paho-mqtt, ready for a program.
pub async fn python_with_paho() -> Command {
    let python = std::env::var(PYTHON_VARIABLE).unwrap_or_else(|_| "python3".to_owned());
    let check = Command::new(&python).args(["-c", "import paho.mqtt.client"]).output().await;
    let found = check.is_ok_and(|output| output.status.success());
    assert!(
        found,
        "{python} has no paho-mqtt: python3 -m venv V && V/bin/pip install paho-mqtt, then {PYTHON_VARIABLE}=V/bin/python"
    );
    let mut command = Command::new(python);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

fn on_the_path(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    // Debian keeps servers in a folder that only root looks into.
    let folders = std::env::split_paths(&folders).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}
