//! What figures from another machine need to be read: kernel and processor.
//! Never says whose machine it is.

/// Kernel and processor, in one line.
pub fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let release = read("/proc/sys/kernel/osrelease");
    let version = release.split('-').next().unwrap_or_default().trim().to_owned();
    let cpus = read("/proc/cpuinfo");
    let mut models = cpus.lines().filter_map(|line| line.strip_prefix("model name"));
    let model = models.next().unwrap_or_default().trim_start_matches([' ', '\t', ':']);
    format!("Linux {version}, {model}")
}
