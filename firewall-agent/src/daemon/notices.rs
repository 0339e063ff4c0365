//! Lines of the log about news.
//! Never changes anything, and leaves out no news.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tracing::{error, info, warn};

use firewall_core::events::Notice;
use firewall_core::rules::question::Question;
use firewall_core::told::added::{AddedRule, Warning};
use firewall_core::told::passage::Loss;
use firewall_core::tor::Each;

/// Most addresses, names or rules of others in one line of the log.
const MOST_SHOWN: usize = 8;

/// What is so where this machine is a Whonix gateway, and the mode is another.
pub(super) const UNENFORCED: &str = "THIS IS A WHONIX GATEWAY, and rules of qubes are NOT ENFORCED \
     in this mode: what they send gets to Tor whatever rules say; mode whonix enforces them";

/// Writes a line.
pub(super) fn log(notice: &Notice) {
    match notice {
        Notice::Live { client, rules, cells_checked } => {
            info!(%client, rules, cells_checked, "policy proved");
        }
        Notice::Blocked { client, why } => warn!(%client, why, "blocked"),
        Notice::Waiting { client } => warn!(%client, "no rules: everything is dropped"),
        Notice::Audited { client, left } => {
            let seconds = left.as_secs();
            warn!(%client, seconds, "AUDIT: what its rules deny PASSES");
        }
        Notice::AuditEnded { client } => {
            warn!(%client, "audit ended: what its rules deny is rejected again");
        }
        Notice::Ended(ended) => info!(ended, "connections that rules deny now"),
        Notice::Failing { what, why: Some(why) } => error!(why, "{what}; it is tried again"),
        Notice::Failing { what, why: None } => info!("over: {what}"),
        Notice::Attached { link, how } => info!(link, how = how.name(), "attached"),
        Notice::NotAttached { link, is_vif: true, why } => {
            error!(link, error = %why, "not attached: nothing passes");
        }
        Notice::NotAttached { link, is_vif: false, why } => {
            error!(link, error = %why, "not attached: clients' addresses are not guarded there");
        }
        Notice::Detached { link } => {
            error!(link, "somebody took the programs away; attaching them again");
        }
        Notice::Renamed { from, to, was_vif: true, is_vif: false } => warn!(
            from,
            to,
            "renamed, and no vif by that name: it counts as an uplink, so WHAT COMES FROM IT \
                 IS FORWARDED WITHOUT RULES"
        ),
        Notice::Renamed { from, to, was_vif: false, is_vif: true } => {
            info!(from, to, "renamed, and a vif by that name");
        }
        Notice::Renamed { from, to, .. } => info!(from, to, "renamed"),
        Notice::Port { vif, of: Some(of) } => {
            error!(
                vif,
                of, "a port of another link: nobody is at home there, nothing is forwarded"
            );
        }
        Notice::Port { vif, of: None } => info!(vif, "no port of another link any more"),
        Notice::Source(Some(why)) => error!(why, "no rules can be read; those in force stay"),
        Notice::Source(None) => info!("rules can be read again"),
        Notice::Name { question: Question { name, family }, added, gone } => {
            info!(name, %family, added = some(added), gone = some(gone), "leads elsewhere");
        }
        Notice::NameProblem { question: Question { name, family }, why } => match why {
            Some(why) => warn!(name, %family, why, "not as it should be"),
            None => info!(name, %family, "as it should be again"),
        },
        Notice::Uplinks(Some(links)) => info!(%links, "clients' packets leave by these alone"),
        Notice::Uplinks(None) => warn!("clients' packets leave by any link"),
        Notice::UplinksProblem(Some(why)) => {
            error!(why, "nothing leaves by a link by which it did not before");
        }
        Notice::UplinksProblem(None) => info!("the list of uplinks is as it should be again"),
        Notice::TorServices(Each { socks, control }) => info!(
            tor_socks = %socks,
            tor_control = %control,
            "what clients whose default is drop may do with Tor's services"
        ),
        Notice::TorProblems(problems) if problems.is_empty() => {
            info!("what the keys say of Tor's services is as it should be again");
        }
        Notice::TorProblems(problems) => {
            error!(
                problems = problems.join("; "),
                "what a key says of Tor's services is not clear"
            );
        }
        Notice::Silent(Some(why)) => {
            warn!(why, "what rules deny ends silently: it cannot be answered with an ICMP error");
        }
        Notice::Silent(None) => info!("what rules deny is answered with an ICMP error"),
        Notice::Unanswered { client, names } => {
            let shown = names.iter().take(MOST_SHOWN).map(|question| question.name.as_str());
            let names = few(&shown.collect::<Vec<_>>(), names.len());
            warn!(%client, names, "rules count as handled before DNS says where these lead");
        }
        Notice::GateChanged(difference) => {
            error!(difference, "somebody removed the gate or a part of it; loading it again");
        }
        Notice::GateAppended(place) => {
            info!(
                place,
                "rules were appended behind the gate's last rule, which moves behind them"
            );
        }
        Notice::AddedRules { added, gone } => added_rules(added, gone),
        Notice::Lost(lost) => warn!(
            accepted_frames = lost.accepted_frames,
            left_frames = lost.left_frames,
            seconds = lost.seconds,
            between = between(lost),
            "not all that rules accepted left; others' chains, a missing route or a full queue may be \
             why"
        ),
        Notice::ResolversProblem(Some(why)) => {
            error!(
                why,
                "cannot read which virtual resolvers are redirected; what was known counts"
            );
        }
        Notice::ResolversProblem(None) => {
            info!("which virtual resolvers are redirected can be read again");
        }
        Notice::GateUnknown(error) => {
            error!(%error, "cannot look at the gate; loading it again");
        }
        Notice::GateNotLoaded(problem) => error!(problem, "the gate is not loaded"),
        Notice::Unsettled(clients) => warn!(
            clients,
            "connections that rules deny may not all have ended; their clients' denied packets \
                 are dropped until an agent has ended them"
        ),
    }
}

