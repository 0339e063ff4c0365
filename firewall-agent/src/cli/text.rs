//! Status as text for people.
//! Never asks anybody anything.

mod names;

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;

use self::names::{NO_MATTER, leads, users};
use super::colour::{BAD, Colours};
use firewall_core::options::PREFIX;
use firewall_core::rules::lint::match_first;
use firewall_core::rules::resolve::VIRTUAL_RESOLVERS;
use firewall_core::rules::socks::BYPASSED;
use firewall_core::rules::{Family, IMPLIED};
use firewall_core::told::added::{AddedRule, Warning};
use firewall_core::told::gateway::GatewayStatus;
use firewall_core::told::options::{OptionFrom, OptionStatus};
use firewall_core::told::passage::Loss;
use firewall_core::told::status::{
    ClientStatus, CounterStatus, FailingStatus, Mode, NameStatus, ProblemStatus, RuleStatus, State,
    Status, UplinkStatus, UplinksFrom, UplinksStatus,
};
use firewall_core::tor::{DNS_SERVER, Service};
use firewall_core::uplinks::KEY;

const AUDITED: &str = "what its rules deny passes";

/// What `status` prints: whether all is well, and what is not.
pub fn summary(status: &Status) -> String {
    let agent = &status.agent;
    let mut text = format!(
        "agent {} running as process {}, mode {}, rules from {}\n",
        agent.version,
        agent.pid,
        agent.mode.name(),
        agent.source
    );
    // Writing to a String cannot fail.
    if agent.gateway.as_ref().is_some_and(|gateway| !gateway.enforced) {
        let _ = writeln!(
            text,
            "PROBLEM: THIS IS A WHONIX GATEWAY, and rules are NOT ENFORCED in mode {}: what clients \
             send gets to Tor whatever rules say. Run it in mode whonix (without --mode, it does)",
            agent.mode.name()
        );
    }
    let resolvers: Vec<String> = agent.resolvers.iter().map(IpAddr::to_string).collect();
    let resolvers = if resolvers.is_empty() { "none".to_owned() } else { resolvers.join(", ") };
    if agent.mode != Mode::Whonix {
        let _ = writeln!(text, "resolvers: {resolvers}");
    }
    if let Some(gateway) = agent.gateway.as_ref().filter(|gateway| gateway.enforced) {
        let _ = writeln!(text, "{}", gateways(gateway));
    }
    if let Some(uplinks) = &agent.uplinks {
        let _ = writeln!(text, "{}", leaving(uplinks));
    }
    for OptionStatus { name, value, from } in &agent.options {
        let from = match from {
            OptionFrom::Options => "the command line".to_owned(),
            OptionFrom::Qubesdb => format!("{PREFIX}{name}"),
        };
        let _ = writeln!(text, "option {name}: {value}, says {from}");
    }
    for problem in &agent.option_problems {
        let _ = writeln!(text, "PROBLEM: {problem}");
    }
    let count = |state| status.clients.iter().filter(|client| client.state == state).count();
    let _ = writeln!(
        text,
        "vifs: {}; clients: {} live, {} blocked, {} waiting for rules, {} absent",
        status.vifs.len(),
        count(State::Live),
        count(State::Blocked),
        count(State::Waiting),
        count(State::Absent),
    );
    for client in &status.clients {
        let _ = write!(text, "  {}", headline(client));
    }
    if !status.names.is_empty() {
        let _ = writeln!(text, "names in rules: {}", status.names.len());
    }
    for name in &status.names {
        let (leads, users) = (leads(name), users(name));
        let _ = writeln!(text, "  {} ({}): {leads}; {users}", name.name, name.family);
    }
    if !agent.added_rules.is_empty() {
        let _ = writeln!(text, "rules of others in the gate: {}", agent.added_rules.len());
    }
    for AddedRule { table, chain, text: rule, warning } in &agent.added_rules {
        let _ = writeln!(text, "  {table} {chain}: {rule}");
        if let Some(warning) = warning {
            let word = match warning {
                Warning::NeverReached | Warning::SeesOnlyDenied => "WARNING",
                Warning::OpensAll | Warning::LeavesElsewhere => "PROBLEM",
            };
            let _ = writeln!(text, "    {word}: {}", warning.told());
        }
    }
    if let Some(loss) = &agent.lost {
        let _ = writeln!(text, "WARNING: {}", lost(loss));
        for chain in &loss.between {
            let _ = writeln!(text, "  in between: {chain}");
        }
        if let Some(why) = &loss.between_problem {
            let _ = writeln!(text, "  in between: nobody knows what: {why}");
        }
    }
    for (reason, counter) in &status.strays {
        let _ = writeln!(text, "packets of no client, {reason}: {}", counted(counter));
    }
    for vif in &status.vifs {
        if let Some(problem) = &vif.problem {
            let _ = writeln!(text, "PROBLEM: no program on {}: {problem}", vif.name);
        }
        if let Some(port_of) = &vif.port_of {
            let name = &vif.name;
            let _ = writeln!(
                text,
                "PROBLEM: {name} is a port of {port_of}, so nothing of it is forwarded: take it out \
                 (`ip link set {name} nomaster`), and route to it"
            );
        }
    }
    for (uplink, problem) in &agent.unguarded_uplinks {
        let _ =
            writeln!(text, "PROBLEM: clients' addresses are not guarded on {uplink}: {problem}");
    }
    if let Some(problem) = &agent.source_problem {
        let _ = writeln!(text, "PROBLEM: no rules can be read, those in force stay: {problem}");
    }
    if let Some(problem) = &agent.uplinks_problem {
        let _ = writeln!(
            text,
            "PROBLEM: {problem}; until that is mended, nothing leaves by a link by which it did not \
             before"
        );
    }
    for problem in agent.gateway.iter().flat_map(|gateway| &gateway.problems) {
        let _ = writeln!(text, "PROBLEM: {problem}");
    }
    if let Some(problem) = &agent.gate_problem {
        let _ = writeln!(text, "PROBLEM: the gate could not be loaded: {problem}");
    }
    if let Some(problem) = &agent.resolvers_problem {
        let _ = writeln!(
            text,
            "PROBLEM: nobody knows which virtual resolvers are redirected, what was known before \
             counts: {problem}"
        );
    }
    for FailingStatus { what, why, next_seconds_left: next } in &agent.failing {
        let _ = writeln!(text, "PROBLEM: {what}: {why}; it is tried again in {next} s");
    }
    if agent.unpinned_programs > 0 {
        let _ = writeln!(
            text,
            "PROBLEM: {} programs are not pinned and end with the agent: mount a BPF file system \
             where --pins says",
            agent.unpinned_programs
        );
    }
    for name in &status.names {
        if let Some(problem) = &name.problem {
            let users: Vec<String> = name.users.keys().map(IpAddr::to_string).collect();
            let (users, name) = (users.join(", "), &name.name);
            let _ = writeln!(text, "PROBLEM: the name {name} in rules of {users}: {problem}");
        }
    }
    for client in &status.clients {
        if let Some(seconds) = client.audit_seconds_left {
            let client = client.address;
            let _ = writeln!(text, "PROBLEM: {client} is audited: {AUDITED} for {seconds} s more");
        }
        if let Some(problem) = &client.problem {
            let _ = writeln!(text, "PROBLEM: {} is blocked: {}", client.address, told(problem));
        }
    }
    text
}

