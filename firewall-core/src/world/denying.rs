//! What is told of a packet that the kernel program denied, or would have.
//! Never decides anything, and never changes anything.

use std::net::IpAddr;

use firewall_common::abi::{Address, DropRecord};
use firewall_common::verdict::{Reason, Verdict};

use super::World;
use crate::client::ClientId;
use crate::told::news::{Denied, DeniedBy};

impl World {
    /// What a record of the kernel program says, with the names that the agent knows.
    pub(super) fn denied(&self, record: &DropRecord, time_ms: u64) -> Denied {
        let DropRecord { vif, generation, rule, length, suppressed, protocol, .. } = *record;
        let known = |address| (address != Address::NONE).then(|| IpAddr::from(address));
        let source = known(record.source);
        let destination = known(record.destination);
        let client = source.map(|address| ClientId { vif, address });
        let name = self.links.name(vif).unwrap_or("a link that is gone");
        let names = destination.into_iter().flat_map(|it| self.standings.names_of(it));
        // The program writes no others; one that did would contradict itself.
        let reason = Reason::from_index(record.reason).unwrap_or(Reason::Inconsistent);
        let verdict = match Verdict::from_index(record.verdict).unwrap_or(Verdict::Drop) {
            // What nobody answers ends silently.
            Verdict::Reject if !self.is_answered(record.destination) => Verdict::Drop,
            verdict => verdict,
        };
        Denied {
            time_ms,
            vif: name.to_owned(),
            source,
            destination,
            names: names.map(str::to_owned).collect(),
            protocol,
            source_port: record.source_port,
            port: record.destination_port,
            length_bytes: length,
            verdict,
            reason,
            rule: client.and_then(|client| self.denied_by(client, generation, rule)),
            generation: (generation != 0).then_some(generation),
            suppressed,
        }
    }

    /// Whether a packet that the program hands on to be rejected is answered.
    pub(super) fn is_answered(&self, destination: Address) -> bool {
        !self.judges_all() || self.gate.silence().is_none() && !destination.is_multicast()
    }

    /// A rule by its index, if the generation that has it is in force.
    fn denied_by(&self, client: ClientId, generation: u32, index: u32) -> Option<DeniedBy> {
        let current = self.clients.installed().generation(client)?;
        let rules = &self.standings.live(client.address)?.ruleset.rules;
        let rule = rules.get(usize::try_from(index).ok()?)?;
        let by = || DeniedBy { number: rule.number, text: rule.text.clone() };
        (current == generation).then(by)
    }
}
