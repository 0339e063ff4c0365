//! Whether this machine keeps the promises on which the program's caches rely
//! (firewall-ebpf/src/cache.rs).
//! Never guesses: where the machine does not tell, the caches are off.

use std::fs;

/// What `uname -v` prints.
const VERSION: &str = "/proc/sys/kernel/version";
/// Says 1 on a kernel with PREEMPT_RT.
const REALTIME: &str = "/sys/kernel/realtime";

/// Whether the program may keep answers on this machine.
pub fn may_cache() -> bool {
    let version = fs::read_to_string(VERSION).ok();
    let realtime = fs::read_to_string(REALTIME).ok();
    decide(std::env::consts::ARCH, version.as_deref(), realtime.as_deref())
}

/// Whether the program may keep answers on a machine that is known by its architecture, by what
/// `uname -v` prints (`None` if that cannot be read), and by what stands in /sys/kernel/realtime
/// if there is such a file.
pub fn decide(architecture: &str, version: Option<&str>, realtime: Option<&str>) -> bool {
    let keeps_order = architecture == "x86_64";
    let is_preempted = version.is_none_or(|version| version.contains("PREEMPT_RT"))
        || realtime.is_some_and(|realtime| realtime.trim() != "0");
    keeps_order && !is_preempted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_on_only_where_loads_keep_their_order_and_softirqs_are_not_preempted() {
        let check = |architecture, version, realtime, expected| {
            let decided = decide(architecture, version, realtime);
            assert_eq!(decided, expected, "{architecture} {version:?} {realtime:?}");
        };
        let usual = Some("#1 SMP PREEMPT_DYNAMIC Debian 6.12.43-1 (2025-08-27)\n");
        let realtime = Some("#1 SMP PREEMPT_RT Debian 6.12.43-1 (2025-08-27)\n");
        check("x86_64", usual, None, true);
        check("x86_64", usual, Some("0\n"), true);
        check("x86_64", usual, Some("1\n"), false);
        check("x86_64", usual, Some(""), false);
        check("x86_64", realtime, None, false);
        check("x86_64", realtime, Some("1\n"), false);
        check("x86_64", None, None, false);
        for other in ["aarch64", "riscv64", "x86", "arm", "powerpc64", ""] {
            check(other, usual, None, false);
        }
    }
}
