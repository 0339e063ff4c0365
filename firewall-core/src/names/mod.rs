//! What is known about names: their addresses, how old that is, and what is to be
//! asked next.
//! Never asks, and never reads a clock: time is an argument.
//!
//! An address that left the answers stays for a while, since large services hand out a few
//! of many addresses at a time; and as long as a connection to it is open. The last answer
//! is used until there is a newer one or it is a day old: a server that is silent changes
//! nothing. If servers say that the name does not exist, its addresses leave like others,
//! and with the last of them the name is unresolved again.

pub mod answer;
mod lifetimes;
pub mod name;
pub mod rebinding;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use self::answer::{Answer, Failure, Outcome, Remembered};
use self::lifetimes::{BETWEEN_LOOKS, OLDEST, until_next};
use self::name::{LastAnswer, Name};
use self::rebinding::Guard;
use crate::rules::question::{Addresses, Question};
use crate::time::Moment;

/// What is known about all names that matter.
#[derive(Debug, Default)]
pub struct Names {
    guard: Guard,
    known: BTreeMap<Question, Name>,
    /// What an earlier agent knew, for names that are not asked for yet.
    remembered: BTreeMap<Question, Remembered>,
    /// When the kernel may be asked again what is in use.
    look_at: Moment,
}

impl Names {
    /// Names of which nothing is known yet.
    pub fn new(guard: Guard) -> Self {
        Self { guard, ..Self::default() }
    }

    /// Takes over what an earlier agent knew, as far as it is not older than a day.
    pub fn recall(&mut self, remembered: Vec<Remembered>, now: Moment) {
        let usable = remembered.into_iter().filter(|it| it.at <= now && now.since(it.at) <= OLDEST);
        let usable = usable.map(|mut it| {
            it.leaving.retain(|_, since| *since <= now);
            (it.question.clone(), it)
        });
        self.remembered = usable.collect();
    }

    /// Says which names matter from now on. Returns the names that lead elsewhere by that: new ones
    /// about which something is known from earlier, and known ones that matter no more.
    pub fn want(&mut self, wanted: &BTreeSet<Question>) -> BTreeSet<Question> {
        let mut changed = BTreeSet::new();
        self.known.retain(|question, name| {
            let stays = wanted.contains(question);
            if !stays && name.addresses(&question.name, &self.guard).is_some() {
                changed.insert(question.clone());
            }
            stays
        });
        for question in wanted {
            if self.known.contains_key(question) {
                continue;
            }
            let mut name = Name { is_awaited: true, ..Name::default() };
            if let Some(Remembered { addresses, leaving, at, .. }) =
                self.remembered.remove(question)
            {
                name.seen = leaving;
                name.seen.extend(addresses.iter().map(|address| (*address, at)));
                name.answer = Some(LastAnswer { addresses, at });
                name.is_awaited = false;
                changed.insert(question.clone());
            }
            self.known.insert(question.clone(), name);
        }
        changed
    }

    /// The questions that are to be asked now. They count as being asked from then on.
    pub fn take_due(&mut self, now: Moment) -> Vec<Question> {
        let due = self.known.iter_mut().filter(|(_, name)| !name.is_asked && name.due <= now);
        due.map(|(question, name)| {
            (name.is_asked, name.asked) = (true, now);
            question.clone()
        })
        .collect()
    }

    /// When something is to be done about names next; `None` if never.
    pub fn next(&self) -> Option<Moment> {
        self.known.values().filter_map(|name| name.next(self.look_at)).min()
    }

    /// Takes in what came of a question. Returns whether the addresses of the name changed.
    pub fn answered(&mut self, question: &Question, outcome: Outcome, now: Moment) -> bool {
        let before = self.addresses(question);
        let Some(name) = self.known.get_mut(question) else {
            return false;
        };
        (name.is_asked, name.is_awaited) = (false, false);
        match outcome {
            Ok(Answer { addresses, ttl }) => {
                let is_refused = |it: &&IpAddr| !self.guard.allows(&question.name, **it);
                let refused = addresses.iter().filter(is_refused).count();
                name.refused = name.refused.saturating_add(u64::try_from(refused).unwrap_or(0));
                name.answered(addresses, now);
                name.due = now + until_next(ttl);
                name.failures = 0;
                name.problem = None;
            }
            Err(failure @ Failure::NoSuchName) => {
                name.put_aside(now);
                name.failed(question, failure.to_string(), now);
            }
            Err(failure @ Failure::NoAnswer(_)) => {
                name.failed(question, failure.to_string(), now);
            }
        }
        self.addresses(question) != before
    }

