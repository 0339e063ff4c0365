//! What the kernel has of what the programs need.
//! Never attaches a program.

use std::fs;
use std::path::Path;

use firewall_core::told::examination::Check;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{bad, good, odd};
use crate::edges::dataplane::{self, floor};

/// What is looked at of the kernel.
pub(super) fn checks(pins: &Path) -> Vec<Check> {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "not known".to_owned());
    let mut checks = vec![
        good("kernel", format!("Linux {release}, {}", std::env::consts::ARCH)),
        needs(),
        tcx(),
        btf(),
        jit(),
        programs(),
        place_for_pins(pins),
    ];
    checks.extend(lockdown());
    checks.push(forwarding());
    checks
}

fn needs() -> Check {
    match floor::check() {
        Ok(()) => good("features", "all that the programs are made of"),
        Err(error) => bad(
            "features",
            error.to_string(),
            "the agent does not start here, and the gate forwards nothing; the netvm needs another kernel",
        ),
    }
}

fn tcx() -> Check {
    match floor::check_tcx() {
        Ok(()) => good("attachment", "tcx"),
        Err(_) => odd(
            "attachment",
            "clsact, since the kernel has no tcx (Linux 6.6)",
            "it needs the modules sch_ingress and cls_bpf, and other tools can remove it; then the gate \
             forwards nothing",
        ),
    }
}

fn btf() -> Check {
    let is_there = Path::new("/sys/kernel/btf/vmlinux").exists();
    let found = if is_there { "there; not used" } else { "none; not needed" };
    good("type information (BTF)", found)
}

fn jit() -> Check {
    let (enabled, hardened) = (sysctl("bpf_jit_enable"), sysctl("bpf_jit_harden"));
    // A kernel that always compiles may not say so.
    match (enabled.as_deref(), hardened.as_deref()) {
        (Some("0"), _) => odd(
            "compiler (JIT)",
            "off: programs are interpreted",
            "all works, and each packet costs several times as much (net.core.bpf_jit_enable)",
        ),
        (_, Some("2")) => odd(
            "compiler (JIT)",
            "on, and blinds constants for everybody (net.core.bpf_jit_harden=2)",
            "all works, and each packet costs a little more",
        ),
        _ => good("compiler (JIT)", "on"),
    }
}

fn programs() -> Check {
    match dataplane::verify() {
        Ok(Some(count)) => {
            good("programs", format!("the kernel takes them: {count} instructions verified"))
        }
        Ok(None) => good("programs", "the kernel takes them"),
        Err(error) => bad(
            "programs",
            error.to_string(),
            "the agent does not start here, and the gate forwards nothing",
        ),
    }
}

fn place_for_pins(pins: &Path) -> Check {
    let subject = "place for pins";
    let place = pins.ancestors().find(|it| it.exists()).unwrap_or(Path::new("/"));
    match statfs(place).map(|it| it.filesystem_type() == BPF_FS_MAGIC) {
        Ok(true) => good(subject, format!("a BPF file system at {}", place.display())),
        _ => odd(
            subject,
            format!("no BPF file system at {}", pins.display()),
            "`firewall-agent prepare`, with which the service starts, mounts one; without one, programs end \
             with the agent",
        ),
    }
}

/// Nothing on a kernel that cannot be locked down.
fn lockdown() -> Option<Check> {
    let text = read("/sys/kernel/security/lockdown")?;
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    Some(good("lockdown", chosen.map_or(text.as_str(), |(chosen, _)| chosen)))
}

fn forwarding() -> Check {
    let of = |path: &str| read(path).is_some_and(|text| text == "1");
    let v4 = of("/proc/sys/net/ipv4/ip_forward");
    let v6 = of("/proc/sys/net/ipv6/conf/all/forwarding");
    match (v4, v6) {
        (true, true) => good("forwarding", "on, for IPv4 and IPv6"),
        (true, false) => good("forwarding", "on for IPv4, off for IPv6"),
        (false, _) => odd(
            "forwarding",
            "off for IPv4",
            "nothing is forwarded, whatever rules say; in Qubes OS, qubes-network.service switches it on in a \
             qube that provides network, but for a Whonix gateway",
        ),
    }
}

fn sysctl(name: &str) -> Option<String> {
    read(&format!("/proc/sys/net/core/{name}"))
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
