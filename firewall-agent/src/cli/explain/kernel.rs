//! What the kernel says about a packet by itself: its tables, its connections and its gate.
//! Never asks the agent, and never changes anything.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use firewall_common::packet::Frame;
use firewall_common::verdict::Reason;
use firewall_core::connection::Flow;
use firewall_core::told::explanation::{Connection, Explained, Judgement, Outcome, PacketStatus};

use firewall_core::told::gateway::PacketInGateway;

use super::subject::Subject;
use crate::edges::conntrack::{self, Wanted};
use crate::edges::dataplane::inspect::{self, Inspection};
use crate::edges::gate;

/// What the kernel's tables say about a frame that comes in by a vif.
pub(super) fn by_kernel(
    pins: &Path,
    vif: Option<u32>,
    guards_neighbours: bool,
    frame: &Result<Frame, Reason>,
) -> Result<(Judgement, Option<PacketInGateway>), String> {
    let vif = vif.ok_or("no vif leads to this client, so the kernel knows nothing about it")?;
    let decided = Inspection::of_vif(pins, vif).and_then(|mut tables| {
        tables.guards_neighbours = guards_neighbours;
        let decision = tables.decide(vif, frame)?;
        let gateway = match frame {
            Ok(Frame::Ip(packet)) => tables.in_gateway(packet),
            Ok(Frame::Arp { .. }) | Err(_) => None,
        };
        Ok((Judgement::from(&decision), gateway))
    });
    decided.map_err(|error| error.to_string())
}

/// The vifs behind which the kernel's tables have a client at home.
pub(super) fn vifs_of(pins: &Path, client: IpAddr) -> Vec<u32> {
    let attached = inspect::attached(pins).unwrap_or_default();
    let programs: BTreeSet<u32> = attached.into_values().flatten().collect();
    let clients = programs.into_iter().filter_map(|program| {
        Inspection::of_program(program).and_then(|tables| tables.clients()).ok()
    });
    let keys = clients.flatten().filter(|(key, _)| IpAddr::from(key.address) == client);
    keys.map(|(key, _)| key.vif).collect()
}

/// Connections that the kernel knows, of whoever sends what is asked about.
pub(super) fn flows(subjects: &[Subject]) -> Result<Vec<Flow>, String> {
    let packets = subjects.iter().filter_map(Subject::packet);
    let wanted = Wanted::Of(packets.map(|packet| packet.source).collect());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(async { conntrack::flows(wanted).await.map_err(|error| error.to_string()) })
}

/// The connection that a packet belongs to.
pub(super) fn connection(flows: &[Flow], packet: &PacketStatus) -> Option<Connection> {
    let is_it = |found: PacketStatus| {
        let port = packet.source_port.or(found.source_port);
        PacketStatus { source_port: port, ..*packet } == found
    };
    if flows.iter().any(|flow| is_it((&flow.packet).into())) {
        return Some(Connection::Opened);
    }
    let mut answers = flows.iter().filter_map(|flow| flow.answer.as_ref());
    answers.any(|answer| is_it(answer.into())).then_some(Connection::Answers)
}

/// What is rejected is rejected by the gate: where it is not there, it is forwarded.
pub(super) fn behind_gate(
    mut it: Explained,
    gate: Option<&Result<Vec<&'static str>, String>>,
) -> Explained {
    let family = match it.gateway {
        Some(_) => "inet",
        None if it.client.is_ipv4() => "ip",
        None => "ip6",
    };
    let note = match gate {
        Some(Ok(open)) if open.contains(&family) => {
            if it.outcome == Outcome::Rejected {
                let is_gateway = it.gateway.is_some();
                it.outcome = if is_gateway { Outcome::Tor } else { Outcome::Forwarded };
            }
            "OPEN: the gate is not there, so what rules reject passes".to_owned()
        }
        Some(Err(why)) => format!("whether the gate is there is NOT KNOWN: {why}"),
        Some(Ok(_)) | None => return it,
    };
    it.agent_problem = Some(it.agent_problem.map_or(note.clone(), |why| format!("{why}; {note}")));
    it
}

/// The families in which nothing closes.
pub(super) fn open_families() -> Result<Vec<&'static str>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let open = async { gate::open_families(gate::is_strict().await?).await };
    runtime.block_on(open).map_err(|error| error.to_string())
}
