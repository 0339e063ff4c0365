//! What is in force although no agent runs, as far as the kernel's tables tell, and what
//! they cannot tell.
//! Never guesses: a rule's text is shown only as what a file says now.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use firewall_common::abi::{Client, Counter, SETTLING, STATE_BLOCKED, STATE_POLICY, STATE_WAITING};

use super::text::counted;
use crate::edges::dataplane::floor::{self, FloorError};
use crate::edges::dataplane::inspect::{self, Inspection};
use crate::edges::gate;
use crate::edges::sources::rule_files;
use firewall_core::rules::Ruleset;
use firewall_core::told::SCHEMA;
use firewall_core::told::remains::{
    GateState, RemainingClient, RemainingRule, RemainingState, RemainingVif, Remains,
};
use firewall_core::told::status::CounterStatus;
use firewall_core::told::words::Named;
use firewall_core::tor;

/// How the gate of a Whonix gateway is named among what is open.
const ENTERING: &str = "inet";

/// Looks at the gate, and at the tables of all programs that are attached. `why` is why no agent
/// tells; `rules` is where files of rules may be; of clients all are told, or the one given.
pub fn remains(
    why: String,
    pins: &Path,
    rules: &Path,
    client: Option<IpAddr>,
) -> anyhow::Result<Remains> {
    let (attached, programs_problem) = match inspect::attached(pins) {
        Ok(attached) => (attached, None),
        Err(error) => (BTreeMap::new(), Some(error.to_string())),
    };
    let vifs = attached.into_iter().map(|(index, program)| {
        let tables = program.and_then(Inspection::of_program);
        let clients = tables.and_then(|tables| clients(&tables, index, rules, client));
        let name = nix::net::if_::if_indextoname(index).ok();
        let name = name.and_then(|name| name.into_string().ok());
        match clients {
            Ok(clients) => RemainingVif { index, name, problem: None, clients },
            Err(error) => {
                RemainingVif { index, name, problem: Some(error.to_string()), clients: Vec::new() }
            }
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let look = async {
        let is_gateway = gate::is_strict().await?;
        // Where Whonix is and that gate is not, rules are not enforced.
        let is_marked = Path::new("/").join(tor::MARKER).exists();
        let open = gate::open_families(is_gateway || is_marked).await?;
        Ok::<_, gate::GateError>((is_gateway, open))
    };
    let looked = runtime.block_on(look);
    let gateway = looked.as_ref().is_ok_and(|(is_gateway, _)| *is_gateway);
    let (gate, gate_problem) = match looked.map(|(_, open)| open) {
        Ok(open) if open.is_empty() => (GateState::Closed, None),
        Ok(open) => (GateState::Open, Some(open.join(", "))),
        Err(error) => (GateState::Unknown, Some(error.to_string())),
    };
    let kernel_problem = match floor::check() {
        Err(error @ FloorError::Lacking { .. }) => Some(error.to_string()),
        // Who may not ask has no agent to start either.
        Err(FloorError::Asking(..)) | Ok(()) => None,
    };
    Ok(Remains {
        schema: SCHEMA,
        agent_problem: why,
        gate,
        gateway,
        gate_problem,
        programs_problem,
        kernel_problem,
        vifs: vifs.collect(),
    })
}

fn clients(
    tables: &Inspection,
    vif: u32,
    rules: &Path,
    wanted: Option<IpAddr>,
) -> Result<Vec<RemainingClient>, inspect::InspectError> {
    let all = tables.clients()?.into_iter().filter(|(key, _)| key.vif == vif);
    let all = all.map(|(key, client)| (IpAddr::from(key.address), client));
    let wanted = all.filter(|(address, _)| wanted.is_none_or(|wanted| wanted == *address));
    Ok(wanted.map(|(address, it)| client(tables, address, &it, rules)).collect())
}

fn client(tables: &Inspection, address: IpAddr, client: &Client, rules: &Path) -> RemainingClient {
    let state = match client.state & !SETTLING {
        STATE_POLICY => RemainingState::Live,
        STATE_BLOCKED => RemainingState::Blocked,
        STATE_WAITING => RemainingState::Waiting,
        _ => RemainingState::Unknown,
    };
    let is_live = state == RemainingState::Live;
    let (reasons, counted) = tables.counted(client);
    let text = rule_files::read_text(&rules.join(address.to_string())).ok();
    let ruleset = text.and_then(|text| rule_files::ruleset(address, &text).ok());
    let rules = counted.into_iter().filter(|_| is_live).map(|(index, counter)| RemainingRule {
        index,
        text_now: text_at(ruleset.as_ref(), index),
        counter: status(counter),
    });
    RemainingClient {
        address,
        state,
        settling: client.state & SETTLING != 0,
        audited: client.audit_until != 0,
        generation: client.generation,
        rules: rules.collect(),
        counters: reasons.into_iter().map(|(reason, it)| (Named(reason), status(it))).collect(),
    }
}

fn text_at(ruleset: Option<&Ruleset>, index: u32) -> Option<String> {
    Some(ruleset?.rules.get(usize::try_from(index).ok()?)?.text.clone())
}

fn status(counter: Counter) -> CounterStatus {
    let Counter { packets, bytes } = counter;
    CounterStatus { packets, bytes }
}

/// What is in force although no agent runs, as text for people.
pub fn text(remains: &Remains) -> String {
    // Writing to a String cannot fail.
    let mut text = format!("{}\n", remains.agent_problem);
    if let Some(problem) = &remains.kernel_problem {
        let _ = writeln!(text, "No agent can run here. {problem}.");
    }
    let problem = remains.gate_problem.as_deref().unwrap_or_default();
    let _ = match remains.gate {
        GateState::Closed => Ok(()),
        GateState::Open if problem.contains(ENTERING) => writeln!(
            text,
            "OPEN: the gate is not there ({problem}), so WHATEVER clients send GETS TO TOR, but for \
             what a program drops.\nStart the service, or run `firewall-agent prepare`, to close it."
        ),
        GateState::Open => writeln!(
            text,
            "OPEN: the gate is not there ({problem}), so WHATEVER clients send IS FORWARDED, but \
             for what a program drops.\nStart the service, or run `firewall-agent prepare`, to \
             close it."
        ),
        GateState::Unknown => writeln!(text, "Whether anything is closed is NOT KNOWN: {problem}"),
    };
    if let Some(problem) = &remains.programs_problem {
        let _ = writeln!(text, "Which programs are attached is NOT KNOWN: {problem}");
        return text;
    }
    let end = if remains.is_closed() && remains.gateway {
        "; nothing else of clients gets to Tor"
    } else if remains.is_closed() {
        "; nothing else is forwarded but answers to connections towards clients"
    } else {
        ""
    };
    let _ = match remains.vifs.len() {
        0 if remains.is_closed() && remains.gateway => writeln!(
            text,
            "No program is attached either, and the gate is closed, so nothing of any client gets to \
             Tor."
        ),
        0 if remains.is_closed() => writeln!(
            text,
            "No program is attached either, and the gate is closed, so nothing is forwarded from \
             any client but answers."
        ),
        0 => writeln!(text, "No program is attached either."),
        1 => writeln!(text, "1 vif goes on with the policies that an earlier agent left{end}.\n"),
        count => writeln!(
            text,
            "{count} vifs go on with the policies that an earlier agent left{end}.\n"
        ),
    };
    if remains.vifs.is_empty() {
        return text;
    }
    for vif in &remains.vifs {
        let name = vif.name.clone().unwrap_or_else(|| format!("interface {}", vif.index));
        if let Some(problem) = &vif.problem {
            let _ = writeln!(text, "{name}: {problem}");
        }
        vif.clients.iter().for_each(|client| of_client(&mut text, &name, client));
    }
    let states: BTreeSet<RemainingState> =
        remains.vifs.iter().flat_map(|vif| &vif.clients).map(|client| client.state).collect();
    text.push_str("\nThe kernel's tables cannot tell:\n");
    if states.contains(&RemainingState::Live) {
        text.push_str(
            "  the rules' texts and numbers: an index counts the rules from 0 as they were\n  \
             when the policy was made, and what stands behind \"now\" may be newer;\n  \
             rules that can never decide; where names led, and how old that is;\n",
        );
    }
    if states.contains(&RemainingState::Blocked) {
        text.push_str("  why a client is blocked;\n");
    }
    text.push_str("  whether rules have changed since. Start the service to have all of it.\n");
    text
}

fn of_client(text: &mut String, vif: &str, client: &RemainingClient) {
    let RemainingClient { address, state, settling, audited, generation, rules, counters } = client;
    let state = match state {
        RemainingState::Live => "live",
        RemainingState::Blocked => "BLOCKED, everything is rejected",
        RemainingState::Waiting => "waiting for rules, everything is dropped",
        RemainingState::Unknown => "unknown",
    };
    let _ = write!(text, "{address} on {vif}: {state}, generation {generation}");
    if *audited {
        let _ = write!(text, ", AUDITED unless that has ended by now");
    }
    if *settling {
        let _ = write!(text, ", what is denied is dropped and not rejected");
    }
    text.push('\n');
    for RemainingRule { index, text_now, counter } in rules {
        let now = text_now.as_ref().map(|it| format!("  now: {it}")).unwrap_or_default();
        let _ = writeln!(text, "  the rule with index {index}{now}\n        {}", counted(counter));
    }
    for (reason, counter) in counters {
        let _ = writeln!(text, "  {reason}: {}", counted(counter));
    }
}
