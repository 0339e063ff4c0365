//! Where rules come from. Each source is an edge: it reads text and says what is there.
//! Never decides what comes of it.

pub mod files;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use crate::events::Event;
use files::Files;

/// Which source, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A directory with one file for each client.
    Files(PathBuf),
    /// QubesDB, by its socket.
    QubesDb(PathBuf),
}

impl Place {
    /// As people read it.
    pub fn name(&self) -> String {
        match self {
            Self::Files(directory) => directory.display().to_string(),
            Self::QubesDb(socket) => format!("QubesDB at {}", socket.display()),
        }
    }
}

/// A source of rules.
pub enum Source {
    /// A directory of files.
    Files(Files),
}

impl Source {
    /// Begins to read. Must be called inside a tokio runtime.
    pub fn start(place: &Place) -> notify::Result<Self> {
        match place {
            Place::Files(directory) => Files::watch(directory).map(Self::Files),
            Place::QubesDb(_) => Err(notify::Error::generic("merge me")),
        }
    }

    /// Waits for news. What is there at first is news too: [`Event::AllRules`], or
    /// [`Event::Source`] if nothing can be read. Whoever waits may stop waiting; nothing is
    /// lost then.
    pub async fn next(&mut self) -> Event {
        match self {
            Self::Files(files) => files.next().await,
        }
    }

    /// Has everything read again; the answer is as at first.
    pub fn reload(&mut self) {
        match self {
            Self::Files(files) => files.reload(),
        }
    }

    /// Has everything read again, if the source can miss a change.
    pub fn resync(&mut self) {
        match self {
            Self::Files(files) => files.reload(),
        }
    }

    /// Tells whoever wrote a client's rules that they are in force.
    pub fn handled(&self, _client: IpAddr) {
        match self {
            Self::Files(_) => {}
        }
    }

    /// Tells where the names in a client's rules lead.
    pub fn publish(&self, _client: IpAddr, _names: BTreeMap<String, BTreeSet<IpAddr>>) {
        match self {
            Self::Files(_) => {}
        }
    }

    /// The user who sits at the screen, if the source knows.
    pub fn default_user(&self) -> Option<String> {
        match self {
            Self::Files(_) => None,
        }
    }
}
