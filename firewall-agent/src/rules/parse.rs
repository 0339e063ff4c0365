//! Text to [`Ruleset`]. Total: any bytes give a ruleset or an error that names the place,
//! quotes the text and says what is wrong; nothing is guessed.
//!
//! The grammar is the contract of Qubes' vm-interface documentation, section "Firewall
//! rules in 4.x": options in a fixed order, separated by one space, none twice. Options
//! that newer versions add must not be ignored: a rule half understood is a rule wider
//! than the user wrote.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use thiserror::Error;

use super::{Action, Destination, Family, Rule, Ruleset, Service};

/// Longest value that QubesDB keeps, in bytes.
const MAX_VALUE: usize = 3072;
/// Longest host name, in bytes (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// One key with its value, and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Line in a file, from 1; QubesDB has none.
    pub line: Option<usize>,
    /// `policy` or four digits.
    pub key: String,
    /// Everything behind it.
    pub value: String,
}

/// Why a client's rules cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulesetError {
    /// Line in a file, from 1; `None` if it is about the whole.
    pub line: Option<usize>,
    /// The key whose value is wrong; `None` if it is about the whole.
    pub key: Option<String>,
    /// The offending text, as far as it is worth quoting.
    pub text: String,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for RulesetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        write!(f, "{}", self.problem)?;
        if !self.text.is_empty() {
            write!(f, " in `{}`", self.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for RulesetError {}

/// What can be wrong with rules.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Problem {
    #[error("there is no `policy`")]
    NoPolicy,
    #[error("`{0}` is neither `accept` nor `drop`")]
    NotAnAction(String),
    #[error("`{0}` is neither `policy` nor four digits")]
    UnknownKey(String),
    #[error("the key `{0}` stands twice")]
    KeyTwice(String),

    #[error("longer than {MAX_VALUE} bytes")]
    TooLong,
    #[error("an option is empty: options are separated by exactly one space")]
    EmptyOption,
    #[error("`{0}` is not of the form option=value")]
    NotAnOption(String),
    #[error("unknown option `{0}`")]
    UnknownOption(String),
    #[error("the option `{0}` stands twice")]
    OptionTwice(String),
    #[error("the option `{0}` must stand before `{1}`")]
    OutOfOrder(String, String),
    #[error("a rule starts with `action=`")]
    NoAction,
    #[error("more than one of dst4, dst6 and dsthost")]
    TwoDestinations,
    #[error("`{0}` is not a network of the form address/prefix-length")]
    NotANetwork(String),
    #[error("{0} in the rules of an {1} client")]
    OtherFamily(String, Family),
    #[error("`{0}` is not a host name")]
    NotAName(String),
    #[error("`{0}` is not one of tcp, udp and icmp")]
    UnknownProtocol(String),
    #[error("unknown special target `{0}`")]
    UnknownTarget(String),
    #[error("`{0}` is not a port or a range of ports")]
    NotPorts(String),
    #[error("`{0}` is not a number from 0 to 255")]
    NotAnIcmpType(String),
    #[error("{0} does not go with {1}")]
    Conflict(&'static str, &'static str),
    // What a source adds; the parser itself never says these.
    #[error("the last line is not `commit`: the file is not complete")]
    NoCommit,
    #[error("text after `commit`")]
    AfterCommit,
    #[error("not of the form `key = value`")]
    NotAnEntry,
    #[error("cannot be read: {0}")]
    Unreadable(String),
}

/// The rules of one client of one family, from entries in any order.
pub fn ruleset(family: Family, entries: &[Entry]) -> Result<Ruleset, RulesetError> {
    let mut default = None;
    let mut rules = BTreeMap::new();
    for entry in entries {
        let error = |problem| RulesetError {
            line: entry.line,
            key: Some(entry.key.clone()),
            text: entry.value.clone(),
            problem,
        };
        if entry.value.len() > MAX_VALUE {
            let text = String::new();
            return Err(RulesetError { text, ..error(Problem::TooLong) });
        }
        let twice = || error(Problem::KeyTwice(entry.key.clone()));
        if entry.key == "policy" {
            let action = action(&entry.value).map_err(error)?;
            if default.replace(action).is_some() {
                return Err(twice());
            }
        } else {
            let number = rule_number(&entry.key).map_err(error)?;
            let rule = rule(family, number, &entry.value).map_err(error)?;
            if rules.insert(number, rule).is_some() {
                return Err(twice());
            }
        }
    }
    // Four digits number no more rules than there may be.
    let default = default.ok_or_else(|| RulesetError {
        line: None,
        key: None,
        text: String::new(),
        problem: Problem::NoPolicy,
    })?;
    Ok(Ruleset { default, rules: rules.into_values().collect() })
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Proto {
    Tcp,
    Udp,
    Icmp,
}

fn rule(family: Family, number: u16, text: &str) -> Result<Rule, Problem> {
    let mut given = None;
    let mut destination = Destination::Any;
    let mut proto = None;
    let mut dns = false;
    let mut ports = None;
    let mut icmp_type = None;
    let mut last: Option<(&str, u8)> = None;
    for token in text.split(' ') {
        if token.is_empty() {
            return Err(Problem::EmptyOption);
        }
        let (option, value) =
            token.split_once('=').ok_or_else(|| Problem::NotAnOption(token.to_owned()))?;
        let rank = rank(option).ok_or_else(|| Problem::UnknownOption(option.to_owned()))?;
        if let Some((last_option, last_rank)) = last {
            if last_option == option {
                return Err(Problem::OptionTwice(option.to_owned()));
            }
            if last_rank == rank {
                return Err(Problem::TwoDestinations);
            }
            if last_rank > rank {
                return Err(Problem::OutOfOrder(option.to_owned(), last_option.to_owned()));
            }
        }
        last = Some((option, rank));
        match option {
            "action" => given = Some(action(value)?),
            "dst4" => destination = network(family, Family::V4, value)?,
            "dst6" => destination = network(family, Family::V6, value)?,
            "dsthost" => destination = Destination::Name(name(value)?),
            "proto" => proto = Some(protocol(value)?),
            "specialtarget" if value == "dns" => dns = true,
            "specialtarget" => return Err(Problem::UnknownTarget(value.to_owned())),
            "dstports" => ports = Some(port_range(value)?),
            "icmptype" => icmp_type = Some(icmp(value)?),
            _ => return Err(Problem::UnknownOption(option.to_owned())),
        }
    }
    Ok(Rule {
        number,
        text: text.to_owned(),
        action: given.ok_or(Problem::NoAction)?,
        destination,
        dns,
        service: service(proto, dns, ports, icmp_type)?,
    })
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

fn action(value: &str) -> Result<Action, Problem> {
    match value {
        "accept" => Ok(Action::Accept),
        "drop" => Ok(Action::Drop),
        _ => Err(Problem::NotAnAction(value.to_owned())),
    }
}

fn network(client: Family, wanted: Family, value: &str) -> Result<Destination, Problem> {
    let refuse = || Problem::NotANetwork(value.to_owned());
    let network = match value.split_once('/') {
        None => IpNet::from(value.parse::<IpAddr>().map_err(|_| refuse())?),
        Some((address, length)) => {
            let address: IpAddr = address.parse().map_err(|_| refuse())?;
            let length = decimal(length, 128).ok_or_else(refuse)?;
            let length = u8::try_from(length).map_err(|_| refuse())?;
            IpNet::new(address, length).map_err(|_| refuse())?
        }
    };
    if Family::from(network.addr()) != wanted {
        return Err(refuse());
    }
    if wanted != client {
        return Err(Problem::OtherFamily(value.to_owned(), client));
    }
    Ok(Destination::Network(network.trunc()))
}

/// A host name as dom0 lets it pass, minus what no resolver should be asked: empty or
/// over-long labels, and names that C libraries read as IPv4 addresses (`1.2`).
fn name(value: &str) -> Result<String, Problem> {
    let refuse = || Problem::NotAName(value.to_owned());
    let name = value.strip_suffix('.').unwrap_or(value);
    let label_is_valid = |label: &str| {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        !label.is_empty() && label.len() <= MAX_LABEL && label.bytes().all(allowed)
    };
    if name.len() > MAX_NAME || !name.split('.').all(label_is_valid) {
        return Err(refuse());
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    let looks_numeric = last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x");
    if looks_numeric {
        return Err(refuse());
    }
    Ok(name.to_owned())
}

fn protocol(value: &str) -> Result<Proto, Problem> {
    match value {
        "tcp" => Ok(Proto::Tcp),
        "udp" => Ok(Proto::Udp),
        "icmp" => Ok(Proto::Icmp),
        _ => Err(Problem::UnknownProtocol(value.to_owned())),
    }
}

fn port_range(value: &str) -> Result<RangeInclusive<u16>, Problem> {
    let refuse = || Problem::NotPorts(value.to_owned());
    let (first, last) = value.split_once('-').unwrap_or((value, value));
    let port = |text| decimal(text, u16::MAX).ok_or_else(refuse);
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(refuse());
    }
    Ok(first..=last)
}

fn icmp(value: &str) -> Result<u8, Problem> {
    let number = decimal(value, 255).and_then(|number| u8::try_from(number).ok());
    number.ok_or_else(|| Problem::NotAnIcmpType(value.to_owned()))
}

/// A number in plain decimal digits without leading zeros, up to `most`.
fn decimal(text: &str, most: u16) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let padded = text.len() > 1 && text.starts_with('0');
    let number = (digits && !padded).then(|| text.parse().ok()).flatten()?;
    (number <= most).then_some(number)
}
