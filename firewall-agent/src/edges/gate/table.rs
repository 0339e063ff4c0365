//! A table of nftables as data, and the text from which `nft` makes it.
//! Never runs anything, and never knows what rules are for.

use std::fmt::{self, Display, Formatter};

/// What stands in each comment of a rule of ours, before the rule's seal.
const SEALED: &str = "firewall-agent ";
/// Length of a seal, in hexadecimal digits.
const SEAL_LENGTH: usize = 8;

/// A table of nftables.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// `ip`, `ip6` or `inet`.
    pub family: &'static str,
    /// The name within its family.
    pub name: &'static str,
    /// What an administrator who lists the table is told.
    pub comment: &'static str,
    /// The chains in their order.
    pub chains: Vec<Chain>,
}

/// A chain of a table. Rules that others add have their place between `first` and `last`.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    pub name: &'static str,
    /// What makes it a base chain.
    pub hook: Option<Hook>,
    pub first: Vec<Rule>,
    pub last: Option<Rule>,
}

/// Where the kernel comes to a base chain, in nft's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    /// `filter` or `nat`.
    pub kind: &'static str,
    pub hook: &'static str,
    /// As a number, as `nft -j` lists it: 0 is `filter`, -100 `dstnat`, 100 `srcnat`.
    pub priority: i32,
    pub policy: &'static str,
}

impl Display for Hook {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let Self { kind, hook, priority, policy } = self;
        write!(formatter, "type {kind} hook {hook} priority {priority}; policy {policy};")
    }
}

/// A rule in nft's words.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    text: String,
    comment: Option<&'static str>,
}

impl Rule {
    /// A rule that needs no comment.
    pub fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), comment: None }
    }

    /// A rule with a comment, which an administrator reads beside it.
    pub fn told(text: impl Into<String>, comment: &'static str) -> Self {
        Self { text: text.into(), comment: Some(comment) }
    }

    /// What the rule says, without its comment.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// By what the rule is known again: another text has another seal (FNV-1a, which is the same
    /// in every version of the agent).
    pub fn seal(&self) -> String {
        let mix = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        let hash = self.text.bytes().fold(0x811c_9dc5, mix);
        format!("{hash:0SEAL_LENGTH$x}")
    }
}

impl Display for Rule {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let (Self { text, comment }, seal) = (self, self.seal());
        match comment {
            Some(comment) => write!(formatter, "{text} comment \"{comment}; {SEALED}{seal}\""),
            None => write!(formatter, "{text} comment \"{SEALED}{seal}\""),
        }
    }
}

/// The seal in a comment; `None` if this is no rule of any version of the agent.
pub(super) fn seal_in(comment: &str) -> Option<&str> {
    let (_, seal) = comment.rsplit_once(SEALED)?;
    let is_seal = seal.len() == SEAL_LENGTH && seal.bytes().all(|it| it.is_ascii_hexdigit());
    is_seal.then_some(seal)
}

impl Chain {
    /// All rules in their order.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.first.iter().chain(&self.last)
    }
}

impl Table {
    /// Text that puts this table in the place of the one with its name, if there is any.
    pub fn text(&self) -> String {
        let Self { family, name, comment, chains } = self;
        let mut text = removal(family, name);
        text += &format!("table {family} {name} {{\n\tcomment \"{comment}\"\n");
        for chain in chains {
            text += &format!("\tchain {} {{\n", chain.name);
            if let Some(hook) = chain.hook {
                text += &format!("\t\t{hook}\n");
            }
            for rule in chain.rules() {
                text += &format!("\t\t{rule}\n");
            }
            text += "\t}\n";
        }
        text + "}\n"
    }
}

/// Text that removes a table, if there is any: `delete` alone would be refused if there is none.
pub(super) fn removal(family: &str, name: &str) -> String {
    format!("table {family} {name} {{}}\ndelete table {family} {name}\n")
}

#[cfg(test)]
mod tests {
    use super::{Rule, seal_in};

    #[test]
    fn a_rule_is_known_again_by_its_comment_alone() {
        for rule in [Rule::plain("drop"), Rule::told("accept", "all of it")] {
            let text = rule.to_string();
            let comment = text.split('"').nth(1).expect("a comment");
            assert_eq!(seal_in(comment), Some(rule.seal().as_str()), "{comment}");
        }
        for foreign in ["", "firewall-agent", "firewall-agent 1234567", "firewall-agent 1234567g"] {
            assert_eq!(seal_in(foreign), None, "{foreign}");
        }
    }
}
