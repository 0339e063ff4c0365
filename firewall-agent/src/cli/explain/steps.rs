//! What happens to a packet on its way, place by place: firewall, gate, NAT, connection, kernel.
//! Never works anything out that is not in the explanation.

use std::net::IpAddr;

use firewall_common::verdict::{Reason, Verdict};
use firewall_core::protocol::{TCP, UDP};
use firewall_core::rules::IMPLIED;
use firewall_core::rules::resolve::VIRTUAL_RESOLVERS;
use firewall_core::told::explanation::{Connection, Explained, Judgement, Outcome};
use firewall_core::told::passage::Loss;
use firewall_core::told::status::Mode;

use super::gateway;
use crate::cli::text;

/// Port of DNS.
const DNS: u16 = 53;

/// What happens where.
pub(super) fn steps(it: &Explained) -> Vec<(&'static str, String)> {
    let mut steps = vec![("firewall", firewall(it))];
    if let Some(in_gateway) = it.gateway {
        steps.push(("gate", gateway::gate(it, in_gateway)));
        steps.push(("gateway", gateway::gateway(it, in_gateway)));
    } else {
        steps.push(("gate", gate(it)));
        steps.extend(others(it).map(|text| ("others", text)));
        steps.push(("NAT", nat(it)));
    }
    steps.extend(it.lost().map(|loss| ("lost", lost(it, loss))));
    let connection = match (it.connection, &it.connection_problem) {
        (Some(Connection::Opened), _) => "the client has such a connection open".to_owned(),
        (Some(Connection::Answers), _) if it.gateway.is_some() => {
            "one was opened towards the client, and this answers; rules judge it all the same"
                .to_owned()
        }
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
        Some(number) if number >= IMPLIED => "what this gateway allows".to_owned(),
        Some(number) => format!("rule {number:04}"),
        None => reason.name().to_owned(),
    };
    let is_answer = verdict == Verdict::Reject && it.outcome == Outcome::Forwarded;
    if is_answer {
        return "hands it on without the permit, as an answer; counted as answer".to_owned();
    }
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
        Verdict::Accept => "hands it on with the permit",
        Verdict::Audit => "hands it on with the permit, because the client is audited",
        Verdict::Related => "hands it on with the permit, as an ICMP error",
        Verdict::Reject if it.packet.is_some_and(|packet| packet.first_fragment) => {
            "ends it at the vif, because it is a fragment"
        }
        Verdict::Reject | Verdict::Pass => "hands it on without the permit",
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
        (Verdict::Accept, _) if reason == Reason::Local => {
            "is on its way only if NAT takes it elsewhere, and forwards it then, because of the permit"
        }
        (Verdict::Pass, _) if reason == Reason::Local => {
            "is on its way only if NAT takes it elsewhere, and rejects it then"
        }
        (Verdict::Accept | Verdict::Audit, _) => "forwards it, because of the permit",
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
            "forwards it inside the datagram whose first fragment has the permit, or not at all"
        }
        (Verdict::Pass, _) => "is not on its way",
        (Verdict::Drop, _) => "is not reached",
    };
    let uplinks = it.agent.as_ref().and_then(|agent| agent.uplinks.as_ref());
    match (uplinks, it.outcome) {
        (Some(links), Outcome::Forwarded | Outcome::Related) if !to_client => {
            let links = if links.is_empty() { "no link".to_owned() } else { links.join(", ") };
            format!(
                "{text}, if it leaves by {links} or to a qube; what would leave by another link is \
                 answered \"administratively prohibited\" ({error})"
            )
        }
        (Some(_) | None, _) => text.to_owned(),
    }
}

/// That others have a say in the agent's tables, if the packet comes there.
fn others(it: &Explained) -> Option<String> {
    let added = it.agent.as_ref().map_or(0, |agent| agent.added_rules);
    let ends_before = it.judgement.verdict == Verdict::Drop || it.outcome == Outcome::Local;
    (added > 0 && !ends_before).then(|| {
        format!(
            "rules of others in the agent's tables may say something else, and are not looked at \
             here; `firewall-agent status` lists them ({added})"
        )
    })
}

/// That not all leaves that is accepted like the packet, and what of others it comes by.
fn lost(it: &Explained, loss: &Loss) -> String {
    let chains: Vec<String> = loss.between_of(it.client).map(ToString::to_string).collect();
    let between = match &loss.between_problem {
        Some(why) => format!("nobody knows what: {why}"),
        None if chains.is_empty() => "no chain of others".to_owned(),
        None => chains.join("; "),
    };
    format!("{}. In between: {between}", text::lost(loss))
}

fn nat(it: &Explained) -> String {
    let agent = it.agent.as_ref();
    let mode = agent.and_then(|agent| agent.mode);
    if it.outcome == Outcome::Related {
        return "translates it, and what it quotes, as it did the connection".to_owned();
    }
    if it.judgement.reason == Reason::Local {
        return "takes it elsewhere if somebody's rule says so (`dnat`), which is not looked at here"
            .to_owned();
    }
    let (Outcome::Forwarded, Some(packet)) = (it.outcome, &it.packet) else {
        return "is not reached".to_owned();
    };
    if it.connection == Some(Connection::Answers) {
        return "translates it as it did the connection".to_owned();
    }
    let is_dns = matches!(packet.protocol, TCP | UDP) && packet.port == DNS;
    let is_virtual = |to: IpAddr| VIRTUAL_RESOLVERS.into_iter().any(|it| IpAddr::from(it) == to);
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
        (Some(Mode::Whonix), _, _) => "is Whonix'".to_owned(),
        (None, _, _) => "unknown: only a running agent knows who translates".to_owned(),
    }
}
