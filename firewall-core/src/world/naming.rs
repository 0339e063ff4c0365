//! Names in clients' rules: which matter, and what comes of answers.
//! Never asks; see `names.rs` for what is known about each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Standing, World};
use crate::events::{Effect, Notice};
use crate::names::MOST_ADDRESSES;
use crate::names::answer::Outcome;
use crate::rules::question::Addresses;
use crate::rules::question::Question;
use crate::rules::{Destination, Family, Ruleset, relevant};
use crate::time::Moment;

impl World {
    pub(super) fn servers(&mut self, of_clients: Vec<IpAddr>, own: Vec<IpAddr>) -> Vec<Effect> {
        let mut effects = Vec::new();
        // Behind a stub that stays the same, servers may be other ones now.
        if self.servers != own || self.surroundings.resolvers != of_clients {
            self.servers = own;
            effects.extend(self.ask_all());
        }
        if self.surroundings.resolvers != of_clients {
            self.surroundings.resolvers = of_clients;
            effects.push(Effect::Redirect(self.surroundings.redirections()));
            effects.extend(self.reconsider(|_, _| true));
        }
        effects
    }

    /// Names are asked anew, and what was asked before is forgotten.
    pub(super) fn ask_all(&mut self) -> [Effect; 1] {
        self.names.ask_all();
        [Effect::SetServers(self.servers.clone())]
    }

    pub(super) fn time(&mut self, now: Moment) -> Vec<Effect> {
        let mut effects = self.audits_due(now);
        effects.extend(self.retry(now));
        effects.extend(self.begin());
        let mut changed = BTreeSet::new();
        if std::mem::take(&mut self.are_names_old) {
            let wanted = self.wanted_names();
            changed.extend(self.names.want(&wanted));
        }
        changed.extend(self.names.age(now));
        effects.extend(self.learn(&changed));
        effects.extend(self.names.take_due(now).into_iter().map(Effect::Ask));
        if self.names.take_look(now) {
            effects.extend(self.look(now));
        }
        effects
    }

    /// Finds out which addresses that have been away long enough are in use.
    pub(super) fn look(&self, now: Moment) -> Option<Effect> {
        let to: BTreeSet<IpAddr> = self.names.late(now).map(|(_, address)| address).collect();
        (!to.is_empty()).then_some(Effect::ReadFlows { to, now })
    }

    /// The names that make a difference to some client that is there, or that the source
    /// says may come. Rules of clients that are gone stay in QubesDB for good.
    fn wanted_names(&self) -> BTreeSet<Question> {
        let rulesets = self.rulesets.iter().filter(|(client, _)| self.connected.contains(client));
        let usable = rulesets.filter_map(|(client, rules)| Some((client, rules.as_ref().ok()?)));
        let names = usable.flat_map(|(client, rules)| {
            let family = Family::from(*client);
            let names = relevant::names(rules).into_iter();
            names.map(move |name| Question { name: name.to_owned(), family })
        });
        names.collect()
    }

    pub(super) fn answered(
        &mut self,
        outcomes: Vec<(Question, Outcome)>,
        now: Moment,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut changed = BTreeSet::new();
        for (question, outcome) in outcomes {
            let problem = self.name_problem(&question);
            if self.names.answered(&question, outcome, now) {
                changed.insert(question.clone());
            }
            let why = self.name_problem(&question);
            if why != problem {
                effects.push(Effect::Tell(Notice::NameProblem { question, why }));
            }
        }
        effects.extend(self.learn(&changed));
        effects
    }

    /// Addresses stay as long as a client whose rules have the name is connected to them.
    pub(super) fn in_use(
        &mut self,
        flows: &BTreeSet<(IpAddr, IpAddr)>,
        now: Moment,
    ) -> Vec<Effect> {
        let is_used = |(question, address): &(&Question, IpAddr)| {
            self.users(question).keys().any(|client| flows.contains(&(*client, *address)))
        };
        let used = self.names.late(now).filter(is_used);
        let used = used.map(|(question, address)| (question.clone(), address)).collect();
        let changed = self.names.leave(&used, now);
        self.learn(&changed)
    }

