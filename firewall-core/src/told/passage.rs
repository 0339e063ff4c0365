//! What rules accepted and did not leave, and what is in between, as it is told.
//! Never says which of several reasons it is.

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What rules accepted and did not leave by any interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Loss {
    /// Frames that rules accepted.
    pub accepted_frames: u64,
    /// Frames of these that left by an uplink, or to another client.
    pub left_frames: u64,
    /// In how many seconds that was.
    pub seconds: u64,
    /// Chains of others in nftables that these frames come by, in that order.
    pub between: Vec<BaseChain>,
    /// Why nobody knows these chains; nothing if they are known.
    pub between_problem: Option<String>,
}

impl Loss {
    /// The chains in between that packets of an address come by.
    pub fn between_of(&self, client: IpAddr) -> impl Iterator<Item = &BaseChain> {
        let of_other = if client.is_ipv4() { "ip6 " } else { "ip " };
        self.between.iter().filter(move |chain| !chain.table.starts_with(of_other))
    }
}

/// A chain of nftables that packets come to by themselves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct BaseChain {
    /// Where packets come to the chain: `prerouting`, `forward` or `postrouting`.
    pub hook: String,
    /// Which of the chains there comes first: the one with the lower number.
    pub priority: i32,
    /// The table, with its family: `inet filter`.
    pub table: String,
    /// The chain.
    pub chain: String,
}

impl Display for BaseChain {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let Self { hook, priority, table, chain } = self;
        write!(formatter, "{hook}, priority {priority}: table {table}, chain {chain}")
    }
}
