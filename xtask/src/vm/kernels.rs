//! The kernels that the tests are run on, where each comes from, and why it is in the list.
//! Never fetches one.

/// Where a kernel comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The newest package of Debian for this version, `6.1` say.
    Package(&'static str),
    /// The newest package of all.
    Newest,
    /// Built from Debian's sources of this version with `small.config`.
    Built(&'static str),
}

/// A kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What a person calls it by.
    pub name: &'static str,
    /// Why it is in the list.
    pub about: &'static str,
    /// Where it comes from.
    pub source: Source,
    /// Files below /proc/sys, and what is written to each before the tests.
    pub sysctls: &'static [(&'static str, &'static str)],
    /// A module that is left out, with all whose names begin so; then only the tests about that run.
    pub without: Option<&'static str>,
}

impl Kernel {
    const fn of(name: &'static str, about: &'static str, source: Source) -> Self {
        Self { name, about, source, sysctls: &[], without: None }
    }

    const fn lacking(name: &'static str, version: &'static str, module: &'static str) -> Self {
        let about = "lacks a module: it is named, and what cannot be enforced is closed";
        Self { without: Some(module), ..Self::of(name, about, Source::Package(version)) }
    }
}

/// Constants blinded for root too, and no BPF for others: the sysctls of security-misc, which Whonix
/// and Kicksecure have.
const HARDENED: &[(&str, &str)] =
    &[("net/core/bpf_jit_harden", "2"), ("kernel/unprivileged_bpf_disabled", "1")];

/// All of them, the oldest first. (6.6, which Qubes OS has had, is in no suite of Debian.)
pub const KERNELS: [Kernel; 12] = [
    Kernel::of("6.1", "the oldest that is supported; clsact, no tcx", Source::Package("6.1")),
    Kernel::of("6.12", "Qubes OS 4.2 and 4.3", Source::Package("6.12")),
    Kernel::of("6.12-no-btf", "no BTF, JIT always on, as Qubes OS builds", Source::Built("6.12")),
    Kernel {
        sysctls: HARDENED,
        ..Kernel::of("6.12-hardened", "JIT as on Whonix", Source::Package("6.12"))
    },
    Kernel::of("6.18", "Qubes OS, latest at first", Source::Package("6.18")),
    Kernel::of("7.1", "Qubes OS, latest", Source::Package("7.1")),
    Kernel::of("newest", "what comes next", Source::Newest),
    Kernel::lacking("lacks-cls_bpf", "6.1", "cls_bpf"),
    Kernel::lacking("lacks-nft_ct", "6.12", "nft_ct"),
    Kernel::lacking("lacks-nft_reject", "6.12", "nft_reject"),
    Kernel::lacking("lacks-nft_masq", "6.12", "nft_masq"),
    Kernel::lacking("lacks-ctnetlink", "6.12", "nf_conntrack_netlink"),
];
