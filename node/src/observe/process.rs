//! What the operating system says of this process, from /proc/self.

use nix::sys::resource::{getrlimit, getrusage, Resource, UsageWho};

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessFigures {
    pub resident_bytes: u64,
    pub cpu_seconds: f64,
    pub open_fds: u64,
    /// How many it may open.
    pub max_fds: u64,
    pub threads: u64,
}

/// As [`ProcessFigures::resident_bytes`], cheaper than all of them.
pub fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let resident: u64 = pages
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    resident * page.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(4096)
}

/// What cannot be read is 0.
pub fn read() -> ProcessFigures {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ProcessFigures {
        resident_bytes: status_field(&status, "VmRSS:").unwrap_or(0) * 1024,
        cpu_seconds: cpu_seconds().unwrap_or(0.0),
        open_fds: open_fds().unwrap_or(0),
        max_fds: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
        threads: status_field(&status, "Threads:").unwrap_or(0),
    }
}

fn status_field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn cpu_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    Some(seconds(usage.user_time()) + seconds(usage.system_time()))
}

fn open_fds() -> Option<u64> {
    let listed = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    // The listing holds a descriptor itself.
    Some(listed.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_process_has_memory_threads_and_descriptors() {
        let figures = read();
        assert!(figures.resident_bytes > 64 * 1024);
        assert!(resident_bytes() > 64 * 1024);
        assert!(figures.threads >= 1);
        assert!(figures.open_fds >= 1 && figures.max_fds >= figures.open_fds);
        assert!(figures.cpu_seconds >= 0.0);
    }

    #[test]
    fn fields_are_found_by_name() {
        let status = "Name:\tx\nVmRSS:\t   123 kB\nThreads:\t4\n";
        assert_eq!(status_field(status, "VmRSS:"), Some(123));
        assert_eq!(status_field(status, "Threads:"), Some(4));
        assert_eq!(status_field(status, "VmSwap:"), None);
    }
}
