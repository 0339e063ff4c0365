//! The rules of the gate, of the bare gate, of the closed one, and of NAT.
//! Never loads them.

use std::net::Ipv4Addr;

use firewall_common::abi::{OPENING, PERMIT, PERMIT_RELATED};
use firewall_core::rules::resolve::VIRTUAL_RESOLVERS;
use firewall_core::uplinks::Uplinks;

use super::table::{Chain, Hook, Rule, Table};

/// The table of the gate, of today's firewall as well.
pub(super) const GATE: &str = "qubes-firewall";
/// The chain of the only links by which clients' packets may leave.
pub(super) const UPLINKS: &str = "uplinks";
/// The table of mode standalone.
pub(super) const NAT: &str = "qubes-firewall-nat";
/// The table of mode whonix that lets into the gateway what has a permit.
pub(super) const STRICT: &str = "qubes-firewall-strict";
/// The table of mode whonix that answers what rules deny.
pub(super) const ANSWERS: &str = "qubes-firewall-answers";
/// The gate's chain at its hook.
pub(super) const FORWARD: &str = "forward";
/// The gate's chain that users' scripts jump to, and append to.
pub(super) const USERS: &str = "qubes-forward";

pub(super) const FORWARDING: Hook =
    Hook { kind: "filter", hook: "forward", priority: 0, policy: "drop" };
/// Before every chain that could say otherwise, or have what it sees forwarded past all of them
/// (`flow add`).
const LEAVING: Hook = Hook { priority: -300, policy: "accept", ..FORWARDING };
const FORWARD_OPEN: Hook = Hook { policy: "accept", ..FORWARDING };
const DSTNAT: Hook = Hook { kind: "nat", hook: "prerouting", priority: -100, policy: "accept" };
const OPENINGS: Hook = Hook { kind: "nat", hook: "postrouting", priority: 90, policy: "accept" };
const SRCNAT: Hook = Hook { kind: "nat", hook: "postrouting", priority: 100, policy: "accept" };

/// The words of a family of addresses.
#[derive(Clone, Copy)]
pub(super) struct Family {
    pub name: &'static str,
    /// The protocol whose errors answer what is rejected.
    icmp: &'static str,
}

/// The families that packets of clients have.
pub(super) const FAMILIES: [Family; 2] =
    [Family { name: "ip", icmp: "icmp" }, Family { name: "ip6", icmp: "icmpv6" }];

/// The gate: it forwards what has a permit, what is not from a vif, and answers.
///
/// The well-known names are Qubes': users' scripts use the chains `forward` and `qubes-forward`, so
/// both judge by the permit, and what users append to either is asked about all that has none,
/// before it is rejected. No packet gets as far as the policy: the policy is in force later than
/// the rules ([`closed`]).
///
/// An ICMP error that has its permit is about a packet to its sender; whether there was such a
/// packet, connection tracking knows. `established` tells answers from errors: errors are
/// `related`, in the direction of the packet that met them.
pub(super) fn gate(family: Family, pattern: &str, uplinks: Option<&Uplinks>) -> Table {
    let Family { name, icmp } = family;
    let [permitted, errors] = permitted();
    let forward = vec![
        permitted.clone(),
        Rule::told(format!("iifname != \"{pattern}\" accept"), "not from a qube"),
        errors.clone(),
        Rule::told(
            "ct state established ct direction reply accept",
            "answers to connections towards a qube",
        ),
        Rule::plain("jump qubes-forward"),
    ];
    // The kernel comes to chains of this type with the first packet of a connection only.
    let opening = Rule::told(
        format!("oifname \"{pattern}\" meta priority set {OPENING:#010x}"),
        "tells the program of connections towards a qube",
    );
    let reject = Rule::plain(format!("reject with {icmp} type admin-prohibited"));
    let chain = |name, hook, first, last| Chain { name, hook, first, last };
    let mut chains = vec![
        chain(FORWARD, Some(FORWARDING), forward, Some(reject.clone())),
        chain(USERS, None, vec![permitted, errors], None),
        chain("openings", Some(OPENINGS), vec![opening], None),
    ];
    chains.extend(uplinks.map(|uplinks| leaving(uplinks, pattern, &reject)));
    Table {
        family: name,
        name: GATE,
        comment: "The rules of qubes are not here but in eBPF: run `firewall-agent show`",
        chains,
    }
}

