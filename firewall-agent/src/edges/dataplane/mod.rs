//! The kernel side: loads the programs, attaches them to vifs and uplinks, fills their maps.
//! Never decides what is in force for whom, and never detaches on its way out: what is
//! attached and installed goes on without the agent, but for links that could not be pinned.

pub mod floor;
pub mod inspect;
pub mod maps;
pub mod records;

mod addresses;
mod attach;
mod attached;
mod counted;
mod early;
mod epoch;
mod mapped;
mod memory_model;
mod object;
mod openings;
mod pins;
mod plain;
mod policies;
mod ranges;
mod running;
mod stamps;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::num::NonZeroU64;
use std::path::PathBuf;

use aya::programs::ProgramError;
use aya::programs::links::LinkError;
use aya::{Ebpf, EbpfError, EbpfLoader};
use firewall_common::abi::{CACHED_ANSWERS, CACHED_CLIENTS};
use thiserror::Error;
use tracing::debug;

pub use self::attach::detach_all;
use self::attach::{Attachment, Program};
use self::floor::FloorError;
use self::maps::Maps;
pub use self::memory_model::may_cache;
use self::object::MapsError;
use self::openings::Openings;
use self::pins::pin_directory;

/// The kernel programs, compiled by `cargo xtask build-ebpf`; empty if the agent was
/// built without them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/firewall-ebpf.o"));

/// In a second.
const NANOSECONDS: u64 = 1_000_000_000;

/// How programs are attached to vifs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Attach {
    /// tcx if the kernel takes it, else clsact.
    Auto,
    /// tcx: Linux 6.6 and newer. Owned by a link, which tools for traffic control
    /// cannot remove.
    Tcx,
    /// A clsact qdisc with a filter, for older kernels. Any tool with CAP_NET_ADMIN can
    /// remove it; then the gate forwards nothing.
    Clsact,
}

/// How to load and attach.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory on a BPF file system in which links are pinned.
    pub pins: PathBuf,
    /// How programs are attached.
    pub attach: Attach,
    /// Whether packets meet the XDP stage first, where a driver has native XDP.
    pub xdp: bool,
    /// Whether IPv6 neighbour discovery of clients is judged.
    pub guard_neighbours: bool,
    /// Whether rules judge all that clients send, also to the netvm itself.
    pub judge_all: bool,
    /// Whether the program keeps answers; [`may_cache`] says where it may.
    pub caches: bool,
    /// Denied packets of one client in a second that are handed on to be rejected.
    pub reject_rate: NonZeroU64,
    /// New flows of one vif to the netvm itself in a second that are handed on.
    pub local_rate: NonZeroU64,
}

/// The kernel side cannot be set up.
#[derive(Debug, Error)]
pub enum DataplaneError {
    /// Built without the kernel programs.
    #[error(
        "this agent was built without its kernel programs and cannot filter anything; \
         build it with `cargo xtask build`"
    )]
    NoObject,
    /// The kernel lacks what programs are made of.
    #[error(transparent)]
    Floor(#[from] FloorError),
    /// The kernel has all that, and refuses a program all the same.
    #[error("the kernel's verifier refuses the program `{program}`: {reason}")]
    Refused {
        /// Name of the program.
        program: &'static str,
        /// The verifier's last word. All that it says is in the log of level `debug`.
        reason: String,
    },
    /// The pin directory is unusable.
    #[error("cannot pin links in {path}: {error}")]
    Pins {
        /// The directory.
        path: PathBuf,
        /// Why the directory cannot be used.
        error: io::Error,
    },
    /// The kernel does not tell which links there are.
    #[error("cannot read links: {0}")]
    Links(nix::Error),
    /// The object cannot be loaded.
    #[error("cannot load the kernel programs (are you root?): {0}")]
    Load(#[from] EbpfError),
    /// The verifier refused, or an attachment failed.
    #[error("{}", with_sources(.0))]
    Program(#[from] ProgramError),
    /// A pinned link is unusable.
    #[error("{}", with_sources(.0))]
    Link(#[from] LinkError),
    /// The kernel does not tell what is attached.
    #[error("cannot look at what is attached: {0}")]
    Look(#[from] io::Error),
    /// clsact could not be set up, and in which of its two steps.
    #[error(
        "clsact's qdisc: {qdisc}; its filter: {filter} (it needs the kernel's modules \
         sch_ingress and cls_bpf)"
    )]
    Clsact {
        /// What came of adding the qdisc.
        qdisc: String,
        /// Why there is no filter.
        filter: String,
    },
    /// Somebody else's filter is where ours is to be.
    #[error(
        "{name} has a filter of somebody else with priority 1 and handle 1, where ours would be; \
         move it (`tc filter show dev {name} ingress` and `egress` list them)"
    )]
    Taken {
        /// Name of the link.
        name: String,
    },
    /// Neither way to attach works.
    #[error("neither tcx ({tcx}) nor clsact ({clsact})")]
    Neither {
        /// Why not by tcx, which needs Linux 6.6.
        tcx: String,
        /// Why not by clsact.
        clsact: String,
    },
    /// There is no such link any more.
    #[error("there is no interface {link} any more")]
    Gone {
        /// Index of the link that is gone.
        link: u32,
    },
    /// A map is unusable.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// A link changed its name under our hands.
    #[error("{name} is not interface {vif} any more")]
    Renamed {
        /// The name that the link had.
        name: String,
        /// Interface index of the link.
        vif: u32,
    },
}

