//! The oldest kernel that can run the programs: what they are made of and call, each with the Linux
//! that has had it first. The one place where that is said.
//! Never goes by a kernel's version: features come to old kernels and are left out of new ones.
//!
//! Needed as well, and not asked for, because something that is asked for came with it or later:
//! arrays mapped into memory (5.5), inner maps of other sizes (5.10), and pointers in the arguments
//! of global functions (5.12).

use std::fmt;
use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::{FromRawFd as _, OwnedFd};

use aya::maps::MapType;
use aya::programs::{ProgramError, ProgramType, TcAttachType};
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};
use nix::errno::Errno;
use nix::libc;
use thiserror::Error;

use super::attached::tcx_programs;

/// What `uname -r` prints.
const RELEASE: &str = "/proc/sys/kernel/osrelease";

/// A version of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Linux(pub u8, pub u8);

impl fmt::Display for Linux {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.0, self.1)
    }
}

/// Something that a kernel has or has not.
#[derive(Clone, Copy, Debug)]
pub enum Feature {
    /// A kind of program.
    Program(ProgramType),
    /// A kind of map.
    Map(MapType),
    /// A function that programs of this kind call.
    Helper(ProgramType, BpfHelper),
    /// The instruction that writes a word and returns what it was.
    Exchange,
    /// Links of tcx.
    Tcx,
}

/// A feature that is needed.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// What it is.
    pub feature: Feature,
    /// What it is called.
    pub name: &'static str,
    /// The first Linux that has it.
    pub since: Linux,
}

impl fmt::Display for Need {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.feature {
            Feature::Helper(..) => "the function ",
            Feature::Program(_) | Feature::Map(_) | Feature::Exchange | Feature::Tcx => "",
        };
        write!(formatter, "{kind}{} (since {})", self.name, self.since)
    }
}

const fn need(feature: Feature, name: &'static str, major: u8, minor: u8) -> Need {
    Need { feature, name, since: Linux(major, minor) }
}

const fn map(kind: MapType, name: &'static str, major: u8, minor: u8) -> Need {
    need(Feature::Map(kind), name, major, minor)
}

const fn call(helper: BpfHelper, name: &'static str, major: u8, minor: u8) -> Need {
    need(Feature::Helper(ProgramType::SchedClassifier, helper), name, major, minor)
}

/// What the programs at tc need. Versions are those of uapi/linux/bpf.h, by its history.
pub const NEEDS: [Need; 22] = {
    type It = BpfHelper;
    [
        need(Feature::Program(ProgramType::SchedClassifier), "programs of traffic control", 4, 1),
        map(MapType::Hash, "hash maps", 3, 19),
        map(MapType::Array, "arrays", 3, 19),
        map(MapType::LruHash, "hash maps that forget", 4, 10),
        map(MapType::LpmTrie, "tries of prefixes", 4, 11),
        map(MapType::ArrayOfMaps, "arrays of maps", 4, 12),
        map(MapType::RingBuf, "ring buffers", 5, 8),
        call(It::BPF_FUNC_map_lookup_elem, "bpf_map_lookup_elem", 3, 19),
        call(It::BPF_FUNC_map_update_elem, "bpf_map_update_elem", 3, 19),
        call(It::BPF_FUNC_ktime_get_ns, "bpf_ktime_get_ns", 4, 1),
        call(It::BPF_FUNC_get_smp_processor_id, "bpf_get_smp_processor_id", 4, 1),
        call(It::BPF_FUNC_skb_store_bytes, "bpf_skb_store_bytes", 4, 1),
        call(It::BPF_FUNC_skb_load_bytes, "bpf_skb_load_bytes", 4, 5),
        call(It::BPF_FUNC_skb_change_type, "bpf_skb_change_type", 4, 8),
        call(It::BPF_FUNC_skb_pull_data, "bpf_skb_pull_data", 4, 9),
        call(It::BPF_FUNC_skb_load_bytes_relative, "bpf_skb_load_bytes_relative", 4, 18),
        call(It::BPF_FUNC_ktime_get_boot_ns, "bpf_ktime_get_boot_ns", 5, 8),
        call(It::BPF_FUNC_ringbuf_reserve, "bpf_ringbuf_reserve", 5, 8),
        call(It::BPF_FUNC_ringbuf_submit, "bpf_ringbuf_submit", 5, 8),
        call(It::BPF_FUNC_ringbuf_discard, "bpf_ringbuf_discard", 5, 8),
        call(It::BPF_FUNC_ktime_get_coarse_ns, "bpf_ktime_get_coarse_ns", 5, 11),
        need(Feature::Exchange, "atomic exchange in BPF", 5, 12),
    ]
};

/// What the XDP stage needs besides.
pub const EARLY: [Need; 1] = [need(
    Feature::Helper(ProgramType::Xdp, BpfHelper::BPF_FUNC_xdp_get_buff_len),
    "bpf_xdp_get_buff_len",
    5,
    18,
)];

