//! Why a packet fares as it does, in a sentence.
//! Never works anything out that is not in the explanation.

use firewall_common::verdict::{Reason, Verdict};
use firewall_core::rules::IMPLIED;
use firewall_core::told::explanation::{Connection, Explained, Judgement, Outcome};

use super::gateway::gets;
use crate::cli::text;

/// The answer in one sentence; and another one, if what is accepted does not all leave.
pub(super) fn why(it: &Explained) -> String {
    let because = because(it);
    match it.lost() {
        Some(_) => format!("{because} But not all leaves that rules accept just now: see `lost`."),
        None => because,
    }
}

fn because(it: &Explained) -> String {
    let Judgement { verdict, reason, .. } = it.judgement;
    let rule = match (it.agent.as_ref().and_then(|agent| agent.rule), it.judgement.rule_index) {
        (Some(number), _) if number >= IMPLIED => "what this gateway allows".to_owned(),
        (Some(number), _) => format!("rule {number:04}"),
        (None, Some(index)) => format!("the rule with index {index}"),
        (None, None) => "the default".to_owned(),
    };
    let does = match verdict {
        Verdict::Accept => "accepts it",
        Verdict::Reject | Verdict::Drop => "denies it",
        Verdict::Pass | Verdict::Related => "has no say",
        Verdict::Audit => "denies it, but the client is audited, so it passes",
    };
    if it.agent.as_ref().is_some_and(|agent| agent.to_client) && it.outcome == Outcome::Dropped {
        return format!(
            "Because {} is another client: {rule} {does}, but nftables lets no new connection \
             from one client to another.",
            it.packet.map_or(String::new(), |packet| packet.destination.to_string())
        );
    }
    let is_in_gateway = it.gateway.is_some();
    if it.connection == Some(Connection::Answers) && verdict == Verdict::Reject && !is_in_gateway {
        return "Because it answers a connection that was opened towards the client. Its rules \
                would deny it, but are about what the client opens itself."
            .to_owned();
    }
    match reason {
        Reason::Rule => {
            format!("Because {rule} is the first that matches, and {does}.{}", but(it))
        }
        Reason::Default => format!("Because no rule matches, and the default {does}.{}", but(it)),
        Reason::Blocked => blocked(it),
        Reason::Waiting => "Because no rules are known for this client yet: everything is \
                            dropped until dom0 writes some."
            .to_owned(),
        Reason::Local if is_in_gateway => {
            "It is neighbour discovery with the gateway, which needs no rule.".to_owned()
        }
        Reason::Local => {
            let gate = match verdict {
                Verdict::Accept => "forwards it, because rules of the client accept it",
                Verdict::Pass
                | Verdict::Reject
                | Verdict::Drop
                | Verdict::Audit
                | Verdict::Related => "rejects it",
            };
            format!(
                "It is for the netvm's own address, or multicast or broadcast. If somebody's NAT takes \
                 it elsewhere, the gate {gate}; if not, the netvm's input rules decide."
            )
        }
        Reason::Answer => "Because it answers a connection that was opened towards the client: \
                           connection tracking knows whether there is one."
            .to_owned(),
        Reason::Fragment => "It has no ports. It passes right behind the other fragments of its \
                             datagram, if the first one did: explain that one."
            .to_owned(),
        Reason::IcmpError => "It is an ICMP error about a packet to the client, which no rule \
                              judges: connection tracking knows whether there was such a packet."
            .to_owned(),
        Reason::UnknownSource => "Because its source address is not at home behind this vif: to \
                                  the firewall it is spoofed."
            .to_owned(),
        Reason::Arp => "ARP is the kernel's business, not the rules'.".to_owned(),
        Reason::ForeignNeighbour
        | Reason::LinkLocal
        | Reason::OtherHost
        | Reason::Tagged
        | Reason::ForeignEthertype
        | Reason::Truncated
        | Reason::Malformed
        | Reason::SourceRoute
        | Reason::RoutingHeader
        | Reason::TooManyHeaders
        | Reason::MappedAddress
        | Reason::OverBudget
        | Reason::Audit
        | Reason::ConnectedSource
        | Reason::ConnectedDestination
        | Reason::StrayFragment
        | Reason::TooManyFragments
        | Reason::ForeignError
        | Reason::Redirect
        | Reason::TooMany
        | Reason::Settling
        | Reason::Outdated
        | Reason::Inconsistent => {
            format!("Because of what it is, whatever rules say: {}.", meaning(reason))
        }
    }
}

/// What becomes in a Whonix gateway of what rules accept.
fn but(it: &Explained) -> String {
    match (it.gateway, it.judgement.verdict) {
        (Some(gateway), Verdict::Accept | Verdict::Audit) => {
            let gets = gets(gateway.fate);
            let (first, rest) = gets.split_at(1);
            format!(" {}{rest}.", first.to_uppercase())
        }
        (None, _)
        | (Some(_), Verdict::Reject | Verdict::Drop | Verdict::Pass | Verdict::Related) => {
            String::new()
        }
    }
}

fn blocked(it: &Explained) -> String {
    let problem = it.agent.as_ref().and_then(|agent| agent.problem.as_ref());
    let told =
        problem.map_or_else(|| "the agent knows why: `firewall-agent show`".to_owned(), text::told);
    format!("Because the client's rules cannot be used, so all is blocked: {told}")
}

/// What the words of counters and drop records mean.
fn meaning(reason: Reason) -> &'static str {
    match reason {
        Reason::LinkLocal => "its source is link-local or none, and such is never forwarded",
        Reason::OtherHost => "it is for another hardware address",
        Reason::Tagged => "it has a VLAN tag",
        Reason::ForeignEthertype => "it is neither ARP, IPv4 nor IPv6",
        Reason::Truncated => "it is shorter than its own headers say",
        Reason::Malformed => "its headers contradict themselves",
        Reason::SourceRoute => "it has a source route, which leads elsewhere than it says",
        Reason::RoutingHeader => "it has a routing header, which leads elsewhere than it says",
        Reason::TooManyHeaders => "it has more extension headers than an honest sender needs",
        Reason::MappedAddress => "it has an IPv4 address in an IPv6 header",
        Reason::ForeignNeighbour => "it speaks for addresses that are not the client's",
        Reason::OverBudget | Reason::TooMany => "there are too many like it",
        Reason::ConnectedSource => "it has a client's address and comes from elsewhere",
        Reason::ConnectedDestination => "it is for a client and would leave elsewhere",
        Reason::StrayFragment => "it does not follow on another fragment that passed",
        Reason::TooManyFragments => "too many datagrams of the client lack fragments",
        Reason::ForeignError => {
            "it is an ICMP error about a packet that was not sent to the client, or not as an \
             honest sender makes it"
        }
        Reason::Redirect => "it tells others where to send, which is no client's business",
        Reason::Settling => {
            "it is an ICMP error, and connections of the client are being ended just now"
        }
        Reason::Outdated => "it waited, and what accepted it is not in force any more",
        Reason::Inconsistent => "the tables contradict themselves, which is a bug; please report",
        Reason::Rule
        | Reason::Default
        | Reason::Blocked
        | Reason::Waiting
        | Reason::Arp
        | Reason::Local
        | Reason::Answer
        | Reason::Fragment
        | Reason::IcmpError
        | Reason::UnknownSource
        | Reason::Audit => reason.name(),
    }
}
