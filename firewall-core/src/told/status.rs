//! What the agent tells about itself: the types of the control socket's JSON.
//! Never decides anything, and never formats text for people.

use std::collections::BTreeMap;
use std::net::IpAddr;

use firewall_common::verdict::Reason;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules::{Action, Family};
use crate::told::added::AddedRule;
use crate::told::gateway::GatewayStatus;
use crate::told::options::OptionStatus;
use crate::told::passage::Loss;
use crate::told::words::Named;

/// Everything about a running agent.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// The version of this form of JSON.
    pub schema: u32,
    /// The agent.
    pub agent: AgentStatus,
    /// Links that match the pattern of vifs.
    pub vifs: Vec<VifStatus>,
    /// Clients, and addresses that have rules but no vif.
    pub clients: Vec<ClientStatus>,
    /// Names in rules, as far as they make a difference.
    pub names: Vec<NameStatus>,
    /// Packets that belong to no known client, by reason.
    #[schemars(with = "BTreeMap<String, CounterStatus>")]
    pub strays: BTreeMap<Named<Reason>, CounterStatus>,
}

/// The agent itself.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AgentStatus {
    /// Version of the agent.
    pub version: String,
    /// Process number of the agent.
    pub pid: u32,
    /// Options that somebody set, as they are in force.
    pub options: Vec<OptionStatus>,
    /// What is wrong with the keys of QubesDB that set options; each names its key.
    pub option_problems: Vec<String>,
    /// Where rules come from.
    pub source: String,
    /// Why rules cannot be read at present; those in force stay.
    pub source_problem: Option<String>,
    /// Who translates addresses.
    pub mode: Mode,
    /// Instructions that the kernel's verifier walked through to accept the program; nothing if the
    /// kernel does not tell.
    pub verified_instructions: Option<u32>,
    /// Whether the program keeps answers for packets like the last ones: not on every machine
    /// may it.
    pub caches: bool,
    /// DNS servers behind `specialtarget=dns`.
    pub resolvers: Vec<IpAddr>,
    /// The only links by which clients' packets may leave, beside those to other clients; nothing if
    /// any will do.
    pub uplinks: Option<UplinksStatus>,
    /// What is wrong with the key that lists them; nothing if it is as it should be.
    pub uplinks_problem: Option<String>,
    /// Of a Whonix gateway, what is in force there; nothing on every other machine.
    pub gateway: Option<GatewayStatus>,
    /// Why the last attempt to load the gate failed; nothing if it did not.
    pub gate_problem: Option<String>,
    /// Why it cannot be read which virtual resolvers somebody leads to a real one, so that what was
    /// known before counts; nothing if it can.
    pub resolvers_problem: Option<String>,
    /// Rules that others added to the agent's tables, as the gate was last found whole.
    pub added_rules: Vec<AddedRule>,
    /// What rules accepted lately and did not leave; nothing if all left, or too little was sent to
    /// tell.
    pub lost: Option<Loss>,
    /// How many programs end with the agent, because there is no place to pin them.
    pub unpinned_programs: usize,
    /// Links that are not vifs and not guarded against clients' addresses, with the reason.
    pub unguarded_uplinks: BTreeMap<String, String>,
    /// What does not work and is tried again.
    pub failing: Vec<FailingStatus>,
    /// Denied packets that were told: in the log, and to whoever listens.
    pub records: u64,
    /// Denied packets of the same vifs that were only counted.
    pub records_suppressed: u64,
}

/// The only links by which clients' packets may leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UplinksStatus {
    /// The links. None of them: nothing leaves.
    pub links: Vec<UplinkStatus>,
    /// Who says so; if both, what both say.
    pub from: Vec<UplinksFrom>,
}

impl UplinksStatus {
    /// Names of the links.
    pub fn names(self) -> Vec<String> {
        self.links.into_iter().map(|link| link.name).collect()
    }
}

/// A link by which clients' packets may leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UplinkStatus {
    /// Name of the link.
    pub name: String,
    /// Whether there is such a link, up or down.
    pub there: bool,
}

