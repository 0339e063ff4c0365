//! Text to [`Ruleset`]. Total: any bytes give a ruleset or an error that names the place,
//! quotes the text and says what is wrong.
//! Never guesses, and never leaves out what it does not understand.
//!
//! The grammar is the contract of Qubes' vm-interface documentation, section "Firewall
//! rules in 4.x": options in a fixed order, separated by one space, none twice. Options
//! that newer versions add must not be ignored: a rule half understood is a rule wider
//! than the user wrote.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry::{Occupied, Vacant};
use std::ops::{Range, RangeInclusive};

use super::problem::{MAX_VALUE, Problem, RulesetError};
use super::value::{Proto, action, icmp, name, network, port_range, protocol};
use super::{Action, Destination, Family, Rule, Ruleset, Service};

/// The key of what happens when no rule matches.
const POLICY: &str = "policy";

/// One key with its value, and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Line in a file, from 1; QubesDB has none.
    pub line: Option<usize>,
    /// `policy` or four digits.
    pub key: String,
    /// The value; in a file, everything between ` = ` and the end of the line.
    pub value: String,
}

/// All that entries say, the wrong ones aside.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// What happens when no rule matches; `None` if no entry says so rightly.
    pub default: Option<Action>,
    /// Rules by their numbers.
    pub rules: BTreeMap<u16, Rule>,
    /// All that is wrong, in the order of the entries.
    pub errors: Vec<RulesetError>,
}

/// The rules of one client of one family, from entries in any order. An error is the first in the
/// order of the entries.
pub fn ruleset(family: Family, entries: &[Entry]) -> Result<Ruleset, RulesetError> {
    let Parsed { default, rules, errors } = parse(family, entries);
    if let Some(error) = errors.into_iter().next() {
        return Err(error);
    }
    // Four digits number no more rules than there may be.
    match default {
        Some(default) => Ok(Ruleset { default, rules: rules.into_values().collect() }),
        None => Err(RulesetError::of_whole(Problem::NoPolicy)),
    }
}

/// All that entries of one client of one family say, in any order: goes on after an error.
pub fn parse(family: Family, entries: &[Entry]) -> Parsed {
    let mut parsed = Parsed::default();
    for entry in entries {
        if let Err((problem, place)) = take(family, entry, &mut parsed) {
            let text = match problem {
                Problem::TooLong => String::new(),
                _ => entry.value.clone(),
            };
            let (line, key) = (entry.line, Some(entry.key.clone()));
            let place = bytes(place);
            parsed.errors.push(RulesetError { line, key, text, place, problem });
        }
    }
    let has_policy = entries.iter().any(|entry| entry.key == POLICY);
    if !has_policy {
        parsed.errors.push(RulesetError::of_whole(Problem::NoPolicy));
    }
    parsed
}

/// A place in a text, in the form of [`RulesetError::place`].
pub fn bytes(place: Range<usize>) -> Range<u32> {
    let bounded = |at| u32::try_from(at).unwrap_or(u32::MAX);
    bounded(place.start)..bounded(place.end)
}

/// What is wrong, and with which bytes of a text.
type Misplaced = (Problem, Range<usize>);

fn take(family: Family, entry: &Entry, parsed: &mut Parsed) -> Result<(), Misplaced> {
    let whole = |problem| (problem, 0..entry.value.len());
    if entry.value.len() > MAX_VALUE {
        return Err((Problem::TooLong, 0..0));
    }
    let twice = || whole(Problem::KeyTwice(entry.key.clone()));
    if entry.key == POLICY {
        let action = action(&entry.value).map_err(whole)?;
        if parsed.default.is_some() {
            return Err(twice());
        }
        parsed.default = Some(action);
        return Ok(());
    }
    let number = rule_number(&entry.key).map_err(whole)?;
    let rule = rule(family, number, &entry.value)?;
    match parsed.rules.entry(number) {
        Occupied(_) => Err(twice()),
        Vacant(place) => {
            place.insert(rule);
            Ok(())
        }
    }
}

fn rule_number(key: &str) -> Result<u16, Problem> {
    let digits = key.len() == 4 && key.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.then(|| key.parse().ok()).flatten();
    number.ok_or_else(|| Problem::UnknownKey(key.to_owned()))
}

/// The options in the order in which they must stand. One rank, one option at most.
fn rank(option: &str) -> Option<u8> {
    Some(match option {
        "action" => 0,
        "dst4" | "dst6" | "dsthost" => 1,
        "proto" => 2,
        "specialtarget" => 3,
        "dstports" => 4,
        "icmptype" => 5,
        _ => return None,
    })
}

/// The options of a rule, as far as they were read.
#[derive(Default)]
struct Options<'a> {
    given: Option<Action>,
    destination: Option<Destination>,
    proto: Option<Proto>,
    dns: bool,
    ports: Option<RangeInclusive<u16>>,
    icmp_type: Option<u8>,
    last: Option<(&'a str, u8)>,
}

