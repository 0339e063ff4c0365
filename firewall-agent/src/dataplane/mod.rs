//! The kernel side: loads the programs, attaches them to vifs, fills their maps.
//! Never decides what is in force for whom, and never detaches on its way out: what is
//! attached and installed goes on without the agent.

pub mod inspect;
pub mod maps;
pub mod records;

mod addresses;
mod mapped;
mod ranges;

use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, tc};
use aya::{Ebpf, EbpfError, EbpfLoader};
use firewall_common::abi::ABI_VERSION;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use thiserror::Error;

use self::maps::{Maps, MapsError};

/// The kernel programs, compiled by `cargo xtask build-ebpf`; empty if the agent was
/// built without them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/firewall-ebpf.o"));

/// In a second.
const NANOSECONDS: u64 = 1_000_000_000;

/// Priority and handle of the clsact filter. Fixed, so that a new agent replaces the
/// filter of an earlier one instead of adding another.
const CLSACT_PRIORITY: u16 = 1;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 1);

/// How programs are attached to vifs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Attach {
    /// tcx if the kernel takes it, else clsact.
    Auto,
    /// tcx: Linux 6.6 and newer. Owned by a link that no other tool can remove.
    Tcx,
    /// A clsact qdisc with a filter, for older kernels. Any tool with CAP_NET_ADMIN can
    /// remove it; then the gate forwards nothing.
    Clsact,
}

impl Attach {
    /// The word that people read.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// How to load and attach.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory on a BPF file system in which links are pinned.
    pub pins: PathBuf,
    /// Mask with the one bit that marks accepted packets.
    pub mark_bit: u32,
    /// How programs are attached.
    pub attach: Attach,
    /// Whether ARP and neighbour discovery from clients are judged.
    pub guard_neighbours: bool,
    /// Denied packets of one client in a second that are handed on to be rejected.
    pub reject_rate: NonZeroU64,
}

/// A program, and where it is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    /// Ingress of a vif.
    FromClient,
    /// Ingress of any other link.
    FromUplink,
    /// Egress of any other link.
    ToUplink,
}

impl Program {
    const ALL: [Self; 3] = [Self::FromClient, Self::FromUplink, Self::ToUplink];