/// Who says by which links clients' packets may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UplinksFrom {
    /// The option `--uplinks`.
    Options,
    /// The key `/vm-config/firewall-uplinks` of QubesDB.
    Qubesdb,
    /// An agent that ran before: the key was not read yet.
    Before,
}

/// Something that does not work and is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FailingStatus {
    /// What is so as long as something does not work.
    pub what: String,
    /// Why it does not work.
    pub why: String,
    /// In how many seconds it is tried again; 0 if it is being tried.
    pub next_seconds_left: u64,
}

/// Who translates addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Qubes OS translates addresses.
    #[default]
    Qubes,
    /// The agent translates addresses.
    Standalone,
    /// Nobody does, because nothing is forwarded: this is a Whonix gateway, which leads what clients
    /// send to Tor.
    Whonix,
}

impl Mode {
    /// The word in JSON, and that people read.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qubes => "qubes",
            Self::Standalone => "standalone",
            Self::Whonix => "whonix",
        }
    }
}

/// How the programs of a link are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Attachment {
    /// By tcx (Linux 6.6 and newer).
    #[serde(rename = "tcx")]
    Tcx,
    /// By filters of a clsact qdisc.
    #[serde(rename = "clsact")]
    Clsact,
    /// By tcx, with the XDP stage before them.
    #[serde(rename = "xdp, tcx")]
    XdpAndTcx,
    /// By filters of a clsact qdisc, with the XDP stage before them.
    #[serde(rename = "xdp, clsact")]
    XdpAndClsact,
}

impl Attachment {
    /// All ways to attach programs.
    pub const ALL: &'static [Self] =
        &[Self::Tcx, Self::Clsact, Self::XdpAndTcx, Self::XdpAndClsact];

    /// The word in JSON, and that people read.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::XdpAndTcx => "xdp, tcx",
            Self::XdpAndClsact => "xdp, clsact",
        }
    }
}

/// One vif.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct VifStatus {
    /// Interface index of the vif.
    pub index: u32,
    /// Name of the vif.
    pub name: String,
    /// How the vif's programs are attached; nothing if no program is.
    pub attached: Option<Attachment>,
    /// Why no program could be attached to the vif.
    pub problem: Option<String>,
    /// Addresses of the clients behind the vif.
    pub addresses: Vec<IpAddr>,
    /// Networks that routes lead to behind the vif: an address in one of them is a client's if it has
    /// rules, and is behind no vif by itself.
    #[schemars(with = "Vec<String>")]
    pub networks: Vec<IpNet>,
    /// Name of the link, like a bridge, that the vif is a port of: nobody is at home behind such a
    /// vif, and nothing of it is forwarded. Nothing if it is none.
    pub port_of: Option<String>,
}

/// What is in force for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The client's policy decides.
    Live,
    /// Everything is rejected; `problem` says why.
    Blocked,
    /// Everything is dropped; no rules are known.
    Waiting,
    /// The client has rules and no vif.
    Absent,
}

impl State {
    /// The word in JSON, and that people read.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Blocked => "blocked",
            Self::Waiting => "waiting",
            Self::Absent => "absent",
        }
    }
}

/// One client.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ClientStatus {
    /// The client's address.
    pub address: IpAddr,
    /// Name of the qube that has the client's address, if dom0 has introduced it.
    pub name: Option<String>,
    /// Name of the client's vif; nothing if there is none.
    pub vif: Option<String>,
    /// Interface index of the client's vif; nothing if there is none.
    pub vif_index: Option<u32>,
    /// What is in force for the client.
    pub state: State,
    /// Why the client is blocked; nothing if it is not.
    pub problem: Option<ProblemStatus>,
    /// Whether connections that the client's rules deny are being ended just now; until then, its
    /// denied packets are dropped and not rejected.
    pub settling: bool,
    /// In how many seconds the client's audit ends; until then, what its rules deny passes. Nothing
    /// if the client is not audited.
    pub audit_seconds_left: Option<u64>,
    /// Number of the policy in force, as drop records quote it.
    pub generation: Option<u32>,
    /// What happens when no rule matches.
    pub default: Option<Action>,
    /// Packets that no rule matched.
    pub default_counter: CounterStatus,
    /// How many seconds ago the last packet that no rule matched was seen, to within ten seconds.
    pub default_last_seconds_ago: Option<u64>,
    /// The client's rules, in order.
    pub rules: Vec<RuleStatus>,
    /// Size of the policy and figures of its proof.
    pub policy: Option<PolicyStatus>,
    /// Packets by reason, where no rule had a say.
    #[schemars(with = "BTreeMap<String, CounterStatus>")]
    pub counters: BTreeMap<Named<Reason>, CounterStatus>,
}

