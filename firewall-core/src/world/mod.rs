//! All memory of the agent, in parts of which each remembers one thing. It is told what happened
//! and answers what to do.
//! Never does I/O, never reads a clock, never sleeps; and remembers nothing beside the parts but
//! settings.
//!
//! | part | remembers |
//! |---|---|
//! | `start`, `source` | what is waited for at first; whether rules can be read |
//! | `links`, `connected` | links; which addresses belong to clients |
//! | `standings` | rules, and what they come to |
//! | `clients` | `installed`, `audits`, `settling`: what is in force for each client that is there |
//! | `naming`, `commits` | names in rules; rules that wait for a first answer |
//! | `passage` | whether what rules accept leaves |
//! | `gate` | whether the gate is in force, and where it leads DNS |
//! | `gateway` | in a Whonix gateway, who may use Tor's services without a rule |
//! | `uplinks` | the only links by which clients' packets may leave |
//! | `hits`, `denials` | when rules decided last; how many denied packets were told |
//! | `retries`, `rest` | what did not work; when maps are put in order |
//!
//! Clients come from links (vif and address), rules come from a source, by address. What is in
//! force for a client follows from both.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use crate::client::{ClientId, Links};
use crate::events::{Effect, Event, Notice, Task};
use crate::names::rebinding::Guard;
use crate::time::Moment;
use crate::told::status::Mode;
use crate::tor::{Access, Each};
use crate::uplinks::Uplinks;

mod answering;
mod auditing;
pub mod audits;
mod clients;
mod commits;
mod connected;
mod denials;
mod denying;
mod explaining;
mod gate;
mod gateway;
mod hits;
mod installed;
mod judging;
mod links;
mod naming;
mod own;
mod passage;
mod presence;
mod resolvers;
mod rest;
mod retries;
mod retrying;
mod routed;
mod settling;
mod source;
mod standings;
mod start;
mod status;
mod summary;
mod uplinks;

use self::clients::Clients;
use self::commits::Commits;
use self::connected::Connected;
use self::denials::Denials;
use self::gate::Gate;
use self::gateway::Gateway;
use self::hits::Hits;
use self::links::KnownLinks;
use self::naming::Naming;
use self::passage::Passage;
use self::rest::Rest;
use self::retries::Retries;
use self::source::Source;
use self::standings::{Change, Read, Standings};
use self::start::Start;
use self::uplinks::Limit;

/// What whoever runs the agent wants, as far as the world needs it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Which names may lead into private networks.
    pub guard: Guard,
    /// Who translates addresses.
    pub mode: Mode,
    /// Where the gate in force leads DNS: pairs of a virtual resolver and a real one.
    pub redirections: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// Whether IPv6 neighbour discovery in which a client speaks for others is dropped.
    pub guards_neighbours: bool,
    /// The only links by which clients' packets may leave.
    pub uplinks: Option<Uplinks>,
    /// What of that an earlier agent left in force, if the netvm's own key is to be read.
    pub uplinks_before: Option<Uplinks>,
    /// Whether this machine is a Whonix gateway, whatever the mode.
    pub is_gateway: bool,
    /// What clients whose default is `drop` may do with Tor's services there.
    pub tor_services: Each<Option<Access>>,
}

/// All memory of the agent.
#[derive(Debug, Default)]
pub struct World {
    guards_neighbours: bool,
    start: Start,
    source: Source,
    links: KnownLinks,
    connected: Connected,
    standings: Standings,
    clients: Clients,
    naming: Naming,
    commits: Commits,
    gate: Gate,
    gateway: Gateway,
    limit: Limit,
    passage: Passage,
    hits: Hits,
    denials: Denials,
    retries: Retries,
    rest: Rest,
}

