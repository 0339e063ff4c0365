//! Names of links, and lists of the only ones by which clients' packets may leave.
//! Never knows which links there are.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use thiserror::Error;

/// The key of the netvm itself that lists links: dom0 writes it for `qvm-features NETVM
/// vm-config.firewall-uplinks`.
pub const KEY: &str = "/vm-config/firewall-uplinks";
/// Longest name of a link: `IFNAMSIZ` of uapi/linux/if.h is 16, with the NUL.
const LONGEST: usize = 15;

/// Name of a link. The kernel takes more than is taken here, but neither the letters that nftables
/// would have to be told apart from its own words (a `*` at the end begins a pattern), nor a blank or
/// a comma, which separate names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkName(String);

/// Not a [`LinkName`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{0}` is no name of a link: 1 to {LONGEST} letters, digits, and `.`, `_`, `-`, `+`, `=`, `@`"
)]
pub struct NotALinkName(String);

impl LinkName {
    /// The name as the kernel has it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for LinkName {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for LinkName {
    type Err = NotALinkName;

    fn from_str(text: &str) -> Result<Self, NotALinkName> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+=@".contains(&byte);
        let is_name = !text.is_empty() && text.len() <= LONGEST && text.bytes().all(allowed);
        // The kernel refuses both (`dev_valid_name` in net/core/dev.c).
        if !is_name || text == "." || text == ".." {
            return Err(NotALinkName(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The only links by which clients' packets may leave, beside those to other clients. None of them:
/// nothing leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplinks(pub BTreeSet<LinkName>);

/// Not a list of links.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{text}` is no list of links: {why}")]
pub struct BadUplinks {
    /// What was to be a list.
    pub text: String,
    /// The names in it that are names.
    pub good: Uplinks,
    /// What is wrong with the first that is none.
    pub why: NotALinkName,
}

impl BadUplinks {
    /// What is to be in force instead, given what was before: that stays. Where nothing was, somebody
    /// wanted there to be something: only what is clear of it is good for leaving.
    pub fn instead(&self, before: Option<&Uplinks>) -> Uplinks {
        before.unwrap_or(&self.good).clone()
    }
}

impl Uplinks {
    /// Reads names with commas or blanks between them. `None` if the text is empty.
    pub fn parse(text: &str) -> Result<Option<Self>, BadUplinks> {
        if text.is_empty() {
            return Ok(None);
        }
        let (mut good, mut wrong) = (Self::default(), None);
        for part in text.split(',') {
            // What is empty between two commas was to be a name.
            let empty = part.trim().is_empty().then_some("");
            for name in part.split_whitespace().chain(empty) {
                match name.parse() {
                    Ok(name) => drop(good.0.insert(name)),
                    Err(error) => drop(wrong.get_or_insert(error)),
                }
            }
        }
        match wrong {
            None => Ok(Some(good)),
            Some(why) => Err(BadUplinks { text: text.to_owned(), good, why }),
        }
    }

    /// Whether a link of this name is among them.
    pub fn contains(&self, name: &str) -> bool {
        self.0.iter().any(|link| link.as_str() == name)
    }

    /// What two wishes come to, of which each may be none: by a link that is not in both nothing
    /// leaves.
    pub fn both(one: Option<&Self>, other: Option<&Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), Some(other)) => Some(Self(&one.0 & &other.0)),
            (one, other) => one.or(other).cloned(),
        }
    }
}

impl Display for Uplinks {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(LinkName::as_str).collect();
        match names.is_empty() {
            true => formatter.write_str("none"),
            false => formatter.write_str(&names.join(", ")),
        }
    }
}
