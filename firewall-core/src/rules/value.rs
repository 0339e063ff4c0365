//! Values of options: actions, networks, names, protocols, ports, types of ICMP.
//! Never knows which options a rule may have.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::problem::Problem;
use super::{Action, Destination, Family};

/// Longest host name, in bytes (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// A protocol that rules can name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Proto {
    Tcp,
    Udp,
    Icmp,
}

pub(super) fn action(value: &str) -> Result<Action, Problem> {
    match value {
        "accept" => Ok(Action::Accept),
        "drop" => Ok(Action::Drop),
        _ => Err(Problem::NotAnAction(value.to_owned())),
    }
}

pub(super) fn network(client: Family, wanted: Family, value: &str) -> Result<Destination, Problem> {
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
pub(super) fn name(value: &str) -> Result<String, Problem> {
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

pub(super) fn protocol(value: &str) -> Result<Proto, Problem> {
    match value {
        "tcp" => Ok(Proto::Tcp),
        "udp" => Ok(Proto::Udp),
        "icmp" => Ok(Proto::Icmp),
        _ => Err(Problem::UnknownProtocol(value.to_owned())),
    }
}

pub(super) fn port_range(value: &str) -> Result<RangeInclusive<u16>, Problem> {
    let refuse = || Problem::NotPorts(value.to_owned());
    let (first, last) = value.split_once('-').unwrap_or((value, value));
    let port = |text| decimal(text, u16::MAX).ok_or_else(refuse);
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(refuse());
    }
    Ok(first..=last)
}

pub(super) fn icmp(value: &str) -> Result<u8, Problem> {
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
