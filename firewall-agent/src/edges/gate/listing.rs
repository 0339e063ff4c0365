//! What `nft -j` prints, as types: chains and rules of any table.
//! Never judges what a rule or a chain does to a packet.
//!
//! The structure is libnftables-json(5).

use serde::Deserialize;
use serde_json::{Map, Value};

use super::errors::GateError;
use super::nft;
use super::table::{Hook, seal_in};

/// What `nft -j list` prints.
#[derive(Debug, Deserialize)]
pub(super) struct Listing {
    pub nftables: Vec<Object>,
}

/// One thing in a table; the others are of no interest.
#[derive(Debug, Deserialize)]
pub(super) struct Object {
    pub table: Option<Value>,
    pub chain: Option<Chain>,
    pub rule: Option<Rule>,
}

/// A chain as it is listed.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Chain {
    pub family: String,
    pub table: String,
    pub name: String,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// What makes it a base chain.
    pub hook: Option<String>,
    pub prio: Option<i32>,
    pub policy: Option<String>,
    /// The device at which the kernel comes to the chain, or a list of several. Some versions of nft,
    /// 1.0.6 among them, tell none.
    dev: Option<Value>,
}

impl Chain {
    /// Whether the kernel comes to the chain where it should, whatever the policy.
    pub fn is_at(&self, hook: Option<Hook>) -> bool {
        let Self { family: _, table: _, name: _, kind, hook: at, prio, policy: _, dev: _ } = self;
        match hook {
            None => at.is_none(),
            Some(Hook { kind: of, hook, priority, policy: _ }) => {
                kind.as_deref() == Some(of)
                    && at.as_deref() == Some(hook)
                    && *prio == Some(priority)
            }
        }
    }

    /// Whether the kernel comes to the chain at this device and no other, as far as it is told.
    pub fn may_be_at(&self, device: &str) -> bool {
        match &self.dev {
            None => true,
            Some(Value::Array(devices)) => devices.as_slice() == [Value::from(device)],
            Some(other) => other == device,
        }
    }

    /// Whether the policy is what it should be.
    pub fn has_policy(&self, hook: Option<Hook>) -> bool {
        self.policy.as_deref() == hook.map(|hook| hook.policy)
    }
}

/// A rule as it is listed.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Rule {
    pub chain: String,
    /// The number by which `nft` knows the rule.
    pub handle: u64,
    comment: Option<String>,
    /// Conditions and what follows from them, in their order: each has one word.
    #[serde(default)]
    pub expr: Vec<Map<String, Value>>,
}

impl Rule {
    /// The seal, if this is a rule of some version of the agent.
    pub fn seal(&self) -> Option<&str> {
        self.comment.as_deref().and_then(seal_in)
    }

    /// What the rule says about packets that fit all of its conditions. What is not understood says
    /// nothing here.
    pub fn says(&self) -> Says {
        let says = |word: &str| match word {
            "accept" => Some(Says::Accepts),
            "drop" | "reject" => Some(Says::Denies),
            "jump" => Some(Says::Jumps),
            "return" | "goto" | "dnat" | "snat" | "masquerade" | "redirect" => Some(Says::Leaves),
            _ => None,
        };
        self.words().find_map(says).unwrap_or(Says::Nothing)
    }

    /// Whether the rule is about some packets only, as far as what it says is understood.
    pub fn has_condition(&self) -> bool {
        self.words().any(|word| matches!(word, "match" | "limit" | "quota" | "ct count"))
    }

    /// The words of the rule, in their order.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.expr.iter().flatten().map(|(word, _)| word.as_str())
    }
}

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    Accepts,
    Denies,
    /// Another chain is asked, and then the next rule.
    Jumps,
    /// No rule behind it in its chain is asked.
    Leaves,
    Nothing,
}

/// The chains in what `nft -j list chains` prints.
pub(super) fn chains_in(json: &[u8]) -> serde_json::Result<Vec<Chain>> {
    let listing: Listing = serde_json::from_slice(json)?;
    Ok(listing.nftables.into_iter().filter_map(|object| object.chain).collect())
}

/// The chains of all tables. Whoever has how many rules, the kernel is asked about none of them.
pub(super) async fn chains() -> Result<Vec<Chain>, GateError> {
    Ok(chains_in(&nft::list_chains().await?)?)
}

/// The tables there are: family and name of each.
pub(super) async fn tables() -> Result<Vec<(String, String)>, GateError> {
    let listing: Listing = serde_json::from_slice(&nft::list_tables().await?)?;
    let tables = listing.nftables.into_iter().filter_map(|object| object.table);
    let text = |table: &Value, key: &str| table.get(key)?.as_str().map(str::to_owned);
    Ok(tables.filter_map(|it| Some((text(&it, "family")?, text(&it, "name")?))).collect())
}
