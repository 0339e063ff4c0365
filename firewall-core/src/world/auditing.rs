//! Which clients may be audited.
//! Never says when an audit ends.

use std::net::IpAddr;
use std::time::Duration;

use super::World;
use super::audits::NoAudit;
use super::standings::Standing;
use crate::events::Effect;
use crate::time::Moment;

impl World {
    /// An error says why an audit of a client would make no difference. An end is never refused.
    pub fn may_audit(&self, client: IpAddr, length: Duration) -> Result<(), NoAudit> {
        let installed = self.clients.installed();
        let present = installed.of(client);
        match (present.first(), self.standings.of(client)) {
            _ if length.is_zero() => Ok(()),
            (None, _) => Err(NoAudit::NoClient(client)),
            (_, Standing::Waiting) => Err(NoAudit::NoRules(client)),
            (Some(first), Standing::Live(_)) if installed.refusal(*first).is_none() => Ok(()),
            (_, Standing::Live(_) | Standing::Blocked(_)) => Err(NoAudit::Blocked(client)),
        }
    }

    pub(super) fn audit(&mut self, client: IpAddr, length: Duration, now: Moment) -> Vec<Effect> {
        match self.may_audit(client, length) {
            Ok(()) => self.clients.audit(client, length, now, &mut self.retries),
            Err(_) => Vec::new(),
        }
    }
}
