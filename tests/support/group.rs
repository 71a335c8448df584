//! A control group of memory for one process, where the system lets us make one.

use std::fs;
use std::path::{Path, PathBuf};

/// Where groups are made (version 1; version 2 has no memory controller on every machine).
const ROOT: &str = "/sys/fs/cgroup/memory";

/// A group with a limit of memory. Goes when dropped.
pub struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// `None` where groups cannot be made.
    pub fn new(name: &str, limit_bytes: u64) -> Option<Self> {
        let folder = Path::new(ROOT).join(format!("{name}-{}", std::process::id()));
        if !Path::new(ROOT).join("memory.limit_in_bytes").exists() {
            return None;
        }
        fs::create_dir(&folder).ok()?;
        let group = Self(folder);
        fs::write(group.0.join("memory.limit_in_bytes"), limit_bytes.to_string()).ok()?;
        Some(group)
    }

    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// The most it used, page cache included.
    pub fn peak_bytes(&self) -> u64 {
        let text = fs::read_to_string(self.0.join("memory.max_usage_in_bytes")).unwrap_or_default();
        text.trim().parse().unwrap_or_default()
    }

    /// How often the kernel killed in it.
    pub fn kills(&self) -> u64 {
        let text = fs::read_to_string(self.0.join("memory.oom_control")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|count| count.parse().ok()).unwrap_or_default()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
