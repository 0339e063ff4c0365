//! Audits. For a while, what a client's rules deny passes, and is counted and told.
//! Never begins an audit by itself, and never lets one last for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::client::ClientId;
use crate::events::{Effect, Notice};
use crate::time::Moment;

/// Longest audit: 24 hours; whoever needs more says so again.
pub const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// How often the log is told that an audit goes on.
const REMINDER: Duration = Duration::from_secs(60);

/// Why an audit would make no difference.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoAudit {
    /// No vif leads to a client with this address.
    #[error("{0} is no client: no vif leads to it")]
    NoClient(IpAddr),
    /// The client is blocked: everything is rejected, whatever rules say.
    #[error("{0} is blocked: no rule of it can be audited")]
    Blocked(IpAddr),
    /// No rules of the client are known.
    #[error("{0} has no rules that could be audited")]
    NoRules(IpAddr),
}

/// One client's audit.
#[derive(Debug)]
struct Audit {
    /// Its end, in whole seconds, as the kernel knows it: it ends there without an agent too.
    until: Moment,
    /// When the log is told again.
    due: Moment,
}

/// Clients that are audited.
#[derive(Debug, Default)]
pub(super) struct Audits {
    audits: BTreeMap<IpAddr, Audit>,
}

impl Audits {
    /// Begins an audit, or makes one longer or shorter.
    pub(super) fn begin(&mut self, client: IpAddr, length: Duration, now: Moment) -> Effect {
        let until = (now + length.min(LONGEST)).rounded_up();
        self.audits.insert(client, Audit { until, due: now + REMINDER });
        Effect::Tell(Notice::Audited { client, left: until.since(now) })
    }

    /// Ends an audit, if there is one.
    pub(super) fn end(&mut self, client: IpAddr) -> Option<Effect> {
        self.audits.remove(&client)?;
        Some(Effect::Tell(Notice::AuditEnded { client }))
    }

    /// Clients whose audits have lasted as long as they were meant to.
    pub(super) fn over(&self, now: Moment) -> Vec<IpAddr> {
        let over = self.audits.iter().filter(|(_, audit)| audit.until <= now);
        over.map(|(client, _)| *client).collect()
    }

    /// Reminds of audits that go on.
    pub(super) fn remind(&mut self, now: Moment) -> Vec<Effect> {
        let due = self.audits.iter_mut().filter(|(_, audit)| audit.due <= now);
        let reminders = due.map(|(&client, audit)| {
            audit.due = now + REMINDER;
            Effect::Tell(Notice::Audited { client, left: audit.until.since(now) })
        });
        reminders.collect()
    }

    /// Clients that are audited and not there: whoever comes next with such an address was not
    /// meant.
    pub(super) fn absent(&self, present: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        self.clients().filter(|client| !present.contains(client)).collect()
    }

    /// Until when a client is audited, if it is.
    pub(super) fn until(&self, client: IpAddr) -> Option<Moment> {
        self.audits.get(&client).map(|audit| audit.until)
    }

    /// Clients that are audited.
    pub(super) fn clients(&self) -> impl Iterator<Item = IpAddr> {
        self.audits.keys().copied()
    }

    /// When something is to be done about audits, if at all.
    pub(super) fn next(&self) -> Option<Moment> {
        self.audits.values().map(|audit| audit.until.min(audit.due)).min()
    }

    /// The end of a client's audit, in seconds since the machine booted; 0: it is not audited.
    pub(super) fn seconds(&self, client: IpAddr) -> u32 {
        let until = self.until(client).unwrap_or_default();
        u32::try_from(until.since_boot().as_secs()).unwrap_or(u32::MAX)
    }

    /// What makes the kernel audit a client, or not any more.
    pub(super) fn effect(&self, client: ClientId) -> Effect {
        Effect::Audit { client, until: self.seconds(client.address) }
    }
}