    fn name(self) -> &'static str {
        match self {
            Self::FromClient => "from_client",
            Self::FromUplink => "from_uplink",
            Self::ToUplink => "to_uplink",
        }
    }

    fn direction(self) -> TcAttachType {
        match self {
            Self::FromClient | Self::FromUplink => TcAttachType::Ingress,
            Self::ToUplink => TcAttachType::Egress,
        }
    }

    fn of(self, ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, DataplaneError> {
        let program = ebpf.program_mut(self.name()).ok_or(DataplaneError::NoObject)?;
        Ok(program.try_into()?)
    }
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
    /// The pin directory is unusable.
    #[error("cannot pin links in {path}: {error}")]
    Pins {
        /// The directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The object cannot be loaded.
    #[error("cannot load the kernel programs (are you root?): {0}")]
    Load(#[from] EbpfError),
    /// The verifier refused, or an attachment failed.
    #[error("{}", with_sources(.0))]
    Program(#[from] ProgramError),
    /// A pinned link is unusable.
    #[error("{}", with_sources(.0))]
    Link(#[from] LinkError),
    /// clsact could not be set up.
    #[error("{}", with_sources(.0))]
    Tc(#[from] TcError),
    /// A map is unusable.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// A link changed its name under our hands.
    #[error("{name} is not interface {vif} any more")]
    Renamed {
        /// The name it had.
        name: String,
        /// Its interface index.
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

/// The loaded programs and their maps.
pub struct Dataplane {
    ebpf: Ebpf,
    options: Options,
    links: PathBuf,
    /// The maps.
    pub maps: Maps,
}

impl Dataplane {
    /// Loads the programs. Nothing is attached yet.
    pub fn load(options: Options) -> Result<Self, DataplaneError> {
        let links = pin_directory(&options.pins)
            .map_err(|error| DataplaneError::Pins { path: options.pins.clone(), error })?;
        let mut ebpf = load_object(&options)?;
        let maps = Maps::new(&mut ebpf)?;
        for program in Program::ALL {
            program.of(&mut ebpf)?.load()?;
        }
        Ok(Self { ebpf, options, links, maps })
    }

    /// The object, for reading its log.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Instructions that the verifier walked through, if the kernel tells (5.16).
    pub fn verified_instructions(&mut self) -> Option<u32> {
        let program = Program::FromClient.of(&mut self.ebpf).ok()?;
        program.info().ok()?.verified_instruction_count()
    }

    /// Attaches the program to a vif, or takes over what an earlier agent attached there,
    /// without a moment between the old program and the new one. Returns how.
    pub fn attach(&mut self, vif: u32, name: &str) -> Result<Attach, DataplaneError> {
        self.attach_program(Program::FromClient, vif, name)
    }

    /// The same for the programs that guard clients' addresses on any other link.
    pub fn attach_uplink(&mut self, uplink: u32, name: &str) -> Result<Attach, DataplaneError> {
        self.attach_program(Program::FromUplink, uplink, name)?;
        self.attach_program(Program::ToUplink, uplink, name)
    }

    fn attach_program(
        &mut self,
        program: Program,
        link: u32,
        name: &str,
    ) -> Result<Attach, DataplaneError> {
        // aya looks the interface up by name; it must be the same before and after.
        expect_index(name, link)?;
        self.maps.add_link(link)?;
        let how = match self.options.attach {
            Attach::Tcx => self.attach_tcx(program, link, name).map(|()| Attach::Tcx),
            Attach::Clsact => self.attach_clsact(program, name).map(|()| Attach::Clsact),
            Attach::Auto => match self.attach_tcx(program, link, name) {
                Ok(()) => Ok(Attach::Tcx),
                Err(refused) => match self.attach_clsact(program, name) {
                    Ok(()) => Ok(Attach::Clsact),
                    Err(_) => Err(refused),
                },
            },
        }?;
        expect_index(name, link)?;
        self.detach_others(program, link, name, how)?;
        Ok(how)
    }

    /// Removes what an earlier agent attached in another way: it would judge by rules of
    /// the past, and if it came last, have the last word.
    fn detach_others(
        &self,
        program: Program,
        link: u32,
        name: &str,
        how: Attach,
    ) -> Result<(), DataplaneError> {
        for version in subdirectories(&self.options.pins)? {
            let is_own = version == self.links && how == Attach::Tcx;
            if !is_own {
                remove_pin(&version.join(link_name(program, link)))?;
            }
        }
        if how == Attach::Tcx {
            // Mostly there is none.
            let _ = tc::qdisc_detach_program(name, program.direction(), program.name());
        }
        Ok(())
    }

    fn attach_tcx(&mut self, which: Program, link: u32, name: &str) -> Result<(), DataplaneError> {
        let pin = self.link_path(which, link);
        let program = which.of(&mut self.ebpf)?;
        if let Some(pinned) = pinned(&pin)? {
            let link = SchedClassifierLink::try_from(FdLink::from(pinned))?;
            match program.attach_to_link(link) {
                Ok(link) => {
                    // The pin keeps the link; this handle may go.
                    drop(program.take_link(link)?);
                    return Ok(());
                }
                // It belonged to a device of the same index that is gone.
                Err(_) => remove_pin(&pin)?,
            }
        }
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let link = program.attach_with_options(name, which.direction(), order)?;
        let link: FdLink = program.take_link(link)?.try_into()?;
        let pinned = link.pin(&pin);
        pinned.map(drop).map_err(|error| DataplaneError::Pins {
            path: pin,
            error: io::Error::other(with_sources(&error)),
        })
    }

    fn attach_clsact(&mut self, which: Program, name: &str) -> Result<(), DataplaneError> {
        let program = which.of(&mut self.ebpf)?;
        let earlier = SchedClassifierLink::attached(
            name,
            which.direction(),
            CLSACT_PRIORITY,
            CLSACT_HANDLE,
            None,
        );
        let earlier = earlier.map_err(TcError::from)?;
        let link = match program.attach_to_link(earlier) {
            Ok(link) => link,
            Err(_) => {
                // A qdisc that is there already is as good; attaching tells.
                let _ = tc::qdisc_add_clsact(name);
                let options = NlOptions {
                    priority: CLSACT_PRIORITY,
                    handle: CLSACT_HANDLE,
                    ..NlOptions::default()
                };
                let options = TcAttachOptions::Netlink(options);
                program.attach_with_options(name, which.direction(), options)?
            }
        };
        // Dropping it would detach: the filter is to outlive the agent.
        std::mem::forget(program.take_link(link)?);
        Ok(())
    }

    /// Removes what is left of a link that is gone. The kernel detached the programs.
    pub fn forget(&mut self, link: u32) -> Result<(), DataplaneError> {
        self.maps.remove_link(link);
        Program::ALL.into_iter().try_for_each(|program| remove_pin(&self.link_path(program, link)))
    }

    /// Removes pins of links that went while no agent was there to see it.
    pub fn forget_all_but(&mut self, present: &[u32]) -> Result<(), DataplaneError> {
        for path in entries(&self.links)? {
            let expected = present.iter().any(|link| {
                Program::ALL.into_iter().any(|program| self.link_path(program, *link) == path)
            });
            if !expected {
                remove_pin(&path)?;
            }
        }
        Ok(())
    }

    /// Detaches every program of this agent and of earlier ones. What is held by this
    /// process alone goes when it ends.
    pub fn detach_all<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<(), DataplaneError> {
        for name in names {
            for program in Program::ALL {
                // Mostly there is none.
                let _ = tc::qdisc_detach_program(name, program.direction(), program.name());
            }
        }
        for version in subdirectories(&self.options.pins)? {
            entries(&version)?.iter().try_for_each(|pin| remove_pin(pin))?;
        }
        Ok(())
    }

    fn link_path(&self, program: Program, link: u32) -> PathBuf {
        self.links.join(link_name(program, link))
    }
}

/// Whether this agent was built with its kernel programs inside.
pub fn require_object() -> Result<(), DataplaneError> {
    if OBJECT.is_empty() { Err(DataplaneError::NoObject) } else { Ok(()) }
}

/// Loads the object, with its settings in place. The kernel's own type information is left
/// out on purpose: kernels of Qubes VMs have none.
pub fn load_object(options: &Options) -> Result<Ebpf, EbpfError> {
    let interval = NANOSECONDS / options.reject_rate;
    let guard = u32::from(options.guard_neighbours);
    EbpfLoader::new()
        .btf(None)
        .override_global("MARK_BIT", &options.mark_bit, true)
        .override_global("GUARD_NEIGHBOURS", &guard, true)
        .override_global("REJECT_INTERVAL", &interval, true)
        .load(OBJECT)
}

/// What is in a directory of pins.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, DataplaneError> {
    let paths = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>());
    paths.map_err(|error| DataplaneError::Pins { path: directory.to_owned(), error })
}

/// The directories of all versions of the maps' layout.
fn subdirectories(pins: &Path) -> Result<Vec<PathBuf>, DataplaneError> {
    Ok(entries(pins)?.into_iter().filter(|path| path.is_dir()).collect())
}

/// Under which name a link is pinned.
fn link_name(program: Program, link: u32) -> String {
    format!("{}-{link}", program.name())
}

/// Makes the directory for links of this version of the maps' layout.
fn pin_directory(pins: &Path) -> io::Result<PathBuf> {
    let links = pins.join(format!("v{ABI_VERSION}"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&links)?;
    if statfs(&links)?.filesystem_type() != BPF_FS_MAGIC {
        fs::remove_dir(&links)?;
        return Err(io::Error::other(
            "not on a BPF file system; mount one with `mount -t bpf bpf /sys/fs/bpf`",
        ));
    }
    Ok(links)
}

fn pinned(path: &Path) -> Result<Option<PinnedLink>, DataplaneError> {
    match PinnedLink::from_pin(path) {
        Ok(link) => Ok(Some(link)),
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn remove_pin(path: &Path) -> Result<(), DataplaneError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DataplaneError::Pins { path: path.to_owned(), error })
        }
        _ => Ok(()),
    }
}

fn expect_index(name: &str, vif: u32) -> Result<(), DataplaneError> {
    match nix::net::if_::if_nametoindex(name) {
        Ok(index) if index == vif => Ok(()),
        _ => Err(DataplaneError::Renamed { name: name.to_owned(), vif }),
    }
}
