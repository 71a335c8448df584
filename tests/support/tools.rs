//! Programs other people wrote, as commands. What this machine does not have is fetched once, into the target folder.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;

use tokio::process::Command;

/// A program, ready for arguments.
pub fn tool(name: &str) -> Command {
    let mut command = Command::from(program(name));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// A program as the standard library starts it.
pub fn program(name: &str) -> std::process::Command {
    // Debian keeps servers in a folder that only root looks into.
    let folders = path();
    let own = std::env::split_paths(&folders).chain([PathBuf::from("/usr/sbin")]);
    if let Some(file) = own.map(|folder| folder.join(name)).find(|file| file.is_file()) {
        return std::process::Command::new(file);
    }
    let fetched = ["usr/bin", "usr/sbin"].map(|folder| peers().join(folder).join(name));
    let file = fetched.iter().find(|file| file.is_file());
    let file = file.unwrap_or_else(|| panic!("tests/peers does not bring {name}"));
    let mut command = std::process::Command::new(file);
    command.env("LD_LIBRARY_PATH", libraries());
    command
}

/// Lets a command, and what it starts by name, find all of them.
pub fn with_path(command: &mut Command, names: &[&str]) {
    for name in names {
        drop(program(name));
    }
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path()).collect();
    if folder().join("complete").exists() {
        folders.push(folder().join("usr/bin"));
        command.env("LD_LIBRARY_PATH", libraries());
    }
    command.env("PATH", std::env::join_paths(folders).expect("they were joined before"));
}

/// A Python that has paho-mqtt, ready for a program.
pub fn python_with_paho() -> Command {
    let has_paho = tool("python3").as_std_mut().args(["-c", "import paho.mqtt.client"]).output();
    let mut python = tool("python3");
    if !has_paho.is_ok_and(|output| output.status.success()) {
        python.env("PYTHONPATH", peers().join("python"));
    }
    python
}

/// Where `tests/peers` has put what was missing.
fn peers() -> &'static Path {
    static FETCHED: OnceLock<()> = OnceLock::new();
    FETCHED.get_or_init(|| {
        if folder().join("complete").exists() {
            return;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
        let done = std::process::Command::new(&script).arg(folder()).stdin(Stdio::null()).output();
        let done = done.unwrap_or_else(|error| panic!("{}: {error}", script.display()));
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(
            done.status.success(),
            "{} could not fetch what is missing: {said}",
            script.display()
        );
    });
    folder()
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/peers"))
}

fn libraries() -> PathBuf {
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    folder().join("usr/lib").join(triple)
}

fn path() -> std::ffi::OsString {
    std::env::var_os("PATH").expect("there is a path")
}
