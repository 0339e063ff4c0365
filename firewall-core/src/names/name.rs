//! All that is known about one name in one family.
//! Never asks, and never reads a clock: time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::lifetimes::{BETWEEN_QUESTIONS, GRACE, OLDEST, pause};
use super::rebinding::Guard;
use crate::rules::question::{Addresses, Question};
use crate::time::Moment;

/// Most addresses of one name in one family.
pub const MOST_ADDRESSES: usize = 256;

/// An answer, and when it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastAnswer {
    /// The addresses in the answer.
    pub addresses: BTreeSet<IpAddr>,
    /// When the answer came.
    pub at: Moment,
}

/// All that is known about one question.
#[derive(Clone, Debug, Default)]
pub struct Name {
    /// Every address that is used, and when it was last in the answer in force, or found in
    /// use after that.
    pub seen: BTreeMap<IpAddr, Moment>,
    /// The answer in force; `None` if there was none yet, if the name does not exist, or if the
    /// answer is older than a day.
    pub answer: Option<LastAnswer>,
    /// Until when addresses may be missing, since there were more than [`MOST_ADDRESSES`].
    pub crowded_until: Option<Moment>,
    /// When DNS is to be asked next.
    pub due: Moment,
    /// Whether DNS is being asked.
    pub is_asked: bool,
    /// When DNS was asked last.
    pub asked: Moment,
    /// Whether nothing is known, and somebody waits for what comes of the next question.
    pub is_awaited: bool,
    /// Failures since the last answer.
    pub failures: u32,
    /// What the last failure was; `None` after an answer.
    pub problem: Option<String>,
    /// How often an answer had an address that no accept rule may use.
    pub refused: u64,
}

impl Name {
    /// Whether an address is in the answer in force.
    pub fn is_current(&self, address: &IpAddr) -> bool {
        self.answer.as_ref().is_some_and(|answer| answer.addresses.contains(address))
    }

    /// Addresses that are in no answer any more, and how long they stay.
    pub(super) fn leaving(&self) -> impl Iterator<Item = (IpAddr, Moment)> {
        let gone = self.seen.iter().filter(|(address, _)| !self.is_current(address));
        gone.map(|(address, seen)| (*address, *seen + GRACE))
    }

    /// When something is to be done about it, if the kernel can be asked from then on.
    pub(super) fn next(&self, look_at: Moment) -> Option<Moment> {
        let ask = Some(self.due).filter(|_| !self.is_asked);
        let leave = self.leaving().map(|(_, until)| until.max(look_at)).min();
        let old = self.answer.as_ref().map(|answer| answer.at + OLDEST);
        [ask, leave, old, self.crowded_until].into_iter().flatten().min()
    }

    /// Takes in an answer.
    pub(super) fn answered(&mut self, mut addresses: BTreeSet<IpAddr>, now: Moment) {
        let was_too_many = addresses.len() > MOST_ADDRESSES;
        while addresses.len() > MOST_ADDRESSES {
            addresses.pop_last();
        }
        self.put_aside(now);
        self.seen.extend(addresses.iter().map(|address| (*address, now)));
        self.answer = Some(LastAnswer { addresses, at: now });
        if self.seen.len() > MOST_ADDRESSES || was_too_many {
            self.crowded_until = Some(now + GRACE);
        }
        // Those go that have been away longest.
        let mut leaving: Vec<(IpAddr, Moment)> = self.leaving().collect();
        leaving.sort_by_key(|(_, until)| *until);
        let surplus = self.seen.len().saturating_sub(MOST_ADDRESSES);
        for (address, _) in leaving.iter().take(surplus) {
            self.seen.remove(address);
        }
    }

    /// There is no answer in force any more; its addresses stay for a while.
    pub(super) fn put_aside(&mut self, now: Moment) {
        let before = self.answer.take().map(|answer| answer.addresses);
        self.seen.extend(before.into_iter().flatten().map(|address| (address, now)));
    }

    /// Somebody wrote rules with the name. If it failed, it is asked again, but not in each second
    /// more than once: rules may be written in a loop. If nothing is known, that is waited for.
    pub(super) fn ask_again(&mut self) {
        if self.problem.is_none() {
            return;
        }
        if !self.is_asked {
            self.due = self.due.min(self.asked + BETWEEN_QUESTIONS);
        }
        self.is_awaited = self.is_unknown();
    }

    /// Whether rules with the name have no address to go by.
    fn is_unknown(&self) -> bool {
        self.answer.is_none() && self.seen.is_empty()
    }

    pub(super) fn failed(&mut self, question: &Question, problem: String, now: Moment) {
        self.due = now + pause(question, self.failures);
        self.failures = self.failures.saturating_add(1);
        self.problem = Some(problem);
    }

    pub(super) fn addresses(&self, name: &str, guard: &Guard) -> Option<Addresses> {
        if self.is_unknown() {
            return None;
        }
        let known = || self.seen.keys().copied();
        let accept = known().filter(|address| guard.allows(name, *address)).collect();
        let drop = self.crowded_until.is_none().then(|| known().collect());
        Some(Addresses { accept, drop })
    }
}
