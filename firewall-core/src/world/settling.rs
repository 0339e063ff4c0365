//! Clients that settle: which connections of theirs end, and when all of these have.
//! Never reads the kernel's table of connections; it is told what is there, part by part.
//!
//! A client settles from whatever is put in force for it that may deny what was accepted before, until a reading of the table that
//! began later has come to its end, and everything has ended that is denied by then. If it
//! begins to settle anew meanwhile, that reading does not count for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use firewall_common::packet::Packet;

use super::retries::Retries;
use crate::client::ClientId;
use crate::connection::Flow;
use crate::events::{Effect, Notice, Task, Why};
use crate::time::Moment;

/// How far a client has settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Packets that were judged by what was in force before may still be on their way, and
    /// open a connection.
    Fresh,
    /// There are none any more: its connections can be looked through.
    Quiet,
}

/// A reading of the table.
#[derive(Debug, Default)]
struct Pass {
    /// The clients for which it counts.
    clients: BTreeSet<ClientId>,
    /// How many connections have ended.
    ended: usize,
    /// Who opened connections that could not be ended, and why.
    refused: BTreeMap<IpAddr, String>,
}

/// Who settles.
#[derive(Debug, Default)]
pub(super) struct Settling {
    clients: BTreeMap<ClientId, Stage>,
    pass: Option<Pass>,
    /// Clients' addresses whose rules were handled, and how often, which the source does not
    /// know yet.
    handled: BTreeMap<IpAddr, usize>,
}

impl Settling {
    /// A client begins to settle, or begins anew.
    pub(super) fn settle(&mut self, client: ClientId, retries: &mut Retries) {
        self.clients.insert(client, Stage::Fresh);
        if let Some(pass) = &mut self.pass {
            pass.clients.remove(&client);
        }
        retries.done(Task::Cut(client));
        // It would end what has just begun.
        retries.done(Task::Settled(client));
    }

    /// A client is gone, and with it the need to settle.
    pub(super) fn forget(&mut self, client: ClientId, retries: &mut Retries) {
        self.settle(client, retries);
        self.clients.remove(&client);
    }

    /// Whether a client settles.
    pub(super) fn contains(&self, client: ClientId) -> bool {
        self.clients.contains_key(&client)
    }

    /// Whether connections are being looked through.
    pub(super) fn is_reading(&self) -> bool {
        self.pass.is_some()
    }

    /// How many clients settle.
    pub(super) fn count(&self) -> usize {
        self.clients.len()
    }

    /// Whether packets that were judged by what was in force before may still be on their way.
    pub(super) fn is_to_become_quiet(&self) -> bool {
        self.clients.values().any(|stage| *stage == Stage::Fresh)
    }

    /// What was put in force is all that packets have been judged by for a moment.
    pub(super) fn quiet(&mut self, retries: &mut Retries) -> Option<Effect> {
        self.clients.values_mut().for_each(|stage| *stage = Stage::Quiet);
        self.begin(retries)
    }

    /// Begins to look through connections, if somebody waits for that.
    pub(super) fn begin(&mut self, retries: &mut Retries) -> Option<Effect> {
        if self.clients.is_empty() {
            retries.done(Task::ReadConnections);
        }
        if self.pass.is_some() || retries.waits(Task::ReadConnections) {
            return None;
        }
        let all = self.clients.iter();
        let quiet = all.filter(|(_, stage)| **stage == Stage::Quiet).map(|(client, _)| *client);
        let clients: BTreeSet<ClientId> = quiet.collect();
        if clients.iter().all(|client| retries.waits(Task::Cut(*client))) {
            return None;
        }
        let addresses = clients.iter().map(|client| client.address).collect();
        self.pass = Some(Pass { clients, ..Pass::default() });
        Some(Effect::ReadConnections(addresses))
    }

    /// Judges a part of the table, by what is in force for each client now.
    pub(super) fn connections<Denied: Fn(&Packet) -> bool>(
        &self,
        flows: Vec<Flow>,
        judge_of: impl Fn(ClientId) -> Denied,
    ) -> Option<Effect> {
        let pass = self.pass.as_ref()?;
        let mut by_source: BTreeMap<IpAddr, Vec<Flow>> = BTreeMap::new();
        for flow in flows {
            by_source.entry(flow.source()).or_default().push(flow);
        }
        let mut denied = Vec::new();
        for client in &pass.clients {
            if let Some(flows) = by_source.get_mut(&client.address) {
                let is_denied = judge_of(*client);
                denied.extend(flows.extract_if(.., |flow| is_denied(&flow.packet)));
            }
        }
        (!denied.is_empty()).then_some(Effect::Disconnect(denied))
    }

    /// Takes in how many connections have ended, and which have not.
    pub(super) fn disconnected(&mut self, gone: usize, refused: BTreeMap<IpAddr, String>) {
        if let Some(pass) = &mut self.pass {
            pass.ended = pass.ended.saturating_add(gone);
            pass.refused.extend(refused);
        }
    }

    /// The table was read to its end, or cannot be.
    pub(super) fn connections_read(
        &mut self,
        outcome: Result<(), Why>,
        now: Moment,
        retries: &mut Retries,
    ) -> Vec<Effect> {
        let Some(Pass { clients, ended, refused }) = self.pass.take() else {
            return Vec::new();
        };
        let mut effects = Vec::new();
        if ended > 0 {
            effects.push(Effect::Tell(Notice::Ended(ended)));
        }
        let is_whole = outcome.is_ok();
        effects.extend(match outcome {
            Ok(()) => retries.works(Task::ReadConnections),
            Err(why) => retries.fails(Task::ReadConnections, why, now),
        });
        for client in clients.into_iter().filter(|_| is_whole) {
            if let Some(why) = refused.get(&client.address) {
                effects.extend(retries.fails(Task::Cut(client), Why(why.clone()), now));
            } else {
                self.clients.remove(&client);
                effects.extend(retries.works(Task::Cut(client)));
                effects.push(Effect::Settled(client));
            }
        }
        effects.extend(self.handled_by_now());
        effects.extend(self.begin(retries));
        effects
    }

    /// A client's rules were handled. The source is told when what they deny has ended.
    pub(super) fn handled(&mut self, client: IpAddr) -> Vec<Effect> {
        *self.handled.entry(client).or_default() += 1;
        self.handled_by_now()
    }

    /// Tells the source of the clients that have settled since.
    pub(super) fn handled_by_now(&mut self) -> Vec<Effect> {
        let Self { clients, handled, .. } = self;
        let settling: BTreeSet<IpAddr> = clients.keys().map(|client| client.address).collect();
        let settled = handled.extract_if(.., |client, _| !settling.contains(client));
        // Each time that rules were written is told: somebody may count.
        settled.flat_map(|(client, times)| vec![Effect::Handled(client); times]).collect()
    }
}
