//! How much memory this process occupies, as Linux tells it.

/// Resident memory, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// Now.
    pub bytes: u64,
    /// The most since the process started.
    pub peak_bytes: u64,
}

/// What `/proc/self/status` says; nothing where there is no such file.
pub fn resident() -> Option<Resident> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn parse(status: &str) -> Option<Resident> {
    let kib = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some(Resident { bytes: kib("VmRSS:")? * 1024, peak_bytes: kib("VmHWM:")? * 1024 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_lines_are_found_among_the_others() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nThreads:\t3\n";
        assert_eq!(parse(status), Some(Resident { bytes: 1 << 20, peak_bytes: 2 << 20 }));
        assert_eq!(parse("Name:\tx\n"), None);
    }
}
