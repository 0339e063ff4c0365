//! PURE: what is known about names: their addresses, how old that is, and what is to be
//! asked next.
//! Never asks, and never reads a clock: time is an argument.
//!
//! An address that left the answers stays for a while, since large services hand out a few
//! of many addresses at a time; and as long as a connection to it is open. What was once
//! known is used until something newer is: a server that is silent changes nothing.

pub mod rebinding;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::time::Duration;

use crate::events::{Answer, Question, Remembered};
use rebinding::Guard;

/// A point in time: how long ago the machine booted, suspends included.
pub type Moment = Duration;

/// No answer is asked for again sooner; some servers say 0.
const FLOOR: Duration = Duration::from_secs(5);
/// None is used longer without asking; some servers say a week.
const CEILING: Duration = Duration::from_secs(3600);
/// How long an address stays that is in no answer any more.
const GRACE: Duration = Duration::from_secs(600);
/// How long after a failure the next attempt is; it doubles with each.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(300);
/// Answers older than this are not taken over from an earlier agent.
const OLDEST: Duration = Duration::from_secs(24 * 3600);
/// Most addresses of one name in one family.
pub const MOST_ADDRESSES: usize = 256;

/// What rules with a name match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Where an accept rule leads.
    pub accept: BTreeSet<IpAddr>,
    /// What a drop rule closes; `None`: everything.
    pub drop: Option<BTreeSet<IpAddr>>,
}

/// All that is known about one question.
#[derive(Clone, Debug, Default)]
pub struct Name {
    /// When each address was last in an answer, or found in use after that.
    pub seen: BTreeMap<IpAddr, Moment>,
    /// Those in the last answer.
    pub current: BTreeSet<IpAddr>,
    /// When that was.
    pub answered: Option<Moment>,
    /// When to ask next.
    pub due: Moment,
    /// Whether it is being asked.
    pub is_asked: bool,
    /// Failures since the last answer.
    pub failures: u32,
    /// The last of them.
    pub problem: Option<String>,
}

impl Name {
    /// When something is to be done about it.
    fn next(&self) -> Option<Moment> {
        let ask = Some(self.due).filter(|_| !self.is_asked);
        ask.into_iter().chain(self.leaving().map(|(_, until)| until)).min()
    }

    /// Addresses that are in no answer any more, and how long they stay.
    fn leaving(&self) -> impl Iterator<Item = (IpAddr, Moment)> {
        let gone = self.seen.iter().filter(|(address, _)| !self.current.contains(address));
        gone.map(|(address, seen)| (*address, *seen + GRACE))
    }

    fn addresses(&self, name: &str, guard: &Guard) -> Option<Addresses> {
        self.answered?;
        let known = self.seen.keys().copied();
        let accept = known.filter(|address| guard.allows(name, *address)).take(MOST_ADDRESSES);
        let drop = Some(self.seen.keys().copied().collect::<BTreeSet<_>>());
        let drop = drop.filter(|all| all.len() <= MOST_ADDRESSES);
        Some(Addresses { accept: accept.collect(), drop })
    }
}

/// What is known about all names that matter.
#[derive(Debug, Default)]
pub struct Names {
    guard: Guard,
    known: BTreeMap<Question, Name>,
    /// What an earlier agent knew, for names that are not asked for yet.
    remembered: BTreeMap<Question, Remembered>,
}

impl Names {
    /// Nothing is known yet.
    pub fn new(guard: Guard) -> Self {
        Self { guard, ..Self::default() }
    }

    /// Takes over what an earlier agent knew, as far as it is not too old.
    pub fn recall(&mut self, remembered: Vec<Remembered>, now: Moment) {
        let usable = remembered.into_iter().filter(|it| it.at <= now && now - it.at <= OLDEST);
        self.remembered = usable.map(|it| (it.question.clone(), it)).collect();
    }

    /// Says which names matter from now on. Returns those about which something is known
    /// from earlier, or was.
    pub fn want(&mut self, wanted: &BTreeSet<Question>) -> BTreeSet<Question> {
        let mut changed = BTreeSet::new();
        self.known.retain(|question, name| {
            let stays = wanted.contains(question);
            if !stays && name.answered.is_some() {
                changed.insert(question.clone());
            }
            stays
        });
        for question in wanted {
            if self.known.contains_key(question) {
                continue;
            }
            let mut name = Name::default();
            if let Some(Remembered { addresses, at, .. }) = self.remembered.remove(question) {
                name.seen = addresses.iter().map(|address| (*address, at)).collect();
                name.current = addresses;
                name.answered = Some(at);
                changed.insert(question.clone());
            }
            self.known.insert(question.clone(), name);
        }
        changed
    }

