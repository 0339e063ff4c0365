//! PURE: names in clients' rules: which matter, and what comes of answers.
//! Never asks; see `names.rs` for what is known about each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Standing, World};
use crate::events::{Answer, Effect, Notice, Question};
use crate::names::Moment;
use crate::rules::{Destination, Family, Ruleset, relevant};

impl World {
    pub(super) fn servers(&mut self, of_clients: Vec<IpAddr>, own: Vec<IpAddr>) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.servers != own {
            self.servers.clone_from(&own);
            self.names.hurry(true);
            effects.push(Effect::SetServers(own));
        }
        if self.surroundings.resolvers != of_clients {
            self.surroundings.resolvers = of_clients;
            effects.push(Effect::Redirect(self.surroundings.redirections()));
            effects.extend(self.reconsider(|_, _| true));
        }
        effects
    }

    pub(super) fn time(&mut self, now: Moment) -> Vec<Effect> {
        let mut effects = Vec::new();
        if std::mem::take(&mut self.are_names_old) {
            let wanted = self.wanted_names();
            let changed = self.names.want(&wanted);
            effects.extend(self.learn(&changed));
        }
        effects.extend(self.names.take_due(now).into_iter().map(Effect::Ask));
        if self.names.has_leaving(now) {
            effects.push(Effect::ReadFlows);
        }
        effects
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
        question: &Question,
        outcome: Result<Answer, String>,
        now: Moment,
    ) -> Vec<Effect> {
        let before = self.addresses(question);
        let problem = self.name_problem(question);
        let has_changed = self.names.answered(question, outcome, now);
        let mut effects = Vec::new();
        if let Some(why) = self.name_problem(question).filter(|why| Some(why) != problem.as_ref()) {
            effects.push(Effect::Tell(Notice::NameProblem { question: question.clone(), why }));
        }
        if has_changed {
            let (question, now) = (question.clone(), self.addresses(question));
            let changed = [question.clone()].into();
            if before != now {
                effects.push(Effect::Tell(Notice::Name { question, before, now }));
            }
            effects.extend(self.learn(&changed));
        }
        effects
    }

    pub(super) fn in_use(&mut self, used: &BTreeSet<IpAddr>, now: Moment) -> Vec<Effect> {
        let changed = self.names.leave(used, now);
        self.learn(&changed)
    }

    /// All addresses that are known for a name.
    fn addresses(&self, question: &Question) -> BTreeSet<IpAddr> {
        let known = self.names.get(question);
        known.map(|name| name.seen.keys().copied().collect()).unwrap_or_default()
    }

    /// What is wrong with a name, if anything is.
    pub(super) fn name_problem(&self, question: &Question) -> Option<String> {
        if let Some(problem) = &self.names.get(question)?.problem {
            return Some(problem.clone());
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
        for question in changed {
            match self.names.addresses(question) {
                Some(addresses) => self.surroundings.names.insert(question.clone(), addresses),
                None => self.surroundings.names.remove(question),
            };
        }
        let uses = |client: IpAddr, rules: &Ruleset| {
            let family = Family::from(client);
            let mut names = names(rules);
            names.any(|name| changed.contains(&Question { name: name.to_owned(), family }))
        };
        let mut effects = self.reconsider(uses);
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

    /// When something is to be done about names, if at all: [`crate::events::Event::Time`].
    pub fn next_time(&self) -> Option<Moment> {
        self.names.next()
    }
}

fn names(rules: &Ruleset) -> impl Iterator<Item = &str> {
    rules.rules.iter().filter_map(|rule| match &rule.destination {
        Destination::Name(name) => Some(name.as_str()),
        Destination::Any | Destination::Network(_) => None,
    })
}
