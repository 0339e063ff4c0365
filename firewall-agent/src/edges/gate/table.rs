//! A table of nftables as data, and the text from which `nft` makes it.
//! Never runs anything, and never knows what rules are for.

use std::fmt::{self, Display, Formatter};

/// A table of nftables.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// `ip`, `ip6` or `inet`.
    pub family: &'static str,
    /// The name within its family.
    pub name: &'static str,
    /// What an administrator who lists the table is told.
    pub comment: &'static str,
    /// The chains in their order. The last chain has the last rule, which has the seal.
    pub chains: Vec<Chain>,
}

/// A chain of a table.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    pub name: &'static str,
    /// Type, hook, priority and policy of a base chain, in nft's words.
    pub hook: Option<&'static str>,
    pub rules: Vec<Rule>,
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
}

impl Table {
    /// Text that puts this table in the place of the one with its name, if there is any. The last
    /// rule has the seal.
    pub fn text(&self) -> String {
        format!("{}{}", removal(self.family, self.name), self.body(Some(&self.seal())))
    }

    /// What the comment of the last rule ends with, by which the table is known again: another
    /// text has another seal (FNV-1a, which is the same in every version of the agent).
    pub fn seal(&self) -> String {
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = self.body(None).bytes().fold(0xcbf2_9ce4_8422_2325, mix);
        format!("the last rule of gate {hash:016x}")
    }

    fn body(&self, seal: Option<&str>) -> String {
        let Self { family, name, comment, chains } = self;
        let mut text = format!("table {family} {name} {{\n\tcomment \"{comment}\"\n");
        let mut unsealed: usize = chains.iter().map(|chain| chain.rules.len()).sum();
        for chain in chains {
            text += &format!("\tchain {} {{\n", chain.name);
            if let Some(hook) = chain.hook {
                text += &format!("\t\t{hook}\n");
            }
            for rule in &chain.rules {
                unsealed -= 1;
                let seal = seal.filter(|_| unsealed == 0);
                text += &format!("\t\t{}\n", Commented { rule, seal });
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

/// A rule with all that its comment says.
struct Commented<'a> {
    rule: &'a Rule,
    seal: Option<&'a str>,
}

impl Display for Commented<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let Rule { text, comment } = self.rule;
        write!(formatter, "{text}")?;
        match (comment, self.seal) {
            (None, None) => Ok(()),
            (Some(comment), None) => write!(formatter, " comment \"{comment}\""),
            (None, Some(seal)) => write!(formatter, " comment \"{seal}\""),
            (Some(comment), Some(seal)) => write!(formatter, " comment \"{comment}; {seal}\""),
        }
    }
}
