//! What is allowed in rules, but hardly meant.
//! Never refuses anything: that is the parser's business.

use std::ops::Range;

use ipnet::IpNet;

use super::hidden::{self, Never};
use super::resolve::{self, Match, Prefix, Surroundings};
use super::{Action, Destination, Family, Rule, Ruleset, Service, compile, socks};
use crate::tor::{Access, Each};

/// Names that no DNS server knows, with the reason.
const NOWHERE: [(&str, &str); 4] = [
    ("local", "is multicast DNS, which is not asked"),
    ("onion", "is Tor's own, and only a Whonix gateway knows it"),
    ("invalid", "leads nowhere by definition (RFC 6761)"),
    ("localhost", "is the machine that asks, not one of the network"),
];

/// Something odd about one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lint {
    /// Index of the rule in the ruleset.
    pub rule: usize,
    /// Which bytes of the rule's text are odd.
    pub place: Range<usize>,
    /// What is odd, as people read it.
    pub what: String,
    /// What to do about what is odd, as people read it.
    pub hint: String,
}

/// All that is odd about a client's rules, in the order of the rules.
pub fn lint(family: Family, ruleset: &Ruleset) -> Vec<Lint> {
    let hidden = hidden_in_any_case(family, ruleset);
    let mut found = Vec::new();
    for (index, (rule, never)) in ruleset.rules.iter().zip(hidden).enumerate() {
        let mut add = |option: &str, what: String, hint: String| {
            found.push(Lint { rule: index, place: place(&rule.text, option), what, hint });
        };
        if let Some(Never::Hidden(by)) = never {
            let numbers: Vec<u16> =
                by.iter().filter_map(|&by| Some(ruleset.rules.get(by)?.number)).collect();
            add(
                "",
                format!("never decides: {} first", match_first(&numbers)),
                "move it further up, or take it out".to_owned(),
            );
        }
        one(family, rule, &mut add);
    }
    found
}

/// What of a client's rules cannot hold in a Whonix gateway that lets clients do this with Tor's
/// services, in the order of the rules. Nothing, if the rules cannot be compiled.
pub fn lint_in_gateway(family: Family, ruleset: &Ruleset, services: &Each<Access>) -> Vec<Lint> {
    let whole = ruleset.in_gateway(services);
    let gateway = Some(services.clone());
    let known = Surroundings { gateway, ..Surroundings::default() };
    let policy = compile::compile(&resolve::resolve(family, &whole, &known));
    if !policy.is_ok_and(|policy| socks::is_open(family, &policy)) {
        return Vec::new();
    }
    let bypassed = ruleset.rules.iter().enumerate().filter(|(_, rule)| socks::is_bypassed(rule));
    let lints = bypassed.map(|(index, rule)| Lint {
        rule: index,
        place: 0..rule.text.len(),
        what: socks::BYPASSED.to_owned(),
        hint: socks::CLOSE_SOCKS.to_owned(),
    });
    lints.collect()
}

/// What is hidden wherever names lead, and whichever the DNS servers are.
fn hidden_in_any_case(family: Family, ruleset: &Ruleset) -> Vec<Option<Never>> {
    let least = resolve::resolve(family, ruleset, &Surroundings::default()).rules;
    let (mut least, mut most) = (least.clone(), least);
    for ((rule, least), most) in ruleset.rules.iter().zip(&mut least).zip(&mut most) {
        let (is_name, at_most) = match &rule.destination {
            Destination::Name(_) => (true, Prefix::whole(family)),
            // No file has rules for services of Tor.
            Destination::Any | Destination::Tor(_) => (false, Prefix::whole(family)),
            Destination::Network(network) => (false, Prefix::from(*network)),
        };
        if is_name {
            least.matches.clear();
        }
        if is_name || rule.dns {
            most.matches = vec![Match { prefixes: vec![at_most], service: rule.service.clone() }];
        }
    }
    hidden::hidden_by(&least, &most)
}

