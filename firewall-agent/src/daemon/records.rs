//! What the daemon tells of packets that were denied: a line in the log, and news.
//! Never changes anything.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use firewall_common::abi::{Address, DropRecord, RECORDS_PER_SECOND};
use firewall_common::verdict::{Reason, Verdict};
use tracing::info;

use super::Daemon;
use crate::edges::control::feed::Place;
use firewall_core::told::SCHEMA;
use firewall_core::told::news::{Denied, DeniedBy, News};

/// How many denied packets were told, and how many of the same vifs were not.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub records: u64,
    pub suppressed: u64,
}

impl Daemon {
    pub(super) fn tell_records(&mut self, records: &[DropRecord]) {
        for record in records {
            self.told.records += 1;
            self.told.suppressed += u64::from(record.suppressed);
            let denied = self.denied(record);
            info!(target: "denied", "{denied}");
            self.feed.tell(&News::Denied(Box::new(denied)));
        }
    }

    /// A place for somebody who wants to hear of denied packets.
    pub(super) fn place(&self) -> Place {
        self.feed.place(News::Hello {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            records_per_second: RECORDS_PER_SECOND,
        })
    }

    fn denied(&self, record: &DropRecord) -> Denied {
        let DropRecord { vif, generation, rule, length, suppressed, protocol, .. } = *record;
        let known = |address| (address != Address::NONE).then(|| IpAddr::from(address));
        let source = known(record.source);
        let destination = known(record.destination);
        let rule = source.and_then(|source| self.world.rule(vif, source, generation, rule));
        let name = self.world.link_name(vif).unwrap_or("a link that is gone");
        let names = destination.map(|it| self.world.names_of(it)).unwrap_or_default();
        // The program writes no others; one that did would contradict itself.
        let reason = Reason::from_index(record.reason).unwrap_or(Reason::Inconsistent);
        let verdict = Verdict::from_index(record.verdict).unwrap_or(Verdict::Drop);
        Denied {
            time_ms: milliseconds_since_1970(),
            vif: name.to_owned(),
            source,
            destination,
            names: names.into_iter().map(str::to_owned).collect(),
            protocol,
            source_port: record.source_port,
            port: record.destination_port,
            length_bytes: length,
            verdict,
            reason,
            rule: rule.map(|rule| DeniedBy { number: rule.number, text: rule.text.clone() }),
            generation: (generation != 0).then_some(generation),
            suppressed,
        }
    }
}

fn milliseconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