impl World {
    /// A world that knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        let Settings { guard, mode, redirections, guards_neighbours, .. } = settings;
        let limit = Limit::new(settings.uplinks, settings.uplinks_before);
        let (naming, gate) = (Naming::new(guard), Gate::new(mode, redirections));
        let gateway = Gateway::new(settings.is_gateway, settings.tor_services);
        let mut world = Self { guards_neighbours, naming, gate, gateway, limit, ..Self::default() };
        if world.judges_all() {
            // No client has rules yet, so nothing changes by that.
            let _ = world.standings.set_gateway(world.gateway.in_force());
            world.limit = Limit::default();
        }
        world
    }

    /// Takes in what happened and answers what to do, in this order.
    pub fn step(&mut self, now: Moment, event: Event) -> Vec<Effect> {
        let retries = &mut self.retries;
        let one = |effect: Option<Effect>| effect.into_iter().collect();
        match event {
            Event::Links(links) => self.links(links),
            Event::AllRules(rules) => self.all_rules(rules, now),
            Event::Rules { client, rules } => self.rules(client, rules, now),
            Event::Connected(named) => {
                self.connected.name(named);
                one(self.connect())
            }
            Event::Uplinks(key) => self.uplinks(key),
            Event::TorServices(keys) => self.tor_services(&keys),
            Event::Source(problem) => one(self.source.set_problem(problem)),
            Event::Servers { of_clients, own } => self.servers(of_clients, own),
            Event::Remembered(names) => {
                self.naming.recall(names, now);
                Vec::new()
            }
            Event::Answered(outcomes) => self.answered(outcomes, now),
            Event::AskAll => vec![self.naming.ask_all()],
            Event::Flows(flows) => {
                self.naming.found(flows);
                Vec::new()
            }
            Event::FlowsRead(outcome) => self.flows_read(outcome, now),
            Event::Connections(flows) => {
                one(self.clients.connections(flows, |client| self.judge_of(client)))
            }
            Event::ConnectionsRead(outcome) => {
                self.rest.put_off(now);
                self.clients.connections_read(outcome, now, retries)
            }
            Event::Disconnected { gone, refused } => {
                self.clients.disconnected(gone, refused);
                Vec::new()
            }
            Event::Audit { client, length } => self.audit(client, length, now),
            Event::Time => self.time(now),
            Event::Attached { link, outcome } => one(self.links.attached(link, outcome)),
            Event::Detached(links) => self.links.detached(&links),
            Event::Refused { client, why, may_pass } => {
                self.clients.refused(client, why, may_pass, now, retries)
            }
            Event::Tried { task, outcome } => self.tried(task, outcome, now),
            Event::Done { has_replaced } => {
                let is_waited_for =
                    self.is_to_become_quiet() || self.retries.is_failing(Task::Tidy);
                one((has_replaced || is_waited_for).then_some(Effect::Tidy))
            }
            Event::Resting { is_prepared } => {
                self.rest.begin(is_prepared, now);
                let is_failing = self.retries.is_failing(Task::Prepare);
                let prepare = is_failing.then_some(Effect::Prepare);
                prepare.into_iter().chain(self.source.ready()).collect()
            }
            Event::Gate(look) => self.gate_looked(look),
            // What rules accept there is for Tor, and does not leave.
            Event::Passage(_) if self.judges_all() => Vec::new(),
            Event::Passage(frames) => {
                let is_watched = self.links.unguarded().is_empty();
                one(self.passage.look(frames, is_watched, now))
            }
            Event::Between(between) => one(self.passage.between(between)),
            Event::NotRedirected(resolvers) => self.not_redirected(resolvers),
            Event::AnswersDenied(outcome) => one(self.gate.answers(outcome)),
            Event::GateLoaded(outcome) => self.gate_loaded(outcome),
            Event::Denied { records, time_ms } => {
                records.iter().for_each(|record| self.denials.count(record));
                let denied = records.iter().map(|record| self.denied(record, time_ms));
                denied.map(|denied| Effect::Denied(Box::new(denied))).collect()
            }
            Event::Counted(counters) => {
                self.counted(counters, now);
                Vec::new()
            }
            Event::Reload => self.source.reload().into(),
            Event::Resync => {
                self.naming.write().into_iter().chain([Effect::ResyncSource]).collect()
            }
            Event::Stopping { opens } => self.stopping(opens),
        }
    }

    /// When [`Event::Time`] is to be told next, for something about names, audits, or what did not
    /// work; `None` if never.
    pub fn next_time(&self) -> Option<Moment> {
        let audits = self.clients.audits().next();
        let rest = self.rest.next().filter(|_| !self.clients.settling().is_reading());
        [self.naming.next(), self.commits.next(), audits, self.retries.next(), rest]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether packets that were judged by what was in force before may still be on their way.
    pub fn is_to_become_quiet(&self) -> bool {
        self.clients.settling().is_to_become_quiet()
    }

    /// How many clients settle.
    pub fn count_settling(&self) -> usize {
        self.clients.settling().count()
    }

    fn links(&mut self, links: Links) -> Vec<Effect> {
        let mut told = self.see_uplinks(&links);
        told.extend(self.retries.works(Task::Links));
        let effects = match self.start.links(links) {
            Some(links) => self.follow_links(links, false),
            None => self.take_over(),
        };
        told.into_iter().chain(effects).collect()
    }

    /// Begins to put things in force, once it is known what.
    fn take_over(&mut self) -> Vec<Effect> {
        let Some(links) = self.start.take() else {
            return Vec::new();
        };
        let mut effects = self.follow_links(links, true);
        effects.push(Effect::TakenOver(self.links.in_use()));
        // Until now, an earlier agent's programs noted in tables of their own what was opened.
        effects.push(Effect::NoteOpenings(self.links.clients(self.standings.addresses())));
        effects
    }

    fn follow_links(&mut self, mut links: Links, takes_over: bool) -> Vec<Effect> {
        let mut effects = self.links.rename(&links);
        if let Some(effect) = self.links.set_locals(&links.locals) {
            self.naming.retry();
            effects.push(effect);
        }
        effects.extend(self.links.place(&mut links));
        let present = self.links.clients(self.standings.addresses());
        let removed = self.clients.leave(&present, &mut self.retries);
        let has_room = !removed.is_empty();
        effects.extend(removed);
        effects.extend(self.clients.handled_by_now());
        effects.extend(self.clients.end_audits_of_absent(&mut self.retries));
        effects.extend(self.links.leave(&links));
        effects.extend(self.links.guard(links.uplinks));
        effects.extend(takes_over.then(|| Effect::NoteOpenings(present.clone())));
        // First what is in force, then the program: one that takes over from an earlier
        // agent's knows its clients from its first packet on.
        for client in present {
            let installed = self.clients.installed();
            let is_new = !installed.is_present(client);
            if is_new || has_room && installed.refusal(client).is_some() {
                effects.extend(self.put(client, false));
            }
        }
        effects.extend(self.connect());
        let vifs = links.vifs.iter().map(|vif| vif.name.clone());
        effects.extend(self.gate.see(vifs.collect()));
        effects.extend(self.links.police(links.vifs));
        effects
    }

    /// Which addresses belong to clients may have changed.
    fn connect(&mut self) -> Option<Effect> {
        let effect = self.connected.update(&self.clients.installed().addresses())?;
        self.naming.grow_old();
        Some(effect)
    }

    fn all_rules(&mut self, rules: BTreeMap<IpAddr, Read>, now: Moment) -> Vec<Effect> {
        self.source.answered();
        let gone = self.standings.addresses().filter(|client| !rules.contains_key(client));
        let gone: Vec<IpAddr> = gone.collect();
        let mut effects: Vec<Effect> =
            gone.into_iter().flat_map(|client| self.replace_rules(client, None)).collect();
        let clients: Vec<IpAddr> = rules.keys().copied().collect();
        for (client, rules) in rules {
            effects.extend(self.replace_rules(client, Some(rules)));
            effects.push(self.publish(client));
        }
        self.start.rules_are_known();
        effects.extend(self.take_over());
        // Nobody wrote all of these just now: what failed is asked again when it is due.
        effects.extend(self.want_names());
        clients.into_iter().for_each(|client| self.await_names(client, now));
        effects.extend(self.handled_by_now(now));
        effects
    }

    fn rules(&mut self, client: IpAddr, rules: Option<Read>, now: Moment) -> Vec<Effect> {
        let mut effects = self.replace_rules(client, rules);
        effects.push(self.publish(client));
        effects.extend(self.want_names());
        self.naming.ask_again(&self.names_of(client));
        self.await_names(client, now);
        effects.extend(self.handled_by_now(now));
        effects
    }

    fn replace_rules(&mut self, client: IpAddr, rules: Option<Read>) -> Vec<Effect> {
        let Some(change) = self.standings.replace(client, rules) else {
            return Vec::new();
        };
        self.naming.grow_old();
        self.follow_rules(change)
    }

    /// Puts what clients' rules come to in force on all their vifs.
    fn follow_changes(&mut self, changes: Vec<Change>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for Change { client, notice, is_to_be_put, is_wider } in changes {
            effects.push(Effect::Tell(notice));
            let clients = self.clients.installed().of(client).into_iter();
            let clients = clients.filter(|_| is_to_be_put);
            effects.extend(clients.flat_map(|client| self.put(client, is_wider)));
        }
        effects
    }

    /// Puts what a client's rules come to in force, which may accept all that was accepted before.
    fn put(&mut self, client: ClientId, is_wider: bool) -> Vec<Effect> {
        let installation = self.standings.installation(client.address);
        self.clients.put(client, installation, is_wider, &mut self.retries)
    }

    fn time(&mut self, now: Moment) -> Vec<Effect> {
        let mut effects = self.clients.audits_due(now, &mut self.retries);
        for task in self.retries.take_due(now) {
            effects.extend(self.retry(task, now));
        }
        effects.extend(self.clients.begin(&mut self.retries));
        if !self.clients.settling().is_reading() && self.rest.take_due(now) {
            effects.push(Effect::Prepare);
        }
        effects.extend(self.want_names());
        let changed = self.naming.age(now);
        effects.extend(self.learn(&changed));
        effects.extend(self.naming.ask(now));
        effects.extend(self.naming.look_if_due(now));
        effects.extend(self.handled_by_now(now));
        effects
    }

    fn counted(&mut self, counters: BTreeMap<ClientId, Vec<u64>>, now: Moment) {
        let (standings, installed) = (&self.standings, self.clients.installed());
        let generation_of = |client: ClientId| {
            standings.live(client.address).and_then(|_| installed.generation(client))
        };
        self.hits.look(counters, generation_of, now);
    }

    fn stopping(&mut self, opens: bool) -> Vec<Effect> {
        let left = Some(self.count_settling()).filter(|settling| !opens && *settling > 0);
        let told = left.map(|settling| Effect::Tell(Notice::Unsettled(settling)));
        told.into_iter().chain(self.naming.write()).collect()
    }
}
