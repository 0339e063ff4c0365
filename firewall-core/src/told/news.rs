//! What the agent tells as it happens: the types of the lines that `monitor` reads, and
//! the sentence about a packet that people read.
//! Never decides anything.

use std::fmt;
use std::net::IpAddr;

use firewall_common::packet::Protocol;
use firewall_common::verdict::{Reason, Verdict};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::protocol::protocol;
use crate::told::words::{self, Named};

/// One line of news.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", tag = "event")]
pub enum News {
    /// The first line: who tells.
    Hello {
        /// The version of this form of JSON.
        schema: u32,
        /// Version of the agent.
        version: String,
        /// Process number of the agent.
        pid: u32,
        /// Most records of one vif in a second.
        records_per_second: u32,
    },
    /// A packet was denied, or would have been.
    Denied(Box<Denied>),
    /// Lines that this reader was too slow for.
    Missed {
        /// How many lines.
        lines: u64,
    },
    /// The agent tells as many readers as it can; this line is the last.
    Full {
        /// How many readers there are.
        readers: usize,
    },
}

/// A packet that was denied, or would have been.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Denied {
    /// When the agent heard of the packet, in milliseconds since 1970.
    pub time_ms: u64,
    /// Name of the vif that the packet came in by.
    pub vif: String,
    /// Source address; nothing if the packet could not be read that far.
    pub source: Option<IpAddr>,
    /// Destination address, as the client wrote it; nothing if the packet could not be read that
    /// far.
    pub destination: Option<IpAddr>,
    /// Names in rules that lead to the destination.
    pub names: Vec<String>,
    /// Number of the final protocol, as IANA assigns it.
    pub protocol: u8,
    /// Source port of TCP and UDP, code of ICMP, 0 otherwise.
    pub source_port: u16,
    /// Destination port of TCP and UDP, type of ICMP, 0 otherwise.
    pub port: u16,
    /// Length of the frame in bytes.
    pub length_bytes: u32,
    /// What was done with the packet: `reject`, `drop`, or `audit` for let through.
    #[serde(with = "words")]
    #[schemars(with = "Named<Verdict>")]
    pub verdict: Verdict,
    /// Why the packet met this verdict.
    #[serde(with = "words")]
    #[schemars(with = "Named<Reason>")]
    pub reason: Reason,
    /// The rule that denies the packet, if it still is in force.
    pub rule: Option<DeniedBy>,
    /// Number of the policy that decided, if one did.
    pub generation: Option<u32>,
    /// Packets of this vif that were denied before this one and not told.
    pub suppressed: u32,
}

/// A rule that denies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeniedBy {
    /// Number of the rule's key.
    pub number: u16,
    /// The rule as dom0 wrote it.
    pub text: String,
}

impl Denied {
    /// The protocol of the packet, as rules know it.
    pub fn protocol(&self) -> Protocol {
        protocol(self.protocol, self.destination.is_some_and(|it| it.is_ipv4()))
    }
}

/// In the words that `explain` takes: who, where to, what was done and why.
impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vif, port, protocol, .. } = self;
        write!(f, "{vif}: ")?;
        match (self.source, self.destination) {
            (Some(source), Some(destination)) => {
                write!(f, "{source} to ")?;
                let with_port = |f: &mut fmt::Formatter<'_>, name| match destination {
                    IpAddr::V4(v4) => write!(f, "{v4}:{port}/{name}"),
                    IpAddr::V6(v6) => write!(f, "[{v6}]:{port}/{name}"),
                };
                match self.protocol() {
                    Protocol::Tcp => with_port(f, "tcp"),
                    Protocol::Udp => with_port(f, "udp"),
                    Protocol::Icmp => write!(f, "{destination}/icmp:{port}"),
                    Protocol::Other => write!(f, "{destination}/{protocol}"),
                }?;
            }
            _ => write!(f, "a packet of {} bytes", self.length_bytes)?,
        }
        if !self.names.is_empty() {
            write!(f, " ({})", self.names.join(", "))?;
        }
        f.write_str(match self.verdict {
            Verdict::Reject => ": rejected",
            Verdict::Audit => ": AUDIT, PASSED; denied",
            Verdict::Accept | Verdict::Pass | Verdict::Drop | Verdict::Related => ": dropped",
        })?;
        match &self.rule {
            Some(DeniedBy { number, text }) => write!(f, " by rule {number:04} `{text}`")?,
            None if self.reason == Reason::Default => f.write_str(" by default")?,
            None => write!(f, ": {}", self.reason.name())?,
        }
        if let Some(generation) = self.generation {
            write!(f, ", generation {generation}")?;
        }
        match self.suppressed {
            0 => Ok(()),
            count => write!(f, "; {count} more before it not shown"),
        }
    }
}
