//! Audits. For a while, what a client's rules deny passes, and is counted and told.
//! Never begins one by itself, and never lets one last for ever.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Standing, World};
use crate::client::ClientId;
use crate::events::{Effect, Notice};
use crate::time::Moment;

/// Longest audit; whoever needs more says so again.
pub const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// How often the log is told that an audit goes on.
const REMINDER: Duration = Duration::from_secs(60);

/// Why an audit would make no difference.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoAudit {
    /// Nobody is there.
    #[error("{0} is no client: no vif leads to it")]
    NoClient(IpAddr),
    /// Everything is rejected, whatever rules say.
    #[error("{0} is blocked: no rule of it can be audited")]
    Blocked(IpAddr),
    /// No rules are known.
    #[error("{0} has no rules that could be audited")]
    NoRules(IpAddr),
}

/// One client's audit.
#[derive(Debug)]
pub(super) struct Audit {
    /// Its end, in whole seconds, as the kernel knows it: it ends there without an agent too.
    until: Moment,
    /// When the log is told again.
    due: Moment,
}

impl World {
    /// Whether an audit of a client would make a difference; if not, why.
    pub fn can_audit(&self, client: IpAddr) -> Result<(), NoAudit> {
        let mut present = self.clients.iter().filter(|(id, _)| id.address == client);
        let is_refused = match present.next() {
            None => return Err(NoAudit::NoClient(client)),
            Some((_, in_force)) => in_force.refused.is_some(),
        };
        match self.standings.get(&client) {
            Some(Standing::Live(_)) if !is_refused => Ok(()),
            Some(Standing::Live(_) | Standing::Blocked(_)) => Err(NoAudit::Blocked(client)),
            Some(Standing::Waiting) | None => Err(NoAudit::NoRules(client)),
        }
    }

    /// Begins an audit, or ends it with a length of zero.
    pub(super) fn audit(&mut self, client: IpAddr, length: Duration, now: Moment) -> Vec<Effect> {
        if length.is_zero() {
            return self.end_audit(client);
        }
        if self.can_audit(client).is_err() {
            return Vec::new();
        }
        let until = (now + length.min(LONGEST)).rounded_up();
        self.audits.insert(client, Audit { until, due: now + REMINDER });
        let mut effects = vec![Effect::Tell(Notice::Audited { client, left: until.since(now) })];
        effects.extend(self.audit_effects(client));
        effects
    }

    /// Ends what has lasted as long as it was meant to, and reminds of the others.
    pub(super) fn audits_due(&mut self, now: Moment) -> Vec<Effect> {
        let over = self.audits.iter().filter(|(_, audit)| audit.until <= now);
        let over: Vec<IpAddr> = over.map(|(client, _)| *client).collect();
        let mut effects: Vec<Effect> =
            over.into_iter().flat_map(|client| self.end_audit(client)).collect();
        for (&client, audit) in self.audits.iter_mut().filter(|(_, audit)| audit.due <= now) {
            audit.due = now + REMINDER;
            effects.push(Effect::Tell(Notice::Audited { client, left: audit.until.since(now) }));
        }
        effects
    }

    /// Ends audits of clients that went: whoever comes next with that address was not meant.
    pub(super) fn end_audits_of_absent(&mut self) -> Vec<Effect> {
        let present: BTreeSet<IpAddr> = self.clients.keys().map(|client| client.address).collect();
        let gone = self.audits.keys().filter(|client| !present.contains(client));
        let gone: Vec<IpAddr> = gone.copied().collect();
        gone.into_iter().flat_map(|client| self.end_audit(client)).collect()
    }

    fn end_audit(&mut self, client: IpAddr) -> Vec<Effect> {
        if self.audits.remove(&client).is_none() {
            return Vec::new();
        }
        let mut effects = vec![Effect::Tell(Notice::AuditEnded { client })];
        effects.extend(self.audit_effects(client));
        effects
    }

    /// What has to be done on all vifs of a client after its audit has changed.
    fn audit_effects(&mut self, address: IpAddr) -> Vec<Effect> {
        let clients = self.clients.keys().filter(|client| client.address == address);
        let clients: Vec<ClientId> = clients.copied().collect();
        clients.into_iter().map(|client| self.audit_effect(client)).collect()
    }

    /// Makes the kernel audit a client, or not any more. Either way the client settles.
    pub(super) fn audit_effect(&mut self, client: ClientId) -> Effect {
        self.settle(client);
        audit_effect(client, self.audited_until(client.address).unwrap_or_default())
    }

    /// What makes the kernel audit a client that is being put in force.
    pub(super) fn audit_of(&self, client: ClientId) -> Option<Effect> {
        Some(audit_effect(client, self.audited_until(client.address)?))
    }

    /// Until when a client is audited, if it is.
    pub fn audited_until(&self, client: IpAddr) -> Option<Moment> {
        self.audits.get(&client).map(|audit| audit.until)
    }

    /// Clients that are audited.
    pub fn audited(&self) -> impl Iterator<Item = IpAddr> {
        self.audits.keys().copied()
    }

    /// When something is to be done about audits, if at all.
    pub(super) fn next_of_audits(&self) -> Option<Moment> {
        self.audits.values().map(|audit| audit.until.min(audit.due)).min()
    }
}

fn audit_effect(client: ClientId, until: Moment) -> Effect {
    Effect::Audit { client, until: u32::try_from(until.since_boot().as_secs()).unwrap_or(u32::MAX) }
}
