//! Where rules come from. Each source is an edge: it reads text and says what is there.
//! Never decides what comes of what it reads.

pub mod qubesdb;
pub mod rule_files;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use firewall_core::events::Event;
use firewall_core::options::Said;
use tokio::sync::watch;

use qubesdb::{OwnKeys, Patience, QubesDb};
use rule_files::Files;

/// Which source, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Files.
    Files {
        /// A directory with one file for each client.
        directory: PathBuf,
        /// In a qube, the socket of QubesDB, where only the netvm's own keys are read.
        qubesdb: Option<PathBuf>,
    },
    /// QubesDB, by its socket.
    QubesDb(PathBuf),
}

impl Place {
    /// The place as people read it.
    pub fn name(&self) -> String {
        match self {
            Self::Files { directory, qubesdb: _ } => directory.display().to_string(),
            Self::QubesDb(socket) => format!("QubesDB at {}", socket.display()),
        }
    }

    /// Whether the netvm's own keys are read.
    pub fn has_own_keys(&self) -> bool {
        match self {
            Self::Files { directory: _, qubesdb } => qubesdb.is_some(),
            Self::QubesDb(_) => true,
        }
    }
}

/// A source of rules.
pub enum Source {
    /// A directory of files, and in a qube the netvm's own keys.
    Files(Files, Option<OwnKeys>),
    /// QubesDB.
    QubesDb(QubesDb),
}

impl Source {
    /// Begins to read. An error if a directory cannot be watched. Must be called inside a tokio
    /// runtime.
    pub fn start(place: &Place) -> notify::Result<Self> {
        match place {
            Place::Files { directory, qubesdb } => {
                let files = Files::watch(directory)?;
                let keys = qubesdb.clone();
                let keys = keys.map(|socket| OwnKeys::start(socket, Patience::default()));
                Ok(Self::Files(files, keys))
            }
            Place::QubesDb(socket) => {
                Ok(Self::QubesDb(QubesDb::start(socket.clone(), Patience::default())))
            }
        }
    }

    /// Waits for news. What is there at first is news too: [`Event::AllRules`], or
    /// [`Event::Source`] if nothing can be read. Whoever waits may stop waiting; nothing is
    /// lost then.
    pub async fn next(&mut self) -> Event {
        match self {
            Self::Files(files, None) => files.next().await,
            Self::Files(files, Some(keys)) => tokio::select! {
                event = keys.next() => event,
                event = files.next() => event,
            },
            Self::QubesDb(qubesdb) => qubesdb.next().await,
        }
    }

    /// Where the options are that dom0 sets (`None`: not read yet), and where changes of them are told.
    /// `None` where dom0 has no place for that.
    pub fn options(&self) -> Option<watch::Receiver<Option<Said>>> {
        match self {
            Self::Files(_, keys) => keys.as_ref().map(OwnKeys::options),
            Self::QubesDb(qubesdb) => Some(qubesdb.options()),
        }
    }

    /// Has everything read again; [`Self::next`] tells it as it tells what is there at first.
    pub fn reload(&mut self) {
        match self {
            Self::Files(files, _) => files.reload(),
            Self::QubesDb(qubesdb) => qubesdb.reload(),
        }
    }

    /// Has everything read again, if the source can miss a change.
    pub fn resync(&mut self) {
        match self {
            Self::Files(files, _) => files.reload(),
            // Its watches miss nothing, and whoever counts how often rules came into force
            // is not to be misled.
            Self::QubesDb(_) => {}
        }
    }

    /// Tells whoever wrote a client's rules, if the source can, that they are in force.
    pub fn handled(&self, client: IpAddr) {
        match self {
            Self::Files(..) => {}
            Self::QubesDb(qubesdb) => qubesdb.handled(client),
        }
    }

    /// Tells where the names in a client's rules lead, if the source has a place for that.
    pub fn publish(&self, client: IpAddr, names: BTreeMap<String, BTreeSet<IpAddr>>) {
        match self {
            Self::Files(..) => {}
            Self::QubesDb(qubesdb) => qubesdb.publish(client, names),
        }
    }
}

/// The client that rules are named after, if the address is written the one way addresses
/// are written; two names must not mean the same client.
fn client_of(name: &str) -> Option<IpAddr> {
    let address: IpAddr = name.parse().ok()?;
    (address.to_string() == name).then_some(address)
}
