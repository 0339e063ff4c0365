//! An explanation as text for people: the answer first, then the rules, then the way.
//! Never works anything out that is not in the explanation.

use std::fmt::Write as _;
use std::net::IpAddr;

use firewall_common::verdict::{Reason, Verdict};

use crate::cli::colour::{BAD, Colours, GOOD, ODD};
use firewall_core::protocol::{ICMP, ICMPV6, TCP, UDP};
use firewall_core::rules::Action;
use firewall_core::told::explanation::{
    Connection, Explained, Explanation, Judgement, Outcome, PacketStatus,
};
use firewall_core::told::status::Mode;

/// Longer lists of rules are cut in the middle.
const MOST_TRIED: usize = 20;
const SHOWN_OF_MANY: usize = 8;
/// Port of DNS.
const DNS: u16 = 53;

/// One packet.
pub fn explained(it: &Explained, all: bool, colours: Colours) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}: {}", what(it), outcome(it, colours));
    let _ = writeln!(text, "  {}", wrapped(&why(it), 2));
    if it.agree == Some(false) {
        let _ = writeln!(text, "{}", disagreement(it, colours));
    }
    if let Some(agent) = it.agent.as_ref().filter(|agent| !agent.tried.is_empty()) {
        rules(&mut text, agent, all, colours);
    } else if let Some(agent) = it.agent.as_ref().filter(|_| it.judgement.reason == Reason::Default)
    {
        let default = agent.default.unwrap_or(Action::Drop).name();
        let _ = writeln!(text, "\n  There are no rules; the default is {default}.");
    }
    let _ = writeln!(text, "\n  On its way:");
    for (place, happens) in steps(it) {
        let _ = writeln!(text, "    {place:<11} {}", wrapped(&happens, 16));
    }
    text
}

/// What the packet is.
fn what(it: &Explained) -> String {
    let vif = it.agent.as_ref().and_then(|agent| agent.vif.as_ref());
    let vif = vif.map(|vif| format!(" ({vif})")).unwrap_or_default();
    let name = it.name.as_ref().map(|name| format!("{name}, ")).unwrap_or_default();
    match &it.packet {
        None => format!("a frame of {}{vif}", it.client),
        Some(packet) if packet.source == it.client => {
            format!("{}{vif} to {name}{}, {}", it.client, packet.destination, service(packet))
        }
        Some(packet) => format!(
            "{}{vif}, with the source address {}, to {}, {}",
            it.client,
            packet.source,
            packet.destination,
            service(packet)
        ),
    }
}

fn service(packet: &PacketStatus) -> String {
    let PacketStatus { protocol, port, later_fragment, .. } = packet;
    if *later_fragment {
        return format!("a later fragment of protocol {protocol}");
    }
    match (*protocol, packet.source.is_ipv4()) {
        (TCP, _) => format!("tcp port {port}"),
        (UDP, _) => format!("udp port {port}"),
        (ICMP, true) if *port == 8 => "a ping".to_owned(),
        (ICMPV6, false) if *port == 128 => "a ping".to_owned(),
        (ICMP, true) | (ICMPV6, false) => format!("icmp type {port}"),
        (other, _) => format!("protocol {other}"),
    }
}

fn outcome(it: &Explained, colours: Colours) -> String {
    match it.outcome {
        Outcome::Forwarded => colours.paint(GOOD, "forwarded"),
        Outcome::Local => colours.paint(GOOD, "for the netvm itself"),
        Outcome::Related => {
            "forwarded if connection tracking knows the connection that it is about, else dropped"
                .to_owned()
        }
        Outcome::Rejected => colours.paint(BAD, "BLOCKED, with an ICMP error"),
        Outcome::Dropped => colours.paint(BAD, "BLOCKED silently"),
    }
}

