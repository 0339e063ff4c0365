//! Rules from a directory with one file for each client, named by its address.
//! Never writes there, and never takes a file for complete that does not say so itself.
//!
//! A file holds what QubesDB holds under `/qubes-firewall/ADDRESS/`, one `key = value` a
//! line, and ends with the line `commit`, which stands for the empty key that dom0 writes
//! last. Empty lines and lines that begin with `#` do not count.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tracing::warn;

use crate::events::SourceError;
use crate::rules::parse::{self, Entry, Problem, RulesetError};
use crate::rules::{Family, Ruleset};

/// Largest file that is read, in bytes: 10,000 rules have room in it.
const MAX_FILE: u64 = 16 << 20;

/// One client's change.
pub type Change = (IpAddr, Option<Result<Ruleset, SourceError>>);

/// A directory of rule files, and what was read from it last.
pub struct Files {
    directory: PathBuf,
    seen: BTreeMap<IpAddr, Result<Ruleset, SourceError>>,
    ignored: Vec<String>,
    /// Woken whenever something in the directory changes.
    changed: mpsc::Receiver<()>,
    _watcher: RecommendedWatcher,
}

impl Files {
    /// Begins to watch a directory.
    pub fn watch(directory: &Path) -> notify::Result<Self> {
        let (sender, changed) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |event| {
            if is_change(&event) {
                // Full means that a wake-up is already waiting: nothing is lost.
                let _ = sender.try_send(());
            }
        })?;
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
        Ok(Self {
            directory: directory.to_owned(),
            seen: BTreeMap::new(),
            ignored: Vec::new(),
            changed,
            _watcher: watcher,
        })
    }

    /// Waits until something in the directory changed.
    pub async fn changed(&mut self) {
        if self.changed.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Reads the directory and returns what differs from the last time. A directory that
    /// cannot be listed is an error, and nothing is taken for removed.
    pub fn read(&mut self) -> io::Result<Vec<Change>> {
        let mut now = BTreeMap::new();
        let mut ignored = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            match client_of(&name) {
                Some(client) => {
                    now.insert(client, read_file(&self.directory.join(&name), client));
                }
                None if name.starts_with('.') => {}
                None => ignored.push(name),
            }
        }
        if ignored != self.ignored && !ignored.is_empty() {
            warn!(?ignored, directory = %self.directory.display(), "not named by an address");
        }
        self.ignored = ignored;
        let removed = self.seen.keys().filter(|client| !now.contains_key(client));
        let mut changes: Vec<Change> = removed.map(|&client| (client, None)).collect();
        let changed = now.iter().filter(|(client, rules)| self.seen.get(client) != Some(rules));
        changes.extend(changed.map(|(&client, rules)| (client, Some(rules.clone()))));
        self.seen = now;
        Ok(changes)
    }
}

/// Whether an event can mean different rules. Reading is told as well, our own included;
/// an error (an overrun, say) can hide a change.
fn is_change(event: &notify::Result<Event>) -> bool {
    match event {
        Ok(Event { kind: EventKind::Access(access), .. }) => {
            matches!(access, AccessKind::Close(AccessMode::Write))
        }
        Ok(_) | Err(_) => true,
    }
}

/// The client that a file is named after, if it is written the one way addresses are
/// written; two files must not mean the same client.
fn client_of(name: &str) -> Option<IpAddr> {
    let address: IpAddr = name.parse().ok()?;
    (address.to_string() == name).then_some(address)
}

fn read_file(path: &Path, client: IpAddr) -> Result<Ruleset, SourceError> {
    let origin = path.display().to_string();
    let unreadable = |error: io::Error| RulesetError {
        line: None,
        text: String::new(),
        problem: Problem::Unreadable(error.to_string()),
    };
    let rules = read_text(path).map_err(unreadable).and_then(|text| ruleset(client, &text));
    rules.map_err(|error| SourceError { origin, error })
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("larger than {MAX_FILE} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("not UTF-8 text"))
}

/// The rules in the text of a file.
pub fn ruleset(client: IpAddr, text: &str) -> Result<Ruleset, RulesetError> {
    let mut entries = Vec::new();
    let mut committed = false;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        // A line without an end may be half of what is going to be written.
        let whole = line.strip_suffix('\n');
        let line = whole.unwrap_or(line);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let error =
            |problem| RulesetError { line: Some(index + 1), text: line.to_owned(), problem };
        if committed {
            return Err(error(Problem::AfterCommit));
        }
        if line == "commit" {
            committed = whole.is_some();
            continue;
        }
        let (key, value) = line.split_once(" = ").ok_or_else(|| error(Problem::NotAnEntry))?;
        entries.push(Entry { line: Some(index + 1), key: key.to_owned(), value: value.to_owned() });
    }
    if !committed {
        let text = String::new();
        return Err(RulesetError { line: None, text, problem: Problem::NoCommit });
    }
    parse::ruleset(Family::from(client), &entries)
}