/// By which links alone clients' packets may leave. A chain of its own: what another chain accepts is
/// not accepted here, so nothing that users put into theirs leads around it. What leaves by the right
/// link meets one comparison. An error goes back, and not silence: whoever is to wait for a tunnel that
/// is down is told at once, and the error, which quotes the packet, is for a client's address, which
/// `to_uplink` lets out by no link that is no vif.
fn leaving(Uplinks(links): &Uplinks, pattern: &str, reject: &Rule) -> Chain {
    let quoted: Vec<String> = links.iter().map(|link| format!("\"{link}\"")).collect();
    let elsewhere = match quoted.as_slice() {
        [] => String::new(),
        [link] => format!("oifname != {link} "),
        links => format!("oifname != {{ {} }} ", links.join(", ")),
    };
    let text =
        format!("{elsewhere}iifname \"{pattern}\" oifname != \"{pattern}\" {}", reject.text());
    let first = vec![Rule::told(text, "qubes' packets leave by no other link")];
    Chain { name: UPLINKS, hook: Some(LEAVING), first, last: None }
}

/// The rules by which passes what has a permit: what rules of a qube accept, and its ICMP errors.
pub(super) fn permitted() -> [Rule; 2] {
    let errors = format!("{} ct state related accept", begins(PERMIT_RELATED));
    [
        Rule::told(format!("{} accept", begins(PERMIT)), "accepted by a qube's rules"),
        Rule::told(errors, "errors about a known connection"),
    ]
}

/// The condition that a packet has a permit: the hardware address, without the condition on the kind
/// of link that `ether daddr` brings.
fn begins(permit: [u8; PERMIT.len()]) -> String {
    format!("@ll,0,32 {:#010x}", u32::from_be_bytes(permit))
}

/// The rules of a chain by which nothing comes from a vif, but for what these rules in between let
/// pass. What others append to it is not asked.
pub(super) fn closing(pattern: &str, but: impl IntoIterator<Item = Rule>) -> Vec<Rule> {
    let others = Rule::told(format!("iifname != \"{pattern}\" accept"), "not from a qube");
    [others].into_iter().chain(but).chain([Rule::plain("drop")]).collect()
}

/// A gate of which every kernel with nf_tables is capable: what comes from a vif goes nowhere.
pub(super) fn bare(family: Family, pattern: &str) -> Table {
    let first = closing(pattern, []);
    Table {
        family: family.name,
        name: GATE,
        comment: "The whole gate is not there (yet): `firewall-agent status` says why",
        chains: vec![Chain { name: FORWARD, hook: Some(FORWARDING), first, last: None }],
    }
}

/// A gate that forwards nothing, whoever sent it: first by its rule, then by its policy alone.
///
/// The kernel has a new chain accept by its policy until the whole transaction is in force,
/// and has by then taken the old chain away (`nft_chain_commit_drop_policy` in
/// net/netfilter/nf_tables_api.c). A rule is in force at once; it goes when the policy is.
pub(super) fn closed(family: Family) -> Table {
    Table {
        family: family.name,
        name: GATE,
        comment: "Closed by `firewall-agent hand-over`, until another firewall takes its place",
        chains: vec![Chain {
            name: FORWARD,
            hook: Some(FORWARDING),
            first: vec![Rule::plain("drop")],
            last: None,
        }],
    }
}

/// NAT as mode standalone has it: DNS to the virtual resolvers goes to real ones, what was accepted
/// leaves under the address of the uplink, and nobody begins a connection towards a client.
pub(super) fn nat(pattern: &str, redirections: &[(Ipv4Addr, Ipv4Addr)]) -> Table {
    let mut redirect = Vec::new();
    for (virtual_resolver, real) in redirections {
        for protocol in ["udp", "tcp"] {
            redirect.push(Rule::plain(format!(
                "iifname \"{pattern}\" ip daddr {virtual_resolver} {protocol} dport 53 \
                 dnat ip to {real}"
            )));
        }
    }
    if redirections.is_empty() {
        // Nobody upstream is to see what was meant for a resolver that does not exist.
        for virtual_resolver in VIRTUAL_RESOLVERS {
            redirect.push(Rule::plain(format!(
                "iifname \"{pattern}\" ip daddr {virtual_resolver} \
                 meta l4proto {{ tcp, udp }} th dport 53 drop"
            )));
        }
    }
    let forward = vec![
        Rule::told("ct state invalid drop", "cannot be translated, so must not leave"),
        Rule::plain("ct state established,related accept"),
    ];
    let closed =
        Rule::told(format!("oifname \"{pattern}\" drop"), "no new connections towards qubes");
    let translate =
        Rule::plain(format!("iifname \"{pattern}\" oifname != \"{pattern}\" masquerade"));
    let chain = |name, hook, first, last| Chain { name, hook: Some(hook), first, last };
    Table {
        family: "inet",
        name: NAT,
        comment: "Loaded by firewall-agent in standalone mode; on Qubes OS `table ip qubes` does this",
        chains: vec![
            chain("dnat-dns", DSTNAT, redirect, None),
            chain("forward", FORWARD_OPEN, forward, Some(closed)),
            chain("translate", SRCNAT, Vec::new(), Some(translate)),
        ],
    }
}