/// That not all leaves that rules accept.
pub fn lost(Loss { accepted_frames, left_frames, seconds, .. }: &Loss) -> String {
    format!(
        "rules accepted {accepted_frames} frames in the last {seconds} s, and {left_frames} left; \
         others' chains, a missing route or a full queue may be why"
    )
}

/// What is in force in a Whonix gateway.
fn gateways(GatewayStatus { services, silent, .. }: &GatewayStatus) -> String {
    let each = Service::ALL.map(|it| format!("{} {}", it.name(), services.of(it)));
    let answer = match silent {
        None => "what rules deny is answered with an ICMP error".to_owned(),
        Some(why) => format!("what rules deny ends silently ({why})"),
    };
    format!(
        "rules judge all that clients send, in front of Tor; {answer}\nwithout a rule, where the \
         default is drop: {}\nnames in rules are asked of Tor at {DNS_SERVER}",
        each.join(", ")
    )
}

/// By which links alone clients' packets may leave, and who says so.
fn leaving(UplinksStatus { links, from }: &UplinksStatus) -> String {
    let links = links.iter().map(
        |UplinkStatus { name, there }| {
            if *there { name.clone() } else { format!("{name} (not there)") }
        },
    );
    let links: Vec<String> = links.collect();
    let links = match links.is_empty() {
        true => "by no link".to_owned(),
        false => format!("by {} alone", links.join(", ")),
    };
    let from = from.iter().map(|from| match from {
        UplinksFrom::Options => "--uplinks".to_owned(),
        UplinksFrom::Qubesdb => KEY.to_owned(),
        UplinksFrom::Before => format!("an earlier agent, until {KEY} can be read"),
    });
    let from: Vec<String> = from.collect();
    format!("clients' packets leave {links}, say {}", from.join(" and "))
}

/// That an address is no client, and why.
pub fn nobody(status: &Status, address: IpAddr) -> String {
    let leads = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&address));
    let why = match status.vifs.iter().find(|vif| leads(&vif.networks)) {
        Some(vif) => format!(
            "a route leads to it behind {}, where only addresses with rules are clients, and it has \
             none",
            vif.name
        ),
        None => "no vif leads to it, and it has no rules".to_owned(),
    };
    format!("{address} is no client: {why}")
}