    /// What is to be asked now. It counts as being asked from then on.
    pub fn take_due(&mut self, now: Moment) -> Vec<Question> {
        let due = self.known.iter_mut().filter(|(_, name)| !name.is_asked && name.due <= now);
        due.map(|(question, name)| {
            name.is_asked = true;
            question.clone()
        })
        .collect()
    }

    /// When something is to be done next, if at all.
    pub fn next(&self) -> Option<Moment> {
        self.known.values().filter_map(Name::next).min()
    }

    /// Takes in what came of a question. Returns whether addresses changed.
    pub fn answered(
        &mut self,
        question: &Question,
        outcome: Result<Answer, String>,
        now: Moment,
    ) -> bool {
        let before = self.addresses(question);
        let Some(name) = self.known.get_mut(question) else {
            return false;
        };
        name.is_asked = false;
        match outcome {
            Ok(Answer { addresses, ttl }) => {
                name.seen.extend(addresses.iter().map(|address| (*address, now)));
                name.current = addresses;
                name.answered = Some(now);
                name.due = now + ttl.clamp(FLOOR, CEILING);
                name.failures = 0;
                name.problem = None;
            }
            Err(problem) => {
                name.due = now + pause(question, name.failures);
                name.failures = name.failures.saturating_add(1);
                name.problem = Some(problem);
            }
        }
        self.addresses(question) != before
    }

    /// The network or the servers changed: what failed is worth another attempt at once. If
    /// the servers changed, so is everything, and answers of the old ones do not come.
    pub fn hurry(&mut self, servers_changed: bool) {
        for name in self.known.values_mut() {
            if servers_changed || name.failures > 0 {
                name.due = Moment::ZERO;
                name.is_asked &= !servers_changed;
            }
        }
    }

    /// Whether addresses have been away long enough to go, unless they are in use.
    pub fn has_leaving(&self, now: Moment) -> bool {
        let mut leaving = self.known.values().flat_map(Name::leaving);
        leaving.any(|(_, until)| until <= now)
    }

    /// Lets go of addresses that have been away long enough and that nobody uses. Returns
    /// the names that changed.
    pub fn leave(&mut self, in_use: &BTreeSet<IpAddr>, now: Moment) -> BTreeSet<Question> {
        let mut changed = BTreeSet::new();
        for (question, name) in &mut self.known {
            let late: Vec<IpAddr> =
                name.leaving().filter(|(_, until)| *until <= now).map(|it| it.0).collect();
            for address in late {
                if in_use.contains(&address) {
                    name.seen.insert(address, now);
                } else {
                    name.seen.remove(&address);
                    changed.insert(question.clone());
                }
            }
        }
        changed
    }

    /// What rules with a name match; `None` if nothing was ever known.
    pub fn addresses(&self, question: &Question) -> Option<Addresses> {
        self.known.get(question)?.addresses(&question.name, &self.guard)
    }

    /// Addresses of a name that no accept rule may use.
    pub fn refused(&self, question: &Question) -> BTreeSet<IpAddr> {
        let seen = self.known.get(question).map(|name| name.seen.keys().copied());
        let seen = seen.into_iter().flatten();
        seen.filter(|address| !self.guard.allows(&question.name, *address)).collect()
    }

    /// All that is known about a name that matters.
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
            let at = name.answered?;
            let addresses = name.current.clone();
            Some(Remembered { question: question.clone(), addresses, at })
        });
        // What is not asked for again yet may be so later.
        answered.chain(self.remembered.values().cloned()).collect()
    }
}

/// How long to wait after so many failures. Names that failed together are not asked again
/// together: up to a quarter is added, another part for each name and each time.
fn pause(question: &Question, failures: u32) -> Duration {
    let pause = FIRST_RETRY.saturating_mul(2_u32.saturating_pow(failures)).min(LAST_RETRY);
    let mut hasher = DefaultHasher::new();
    (question, failures).hash(&mut hasher);
    let part = u32::try_from(hasher.finish() % 256).unwrap_or(0);
    pause + pause / 4 * part / 256
}