    /// The network changed: what failed is worth another attempt at once.
    pub fn retry(&mut self) {
        let failing = self.known.values_mut().filter(|name| name.problem.is_some());
        failing.for_each(|name| (name.due, name.failures) = (Moment::BOOT, 0));
    }

    /// Somebody wrote rules with these names: those that failed are asked again soon.
    pub fn ask_again(&mut self, questions: &BTreeSet<Question>) {
        let known = self.known.iter_mut().filter(|(question, _)| questions.contains(*question));
        known.for_each(|(_, name)| name.ask_again());
    }

    /// All is to be asked anew; answers to what was asked before do not come.
    pub fn ask_all(&mut self) {
        for name in self.known.values_mut() {
            (name.due, name.failures, name.is_asked) = (Moment::BOOT, 0, false);
        }
    }

    /// Lets answers grow old. Returns the names that lead elsewhere by that.
    pub fn age(&mut self, now: Moment) -> BTreeSet<Question> {
        let mut changed = BTreeSet::new();
        for (question, name) in &mut self.known {
            let before = name.addresses(&question.name, &self.guard);
            if name.answer.as_ref().is_some_and(|answer| answer.at + OLDEST <= now) {
                name.put_aside(now);
            }
            name.crowded_until = name.crowded_until.filter(|until| *until > now);
            if name.addresses(&question.name, &self.guard) != before {
                changed.insert(question.clone());
            }
        }
        changed
    }

    /// Whether it is time to find out which addresses are in use. That counts as done from then on.
    pub fn take_look(&mut self, now: Moment) -> bool {
        let is_time = now >= self.look_at && self.late(now).next().is_some();
        if is_time {
            self.look_at = now + BETWEEN_LOOKS;
        }
        is_time
    }

    /// Addresses that have been away long enough to go, unless they are in use.
    pub fn late(&self, now: Moment) -> impl Iterator<Item = (&Question, IpAddr)> {
        self.known.iter().flat_map(move |(question, name)| {
            let late = name.leaving().filter(move |(_, until)| *until <= now);
            late.map(move |(address, _)| (question, address))
        })
    }

    /// Lets go of addresses that have been away long enough, except those that are in use.
    /// Returns the names that changed.
    pub fn leave(
        &mut self,
        in_use: &BTreeSet<(Question, IpAddr)>,
        now: Moment,
    ) -> BTreeSet<Question> {
        let late: Vec<(Question, IpAddr)> =
            self.late(now).map(|(question, address)| (question.clone(), address)).collect();
        let mut changed = BTreeSet::new();
        for late in late {
            let Some(name) = self.known.get_mut(&late.0) else {
                continue;
            };
            if in_use.contains(&late) {
                name.seen.insert(late.1, now);
            } else {
                name.seen.remove(&late.1);
                changed.insert(late.0);
            }
        }
        changed
    }

    /// What rules with a name match; `None` if the name is unresolved.
    pub fn addresses(&self, question: &Question) -> Option<Addresses> {
        self.known.get(question)?.addresses(&question.name, &self.guard)
    }

    /// Addresses of a name that no accept rule may use.
    pub fn refused(&self, question: &Question) -> BTreeSet<IpAddr> {
        let seen = self.known.get(question).map(|name| name.seen.keys().copied());
        let seen = seen.into_iter().flatten();
        seen.filter(|address| !self.guard.allows(&question.name, *address)).collect()
    }

    /// Whether accept rules would use one of these addresses, if the name were one of those that may
    /// lead into private networks.
    pub fn could_use(&self, refused: &BTreeSet<IpAddr>) -> bool {
        refused.iter().any(|address| self.guard.would_allow(*address))
    }

    /// All that is known about a name; `None` if it does not matter.
    pub fn get(&self, question: &Question) -> Option<&Name> {
        self.known.get(question)
    }

    /// All names that matter.
    pub fn iter(&self) -> impl Iterator<Item = (&Question, &Name)> {
        self.known.iter()
    }

    /// What a later agent may take over.
    pub fn to_remember(&self) -> Vec<Remembered> {
        let answered = self.known.iter().filter_map(|(question, name)| {
            let LastAnswer { addresses, at } = name.answer.clone()?;
            let mut leaving = name.seen.clone();
            leaving.retain(|address, _| !addresses.contains(address));
            Some(Remembered { question: question.clone(), addresses, leaving, at })
        });
        // What is not asked for again yet may be so later.
        answered.chain(self.remembered.values().cloned()).collect()
    }
}
