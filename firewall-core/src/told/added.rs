//! Rules that others added to the agent's own tables of nftables, as they are told.
//! Never says what such a rule does to a packet, only what its place makes of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A rule that somebody added to one of the agent's tables.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct AddedRule {
    /// The table, with its family: `ip qubes-firewall`.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The rule, as `nft -s list table` prints it.
    pub text: String,
    /// What the rule does not do, or does beyond what it seems to; nothing if it is as it seems.
    pub warning: Option<Warning>,
}

/// Why a rule is not what it seems to be.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Warning {
    /// An earlier rule of the chain that somebody added ends the way of every packet.
    NeverReached,
    /// What rules of clients accept has passed before.
    SeesOnlyDenied,
    /// The rule accepts whatever clients send.
    OpensAll,
    /// The rule lets what clients send leave by a link that the list of uplinks does not name.
    LeavesElsewhere,
}

impl Warning {
    /// The word in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::NeverReached => "never-reached",
            Self::SeesOnlyDenied => "sees-only-denied",
            Self::OpensAll => "opens-all",
            Self::LeavesElsewhere => "leaves-elsewhere",
        }
    }

    /// What people read, and what they can do.
    pub fn told(self) -> &'static str {
        match self {
            Self::NeverReached => {
                "no packet reaches it, because an added rule before it ends the way of every packet"
            }
            Self::SeesOnlyDenied => {
                "sees only what rules deny; to drop what rules accept, insert it in front of the \
                 chain `forward`"
            }
            Self::OpensAll => "accepts whatever clients send; name a source",
            Self::LeavesElsewhere => {
                "what it lets pass leaves by links that the list of uplinks does not name; add the \
                 link to the list instead"
            }
        }
    }
}