fn rule(family: Family, number: u16, text: &str) -> Result<Rule, Misplaced> {
    let mut options = Options::default();
    let mut start = 0;
    for token in text.split(' ') {
        options
            .take(family, token)
            .map_err(|(problem, place)| (problem, start + place.start..start + place.end))?;
        start += token.len() + 1;
    }
    let Options { given, destination, proto, dns, ports, icmp_type, last: _ } = options;
    let whole = |problem| (problem, 0..text.len());
    Ok(Rule {
        number,
        text: text.to_owned(),
        action: given.ok_or(Problem::NoAction).map_err(whole)?,
        destination: destination.unwrap_or(Destination::Any),
        dns,
        service: service(proto, dns, ports, icmp_type).map_err(whole)?,
    })
}

impl<'a> Options<'a> {
    /// Takes in the next one. The place of a problem counts from where it begins.
    fn take(&mut self, family: Family, token: &'a str) -> Result<(), Misplaced> {
        let whole = |problem| (problem, 0..token.len());
        if token.is_empty() {
            return Err(whole(Problem::EmptyOption));
        }
        let (option, value) =
            token.split_once('=').ok_or_else(|| whole(Problem::NotAnOption(token.to_owned())))?;
        let unknown = || (Problem::UnknownOption(option.to_owned()), 0..option.len());
        let rank = rank(option).ok_or_else(unknown)?;
        if let Some((last_option, last_rank)) = self.last {
            if last_option == option {
                return Err(whole(Problem::OptionTwice(option.to_owned())));
            }
            if last_rank == rank {
                return Err(whole(Problem::TwoDestinations));
            }
            if last_rank > rank {
                let (option, last) = (option.to_owned(), last_option.to_owned());
                return Err(whole(Problem::OutOfOrder(option, last)));
            }
        }
        self.last = Some((option, rank));
        let wrong = |problem| (problem, option.len() + 1..token.len());
        match option {
            "action" => self.given = Some(action(value).map_err(wrong)?),
            "dst4" | "dst6" => {
                let wanted = if option == "dst4" { Family::V4 } else { Family::V6 };
                self.destination = Some(network(family, wanted, value).map_err(wrong)?);
            }
            "dsthost" => self.destination = Some(Destination::Name(name(value).map_err(wrong)?)),
            "proto" => self.proto = Some(protocol(value).map_err(wrong)?),
            "specialtarget" if value == "dns" => self.dns = true,
            "specialtarget" => return Err(wrong(Problem::UnknownTarget(value.to_owned()))),
            "dstports" => self.ports = Some(port_range(value).map_err(wrong)?),
            "icmptype" => self.icmp_type = Some(icmp(value).map_err(wrong)?),
            _ => return Err(unknown()),
        }
        Ok(())
    }
}

/// The protocols and ports that the options of a rule leave.
fn service(
    proto: Option<Proto>,
    dns: bool,
    ports: Option<RangeInclusive<u16>>,
    icmp_type: Option<u8>,
) -> Result<Service, Problem> {
    if icmp_type.is_some() {
        if dns {
            return Err(Problem::Conflict("icmptype", "specialtarget=dns"));
        }
        if ports.is_some() {
            return Err(Problem::Conflict("icmptype", "dstports"));
        }
        if matches!(proto, Some(Proto::Tcp | Proto::Udp)) {
            return Err(Problem::Conflict("icmptype", "a protocol other than icmp"));
        }
    }
    if proto == Some(Proto::Icmp) {
        if dns {
            return Err(Problem::Conflict("proto=icmp", "specialtarget=dns"));
        }
        if ports.is_some() {
            return Err(Problem::Conflict("proto=icmp", "dstports"));
        }
    }
    // Today's agent skips a rule for DNS on any other port than exactly 53.
    let dns_ports = match ports {
        None => Some(53..=53),
        Some(ref given) if *given == (53..=53) => Some(53..=53),
        Some(_) => None,
    };
    let all = ports.clone().unwrap_or(0..=u16::MAX);
    let ports_of = |wanted| {
        if proto.is_some_and(|proto| proto != wanted) {
            return None;
        }
        if dns { dns_ports.clone() } else { Some(all.clone()) }
    };
    let portless = !dns && ports.is_none() && icmp_type.is_none();
    Ok(Service {
        tcp: ports_of(Proto::Tcp).filter(|_| icmp_type.is_none()),
        udp: ports_of(Proto::Udp).filter(|_| icmp_type.is_none()),
        icmp: match icmp_type {
            Some(kind) => Some(u16::from(kind)..=u16::from(kind)),
            None if portless && matches!(proto, None | Some(Proto::Icmp)) => Some(0..=u16::MAX),
            None => None,
        },
        other: portless && proto.is_none(),
    })
}
