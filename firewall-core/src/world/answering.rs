//! Names in the rules of clients: which matter, what an answer changes, and when rules that name
//! them count as handled.
//! Never asks, and never says when: `naming.rs` does.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::World;
use super::commits::Ready;
use crate::events::{Effect, Notice, Task, Why};
use crate::names::answer::Outcome;
use crate::rules::question::Question;
use crate::time::Moment;

impl World {
    /// The names that make a difference to a client that is there, or may come.
    pub(super) fn names_of(&self, client: IpAddr) -> BTreeSet<Question> {
        self.standings.wanted_names(|it| it == client && self.connected.contains(it))
    }

    /// Finds out which names matter, if others may than before.
    pub(super) fn want_names(&mut self) -> Vec<Effect> {
        if !self.naming.take_old() {
            return Vec::new();
        }
        let wanted = self.standings.wanted_names(|client| self.connected.contains(client));
        let changed = self.naming.want(&wanted);
        self.learn(&changed)
    }

    /// A client's rules were written. They count as handled when there was an answer about their
    /// names.
    pub(super) fn await_names(&mut self, client: IpAddr, now: Moment) {
        let mut awaited = BTreeSet::new();
        if self.naming.awaits_any() {
            awaited = self.names_of(client);
        }
        self.commits.add(client, awaited, now);
    }

    /// Tells the source of rules that wait for no name any more, and whose clients have settled.
    pub(super) fn handled_by_now(&mut self, now: Moment) -> Vec<Effect> {
        // Others matter by now, and were not asked.
        if self.commits.is_empty() || self.naming.is_old() {
            return Vec::new();
        }
        let mut effects = Vec::new();
        for Ready { client, unanswered } in
            self.commits.take_ready(now, |question| self.naming.awaits(question))
        {
            if !unanswered.is_empty() {
                effects.push(Effect::Tell(Notice::Unanswered { client, names: unanswered }));
            }
            effects.extend(self.clients.handled(client));
        }
        effects
    }

    /// What the source is told about names in a client's rules.
    pub(super) fn publish(&self, client: IpAddr) -> Effect {
        Effect::Publish { client, names: self.standings.resolved_names(client) }
    }

    /// Takes in what came of questions.
    pub(super) fn answered(
        &mut self,
        outcomes: Vec<(Question, Outcome)>,
        now: Moment,
    ) -> Vec<Effect> {
        let (mut effects, changed) = self.naming.answered(outcomes, now);
        effects.extend(self.learn(&changed));
        effects.extend(self.handled_by_now(now));
        effects
    }

    /// Takes in that all was told which uses addresses that may leave, or why it was not.
    pub(super) fn flows_read(&mut self, outcome: Result<(), Why>, now: Moment) -> Vec<Effect> {
        if let Err(why) = outcome {
            self.naming.give_up();
            return self.retries.fails(Task::ReadFlows, why, now).into_iter().collect();
        }
        let mut effects = Vec::from_iter(self.retries.works(Task::ReadFlows));
        let changed = self.naming.leave(|question| self.standings.users(question));
        effects.extend(self.learn(&changed));
        effects
    }

    /// Names lead elsewhere: what uses them is worked out anew.
    pub(super) fn learn(&mut self, changed: &BTreeSet<Question>) -> Vec<Effect> {
        if changed.is_empty() {
            return Vec::new();
        }
        let mut effects = Vec::new();
        for question in changed {
            let before = self.standings.set_name(question, self.naming.addresses(question));
            effects.extend(self.naming.moved(question, before.as_ref()));
        }
        let changes = self.standings.names_changed(changed);
        effects.extend(self.follow_changes(changes));
        let users = self.standings.users_of(changed).into_iter();
        effects.extend(users.map(|client| self.publish(client)));
        effects
    }
}
