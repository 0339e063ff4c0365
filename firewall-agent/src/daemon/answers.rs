//! What the daemon answers: status, news, audits, explanations; and the metrics that it writes.
//! Never changes anything but by an event; what is in force, the world tells.

use std::net::IpAddr;
use std::time::Duration;

use firewall_common::abi::RECORDS_PER_SECOND;
use firewall_common::verdict::Reason;
use tracing::warn;

use super::Daemon;
use super::clock::now;
use crate::edges::control::feed::Place;
use crate::edges::control::{Answer, Request};
use crate::edges::metrics;
use firewall_core::client::ClientId;
use firewall_core::events::Event;
use firewall_core::readings::{ClientCounters, Counters, Readings, ReasonCounters};
use firewall_core::told::SCHEMA;
use firewall_core::told::news::News;
use firewall_core::told::status::{AuditStatus, Status};
use firewall_core::world::audits::NoAudit;

const VERSION: &str = env!("CARGO_PKG_VERSION");

impl Daemon {
    pub(super) async fn answer(&mut self, request: &Request) -> Answer {
        match request {
            Request::Status => Answer::Status(Box::new(self.status(None).await)),
            Request::Show { client } => Answer::Status(Box::new(self.status(Some(*client)).await)),
            Request::Monitor => Answer::News(self.place()),
            Request::Audit { client, seconds } => {
                Answer::Audit(self.audit(*client, Duration::from_secs(*seconds)).await)
            }
            Request::Own { qube, aim } => {
                let readings = self.read().await;
                Answer::Own(Box::new(self.world.own(now(), &readings, qube, *aim)))
            }
            Request::Explain { client, packet } => {
                Answer::Explanations(self.world.explain(now(), *client, &packet.packet()))
            }
        }
    }

    async fn audit(&mut self, client: IpAddr, length: Duration) -> Result<AuditStatus, NoAudit> {
        self.world.may_audit(client, length)?;
        self.follow(Event::Audit { client, length }).await;
        Ok(self.world.audit_status(now(), client))
    }

    /// Everything; of clients only those with an address, if one is given.
    async fn status(&mut self, of: Option<IpAddr>) -> Status {
        let readings = self.read().await;
        self.world.status(now(), &readings, of)
    }

    /// Looks at the counters, and writes metrics, if somebody wants them.
    pub(super) async fn look(&mut self) {
        let readings = self.read().await;
        self.happened(Event::Passage(self.dataplane.maps.passage())).await;
        let Some(path) = &self.options.metrics else {
            return;
        };
        if let Err(error) = metrics::write(path, &self.world.status(now(), &readings, None)) {
            warn!(path = %path.display(), %error, "metrics are not written");
        }
    }

    /// A place for somebody who wants to hear of denied packets.
    fn place(&self) -> Place {
        self.feed.place(News::Hello {
            schema: SCHEMA,
            version: VERSION.to_owned(),
            pid: std::process::id(),
            records_per_second: RECORDS_PER_SECOND,
        })
    }

    /// Reads what the world does not know, and tells it what rules have decided.
    async fn read(&mut self) -> Readings {
        let readings = Readings {
            version: VERSION.to_owned(),
            pid: std::process::id(),
            options: self.heard.options.clone(),
            option_problems: self.heard.all_problems(),
            introduced: self.heard.introductions.names.clone(),
            source: self.options.source.name(),
            verified_instructions: self.dataplane.verified_instructions(),
            caches: self.options.dataplane.caches,
            unpinned_programs: self.dataplane.unpinned(),
            counters: self.counters(),
        };
        self.happened(Event::Counted(readings.counters.decided())).await;
        readings
    }

    fn counters(&self) -> Counters {
        let of = |(client, rules): (ClientId, u32)| {
            let rule = |rule| self.dataplane.maps.rule_counter(client, rule);
            let rules = (0..rules).map(rule).collect();
            (client, ClientCounters { reasons: self.reason_counters(Some(client)), rules })
        };
        Counters {
            clients: self.world.counting().into_iter().map(of).collect(),
            strays: self.reason_counters(None),
        }
    }

    fn reason_counters(&self, client: Option<ClientId>) -> ReasonCounters {
        let counter = |reason| (reason, self.dataplane.maps.reason_counter(client, reason));
        Reason::ALL.iter().copied().map(counter).collect()
    }
}