fn headline(client: &ClientStatus) -> String {
    let place = client.vif.as_deref().unwrap_or("no vif");
    let state = match client.state {
        State::Live => "live",
        State::Blocked => "BLOCKED, everything is rejected",
        State::Waiting => "waiting for rules, everything is dropped",
        State::Absent => "has rules, but no vif leads to it",
    };
    let name = client.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let mut text = format!("{}{name} on {place}: {state}", client.address);
    if let Some(generation) = client.generation {
        let _ = write!(text, ", generation {generation}");
    }
    if client.settling {
        text.push_str(", denied packets are dropped while connections are being ended");
    }
    if let Some(seconds) = client.audit_seconds_left {
        let _ = write!(text, ", AUDITED for {seconds} s more: {AUDITED}");
    }
    text.push('\n');
    text
}

/// What `show` prints of a client: its rules and counters.
pub fn details(client: &ClientStatus, names: &[NameStatus], colours: Colours) -> String {
    let mut text = headline(client);
    if let Some(problem) = &client.problem {
        let _ = writeln!(text, "  because of {}", told(problem));
    }
    for rule in &client.rules {
        let _ = writeln!(text, "  {}  {}", numbered(rule.number), rule.text);
        if !rule.effective {
            let never = format!("NEVER DECIDES: {}", never(rule));
            let _ = writeln!(text, "        {}", colours.paint(BAD, &never));
        }
        if rule.bypassed {
            let _ = writeln!(text, "        {}", colours.paint(BAD, &BYPASSED.to_uppercase()));
        }
        if let Some(name) = &rule.name {
            let family = Family::from(client.address);
            let known = names.iter().find(|it| it.name == *name && it.family == family);
            let _ = writeln!(text, "        {name}: {}", known.map_or(NO_MATTER.to_owned(), leads));
        } else if rule.destinations.len() > 1 && rule.number < IMPLIED {
            let _ = writeln!(text, "        {}", servers(rule));
        }
        let _ = writeln!(text, "        {}", hits(&rule.counter, rule.last_seconds_ago));
    }
    if let Some(default) = &client.default {
        let _ = writeln!(text, "  else  action={}", default.name());
        let _ = writeln!(
            text,
            "        {}",
            hits(&client.default_counter, client.default_last_seconds_ago)
        );
    }
    for (reason, counter) in &client.counters {
        let _ = writeln!(text, "  {reason}: {}", counted(counter));
    }
    if let Some(policy) = &client.policy {
        let all = if policy.complete { "all" } else { "a selection of" };
        let _ = writeln!(
            text,
            "  proved equal to its rules on {all} {} cells;\n  {} prefixes, {} classes, {} segments",
            policy.cells_checked, policy.prefixes, policy.classes, policy.segments
        );
    }
    text
}

/// The number of a rule; that of one which stands behind all of dom0's is none.
pub fn numbered(number: u16) -> String {
    if number < IMPLIED { format!("{number:04}") } else { "then".to_owned() }
}

/// The DNS servers that a rule means, or that come with a real one that it accepts.
fn servers(rule: &RuleStatus) -> String {
    let is_dns = rule.text.split(' ').any(|option| option == "specialtarget=dns");
    let all = rule.destinations.iter().map(IpNet::addr);
    let is_virtual = |it: &IpAddr| VIRTUAL_RESOLVERS.iter().any(|resolver| it == resolver);
    let wanted = all.filter(|it| is_dns || is_virtual(it));
    let list = wanted.map(|it| it.to_string()).collect::<Vec<_>>().join(", ");
    if is_dns { list } else { format!("and DNS to {list}, which leads there") }
}

/// Why no packet reaches a rule.
fn never(rule: &RuleStatus) -> String {
    match rule.hidden_by.as_slice() {
        [] if rule.name.is_some() => "its name leads to no address that it may match".to_owned(),
        [] => "nothing matches it".to_owned(),
        by => format!("{} first", match_first(by)),
    }
}

/// How much was decided, and when last.
pub fn hits(counter: &CounterStatus, last: Option<u64>) -> String {
    let last = last.map(|seconds| format!(", last {} ago", ago(seconds))).unwrap_or_default();
    format!("{}{last}", counted(counter))
}

/// A length of time, as exact as people want it.
fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// What is wrong with rules, and where, as people read it.
pub fn told(problem: &ProblemStatus) -> String {
    let mut text = problem.origin.clone();
    if let Some(line) = problem.line {
        let _ = write!(text, ", line {line}");
    }
    let _ = write!(text, ": {}", problem.reason);
    if !problem.text.is_empty() {
        let _ = write!(text, " in `{}`", problem.text);
    }
    text
}

/// Packets and bytes, as people read them.
pub fn counted(counter: &CounterStatus) -> String {
    let word = if counter.packets == 1 { "packet" } else { "packets" };
    format!("{} {word}, {} bytes", counter.packets, counter.bytes)
}
