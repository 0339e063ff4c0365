//! Rules from a directory with one file for each client, named by its address.
//! Never writes there, and never takes a file for complete that does not say so itself.
//!
//! A file holds what QubesDB holds under `/qubes-firewall/ADDRESS/`, one `key = value` a
//! line, and ends with the line `commit`, which stands for the empty key that dom0 writes
//! last. Empty lines and lines that begin with `#` do not count.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use notify::EventKind;
use notify::event::{AccessKind, AccessMode};
use tracing::warn;

use crate::edges::regular;
use crate::edges::sources::client_of;
use crate::edges::wait::directory::Watching;
use firewall_core::events::Event;
use firewall_core::rules::parse::{self, Entry};
use firewall_core::rules::problem::{Problem, RulesetError};
use firewall_core::rules::source::SourceError;
use firewall_core::rules::{Family, Ruleset};

/// Largest file that is read, in bytes: 10,000 rules have room in it.
const MAX_FILE: u64 = 16 << 20;

type Rules = BTreeMap<IpAddr, Result<Ruleset, SourceError>>;

/// A directory of rule files.
pub struct Files {
    directory: PathBuf,
    ignored: Vec<String>,
    watching: Watching,
    /// Whether to read without waiting for a change.
    due: bool,
    /// What was read and not told yet.
    news: VecDeque<Event>,
}

impl Files {
    /// Begins to watch a directory; an error if it cannot be watched.
    pub fn watch(directory: &Path) -> notify::Result<Self> {
        let mut watching = Watching::new(is_change)?;
        watching.add(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            ignored: Vec::new(),
            watching,
            due: true,
            news: VecDeque::new(),
        })
    }

    /// Waits until something in the directory changed, and tells all that is there then.
    /// A directory that cannot be listed is told as a problem, and no rules are taken for removed.
    pub async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.news.pop_front() {
                return event;
            }
            if !self.due {
                self.watching.changed().await;
            }
            self.due = false;
            match self.read() {
                Ok(rules) => {
                    let connected = rules.keys().copied().collect();
                    self.news.push_back(Event::Source(None));
                    self.news.push_back(Event::Connected(connected));
                    self.news.push_back(Event::AllRules(rules));
                }
                Err(error) => {
                    let directory = self.directory.display();
                    let problem = format!("cannot list {directory}: {error}");
                    self.news.push_back(Event::Source(Some(problem)));
                }
            }
        }
    }

    /// Makes [`Self::next`] read without waiting for a change.
    pub fn reload(&mut self) {
        self.due = true;
    }

    fn read(&mut self) -> io::Result<Rules> {
        let mut rules = BTreeMap::new();
        let mut ignored = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            match client_of(&name) {
                Some(client) => {
                    rules.insert(client, read_file(&self.directory.join(&name), client));
                }
                None if name.starts_with('.') => {}
                None => ignored.push(name),
            }
        }
        if ignored != self.ignored && !ignored.is_empty() {
            warn!(?ignored, directory = %self.directory.display(), "not named by an address");
        }
        self.ignored = ignored;
        Ok(rules)
    }
}

/// Whether an event can mean different rules. Reading is told as well, our own included.
fn is_change(event: &notify::Result<notify::Event>) -> bool {
    match event {
        Ok(notify::Event { kind: EventKind::Access(access), .. }) => {
            matches!(access, AccessKind::Close(AccessMode::Write))
        }
        Ok(_) | Err(_) => true,
    }
}

fn read_file(path: &Path, client: IpAddr) -> Result<Ruleset, SourceError> {
    let origin = path.display().to_string();
    let unreadable =
        |error: io::Error| RulesetError::of_whole(Problem::Unreadable(error.to_string()));
    // A pipe would make the agent wait for whoever writes to it.
    let text = regular::read(path, MAX_FILE).and_then(text);
    let rules = text.map_err(unreadable).and_then(|text| ruleset(client, &text));
    rules.map_err(|error| SourceError { origin, error: Box::new(error) })
}

/// The text of a file of rules, which may be a pipe that a person gives. An error if it cannot be
/// read, is larger than 16 MiB, or is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    text(regular::read_all(std::fs::File::open(path)?, MAX_FILE)?)
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|_| io::Error::other("not UTF-8 text"))
}

/// The rules in the text of a file. An error is the first in its lines.
pub fn ruleset(client: IpAddr, text: &str) -> Result<Ruleset, RulesetError> {
    let (entries, errors) = entries(text);
    match errors.into_iter().next() {
        Some(error) => Err(error),
        None => parse::ruleset(Family::from(client), &entries),
    }
}

/// The entries in the text of a file, and all that is wrong with its lines.
pub fn entries(text: &str) -> (Vec<Entry>, Vec<RulesetError>) {
    let (mut entries, mut errors) = (Vec::new(), Vec::new());
    let (mut committed, mut is_foreign) = (false, false);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        // A line without an end may be half of what is going to be written.
        let whole = line.strip_suffix('\n');
        let line = whole.unwrap_or(line);
        let number = Some(index + 1);
        let mut error = |text: &str, problem| {
            let (text, place) = (text.to_owned(), parse::bytes(0..text.len()));
            errors.push(RulesetError { line: number, key: None, text, place, problem });
        };
        // Told once, and nothing else that is wrong is hidden behind it.
        let plain = line.strip_suffix('\r').unwrap_or(line);
        if plain.len() < line.len() && !is_foreign {
            is_foreign = true;
            error(line, Problem::CarriageReturn);
        }
        let line = plain;
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if committed {
            error(line, Problem::AfterCommit);
        } else if line == "commit" {
            committed = whole.is_some();
        } else if let Some((key, value)) = line.split_once(" = ") {
            entries.push(Entry { line: number, key: key.to_owned(), value: value.to_owned() });
        } else {
            error(line, Problem::NotAnEntry);
        }
    }
    if !committed {
        errors.push(RulesetError::of_whole(Problem::NoCommit));
    }
    (entries, errors)
}