/// That rules hide another one, as people read it: `rule 0001 matches all of it` or `rules 0001 and
/// 0003 together match all of it`.
pub fn match_first(numbers: &[u16]) -> String {
    let names: Vec<String> = numbers.iter().map(|number| format!("{number:04}")).collect();
    match names.as_slice() {
        [] => "other rules match all of it".to_owned(),
        [one] => format!("rule {one} matches all of it"),
        [first @ .., last] if names.len() <= MOST_NAMED => {
            format!("rules {} and {last} together match all of it", first.join(", "))
        }
        [first, .., last] => {
            format!("{} rules from {first} to {last} together match all of it", names.len())
        }
    }
}

/// More rules than this are counted, not listed.
const MOST_NAMED: usize = 6;

/// What is odd about a rule by itself.
fn one(family: Family, rule: &Rule, add: &mut impl FnMut(&str, String, String)) {
    if rule.dns && rule.service == Service::NONE {
        add(
            "dstports",
            "never matches: `specialtarget=dns` is port 53, and nothing else".to_owned(),
            "take `dstports` out".to_owned(),
        );
    }
    let ports = value(&rule.text, "dstports");
    let any_protocol = value(&rule.text, "proto").is_none();
    if rule.action == Action::Accept && !rule.dns && ports.is_some() && any_protocol {
        add(
            "dstports",
            "this accepts ports of TCP and of UDP".to_owned(),
            "for one of them, put `proto=tcp` or `proto=udp` in front of `dstports`".to_owned(),
        );
    }
    for option in ["dst4", "dst6"] {
        if let Some(text) = value(&rule.text, option) {
            network(option, text, add);
        }
    }
    if let Some(name) = value(&rule.text, "dsthost") {
        host(name, add);
    }
    let other = match (family, value(&rule.text, "icmptype")) {
        (Family::V4, Some("128")) => Some(("the ping of IPv6", 8)),
        (Family::V4, Some("129")) => Some(("the answer to a ping of IPv6", 0)),
        (Family::V6, Some("8")) => Some(("the ping of IPv4", 128)),
        (Family::V6, Some("0")) => Some(("the answer to a ping of IPv4", 129)),
        _ => None,
    };
    if let Some((what, instead)) = other {
        add(
            "icmptype",
            format!("this is {what}, and the client's address is {family}"),
            format!("write `icmptype={instead}`"),
        );
    }
}

fn network(option: &str, text: &str, add: &mut impl FnMut(&str, String, String)) {
    let Ok(network) = text.parse::<IpNet>() else {
        return;
    };
    if network.prefix_len() == 0 {
        let hint = format!("without `{option}` it is the same; for one address leave `/0` out");
        add(option, format!("`{option}={text}` is every address there is"), hint);
    } else if network.trunc() != network {
        add(
            option,
            format!("`{option}={text}` is the whole network {}", network.trunc()),
            format!("for the address alone write `{option}={}`", network.addr()),
        );
    }
}

fn host(name: &str, add: &mut impl FnMut(&str, String, String)) {
    let name = name.strip_suffix('.').unwrap_or(name);
    let last = name.rsplit('.').next().unwrap_or(name);
    let instead = "write the address with `dst4` or `dst6` instead".to_owned();
    if let Some((suffix, why)) = NOWHERE.iter().find(|(suffix, _)| *suffix == last) {
        add("dsthost", format!("`{name}` will hardly be resolved: `.{suffix}` {why}"), instead);
    } else if !name.contains('.') {
        let what = format!("`{name}` will hardly be resolved: it has no dot");
        add("dsthost", what, "write the whole name, like `www.example.com`".to_owned());
    }
}

/// The value of an option in the text of a rule.
fn value<'a>(text: &'a str, option: &str) -> Option<&'a str> {
    text.get(place(text, option)).filter(|found| *found != text)?.split_once('=').map(|it| it.1)
}

/// Where an option is in the text of a rule; all of it if it is not there.
fn place(text: &str, option: &str) -> Range<usize> {
    let mut start = 0;
    for token in text.split(' ') {
        let end = start + token.len();
        if token.split_once('=').is_some_and(|(name, _)| name == option) {
            return start..end;
        }
        start = end + 1;
    }
    0..text.len()
}