/// What is between the program and the way out.
fn between(lost: &Loss) -> String {
    match &lost.between_problem {
        Some(why) => format!("nobody knows what: {why}"),
        None => lost.between.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    }
}

/// Writes what changed among the rules of others in the gate.
fn added_rules(added: &[AddedRule], gone: &[AddedRule]) {
    let line =
        |AddedRule { table, chain, text, .. }: &AddedRule| format!("{table} {chain}: {text}");
    for rule in added.iter().take(MOST_SHOWN) {
        match rule.warning {
            None => info!(rule = line(rule), "a rule of others is in the gate"),
            Some(warning @ (Warning::NeverReached | Warning::SeesOnlyDenied)) => {
                warn!(rule = line(rule), "a rule of others is in the gate, and {}", warning.told());
            }
            Some(warning @ (Warning::OpensAll | Warning::LeavesElsewhere)) => {
                error!(
                    rule = line(rule),
                    "a rule of others is in the gate, and {}",
                    warning.told()
                );
            }
        }
    }
    for rule in gone.iter().take(MOST_SHOWN) {
        info!(rule = line(rule), "a rule of others is not in the gate any more");
    }
    let more = added.len().saturating_sub(MOST_SHOWN) + gone.len().saturating_sub(MOST_SHOWN);
    if more > 0 {
        info!(more, "rules of others in the gate changed; `firewall-agent status` lists all");
    }
}

/// A few addresses for the log.
fn some(addresses: &BTreeSet<IpAddr>) -> String {
    let shown: Vec<String> = addresses.iter().take(MOST_SHOWN).map(IpAddr::to_string).collect();
    few(&shown, addresses.len())
}

/// What is shown of so many, and how many are not.
fn few(shown: &[impl AsRef<str>], all: usize) -> String {
    let more = all.saturating_sub(shown.len());
    let end = if more == 0 { String::new() } else { format!(" and {more} more") };
    let shown: Vec<&str> = shown.iter().map(AsRef::as_ref).collect();
    shown.join(", ") + &end
}