/// An error with all that is behind it; the libraries' own texts leave that out.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// What the verifier says last; its whole log is for who asks for it.
fn refused(program: &'static str, error: ProgramError) -> DataplaneError {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return error.into();
    };
    let log = verifier_log.to_string();
    debug!(program, log, "refused by the verifier");
    let reason = match last_word(&log) {
        Some(last) => format!("{last} ({io_error})"),
        None => io_error.to_string(),
    };
    DataplaneError::Refused { program, reason }
}

/// What a verifier's log ends with: sums.
const SUMS: [&str; 3] = ["processed ", "stack depth ", "verification time "];

/// The line of a verifier's log that says what is wrong: the last one but for the sums.
fn last_word(log: &str) -> Option<&str> {
    let is_sum = |line: &str| SUMS.iter().any(|sum| line.starts_with(sum));
    let mut lines = log.lines().map(str::trim);
    lines.rfind(|line| !line.is_empty() && !is_sum(line))
}

/// What a link is called now.
fn name_of(link: u32) -> Result<String, DataplaneError> {
    let gone = |_| DataplaneError::Gone { link };
    let name = nix::net::if_::if_indextoname(link).map_err(gone)?;
    Ok(name.to_string_lossy().into_owned())
}

/// The loaded programs and their maps.
pub struct Dataplane {
    ebpf: Ebpf,
    options: Options,
    /// Where links of this version are pinned.
    links: PathBuf,
    attached: BTreeMap<(Program, u32), Attachment>,
    /// Vifs with an XDP stage.
    early: BTreeSet<u32>,
    verified_instructions: Option<u32>,
    /// The maps of what is in force.
    pub maps: Maps,
    /// Connections towards clients.
    pub openings: Openings,
}

impl Dataplane {
    /// Loads the programs. Nothing is attached yet.
    pub fn load(options: Options) -> Result<Self, DataplaneError> {
        floor::check()?;
        if options.attach == Attach::Tcx {
            floor::check_tcx()?;
        }
        let links = pin_directory(&options.pins)?;
        let mut ebpf = load_object(&options)?;
        let (maps, openings) = (Maps::new(&mut ebpf)?, Openings::new(&mut ebpf)?);
        let verified_instructions = load_programs(&mut ebpf)?;
        let (attached, early) = (BTreeMap::new(), BTreeSet::new());
        Ok(Self { ebpf, options, links, attached, early, verified_instructions, maps, openings })
    }

    /// The object, for reading its log.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Instructions of `from_client` that the verifier walked through; `None` if the kernel does
    /// not tell, as before Linux 5.16 (`verified_insns` of `bpf_prog_info`, uapi/linux/bpf.h).
    pub fn verified_instructions(&self) -> Option<u32> {
        self.verified_instructions
    }
}

/// Fails with [`DataplaneError::NoObject`] if this agent was built without its kernel programs.
pub fn require_object() -> Result<(), DataplaneError> {
    if OBJECT.is_empty() { Err(DataplaneError::NoObject) } else { Ok(()) }
}

/// Has the kernel take the programs, and lets go of them. Returns how many instructions of `from_client`
/// its verifier walked through, if it tells.
pub fn verify() -> Result<Option<u32>, DataplaneError> {
    require_object()?;
    let one = NonZeroU64::MIN;
    let mut ebpf = load_object(&Options {
        pins: PathBuf::new(),
        attach: Attach::Auto,
        xdp: false,
        guard_neighbours: false,
        judge_all: false,
        caches: may_cache(),
        reject_rate: one,
        local_rate: one,
    })?;
    load_programs(&mut ebpf)
}

/// Has the kernel take all programs, and returns how many instructions of `from_client` its verifier
/// walked through, if it tells.
fn load_programs(ebpf: &mut Ebpf) -> Result<Option<u32>, DataplaneError> {
    for program in Program::ALL {
        program.of(ebpf)?.load().map_err(|error| refused(program.name(), error))?;
    }
    let from_client = Program::FromClient.of(ebpf)?.info().ok();
    Ok(from_client.and_then(|it| it.verified_instruction_count()))
}

/// Loads the object, with its settings in place. The kernel's own type information is left
/// out on purpose: kernels of Qubes VMs have none.
pub fn load_object(options: &Options) -> Result<Ebpf, EbpfError> {
    let interval = |rate: NonZeroU64| NANOSECONDS / rate;
    let guard = u32::from(options.guard_neighbours);
    // A processor without entries of its own asks the tables each time.
    let processors = aya::util::nr_cpus().unwrap_or(1);
    let entries = |each: usize| match options.caches {
        true => u32::try_from(each * processors).unwrap_or(u32::MAX),
        false => 1,
    };
    EbpfLoader::new()
        .map_max_entries("CLIENT_CACHE", entries(CACHED_CLIENTS))
        .map_max_entries("ANSWER_CACHE", entries(CACHED_ANSWERS))
        .btf(None)
        .override_global("JUDGE_ALL", &u32::from(options.judge_all), true)
        .override_global("GUARD_NEIGHBOURS", &guard, true)
        .override_global("CACHES", &u32::from(options.caches), true)
        .override_global("REJECT_INTERVAL", &interval(options.reject_rate), true)
        .override_global("LOCAL_INTERVAL", &interval(options.local_rate), true)
        .load(OBJECT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_verifiers_log_its_last_word_is_told() {
        let log = "0: (b7) r0 = 0\n1: (85) call unknown#160\ninvalid func unknown#160\n\
                   verification time 5 usec\nstack depth 0+0\nprocessed 2 insns (limit 1000000) max_states_per_insn 0\n\n";
        assert_eq!(last_word(log), Some("invalid func unknown#160"));
        assert_eq!(last_word("processed 0 insns\n"), None);
        assert_eq!(last_word(""), None);
    }
}