/// The answer in one sentence.
fn why(it: &Explained) -> String {
    let Judgement { verdict, reason, .. } = it.judgement;
    let rule = match (it.agent.as_ref().and_then(|agent| agent.rule), it.judgement.rule_index) {
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
    if it.connection == Some(Connection::Answers) && verdict == Verdict::Reject {
        return "Because it answers a connection that was opened towards the client. Its rules \
                would deny it, but are about what the client opens itself."
            .to_owned();
    }
    match reason {
        Reason::Rule => format!("Because {rule} is the first that matches, and {does}."),
        Reason::Default => format!("Because no rule matches, and the default {does}."),
        Reason::Blocked => blocked(it),
        Reason::Waiting => "Because no rules are known for this client yet: everything is \
                            dropped until dom0 writes some."
            .to_owned(),
        Reason::Local => "It is for the netvm's own address, or multicast or broadcast: the \
                          netvm's input rules decide, and no rule of the client."
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

fn blocked(it: &Explained) -> String {
    let problem = it.agent.as_ref().and_then(|agent| agent.problem.as_ref());
    let told = problem.map_or_else(
        || "the agent knows why: `firewall-agent show`".to_owned(),
        crate::cli::text::told,
    );
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
        | Reason::Fragment
        | Reason::IcmpError
        | Reason::UnknownSource
        | Reason::Audit => reason.name(),
    }
}

fn disagreement(it: &Explained, colours: Colours) -> String {
    let said = |judgement: &Judgement| {
        let Judgement { verdict, reason, rule_index, generation } = judgement;
        let rule = rule_index.map(|index| format!(" with index {index}")).unwrap_or_default();
        let (verdict, reason) = (verdict.name(), reason.name());
        format!("{verdict}, by {reason}{rule}, generation {generation}")
    };
    let agent = it.agent.as_ref().map(|agent| said(&agent.judgement)).unwrap_or_default();
    let kernel = it.kernel.as_ref().map(said).unwrap_or_default();
    colours.paint(
        BAD,
        &format!(
            "\n  THE KERNEL SAYS SOMETHING ELSE, and the kernel decides. This is a bug.\n    \
             the agent:  {agent}\n    the kernel: {kernel}\n  \
             Restart the service to have everything installed anew, and please report this."
        ),
    )
}

/// The rules that were tried.
fn rules(text: &mut String, agent: &Explanation, all: bool, colours: Colours) {
    let _ = writeln!(text, "\n  Rules in order, the first that matches decides:");
    let count = agent.tried.len();
    let is_cut = count > MOST_TRIED && !all;
    for (index, rule) in agent.tried.iter().enumerate() {
        if is_cut && index >= SHOWN_OF_MANY && index + SHOWN_OF_MANY < count {
            if index == SHOWN_OF_MANY {
                let left_out = count - 2 * SHOWN_OF_MANY;
                let _ = writeln!(text, "    ...   {left_out} more that do not match (--all)");
            }
            continue;
        }
        let _ = writeln!(text, "    {:04}  {}", rule.number, wrapped(&rule.text, 10));
        if rule.differs.is_empty() {
            let _ = writeln!(text, "          {}", colours.paint(ODD, "matches: this one decides"));
        } else {
            let whys: Vec<&str> = rule.differs.iter().map(|it| it.why.as_str()).collect();
            let _ = writeln!(text, "          no: {}", wrapped(&whys.join("; "), 14));
        }
    }
    let left = agent.rules.saturating_sub(count);
    match (agent.rule, left) {
        (None, _) => {
            let default = agent.default.unwrap_or(Action::Drop).name();
            let _ = writeln!(text, "    else  action={default}");
            let _ = writeln!(text, "          {}", colours.paint(ODD, "the default decides"));
        }
        (Some(_), 0) => {}
        (Some(_), 1) => {
            let _ = writeln!(text, "    1 more rule is not tried any more");
        }
        (Some(_), left) => {
            let _ = writeln!(text, "    {left} more rules are not tried any more");
        }
    }
}

/// What happens where.
fn steps(it: &Explained) -> Vec<(&'static str, String)> {
    let mut steps = vec![("firewall", firewall(it)), ("gate", gate(it)), ("NAT", nat(it))];
    let connection = match (it.connection, &it.connection_problem) {
        (Some(Connection::Opened), _) => "the client has such a connection open".to_owned(),
        (Some(Connection::Answers), _) => {
            "one was opened towards the client, and this answers; such answers pass whatever \
             the client's rules say"
                .to_owned()
        }
        (None, None) => "none is known that this belongs to".to_owned(),
        (None, Some(why)) => format!("unknown: {why}"),
    };
    steps.push(("connection", connection));
    let kernel = match (&it.kernel, &it.kernel_problem, it.agree) {
        (Some(_), _, Some(true)) => "its own tables say the same".to_owned(),
        (Some(_), _, Some(false)) => "ITS TABLES SAY SOMETHING ELSE, see above".to_owned(),
        (Some(_), _, None) => {
            "this is what its tables say; without an agent the rules' texts are unknown".to_owned()
        }
        (None, Some(why), _) => format!("not compared: {why}"),
        (None, None, _) => "not compared".to_owned(),
    };
    steps.push(("kernel", kernel));
    if let Some(why) = &it.agent_problem {
        steps.push(("agent", why.clone()));
    }
    steps
}

fn firewall(it: &Explained) -> String {
    let Judgement { verdict, reason, generation, .. } = it.judgement;
    let counted = match it.agent.as_ref().and_then(|agent| agent.rule) {
        Some(number) => format!("rule {number:04}"),
        None => reason.name().to_owned(),
    };
    let policy = match generation {
        0 => String::new(),
        generation => format!(", generation {generation}"),
    };
    let settling = it.agent.as_ref().is_some_and(|agent| agent.settling);
    let settling = if settling {
        "; connections are being ended just now, and until then what is denied is dropped"
    } else {
        ""
    };
    let does = match verdict {
        Verdict::Accept => "hands it on with the mark",
        Verdict::Audit => "hands it on with the mark, because the client is audited",
        Verdict::Related => "hands it on with the mark, as an ICMP error",
        Verdict::Reject if it.outcome == Outcome::Dropped => {
            "ends it at the vif, because it is a fragment"
        }
        Verdict::Reject | Verdict::Pass => "hands it on without the mark",
        Verdict::Drop => "ends it at the vif",
    };
    format!("{does}; counted as {counted}{policy}{settling}")
}

fn gate(it: &Explained) -> String {
    let is_v4 = it.client.is_ipv4();
    let error = if is_v4 { "ICMP 3/13" } else { "ICMPv6 1/1" };
    let to_client = it.agent.as_ref().is_some_and(|agent| agent.to_client);
    let Judgement { verdict, reason, .. } = it.judgement;
    let text = match (verdict, it.outcome) {
        (Verdict::Accept | Verdict::Audit, Outcome::Dropped) if to_client => {
            "forwards it, but it is for another client, and nftables lets no new connection \
             towards one (on Qubes, unless a rule in `custom-forward` does)"
        }
        (Verdict::Accept | Verdict::Audit, _) => "forwards it, because of the mark",
        (Verdict::Reject, Outcome::Forwarded) => {
            "forwards it, because it answers a connection that was opened towards the client"
        }
        (Verdict::Reject, Outcome::Dropped) => "is not reached",
        (Verdict::Reject, _) => {
            return format!("answers \"administratively prohibited\" ({error})");
        }
        (Verdict::Related, _) => {
            "forwards it if it is about a connection that the kernel knows, and drops it otherwise"
        }
        (Verdict::Pass, _) if reason == Reason::Fragment => {
            "forwards it inside the datagram whose first fragment has the mark, or not at all"
        }
        (Verdict::Pass, _) => "is not on its way",
        (Verdict::Drop, _) => "is not reached",
    };
    text.to_owned()
}

fn nat(it: &Explained) -> String {
    let agent = it.agent.as_ref();
    let mode = agent.and_then(|agent| agent.mode);
    if it.outcome == Outcome::Related {
        return "translates it, and what it quotes, as it did the connection".to_owned();
    }
    let (Outcome::Forwarded, Some(packet)) = (it.outcome, &it.packet) else {
        return "is not reached".to_owned();
    };
    if it.connection == Some(Connection::Answers) {
        return "translates it as it did the connection".to_owned();
    }
    let is_dns = matches!(packet.protocol, TCP | UDP) && packet.port == DNS;
    let is_virtual = |to: IpAddr| {
        firewall_core::rules::resolve::VIRTUAL_RESOLVERS
            .into_iter()
            .any(|it| IpAddr::from(it) == to)
    };
    let to_virtual = is_dns && is_virtual(packet.destination);
    match (mode, to_virtual, agent.and_then(|agent| agent.redirected_to)) {
        (Some(Mode::Standalone), true, Some(real)) => {
            format!("sends it to {real}, the DNS server behind {}", packet.destination)
        }
        (Some(Mode::Standalone), true, None) => {
            "drops it: resolv.conf names no DNS server behind this address".to_owned()
        }
        (Some(Mode::Standalone), false, _) => {
            "gives it the netvm's own address on its way out (masquerade)".to_owned()
        }
        (Some(Mode::Qubes), true, _) => {
            "is Qubes': its chain `dnat-dns` sends it to the real DNS server \
                               (`nft list chain ip qubes dnat-dns`)"
                .to_owned()
        }
        (Some(Mode::Qubes), false, _) => {
            "is Qubes': the netvm's own address on its way out (masquerade)".to_owned()
        }
        (None, _, _) => "unknown: only a running agent knows who translates".to_owned(),
    }
}

/// Text that goes on at a column where it would be wider than a terminal.
fn wrapped(text: &str, column: usize) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let Some(line) = lines.last_mut() else {
            break;
        };
        if !line.is_empty() && column + line.chars().count() + 1 + word.chars().count() > 80 {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.join(&format!("\n{:column$}", ""))
}
