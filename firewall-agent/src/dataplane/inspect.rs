//! The kernel's own tables, read without the agent: what is in force, whoever put it there.
//! Never writes anything.
//!
//! Nothing but links is pinned. A link leads to its program, the program to the numbers of
//! its maps, and these to the maps (`bpf_link_info`, `bpf_prog_info`, uapi/linux/bpf.h).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, ArrayOfMaps, HashMap, LpmTrie, Map, MapData, MapError};
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::{ProgramError, loaded_programs};
use firewall_common::abi::{
    ABI_VERSION, Address, Class, Client, ClientKey, Counter, DEFAULT_RULE, NO_CLASS, Segment, Span,
};
use firewall_common::packet::Frame;
use firewall_common::policy::{Tables, decide};
use firewall_common::verdict::{Decision, Reason, reason_counter, rule_counter};
use nix::time::{ClockId, clock_gettime};
use thiserror::Error;

use super::Program;

const ADDRESS_BITS: u32 = 128;

/// How often tables are read again that change while they are read.
const ATTEMPTS: u32 = 20;

/// The tables cannot be read.
#[derive(Debug, Error)]
pub enum InspectError {
    /// There is no such pin.
    #[error(
        "no program of this version is pinned for it in {0}; one attached with clsact has no \
         pin and cannot be found from here"
    )]
    NotPinned(String),
    /// The pin is unusable.
    #[error("the pinned link cannot be read (are you root?): {0}")]
    Link(#[from] LinkError),
    /// The program is unusable.
    #[error("the program cannot be read: {0}")]
    Program(#[from] ProgramError),
    /// The program went while it was looked at.
    #[error("the program with id {0} is gone")]
    Gone(u32),
    /// A map is unusable.
    #[error("the map `{name}` cannot be read: {error}")]
    Map {
        /// Its name.
        name: &'static str,
        /// Why.
        error: MapError,
    },
    /// The program is not one of ours, or of another version.
    #[error("the program has no map `{0}`")]
    Missing(&'static str),
    /// Whoever writes them is too busy.
    #[error("the tables change faster than they can be read; try again")]
    Unsteady,
}

/// The program that is pinned for each vif, by interface index.
pub fn pinned(pins: &Path) -> BTreeMap<u32, Result<u32, InspectError>> {
    let directory = pins.join(format!("v{ABI_VERSION}"));
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let links = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let index = name.strip_prefix(Program::FromClient.name())?.strip_prefix('-')?;
        Some((index.parse().ok()?, program_of(&entry.path())))
    });
    links.collect()
}

fn program_of(pin: &Path) -> Result<u32, InspectError> {
    let link = FdLink::from(PinnedLink::from_pin(pin)?);
    Ok(link.info()?.program_id())
}

/// The maps of one program.
pub struct Inspection {
    clients: HashMap<MapData, ClientKey, u32>,
    live: Array<MapData, u32>,
    installed: Array<MapData, Client>,
    policies: ArrayOfMaps<MapData, LpmTrie<MapData, Address, u32>>,
    classes: Array<MapData, Class>,
    segments: Array<MapData, Segment>,
    counters: Array<MapData, Counter>,
    locals: HashMap<MapData, Address, u8>,
    /// Whether ARP and neighbour discovery are judged. It is built into the program, where it
    /// cannot be read: whoever knows has to say so.
    pub guards_neighbours: bool,
    /// The first thing that went wrong since the last decision began.
    failure: RefCell<Option<InspectError>>,
}

impl Inspection {
    /// The maps of the program that is pinned for a vif.
    pub fn of_vif(pins: &Path, vif: u32) -> Result<Self, InspectError> {
        let program = pinned(pins).remove(&vif);
        let program =
            program.ok_or_else(|| InspectError::NotPinned(pins.display().to_string()))??;
        Self::of_program(program)
    }

    /// The maps of a program.
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
            guards_neighbours: false,
            failure: RefCell::default(),
        })
    }

    /// What the evaluator says about a frame, on these tables as they were at one moment.
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
        self.steadily(key, || decide(self, vif, frame))
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
        let keys: Result<Vec<ClientKey>, MapError> = self.clients.keys().collect();
        let keys = keys.map_err(|error| InspectError::Map { name: "CLIENTS", error })?;
        let clients = keys.into_iter().filter_map(|key| Some((key, self.client(&key)?)));
        let mut clients: Vec<_> = clients.collect();
        clients.sort_unstable();
        self.failure.take().map_or(Ok(clients), Err)
    }

    /// What was counted for a client, by reason and by index of the rule. Rules that can
    /// never decide have no counter that moves, and are left out.
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
        self.note("COUNTERS", self.counters.get(&index, 0))
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
        let index = self.note("CLIENTS", self.clients.get(key, 0))?;
        let installed = self.note("LIVE", self.live.get(&index, 0))?;
        self.note("INSTALLED", self.installed.get(&installed, 0))
    }

    fn guards_neighbours(&self) -> bool {
        self.guards_neighbours
    }

    fn is_local(&self, address: &Address) -> bool {
        self.note("LOCALS", self.locals.get(address, 0)).is_some()
    }

    fn class_of(&self, policy: u32, address: &Address) -> Option<u32> {
        let trie = self.note("POLICIES", self.policies.get(&policy, 0))?;
        self.note("POLICIES", trie.get(&Key::new(ADDRESS_BITS, *address), 0))
    }

    fn class(&self, index: u32) -> Option<Class> {
        self.note("CLASSES", self.classes.get(&index, 0))
    }

    fn segment(&self, index: u32) -> Option<Segment> {
        self.note("SEGMENTS", self.segments.get(&index, 0))
    }

    fn seconds(&self) -> u64 {
        // A clock that every kernel has.
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
        now.unwrap_or_default().as_secs()
    }
}
