//! How much memory there is, and how much of it this process takes.

use std::fs;
use std::path::Path;

/// So much of the memory a process may have is the budget, in percent, when the configuration names none. More: what is not
/// charged (the program, TLS, the kernel's socket buffers) leads to the process being killed; less: queues are refused
/// that would have fitted.
const SHARE_PERCENT: u64 = 25;

/// A budget below this is of no use: an idle node takes as much.
const BUDGET_BYTES_MIN: u64 = 8 << 20;

/// The memory budget of a node whose configuration names none; 0 (no limit) where the system does not say what there is.
pub fn budget_bytes() -> u64 {
    match available_bytes() {
        Some(bytes) => (bytes / 100 * SHARE_PERCENT).max(BUDGET_BYTES_MIN),
        None => 0,
    }
}

/// What this process may use: the least of the machine's memory and the limits of its control groups.
pub fn available_bytes() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = group_files(&groups).into_iter().filter_map(|file| number(&file));
    let machine = fs::read_to_string("/proc/meminfo").ok();
    limits.chain(machine.and_then(|text| total_bytes(&text))).min()
}

/// Where limits may stand: the process's own groups of version 1 and 2, and all those above them.
fn group_files(groups: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let above = Path::new(path).ancestors();
        files.extend(above.map(|group| format!("{root}{}/{file}", group.display())));
    }
    files
}

/// `max` and what cannot be read are no limit.
fn number(file: &str) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn total_bytes(meminfo: &str) -> Option<u64> {
    kib(meminfo, "MemTotal:").map(|kib| kib * 1_024)
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_control_groups_are_asked_up_to_the_root() {
        let files = group_files("4:memory:/a/b\n1:cpu:/a\n0::/c\nnonsense\n");
        let expected = [
            "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory//memory.limit_in_bytes",
            "/sys/fs/cgroup/c/memory.max",
            "/sys/fs/cgroup//memory.max",
        ];
        assert_eq!(files, expected);
    }

    #[test]
    fn the_machine_says_how_much_it_has() {
        assert_eq!(total_bytes("MemTotal:       24576 kB\nMemFree: 1 kB\n"), Some(24_576 * 1_024));
        assert_eq!(total_bytes("nothing"), None);
        let (budget, all) = (budget_bytes(), available_bytes().expect("this is Linux"));
        assert!(budget >= BUDGET_BYTES_MIN && budget <= all.max(BUDGET_BYTES_MIN));
    }
}
