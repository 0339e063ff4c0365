//! The kernel's own tables, read without the agent: what is in force, whoever put it there.
//! Never writes anything.
//!
//! The kernel tells which programs are attached to a link (`BPF_PROG_QUERY`, or rtnetlink for
//! clsact), a program leads to the numbers of its maps, and these to the maps (`bpf_prog_info`,
//! uapi/linux/bpf.h).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::time::Duration;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, ArrayOfMaps, HashMap, LpmTrie, Map, MapData, MapError};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{ProgramError, loaded_programs};
use firewall_common::abi::{
    ABI_VERSION, Address, Class, Client, ClientKey, Counter, DEFAULT_RULE, Local, NO_CLASS,
    Segment, Span,
};
use firewall_common::packet::{Frame, Packet};
use firewall_common::policy::{Tables, judge};
use firewall_common::verdict::{Decision, Reason, reason_counter, rule_counter};
use firewall_core::told::gateway::PacketInGateway;
use firewall_core::tor::Fate;
use nix::libc::EINVAL;
use nix::time::{ClockId, clock_gettime};
use thiserror::Error;

use super::Program;
use super::attached::{Filter, filter, tcx_programs};
use super::pins::{entries, subdirectories};
use super::plain::Plain;

const ADDRESS_BITS: u32 = 128;

/// How often tables are read again that change while they are read.
const ATTEMPTS: u32 = 20;