/// What `--attach tcx` needs besides.
pub const TCX: [Need; 1] = [need(Feature::Tcx, "tcx", 6, 6)];

/// The kernel cannot run the programs, or does not say whether it can.
#[derive(Debug, Error)]
pub enum FloorError {
    /// Features are missing.
    #[error("{}", sentence(.what, .lacking, .release))]
    Lacking {
        /// What cannot be.
        what: &'static str,
        /// What the kernel lacks.
        lacking: Vec<Need>,
        /// What `uname -r` prints.
        release: String,
    },
    /// The kernel does not tell.
    #[error("cannot ask the kernel whether it has {0} (are you root?): {1}")]
    Asking(&'static str, io::Error),
}

/// Fails with one sentence if the kernel cannot run the programs at tc.
pub fn check() -> Result<(), FloorError> {
    all_there("the programs of this firewall", &NEEDS)
}

/// Fails with one sentence if the kernel cannot run the XDP stage.
pub(super) fn check_early() -> Result<(), FloorError> {
    all_there("the XDP stage", &EARLY)
}

/// Fails with one sentence if the kernel has no tcx.
pub fn check_tcx() -> Result<(), FloorError> {
    all_there("--attach tcx", &TCX)
}

fn all_there(what: &'static str, needs: &[Need]) -> Result<(), FloorError> {
    let (mut lacking, mut unknown) = (Vec::new(), Ok(()));
    for need in needs {
        match is_there(need.feature) {
            Ok(true) => {}
            Ok(false) => lacking.push(*need),
            Err(error) => unknown = unknown.and(Err(FloorError::Asking(need.name, error))),
        }
    }
    if lacking.is_empty() {
        return unknown;
    }
    let release = fs::read_to_string(RELEASE).unwrap_or_default().trim().to_owned();
    Err(FloorError::Lacking { what, lacking, release })
}

fn sentence(what: &str, lacking: &[Need], release: &str) -> String {
    let all: Vec<String> = lacking.iter().map(Need::to_string).collect();
    let newest = lacking.iter().map(|need| need.since).max();
    let oldest = newest.map(|since| format!(", so it has to be {since} at least"));
    format!(
        "Linux {release} cannot run {what}: it lacks {}{}",
        all.join(", "),
        oldest.unwrap_or_default()
    )
}

fn is_there(feature: Feature) -> io::Result<bool> {
    match feature {
        Feature::Program(kind) => is_program_supported(kind).map_err(asking),
        Feature::Map(kind) => is_map_supported(kind).map_err(|error| error.io_error),
        Feature::Helper(kind, helper) => is_helper_supported(kind, helper).map_err(asking),
        Feature::Exchange => has_exchange(),
        Feature::Tcx => has_tcx(),
    }
}

fn asking(error: ProgramError) -> io::Error {
    match error {
        ProgramError::SyscallError(error) => error.io_error,
        other => io::Error::other(other),
    }
}

fn has_tcx() -> io::Result<bool> {
    // The loopback has this index in each network namespace.
    match tcx_programs(1, TcAttachType::Ingress) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        programs => programs.map(|_| true),
    }
}

/// `BPF_PROG_LOAD`, and a program of tc (uapi/linux/bpf.h).
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;

/// `struct bpf_insn`.
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    value: i32,
}

/// The part of `union bpf_attr` for loading.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// Loads a program that exchanges a word of its stack: aya asks for no instructions.
fn has_exchange() -> io::Result<bool> {
    const TO_STACK: u8 = 10;
    let instruction =
        |code, registers, offset, value| Instruction { code, registers, offset, value };
    let program = [
        instruction(0xb7, 0, 0, 0),
        instruction(0x7b, TO_STACK, -8, 0),
        instruction(0xdb, TO_STACK, -8, 0xe1),
        instruction(0x95, 0, 0, 0),
    ];
    let mut load = Load {
        kind: BPF_PROG_TYPE_SCHED_CLS,
        count: 4,
        instructions: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: the kernel reads `load`, as long as it is said to be, and what that points to, which
    // outlives the call.
    let outcome =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw mut load, size_of::<Load>()) };
    match Errno::result(outcome) {
        Ok(loaded) => {
            let loaded = i32::try_from(loaded).map_err(io::Error::other)?;
            // SAFETY: the kernel has just made it, and nobody else knows of it.
            drop(unsafe { OwnedFd::from_raw_fd(loaded) });
            Ok(true)
        }
        Err(Errno::EINVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_lacks_is_one_sentence_with_the_linux_that_has_it() {
        let lacking = NEEDS[20..].to_vec();
        let error = FloorError::Lacking {
            what: "the programs of this firewall",
            lacking,
            release: "5.10.0-30-amd64".to_owned(),
        };
        assert_eq!(
            error.to_string(),
            "Linux 5.10.0-30-amd64 cannot run the programs of this firewall: it lacks the function \
             bpf_ktime_get_coarse_ns (since 5.11), atomic exchange in BPF (since 5.12), so it has \
             to be 5.12 at least"
        );
    }
}
