//! Which qubes dom0 introduces to the netvm, by name, with the addresses of each.
//! Never gives an address to one of two that claim it, and never guesses a name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::options::{PREFIX, Said};

/// How the names of keys begin that introduce a qube, behind [`PREFIX`].
const BEGINNING: &str = "client-";
/// Longest name of a qube (`qubes/vm/__init__.py` of qubes-core-admin, `validate_name`).
const LONGEST_NAME: usize = 31;

/// Who is behind which address, as dom0 says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Introductions {
    /// Names of qubes, by address.
    pub names: BTreeMap<IpAddr, String>,
    /// What is wrong with keys that introduce qubes; each names its key.
    pub problems: Vec<String>,
}

/// Takes keys that introduce qubes from among those that set options.
pub fn split(said: &Said) -> (Said, Said) {
    said.clone().into_iter().partition(|(name, _)| name.starts_with(BEGINNING))
}

/// Whether a text can be the name of a qube.
pub fn is_name(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    text.len() <= LONGEST_NAME
        && text.as_bytes().first().is_some_and(u8::is_ascii_alphabetic)
        && text.bytes().all(is_allowed)
}

impl Introductions {
    /// Reads the keys that introduce qubes; others say nothing about that.
    pub fn of(said: &Said) -> Self {
        let mut claims: BTreeMap<IpAddr, BTreeSet<&str>> = BTreeMap::new();
        let mut introduced = Self::default();
        for (key, value) in said {
            let Some(name) = key.strip_prefix(BEGINNING) else {
                continue;
            };
            let mut wrong =
                |why: String| introduced.problems.push(format!("{}: {why}", told(name)));
            if !is_name(name) {
                wrong("no qube can have this name; it introduces nobody".to_owned());
                continue;
            }
            let is_between = |it: char| it == ',' || it.is_whitespace();
            for word in value.split(is_between).filter(|word| !word.is_empty()) {
                match word.parse() {
                    Ok(address) => drop(claims.entry(address).or_default().insert(name)),
                    Err(_) => wrong(format!(
                        "`{}` is no address, and does not count",
                        word.escape_default()
                    )),
                }
            }
        }
        for (address, names) in claims {
            if names.len() > 1 {
                let keys: Vec<String> = names.into_iter().map(told).collect();
                let keys = keys.join(" and ");
                let why = format!("{keys}: each claims {address}; nobody gets it");
                introduced.problems.push(why);
            } else if let Some(name) = names.into_iter().next() {
                introduced.names.insert(address, name.to_owned());
            }
        }
        introduced
    }
}

/// The key that introduces a qube, whatever its name.
fn told(name: &str) -> String {
    format!("{PREFIX}{BEGINNING}{}", name.escape_default())
}
