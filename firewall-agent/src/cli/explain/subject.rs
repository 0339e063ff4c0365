//! The packets that `explain` is asked about: given in words, in hexadecimal digits or recorded.
//! Never asks anybody: where names lead is in the agent's status.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, Result, bail, ensure};
use firewall_common::packet::{self, Frame};
use firewall_common::verdict::Reason;
use firewall_core::rules::Family;
use firewall_core::told::explanation::PacketStatus;
use firewall_core::told::status::Status;

use super::arguments::Explain;
use super::capture;
use super::target::Host;

/// Most different packets of a file that are explained.
const MOST_PACKETS: usize = 100;

/// What is asked about: the frame as the evaluator reads it.
#[derive(Clone)]
pub(super) struct Subject {
    /// Address of the client that sends the packet.
    pub client: IpAddr,
    /// The name that was asked for, if it was no address.
    pub name: Option<String>,
    /// The frame as the parser reads it, or the reason to drop it.
    pub frame: Result<Frame, Reason>,
    /// Whether somebody sent it: then it has a source port.
    is_recorded: bool,
}

impl Subject {
    /// The packet; `None` if the frame holds none that rules can judge.
    pub fn packet(&self) -> Option<PacketStatus> {
        match &self.frame {
            Ok(Frame::Ip(packet)) => {
                let source_port = self.is_recorded.then_some(packet.source_port);
                Some(PacketStatus { source_port, ..packet.into() })
            }
            Ok(Frame::Arp { .. }) | Err(_) => None,
        }
    }
}

/// The packets that are asked about.
pub(super) fn subjects(
    arguments: &Explain,
    from: Option<IpAddr>,
    status: Option<&Status>,
) -> Result<Vec<Subject>> {
    if let Some(given) = &arguments.packet {
        return recorded(given, from);
    }
    let target = arguments.to.as_ref().context("neither --to nor --packet")?;
    let client = from.context("say who sends the packet: --from CLIENT, a client's address")?;
    let (addresses, name) = match &target.host {
        Host::Address(address) => (vec![*address], None),
        Host::Name(name) => (addresses(name, client, status)?, Some(name.clone())),
    };
    let subject = |to: IpAddr| {
        ensure!(to.is_ipv4() == client.is_ipv4(), other_family(client, to, status));
        let packet = target.packet(client, to).packet();
        let frame = Ok(Frame::Ip(packet));
        Ok(Subject { client, name: name.clone(), frame, is_recorded: false })
    };
    addresses.into_iter().map(subject).collect()
}

/// A qube with both families is two clients.
fn other_family(client: IpAddr, to: IpAddr, status: Option<&Status>) -> String {
    let vifs = status.map(|status| status.vifs.as_slice()).unwrap_or_default();
    let of_client = vifs.iter().find(|vif| vif.addresses.contains(&client));
    let mut others = of_client.map(|vif| vif.addresses.iter()).into_iter().flatten();
    let instead = match others.find(|other| other.is_ipv4() == to.is_ipv4()) {
        Some(other) => format!("on the same vif is {other}: use --from {other}"),
        None => "use the qube's address of that family; `firewall-agent show` lists all".to_owned(),
    };
    format!("{to} is an {} address and {client} is not; {instead}", Family::from(to))
}

/// Where a name leads, as far as the agent knows.
fn addresses(name: &str, client: IpAddr, status: Option<&Status>) -> Result<Vec<IpAddr>> {
    let Some(status) = status else {
        bail!("only a running agent knows where `{name}` leads; give an address instead");
    };
    let family = Family::from(client);
    let known = status.names.iter().find(|it| it.name == name && it.family == family);
    let Some(known) = known else {
        bail!(
            "the agent does not know `{name}` for {family}: no rule that makes a difference \
             names it, so it is not looked up; give an address instead"
        );
    };
    ensure!(
        !known.addresses.is_empty(),
        "`{name}` leads to no {family} address: {}",
        known.problem.as_deref().unwrap_or("DNS has none, or has not answered yet")
    );
    Ok(known.addresses.iter().map(|it| it.address).collect())
}

/// Frames that were recorded, each different packet once.
fn recorded(given: &str, from: Option<IpAddr>) -> Result<Vec<Subject>> {
    let frames = capture::frames(given)?;
    let (mut subjects, mut seen) = (Vec::new(), BTreeSet::new());
    for frame in &frames {
        let frame = packet::parse(frame.as_slice());
        let source = match &frame {
            Ok(Frame::Ip(packet)) => Some(packet.source.into()),
            Ok(Frame::Arp { sender }) => Some((*sender).into()),
            Err(_) => None,
        };
        let Some(client) = from.or(source) else {
            bail!("this packet does not say who sends it: add --from CLIENT");
        };
        let subject = Subject { client, name: None, frame, is_recorded: true };
        let key = match &subject.frame {
            // What is recorded at a vif goes both ways.
            Ok(Frame::Ip(packet)) if from == Some(packet.destination.into()) => continue,
            Ok(_) => (subject.packet().map(|it| PacketStatus { source_port: None, ..it }), None),
            Err(reason) => (None, Some(*reason)),
        };
        if seen.insert((client, key)) {
            subjects.push(subject);
        }
    }
    ensure!(!subjects.is_empty(), "no packet of a client in `{given}`");
    if subjects.len() > MOST_PACKETS {
        eprintln!("{} different packets; the first {MOST_PACKETS} follow", subjects.len());
        subjects.truncate(MOST_PACKETS);
    }
    Ok(subjects)
}
