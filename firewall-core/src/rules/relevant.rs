//! Which names of a ruleset can make a difference at all.
//! Never looks at addresses: a name that matters for some answer matters.
//!
//! The rules that dom0's editor keeps for "allow everything" stand in front of a bare
//! accept. Whatever their names lead to, every packet is accepted; nobody has to ask
//! (qubes-issues 6318).

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::{Action, Destination, Rule, Ruleset, Service};

/// The ports of a service, or its types, of one protocol.
type Range = fn(&Service) -> Option<&RangeInclusive<u16>>;

/// The names whose addresses decide about some packet.
pub fn names(ruleset: &Ruleset) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    if !ruleset.rules.iter().any(|rule| matches!(rule.destination, Destination::Name(_))) {
        return found;
    }
    let kinds: [Range; 3] = [|it| it.tcp.as_ref(), |it| it.udp.as_ref(), |it| it.icmp.as_ref()];
    for range in kinds {
        // Between two starts, the same rules match.
        let ends = ruleset.rules.iter().filter_map(|rule| range(&rule.service));
        let starts = ends.flat_map(|range| [Some(*range.start()), range.end().checked_add(1)]);
        let starts: BTreeSet<u16> = starts.flatten().collect();
        for start in starts {
            let matches = |rule: &Rule| range(&rule.service).is_some_and(|it| it.contains(&start));
            collect(ruleset, matches, &mut found);
        }
    }
    collect(ruleset, |rule| rule.service.other, &mut found);
    found
}

/// Adds the names that matter for the packets of one protocol and port.
fn collect<'a>(
    ruleset: &'a Ruleset,
    matches: impl Fn(&Rule) -> bool,
    found: &mut BTreeSet<&'a str>,
) {
    let matching = || ruleset.rules.iter().filter(|rule| matches(rule));
    // Nothing gets past a rule for every address.
    let is_last = |rule: &Rule| rule.destination == Destination::Any && !rule.dns;
    let before = matching().take_while(|rule| !is_last(rule));
    let last = matching().find(|rule| is_last(rule)).map_or(ruleset.default, |rule| rule.action);
    // What happens to whatever a rule does not match, as long as that is one thing.
    let mut otherwise = Some(last);
    for rule in before.collect::<Vec<_>>().into_iter().rev() {
        if otherwise == Some(rule.action) {
            continue;
        }
        otherwise = None::<Action>;
        if let Destination::Name(name) = &rule.destination {
            found.insert(name);
        }
    }
}