    /// What is wrong with a name, if anything is.
    pub(super) fn name_problem(&self, question: &Question) -> Option<String> {
        let name = self.names.get(question)?;
        if let Some(problem) = &name.problem {
            return Some(problem.clone());
        }
        if name.crowded_until.is_some() {
            return Some(format!(
                "more than {MOST_ADDRESSES} addresses: accept rules use {MOST_ADDRESSES} of them, \
                 drop rules match every address"
            ));
        }
        let refused = self.names.refused(question);
        let list: Vec<String> = refused.iter().map(IpAddr::to_string).collect();
        let list = list.join(", ");
        (!list.is_empty()).then(|| format!("no public address: {list}; accept rules leave it out"))
    }

    /// Names lead elsewhere: what uses them is worked out anew.
    fn learn(&mut self, changed: &BTreeSet<Question>) -> Vec<Effect> {
        if changed.is_empty() {
            return Vec::new();
        }
        let mut effects = Vec::new();
        for question in changed {
            let addresses = self.names.addresses(question);
            let before = self.surroundings.names.get(question).map(all).unwrap_or_default();
            let now = addresses.as_ref().map(all).unwrap_or_default();
            if before != now && self.names.get(question).is_some() {
                let (added, gone) = (&now - &before, &before - &now);
                let question = question.clone();
                effects.push(Effect::Tell(Notice::Name { question, added, gone }));
            }
            match addresses {
                Some(addresses) => self.surroundings.names.insert(question.clone(), addresses),
                None => self.surroundings.names.remove(question),
            };
        }
        let uses = |client: IpAddr, rules: &Ruleset| {
            let family = Family::from(client);
            let mut names = names(rules);
            names.any(|name| changed.contains(&Question { name: name.to_owned(), family }))
        };
        effects.extend(self.reconsider(uses));
        let users = self.rulesets.iter().filter_map(|(client, rules)| {
            rules.as_ref().is_ok_and(|rules| uses(*client, rules)).then_some(*client)
        });
        effects.extend(users.map(|client| self.publish(client)));
        effects.push(Effect::Remember(self.names.to_remember()));
        effects
    }

    /// What the source is told about names in a client's rules.
    pub(super) fn publish(&self, client: IpAddr) -> Effect {
        let rules = match self.standings.get(&client) {
            Some(Standing::Live(live)) => Some(&live.ruleset),
            Some(Standing::Waiting | Standing::Blocked(_)) | None => None,
        };
        let family = Family::from(client);
        let resolved = rules.into_iter().flat_map(names).filter_map(|name| {
            let question = Question { name: name.to_owned(), family };
            let addresses = self.surroundings.names.get(&question)?;
            Some((question.name, addresses.accept.clone()))
        });
        Effect::Publish { client, names: resolved.collect::<BTreeMap<_, _>>() }
    }

    /// Names in rules that may lead to an address.
    pub fn names_of(&self, address: IpAddr) -> Vec<&str> {
        let family = Family::from(address);
        let names = self.surroundings.names.iter().filter(|(question, addresses)| {
            question.family == family && addresses.accept.contains(&address)
        });
        names.map(|(question, _)| question.name.as_str()).collect()
    }

    /// When something is to be done about names, audits, or what did not work, if at all:
    /// [`crate::events::Event::Time`].
    pub fn next_time(&self) -> Option<Moment> {
        [self.names.next(), self.next_of_audits(), self.retries.next()].into_iter().flatten().min()
    }
}

/// Every address of a name, whether a rule may use it or not.
fn all(addresses: &Addresses) -> BTreeSet<IpAddr> {
    addresses.accept.iter().chain(addresses.drop.iter().flatten()).copied().collect()
}

fn names(rules: &Ruleset) -> impl Iterator<Item = &str> {
    rules.rules.iter().filter_map(|rule| match &rule.destination {
        Destination::Name(name) => Some(name.as_str()),
        Destination::Any | Destination::Network(_) => None,
    })
}
