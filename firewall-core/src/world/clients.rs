//! Clients that are there: what is put in force for each, what instead if the kernel refuses, which
//! of them are audited, and that a client settles each time: what is new may deny what it has open.
//! Never knows rules, but what they come to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use firewall_common::packet::Packet;

use super::audits::Audits;
use super::installed::Installed;
use super::retries::Retries;
use super::settling::Settling;
use crate::client::ClientId;
use crate::connection::Flow;
use crate::events::{Effect, Installation, Notice, Task, Why};
use crate::time::Moment;

/// All clients that are there.
#[derive(Debug, Default)]
pub(super) struct Clients {
    installed: Installed,
    audits: Audits,
    settling: Settling,
}

impl Clients {
    /// What the kernel has for each client.
    pub(super) fn installed(&self) -> &Installed {
        &self.installed
    }

    /// Which clients are audited.
    pub(super) fn audits(&self) -> &Audits {
        &self.audits
    }

    /// Which clients settle.
    pub(super) fn settling(&self) -> &Settling {
        &self.settling
    }

    /// Puts what a client's rules come to in force, which is something else than before, and may
    /// accept all that the rules before it accepted.
    pub(super) fn put(
        &mut self,
        client: ClientId,
        installation: Installation,
        is_wider: bool,
        retries: &mut Retries,
    ) -> Vec<Effect> {
        // A failure of something else.
        retries.done(Task::Put(client));
        if is_wider && self.has_only_what_rules_accept(client) {
            let generation = self.installed.put(client);
            return vec![Effect::Put { client, installation, generation, settles: false }];
        }
        self.install(client, installation, retries)
    }

    /// Whether the rules in force accept all that a client has open. What an audit let pass, they
    /// may deny; and as long as a client settles, nobody knows.
    fn has_only_what_rules_accept(&self, client: ClientId) -> bool {
        self.installed.has_rules(client)
            && !self.settling.contains(client)
            && self.audits.until(client.address).is_none()
    }

    /// Puts what a client's rules come to in force, and remembers how often that failed before.
    pub(super) fn install(
        &mut self,
        client: ClientId,
        installation: Installation,
        retries: &mut Retries,
    ) -> Vec<Effect> {
        let generation = self.installed.put(client);
        self.settling.settle(client, retries);
        let mut effects = vec![Effect::Put { client, installation, generation, settles: true }];
        if self.audits.until(client.address).is_some() {
            effects.push(self.audits.effect(client));
        }
        effects
    }

    /// The kernel refused what was put in force.
    pub(super) fn refused(
        &mut self,
        client: ClientId,
        why: String,
        may_pass: bool,
        now: Moment,
        retries: &mut Retries,
    ) -> Vec<Effect> {
        if !self.installed.is_present(client) {
            return Vec::new();
        }
        let is_stand_in = self.installed.refusal(client).is_some();
        let told = if may_pass { format!("{why}; it is tried again") } else { why.clone() };
        let instead = self.installed.refused(client, &told);
        self.settling.settle(client, retries);
        // One attempt with two failures is one.
        let is_counted = is_stand_in && retries.is_failing(Task::Put(client));
        let is_news = !may_pass || is_counted || retries.failed(Task::Put(client), why, now);
        let notice = Notice::Blocked { client: client.address, why: told };
        is_news.then_some(Effect::Tell(notice)).into_iter().chain(instead).collect()
    }

    /// Removes clients that are gone. With each goes all that was to be done for it.
    pub(super) fn leave(
        &mut self,
        present: &BTreeSet<ClientId>,
        retries: &mut Retries,
    ) -> Vec<Effect> {
        let gone: Vec<ClientId> =
            self.installed.all().filter(|client| !present.contains(client)).collect();
        let removed = gone.into_iter().map(|client| {
            self.installed.remove(client);
            self.settling.forget(client, retries);
            retries.done(Task::Put(client));
            retries.done(Task::Audit(client));
            Effect::Remove(client)
        });
        removed.collect()
    }

    /// Begins an audit, or ends it with a length of zero.
    pub(super) fn audit(
        &mut self,
        client: IpAddr,
        length: Duration,
        now: Moment,
        retries: &mut Retries,
    ) -> Vec<Effect> {
        if length.is_zero() {
            return self.end_audits(&[client], retries);
        }
        let mut effects = vec![self.audits.begin(client, length, now)];
        effects.extend(self.audit_all(client, retries));
        effects
    }

    /// Ends audits that have lasted as long as they were meant to, and reminds of the others.
    pub(super) fn audits_due(&mut self, now: Moment, retries: &mut Retries) -> Vec<Effect> {
        let mut effects = self.end_audits(&self.audits.over(now), retries);
        effects.extend(self.audits.remind(now));
        effects
    }

    /// Ends audits of clients that went.
    pub(super) fn end_audits_of_absent(&mut self, retries: &mut Retries) -> Vec<Effect> {
        self.end_audits(&self.audits.absent(&self.installed.addresses()), retries)
    }

    fn end_audits(&mut self, of: &[IpAddr], retries: &mut Retries) -> Vec<Effect> {
        let mut effects = Vec::new();
        for &client in of {
            let Some(told) = self.audits.end(client) else {
                continue;
            };
            effects.push(told);
            effects.extend(self.audit_all(client, retries));
        }
        effects
    }

    /// What has to be done on all vifs of a client after its audit has changed.
    fn audit_all(&mut self, address: IpAddr, retries: &mut Retries) -> Vec<Effect> {
        let clients = self.installed.of(address).into_iter();
        clients.map(|client| self.audit_effect(client, retries)).collect()
    }

    /// Makes the kernel audit a client, or not any more. Either way the client settles.
    pub(super) fn audit_effect(&mut self, client: ClientId, retries: &mut Retries) -> Effect {
        self.settling.settle(client, retries);
        self.audits.effect(client)
    }

    /// What was put in force is all that packets have been judged by for a moment.
    pub(super) fn quiet(&mut self, retries: &mut Retries) -> Option<Effect> {
        self.settling.quiet(retries)
    }

    /// Begins to look through connections, if a client waits for that.
    pub(super) fn begin(&mut self, retries: &mut Retries) -> Option<Effect> {
        self.settling.begin(retries)
    }

    /// Judges a part of the table of connections, by what is in force for each client now.
    pub(super) fn connections<Denied: Fn(&Packet) -> bool>(
        &self,
        flows: Vec<Flow>,
        judge_of: impl Fn(ClientId) -> Denied,
    ) -> Option<Effect> {
        self.settling.connections(flows, judge_of)
    }

    /// Takes in how many connections have ended, and which have not.
    pub(super) fn disconnected(&mut self, gone: usize, refused: BTreeMap<IpAddr, String>) {
        self.settling.disconnected(gone, refused);
    }

    /// The table of connections was read to its end, or cannot be.
    pub(super) fn connections_read(
        &mut self,
        outcome: Result<(), Why>,
        now: Moment,
        retries: &mut Retries,
    ) -> Vec<Effect> {
        self.settling.connections_read(outcome, now, retries)
    }

    /// A client's rules were handled. The source is told when what they deny has ended.
    pub(super) fn handled(&mut self, client: IpAddr) -> Vec<Effect> {
        self.settling.handled(client)
    }

    /// Tells the source of the clients that have settled since.
    pub(super) fn handled_by_now(&mut self) -> Vec<Effect> {
        self.settling.handled_by_now()
    }
}
