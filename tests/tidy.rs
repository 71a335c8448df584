//! House rules a compiler cannot check, over the sources of the whole workspace.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A longer file holds a second thing.
const LINES_PER_FILE_MAX: usize = 600;

/// Where our own sources are.
const SOURCES: [&str; 10] = [
    "core",
    "store",
    "actors",
    "bench",
    "cluster",
    "hardware",
    "node",
    "simulations",
    "tests",
    "fuzz/fuzz_targets",
];

/// The one reason to put a test aside: it is the other half of a test that starts its own binary again.
const CHILD_HALF: &str = "the tests here start it";

/// What would let a decision in `core/` see more than its arguments.
const OUTSIDE: [&str; 15] = [
    "tokio::",
    "std::fs",
    "std::env",
    "std::process",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "Instant::now",
    "SystemTime::now",
    "thread::",
    "rand::rng",
    "rand::random",
    "thread_rng",
    "getrandom",
    "println!",
];

#[test]
fn dependencies_point_down() {
    let metadata = cargo_metadata();
    let packages = metadata["packages"].as_array().expect("cargo lists the packages");
    let mut floors = BTreeMap::new();
    let mut broken = Broken::default();
    for package in packages {
        let name = package["name"].as_str().expect("a package has a name");
        match package["metadata"]["outpost"]["floor"].as_u64() {
            Some(floor) => _ = floors.insert(name, floor),
            None => broken.add(format!("{name} has no [package.metadata.outpost] floor")),
        }
    }
    for package in packages {
        let name = package["name"].as_str().expect("a package has a name");
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let dev = dependency["kind"].as_str() == Some("dev");
            let other = dependency["name"].as_str().unwrap_or_default();
            if let (false, Some(floor), Some(below)) = (dev, floors.get(name), floors.get(other))
                && below >= floor
            {
                broken.add(format!("{name} (floor {floor}) depends on {other} (floor {below})"));
            }
        }
    }
    broken.finish("a crate uses lower floors only, see ARCHITECTURE.md");
}

#[test]
fn every_file_says_what_it_is() {
    let mut broken = Broken::default();
    for (path, text) in sources() {
        let first = text.lines().next().unwrap_or_default();
        let words = first.strip_prefix("//!").map_or(0, |says| says.split_whitespace().count());
        if words < 2 {
            broken.add(format!("{}: {first:?}", shown(&path)));
        }
    }
    broken.finish("the first line of a file is `//!` and a few words that say what it is");
}

#[test]
fn core_never_looks_outside() {
    let mut broken = Broken::default();
    for (path, text) in sources() {
        let shown = shown(&path);
        if !shown.starts_with("core/") || !shown.contains("/src/") || shown.ends_with("tests.rs") {
            continue;
        }
        let decisions = text.lines().take_while(|line| line.trim() != "#[cfg(test)]");
        for (number, line) in decisions.enumerate() {
            for word in OUTSIDE.iter().filter(|word| line.contains(**word)) {
                broken.add(format!("{shown}:{}: {word}", number + 1));
            }
        }
    }
    broken.finish("core/ has no IO, clock, thread or dice: they come in as arguments");
}

#[test]
fn the_map_and_the_folders_agree() {
    let map = read("ARCHITECTURE.md");
    let named: BTreeSet<&str> = map
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|code| code.strip_suffix('/'))
        .filter(|name| !name.contains(['/', ' ', '\n']))
        .collect();
    let mut broken = Broken::default();
    for name in tracked_folders() {
        if !named.contains(name.as_str()) {
            broken.add(format!("`{name}/` is not in ARCHITECTURE.md"));
        }
    }
    for name in named.iter().filter(|name| !root().join(name).is_dir()) {
        broken.add(format!("ARCHITECTURE.md names `{name}/`, which does not exist"));
    }
    broken.finish("ARCHITECTURE.md names each folder at the top as `folder/`, and no others");
}

#[test]
fn every_limit_has_a_line_in_the_reference() {
    let page = read("docs/reference/limits.md");
    let mut broken = Broken::default();
    for (path, text) in sources() {
        let shown = shown(&path);
        if !shown.contains("src/") {
            continue;
        }
        for name in text.lines().filter_map(limit_name) {
            if !page.contains(&format!("`{name}`")) {
                broken.add(format!("| `{name}` | {shown} |"));
            }
        }
    }
    broken.finish(
        "docs/reference/limits.md names every `pub const …_MAX` and every config field `…_max`",
    );
}

#[test]
fn no_test_is_put_aside() {
    let mark = concat!("#[", "ignore");
    let aside = |line: &str| line.trim_start().starts_with(mark) && !line.contains(CHILD_HALF);
    let mut broken = Broken::default();
    for (path, text) in sources() {
        for (number, _) in text.lines().enumerate().filter(|(_, line)| aside(line)) {
            broken.add(format!("{}:{}", shown(&path), number + 1));
        }
    }
    broken.finish("a test that fails for a known bug asserts today's behaviour and says so");
}

#[test]
fn no_file_holds_two_things() {
    let mut broken = Broken::default();
    for (path, text) in sources() {
        let lines = text.lines().count();
        if lines > LINES_PER_FILE_MAX {
            broken.add(format!("{}: {lines} lines", shown(&path)));
        }
    }
    broken.finish("a file has 600 lines at most");
}

#[test]
fn the_rules_see_what_they_are_about() {
    assert!(sources().count() > 20, "the sources are found");
    assert_eq!(limit_name("pub const QUEUE_BYTES_MAX: usize = 1;"), Some("QUEUE_BYTES_MAX"));
    assert_eq!(limit_name("    pub queue_bytes_max: usize,"), Some("queue_bytes_max"));
    assert_eq!(limit_name("const QUEUE_BYTES_MAX: usize = 1;"), None);
    assert_eq!(limit_name("    pub fn below_max(&self)"), None);
}

/// The name of a limit this line declares for others.
fn limit_name(line: &str) -> Option<&str> {
    let declared = line.trim_start().strip_prefix("pub ")?;
    let declared = declared.strip_prefix("const ").unwrap_or(declared);
    let (name, _) = declared.split_once(':')?;
    let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    (is_name && (name.ends_with("_MAX") || name.ends_with("_max"))).then_some(name)
}

/// What breaks a rule, told all at once.
#[derive(Default)]
struct Broken(Vec<String>);

impl Broken {
    fn add(&mut self, what: String) {
        self.0.push(what);
    }

    fn finish(self, rule: &str) {
        let mut text = String::new();
        self.0.iter().for_each(|what| _ = writeln!(text, "  {what}"));
        assert!(self.0.is_empty(), "{rule}; broken by\n{text}");
    }
}

/// All our Rust files with their text.
fn sources() -> impl Iterator<Item = (PathBuf, String)> {
    let mut found = Vec::new();
    for folder in SOURCES {
        collect(&root().join(folder), &mut found);
    }
    found.sort();
    found.into_iter().map(|path| {
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path, text)
    })
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.expect("the folder can be read").path()) {
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The folders at the top that git keeps something of.
fn tracked_folders() -> BTreeSet<String> {
    let output = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let output = output.expect("git lists the files");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("file names are UTF-8");
    let folders = names
        .split('\0')
        .filter_map(|name| name.split_once('/'))
        .map(|(folder, _)| folder.to_owned());
    folders.filter(|folder| !folder.starts_with('.')).collect()
}

fn cargo_metadata() -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo is there, it runs this test");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo speaks JSON")
}

fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The folder of the workspace.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace")
}
