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
    /// What is added to its command line.
    pub arguments: &'static str,
    /// A module that is left out, with all whose names begin so.
    pub without: Option<&'static str>,
    /// In what way it is odd, if it is: tests are told, and only those run that are about it.
    pub oddity: Option<Oddity>,
}

/// How a kernel is not as others are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oddity {
    /// What tests know it by.
    pub name: &'static str,
    /// What the names of the tests about it contain.
    pub tests: &'static [&'static str],
}

impl Kernel {
    const fn of(name: &'static str, about: &'static str, source: Source) -> Self {
        let (sysctls, arguments): (&[_], _) = (&[], "");
        Self { name, about, source, sysctls, arguments, without: None, oddity: None }
    }

    const fn odd(
        name: &'static str,
        about: &'static str,
        version: &'static str,
        oddity: Oddity,
    ) -> Self {
        Self { oddity: Some(oddity), ..Self::of(name, about, Source::Package(version)) }
    }

    const fn lacking(name: &'static str, version: &'static str, module: &'static str) -> Self {
        let about = "lacks a module: it is named, and what cannot be enforced is closed";
        let oddity = Oddity { name: module, tests: WITHOUT };
        Self { without: Some(module), ..Self::odd(name, about, version, oddity) }
    }

    const fn locked(name: &'static str, arguments: &'static str, how: &'static str) -> Self {
        let about = "locked down: all works, and is seen and explained";
        Self { arguments, ..Self::odd(name, about, "6.12", Oddity { name: how, tests: GOES_ON }) }
    }
}

/// The test about what a kernel is without.
const WITHOUT: &[&str] = &["rig::without::"];
/// That, and those that read maps and programs from outside.
const GOES_ON: &[&str] = &["rig::without::", "rig::explained::what_goes_on"];

/// Constants blinded for root too, and no BPF for others: the sysctls of security-misc, which Whonix
/// and Kicksecure have.
const HARDENED: &[(&str, &str)] =
    &[("net/core/bpf_jit_harden", "2"), ("kernel/unprivileged_bpf_disabled", "1")];

/// All of them, the oldest first; then those that are odd. (6.6, which Qubes OS has had, is in no
/// suite of Debian, nor is any between 5.10 and 6.1.)
pub const KERNELS: [Kernel; 17] = [
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
    Kernel::odd(
        "5.10",
        "too old: refuses in one sentence, closed",
        "5.10",
        Oddity { name: "floor", tests: WITHOUT },
    ),
    Kernel::lacking("lacks-cls_bpf", "6.1", "cls_bpf"),
    Kernel::lacking("lacks-nft_ct", "6.12", "nft_ct"),
    Kernel::lacking("lacks-nft_reject", "6.12", "nft_reject"),
    Kernel::lacking("lacks-nft_masq", "6.12", "nft_masq"),
    Kernel::lacking("lacks-ctnetlink", "6.12", "nf_conntrack_netlink"),
    Kernel {
        arguments: "ipv6.disable=1",
        ..Kernel::odd(
            "lacks-ipv6",
            "IPv6 is off: IPv4 is filtered, and nothing else is asked for",
            "6.12",
            Oddity { name: "ipv6", tests: WITHOUT },
        )
    },
    Kernel {
        sysctls: &[("net/core/bpf_jit_enable", "0")],
        ..Kernel::odd(
            "lacks-jit",
            "programs are interpreted: all works",
            "6.12",
            Oddity { name: "jit", tests: GOES_ON },
        )
    },
    Kernel::locked("lockdown-integrity", "lockdown=integrity", "integrity"),
    Kernel::locked("lockdown-confidentiality", "lockdown=confidentiality", "confidentiality"),
];
