//! Clients' rules as they stand in QubesDB, each in a tree of keys.
//! Never decides which of them count.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tracing::{info, warn};

use super::Ended;
use super::client::Connection;
use super::wire::Path;
use crate::edges::sources::client_of;
use firewall_core::rules::parse::{self, Entry};
use firewall_core::rules::problem::{Problem, RulesetError};
use firewall_core::rules::source::SourceError;
use firewall_core::rules::{Family, Ruleset};

/// What the keys of all clients' rules begin with.
pub(super) const RULES: &str = "/qubes-firewall/";

/// A client's rules.
pub(super) type Rules = Result<Ruleset, SourceError>;
type Entries = BTreeMap<String, Vec<u8>>;

/// All clients' rules, as they stand there. Those that were never committed are none.
pub(super) async fn read_trees(from: &mut Connection) -> Result<BTreeMap<IpAddr, Rules>, Ended> {
    let mut trees: BTreeMap<IpAddr, (bool, Entries)> = BTreeMap::new();
    for (path, value) in from.multiread(&Path::new(RULES)?).await? {
        let inside = path.strip_prefix(RULES).unwrap_or_default();
        let (client, key) = match inside.split_once('/') {
            Some((client, key)) => (client, Some(key)),
            None => (inside, None),
        };
        let Some(client) = client_of(client) else {
            warn!(path, "not an address");
            continue;
        };
        let (is_committed, entries) = trees.entry(client).or_default();
        match key {
            Some(key) => drop(entries.insert(key.to_owned(), value)),
            None => *is_committed = true,
        }
    }
    let mut rules = BTreeMap::new();
    for (client, (is_committed, entries)) in trees {
        if is_committed {
            rules.insert(client, parsed(client, &entries));
        } else {
            info!(%client, "rules are being written; they count when they are committed");
        }
    }
    Ok(rules)
}

/// A client's rules; nothing if neither they nor their commit are there.
pub(super) async fn read_rules(
    from: &mut Connection,
    client: IpAddr,
) -> Result<Option<Rules>, Ended> {
    let prefix = Path::new(format!("{RULES}{client}/"))?;
    let found = from.multiread(&prefix).await?;
    if found.is_empty() {
        let commit = Path::new(format!("{RULES}{client}"))?;
        if from.read(&commit).await?.is_none() {
            return Ok(None);
        }
    }
    let key = |path: &str| path.strip_prefix(prefix.as_str()).unwrap_or_default().to_owned();
    let entries = found.into_iter().map(|(path, value)| (key(&path), value)).collect();
    Ok(Some(parsed(client, &entries)))
}

fn parsed(client: IpAddr, entries: &Entries) -> Rules {
    let entry = |(key, value): (&String, &Vec<u8>)| match String::from_utf8(value.clone()) {
        Ok(value) => Ok(Entry { line: None, key: key.clone(), value }),
        Err(error) => Err(RulesetError {
            key: Some(key.clone()),
            text: String::from_utf8_lossy(error.as_bytes()).into_owned(),
            ..RulesetError::of_whole(Problem::Unreadable("not UTF-8 text".to_owned()))
        }),
    };
    let entries: Result<Vec<Entry>, RulesetError> = entries.iter().map(entry).collect();
    let rules = entries.and_then(|entries| parse::ruleset(Family::from(client), &entries));
    rules.map_err(|error| {
        let key = error.key.iter().map(|key| format!("/{key}")).collect::<String>();
        SourceError { origin: format!("{RULES}{client}{key}"), error: Box::new(error) }
    })
}