/// The tables cannot be read.
#[derive(Debug, Error)]
pub enum InspectError {
    /// No program of this firewall is attached to the vif.
    #[error("no program of this firewall is attached to it")]
    NotAttached,
    /// An agent of another version made the tables.
    #[error("its program is of another version of the agent, whose tables are other ones")]
    OtherVersion,
    /// The kernel does not tell.
    #[error("the kernel does not tell what is attached (are you root?): {0}")]
    Look(#[from] io::Error),
    /// The kernel does not let the program be read.
    #[error("the program cannot be read: {0}")]
    Program(#[from] ProgramError),
    /// The program went while it was looked at.
    #[error("the program with id {0} is gone")]
    Gone(u32),
    /// A map is unusable.
    #[error("the map `{name}` cannot be read: {error}")]
    Map {
        /// Name of the map.
        name: &'static str,
        /// Why the map cannot be read.
        error: MapError,
    },
    /// The program is not one of ours, or of another version.
    #[error("the program has no map `{0}`")]
    Missing(&'static str),
    /// The agent changes the tables faster than they can be read.
    #[error("the tables change faster than they can be read; try again")]
    Unsteady,
}

/// Id of the program that polices each vif, by interface index: what the kernel has attached,
/// however it was attached and whether it is pinned or not. The error of one vif is that its
/// program is of another version.
pub fn attached(pins: &Path) -> Result<BTreeMap<u32, Result<u32, InspectError>>, InspectError> {
    let links = nix::net::if_::if_nameindex().map_err(io::Error::from)?;
    let pinned = pinned(pins);
    let mut attached = BTreeMap::new();
    for link in links.iter().map(|link| link.index()) {
        if let Some(program) = attached_to(link, pinned.get(&link).copied())? {
            attached.insert(link, program);
        }
    }
    Ok(attached)
}

/// The program that polices a link, if it is a vif of ours.
fn attached_to(
    link: u32,
    pinned: Option<Pinned>,
) -> Result<Option<Result<u32, InspectError>>, InspectError> {
    let program = Program::FromClient;
    let by_tcx = match tcx_programs(link, program.direction()) {
        // Before Linux 6.6 there is none.
        Err(error) if error.raw_os_error() == Some(EINVAL) => Vec::new(),
        programs => programs?,
    };
    if let Some(Pinned { program, is_own }) = pinned.filter(|it| by_tcx.contains(&it.program)) {
        return Ok(Some(if is_own { Ok(program) } else { Err(InspectError::OtherVersion) }));
    }
    // One that a running agent holds itself, because there was no place for pins.
    if let Some(held) = by_tcx.iter().find(|it| Inspection::of_program(**it).is_ok()) {
        return Ok(Some(Ok(*held)));
    }
    Ok(match filter(link, program.direction(), &[program.name()])? {
        Filter::Own(program) => Some(Ok(program)),
        Filter::None | Filter::Foreign => None,
    })
}

#[derive(Clone, Copy)]
struct Pinned {
    program: u32,
    /// Of this version.
    is_own: bool,
}

/// The programs to which pinned links of vifs lead. What cannot be read is not there.
fn pinned(pins: &Path) -> BTreeMap<u32, Pinned> {
    let mut pinned = BTreeMap::new();
    let own = format!("v{ABI_VERSION}");
    for version in subdirectories(pins).unwrap_or_default() {
        let is_own = version.ends_with(&own);
        for pin in entries(&version).unwrap_or_default() {
            let name = pin.file_name().and_then(|name| name.to_str());
            let index = name.and_then(|name| name.strip_prefix(Program::FromClient.name()));
            let index = index.and_then(|index| index.strip_prefix('-')?.parse().ok());
            let program = PinnedLink::from_pin(&pin).and_then(|link| FdLink::from(link).info());
            if let (Some(index), Ok(link)) = (index, program)
                && (is_own || !pinned.contains_key(&index))
            {
                pinned.insert(index, Pinned { program: link.program_id(), is_own });
            }
        }
    }
    pinned
}

/// The maps of one program.
pub struct Inspection {
    clients: HashMap<MapData, Plain<ClientKey>, u32>,
    live: Array<MapData, u32>,
    installed: Array<MapData, Plain<Client>>,
    policies: ArrayOfMaps<MapData, LpmTrie<MapData, Plain<Address>, u32>>,
    classes: Array<MapData, Plain<Class>>,
    segments: Array<MapData, Plain<Segment>>,
    counters: Array<MapData, Plain<Counter>>,
    locals: HashMap<MapData, Plain<Address>, u8>,
    others: Array<MapData, u32>,
    judge_all: Array<MapData, u32>,
    /// Whether IPv6 neighbour discovery is judged. That is built into the program, where it
    /// cannot be read: whoever knows has to say so.
    pub guards_neighbours: bool,
    /// The first thing that went wrong since an answer last told of one.
    failure: RefCell<Option<InspectError>>,
}

impl Inspection {
    /// The maps of the program that polices a vif.
    pub fn of_vif(pins: &Path, vif: u32) -> Result<Self, InspectError> {
        let program = attached_to(vif, pinned(pins).remove(&vif))?;
        Self::of_program(program.ok_or(InspectError::NotAttached)??)
    }

    /// The maps of the program with this id.
    pub fn of_program(id: u32) -> Result<Self, InspectError> {
        let mut programs = loaded_programs().filter_map(Result::ok);
        let program = programs.find(|program| program.id() == id);
        let ids = program.ok_or(InspectError::Gone(id))?.map_ids()?.unwrap_or_default();
        let mut maps = BTreeMap::new();
        for id in ids {
            let map = |error| InspectError::Map { name: "of the program", error };
            let data = MapData::from_id(id).map_err(map)?;
            let name = data.info().map_err(map)?.name_as_str().unwrap_or_default().to_owned();
            maps.insert(name, data);
        }
        Ok(Self {
            clients: take(&mut maps, "CLIENTS")?,
            live: take(&mut maps, "LIVE")?,
            installed: take(&mut maps, "INSTALLED")?,
            policies: take(&mut maps, "POLICIES")?,
            classes: take(&mut maps, "CLASSES")?,
            segments: take(&mut maps, "SEGMENTS")?,
            counters: take(&mut maps, "COUNTERS")?,
            locals: take(&mut maps, "LOCALS")?,
            others: take(&mut maps, ".data.others")?,
            judge_all: take(&mut maps, ".rodata.strict")?,
            guards_neighbours: false,
            failure: RefCell::default(),
        })
    }

    /// What the evaluator says about a frame, read from these tables while what is in force for
    /// the client does not change.
    pub fn decide(
        &self,
        vif: u32,
        frame: &Result<Frame, Reason>,
    ) -> Result<Decision, InspectError> {
        let key = match frame {
            Ok(Frame::Ip(packet)) => ClientKey { vif, address: packet.source },
            Ok(Frame::Arp { sender }) => ClientKey { vif, address: *sender },
            Err(_) => ClientKey::default(),
        };
        self.steadily(key, || judge(self, vif, frame))
    }

    /// In a Whonix gateway, what becomes of a packet there.
    pub fn in_gateway(&self, packet: &Packet) -> Option<PacketInGateway> {
        let is_own = self.local(&packet.destination) == Some(Local::One);
        let fate = Fate::of(packet, is_own);
        self.judges_all()
            .then(|| PacketInGateway { fate, silent: packet.destination.is_multicast() })
    }

    /// Reads something about a client while what is in force for it does not change.
    fn steadily<T>(&self, key: ClientKey, read: impl Fn() -> T) -> Result<T, InspectError> {
        for _ in 0..ATTEMPTS {
            let before = self.client(&key);
            let found = read();
            let after = self.client(&key);
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
            if before == after {
                return Ok(found);
            }
        }
        Err(InspectError::Unsteady)
    }

    /// All clients with what is in force for them.
    pub fn clients(&self) -> Result<Vec<(ClientKey, Client)>, InspectError> {
        let keys: Result<Vec<Plain<ClientKey>>, MapError> = self.clients.keys().collect();
        let keys = keys.map_err(|error| InspectError::Map { name: "CLIENTS", error })?;
        let clients = keys.into_iter().filter_map(|Plain(key)| Some((key, self.client(&key)?)));
        let mut clients: Vec<_> = clients.collect();
        clients.sort_unstable();
        self.failure.take().map_or(Ok(clients), Err)
    }

    /// What was counted for a client, by reason and by index of the rule. Rules that can
    /// never decide have no counter that moves, and are left out, as are counters that cannot be
    /// read.
    pub fn counted(&self, client: &Client) -> (BTreeMap<Reason, Counter>, BTreeMap<u32, Counter>) {
        let reasons = Reason::ALL.iter().filter_map(|&reason| {
            let counter = self.counter(reason_counter(client.counters, reason))?;
            (counter.packets > 0).then_some((reason, counter))
        });
        let rules = self
            .rules(client.policy)
            .into_iter()
            .filter_map(|rule| Some((rule, self.counter(rule_counter(client.counters, rule))?)));
        (reasons.collect(), rules.collect())
    }

    fn counter(&self, index: u32) -> Option<Counter> {
        self.note_plain("COUNTERS", self.counters.get(&index, 0))
    }

    /// Indices of the rules that a policy can answer with.
    fn rules(&self, policy: u32) -> BTreeSet<u32> {
        let Some(trie) = self.note("POLICIES", self.policies.get(&policy, 0)) else {
            return BTreeSet::new();
        };
        let mut classes = BTreeSet::new();
        for entry in trie.iter() {
            classes.extend(self.note("POLICIES", entry).map(|(_, class)| class));
        }
        let found: Vec<Class> = classes.into_iter().filter_map(|index| self.class(index)).collect();
        let wider = found.iter().filter(|class| class.wider != NO_CLASS);
        let wider: Vec<Class> = wider.filter_map(|class| self.class(class.wider)).collect();
        let spans = found.iter().chain(&wider).flat_map(|it| [it.tcp, it.udp, it.icmp, it.other]);
        let spans: BTreeSet<Span> = spans.collect();
        let indices = spans.into_iter().flat_map(|span| span.start..span.start + span.length);
        let rules = indices.filter_map(|index| Some(self.segment(index)?.rule));
        rules.filter(|rule| *rule != DEFAULT_RULE).collect()
    }

    /// What was found; `None` if there is nothing, and if it cannot be read, which is
    /// remembered.
    fn note<T>(&self, name: &'static str, outcome: Result<T, MapError>) -> Option<T> {
        match outcome {
            Ok(found) => Some(found),
            Err(MapError::KeyNotFound | MapError::OutOfBounds { .. }) => None,
            Err(error) => {
                self.failure.borrow_mut().get_or_insert(InspectError::Map { name, error });
                None
            }
        }
    }

    /// What was found of one of our types; `None` as [`Self::note`] has it.
    fn note_plain<T>(&self, name: &'static str, outcome: Result<Plain<T>, MapError>) -> Option<T> {
        self.note(name, outcome).map(|Plain(found)| found)
    }
}

fn take<T: TryFrom<Map>>(
    maps: &mut BTreeMap<String, MapData>,
    name: &'static str,
) -> Result<T, InspectError> {
    let data = maps.remove(name).ok_or(InspectError::Missing(name))?;
    let map = Map::from_map_data(data).map_err(|error| InspectError::Map { name, error })?;
    T::try_from(map).map_err(|_| InspectError::Missing(name))
}

impl Tables for Inspection {
    fn client(&self, key: &ClientKey) -> Option<Client> {
        let index = self.note("CLIENTS", self.clients.get(&Plain(*key), 0))?;
        let installed = self.note("LIVE", self.live.get(&index, 0))?;
        self.note_plain("INSTALLED", self.installed.get(&installed, 0))
    }

    fn guards_neighbours(&self) -> bool {
        self.guards_neighbours
    }

    fn local(&self, address: &Address) -> Option<Local> {
        self.note("LOCALS", self.locals.get(&Plain(*address), 0)).map(Local::from_raw)
    }

    fn class_of(&self, policy: u32, address: &Address) -> Option<u32> {
        let trie = self.note("POLICIES", self.policies.get(&policy, 0))?;
        self.note("POLICIES", trie.get(&Key::new(ADDRESS_BITS, Plain(*address)), 0))
    }

    fn class(&self, index: u32) -> Option<Class> {
        self.note_plain("CLASSES", self.classes.get(&index, 0))
    }

    fn segment(&self, index: u32) -> Option<Segment> {
        self.note_plain("SEGMENTS", self.segments.get(&index, 0))
    }

    fn asks_others(&self) -> bool {
        self.note(".data.others", self.others.get(&0, 0)).is_some_and(|others| others != 0)
    }

    fn judges_all(&self) -> bool {
        self.note(".rodata.strict", self.judge_all.get(&0, 0)).is_some_and(|all| all != 0)
    }

    fn seconds(&self) -> u64 {
        // A clock that every kernel has.
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
        now.unwrap_or_default().as_secs()
    }
}
