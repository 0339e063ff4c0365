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
}

/// All of them, the oldest first. (6.6, which Qubes OS has had, is in no suite of Debian.)
pub const KERNELS: [Kernel; 7] = [
    Kernel {
        name: "6.1",
        about: "the oldest that is supported; clsact, as there is no tcx before 6.6",
        source: Source::Package("6.1"),
        sysctls: &[],
    },
    Kernel {
        name: "6.12",
        about: "Qubes OS 4.2 and 4.3",
        source: Source::Package("6.12"),
        sysctls: &[],
    },
    Kernel {
        name: "6.12-no-btf",
        about: "without BTF, as the kernels that Qubes OS builds, and JIT always on",
        source: Source::Built("6.12"),
        sysctls: &[],
    },
    Kernel {
        name: "6.12-hardened",
        about: "constants blinded by the JIT for root too, as on Whonix and Kicksecure",
        source: Source::Package("6.12"),
        sysctls: &[("net/core/bpf_jit_harden", "2"), ("kernel/unprivileged_bpf_disabled", "1")],
    },
    Kernel { name: "6.18", about: "Qubes OS", source: Source::Package("6.18"), sysctls: &[] },
    Kernel { name: "7.1", about: "Qubes OS, latest", source: Source::Package("7.1"), sysctls: &[] },
    Kernel { name: "newest", about: "what comes next", source: Source::Newest, sysctls: &[] },
];