/// What came of a wish to audit a client, or to end that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditStatus {
    /// The version of this form of JSON.
    pub schema: u32,
    /// The client's address.
    pub client: IpAddr,
    /// In how many seconds the client's audit ends; nothing if the client is not audited.
    pub audit_seconds_left: Option<u64>,
}

/// What is wrong with a client's rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProblemStatus {
    /// Where the rules come from: a file, or a path of QubesDB.
    pub origin: String,
    /// Line in the file, from 1; nothing without a file, or if the problem is about the whole.
    pub line: Option<usize>,
    /// The offending text.
    pub text: String,
    /// What is wrong.
    pub reason: String,
}

/// One rule.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RuleStatus {
    /// Number of the rule's key.
    pub number: u16,
    /// The rule as dom0 wrote it.
    pub text: String,
    /// What the rule says about packets that match.
    pub action: Action,
    /// The rule's host name; `names` of the document has what is known about it. A name that is not
    /// there makes no difference, whatever it leads to, and is not looked up.
    pub name: Option<String>,
    /// Where the rule can match: its network, the addresses of its name, the DNS servers.
    #[schemars(with = "Vec<String>")]
    pub destinations: Vec<IpNet>,
    /// Whether any packet can reach the rule: false if earlier rules match all of its packets, or
    /// if there are none.
    pub effective: bool,
    /// Numbers of the rules that match all packets of this rule first, if it is not effective: the
    /// first that does alone, or several that do together. Empty if the rule matches nothing.
    pub hidden_by: Vec<u16>,
    /// In a Whonix gateway: whether the client gets to what the rule drops by SOCKS, where rules
    /// cannot see it.
    pub bypassed: bool,
    /// Packets that the rule decided, since the client's rules changed last.
    pub counter: CounterStatus,
    /// How many seconds ago the last packet that the rule decided was seen, to within ten seconds.
    pub last_seconds_ago: Option<u64>,
}

/// A name in one family.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NameStatus {
    /// The name.
    pub name: String,
    /// Family of the addresses: `v4` or `v6`.
    pub family: Family,
    /// Addresses that the name leads to.
    pub addresses: Vec<NameAddress>,
    /// How long ago the answer in force came, in seconds. Without one and without addresses,
    /// an accept rule with this name matches nothing, and a drop rule everything.
    pub answered_seconds_ago: Option<u64>,
    /// In how many seconds DNS is asked again; 0 if it is being asked.
    pub next_seconds_left: u64,
    /// Failures since the last answer.
    pub failures: u32,
    /// The last failure, or why rules do not use all addresses.
    pub problem: Option<String>,
    /// How often an answer had an address that no accept rule may use.
    pub refused: u64,
    /// Numbers of the rules that use the name, by client.
    pub users: BTreeMap<IpAddr, Vec<u16>>,
}

/// An address that a name leads to.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NameAddress {
    /// The address.
    pub address: IpAddr,
    /// How long ago the address was in an answer or in use, in seconds.
    pub age_seconds: u64,
    /// Whether the address is in the last answer; if not, it stays for a while.
    pub in_answer: bool,
    /// Whether accept rules use the address: a public name must not lead into a private network.
    pub usable: bool,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CounterStatus {
    /// Packets.
    pub packets: u64,
    /// Bytes of frames, from the Ethernet header on.
    pub bytes: u64,
}

/// Size and proof of a policy.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PolicyStatus {
    /// How many destination prefixes the policy has.
    pub prefixes: usize,
    /// How many classes the policy has.
    pub classes: usize,
    /// How many segments the policy has.
    pub segments: usize,
    /// Cells in which policy and rules were compared before it went live.
    pub cells_checked: usize,
    /// Whether policy and rules were compared in all cells there are.
    pub complete: bool,
}
