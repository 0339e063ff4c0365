//! What is known of the gate: whether it is in force, what others added to it, and where it leads DNS.
//! Never knows its own rules.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::World;
use crate::events::{Effect, GateLook, Notice, Why};
use crate::told::added::AddedRule;
use crate::told::status::Mode;

/// Pairs of a virtual resolver and the real one behind it.
pub(super) type Redirections = Vec<(Ipv4Addr, Ipv4Addr)>;

/// The gate.
#[derive(Debug, Default)]
pub(super) struct Gate {
    mode: Mode,
    redirections: Redirections,
    /// Why the gate could not be loaded.
    problem: Option<String>,
    /// Rules that others added.
    added: Vec<AddedRule>,
    /// Why it cannot be read where others lead DNS.
    resolvers_problem: Option<String>,
    /// Names of the vifs by which clients send.
    vifs: BTreeSet<String>,
    /// Why denied packets are not answered.
    silence: Option<String>,
}

impl Gate {
    /// The gate that is in force as the agent starts.
    pub(super) fn new(mode: Mode, redirections: Redirections) -> Self {
        Self { mode, redirections, ..Self::default() }
    }

    /// Takes in how the gate was found. Without it, everything is forwarded: it is loaded again.
    fn looked(&mut self, look: GateLook) -> Vec<Effect> {
        let mut effects = self.look(look);
        effects.extend(self.answer());
        effects
    }

    fn look(&mut self, look: GateLook) -> Vec<Effect> {
        let notice = match look {
            GateLook::Whole(added) => {
                self.problem = None;
                let had_some = !self.added.is_empty();
                let notice = self.found(added);
                let is_other = had_some == self.added.is_empty();
                let leave = is_other.then(|| self.leave_effect());
                return notice.map(Effect::Tell).into_iter().chain(leave).collect();
            }
            GateLook::Appended(place) => Some(Notice::GateAppended(place)),
            GateLook::Changed(how) => self.problem.is_none().then_some(Notice::GateChanged(how)),
            GateLook::Unknown(why) => Some(Notice::GateUnknown(why)),
        };
        notice.map(Effect::Tell).into_iter().chain([Effect::LoadGate]).collect()
    }

    /// Takes in which rules of others are there, and tells if these are others than before.
    fn found(&mut self, found: Vec<AddedRule>) -> Option<Notice> {
        let before = std::mem::replace(&mut self.added, found);
        let without = |these: &[AddedRule], those: &[AddedRule]| -> Vec<AddedRule> {
            these.iter().filter(|rule| !those.contains(rule)).cloned().collect()
        };
        let (added, gone) = (without(&self.added, &before), without(&before, &self.added));
        let is_other = !added.is_empty() || !gone.is_empty();
        is_other.then_some(Notice::AddedRules { added, gone })
    }

    /// Takes in what came of loading the gate.
    fn loaded(&mut self, outcome: Result<(), Why>) -> Option<Effect> {
        self.problem = outcome.err().map(|Why(why)| why);
        self.problem.clone().map(|why| Effect::Tell(Notice::GateNotLoaded(why)))
    }

    /// Leads DNS elsewhere. In mode standalone, the gate's own rules do that.
    pub(super) fn redirect(&mut self, redirections: Redirections) -> Vec<Effect> {
        let is_other = self.redirections != redirections;
        self.redirections.clone_from(&redirections);
        let is_loaded = match self.mode {
            Mode::Qubes | Mode::Whonix => false,
            Mode::Standalone => is_other,
        };
        let load = is_loaded.then_some(Effect::LoadGate);
        [Effect::Redirect(redirections)].into_iter().chain(load).collect()
    }

    /// Takes in whether it can be read where others lead DNS.
    fn read_redirections(&mut self, outcome: Result<(), Why>) -> Option<Effect> {
        let problem = outcome.err().map(|Why(why)| why);
        let is_other = self.resolvers_problem != problem;
        self.resolvers_problem.clone_from(&problem);
        is_other.then_some(Effect::Tell(Notice::ResolversProblem(problem)))
    }

    /// Who translates addresses.
    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    /// What clients without rules meet: others' rules, if there are any.
    pub(super) fn leave_effect(&self) -> Effect {
        Effect::LeaveToOthers(self.asks_others())
    }

    /// Whether others' rules are asked about what has no permit. In a Whonix gateway it does not come
    /// to them.
    pub(super) fn asks_others(&self) -> bool {
        match self.mode {
            Mode::Qubes | Mode::Standalone => !self.added.is_empty(),
            Mode::Whonix => false,
        }
    }

    /// Takes in which vifs there are. Returns what to do if these are others than before.
    pub(super) fn see(&mut self, vifs: BTreeSet<String>) -> Option<Effect> {
        let before = std::mem::replace(&mut self.vifs, vifs);
        self.answer().filter(|_| self.vifs != before)
    }

    /// Has denied packets answered, in a Whonix gateway: elsewhere the gate itself does.
    fn answer(&self) -> Option<Effect> {
        match self.mode {
            Mode::Qubes | Mode::Standalone => None,
            Mode::Whonix => Some(Effect::AnswerDenied(self.vifs.clone())),
        }
    }

    /// Takes in whether denied packets are answered.
    pub(super) fn answers(&mut self, outcome: Result<(), Why>) -> Option<Effect> {
        let silence = outcome.err().map(|Why(why)| why);
        let is_other = silence != self.silence;
        self.silence = silence;
        is_other.then(|| Effect::Tell(Notice::Silent(self.silence.clone())))
    }

    /// Why denied packets are not answered.
    pub(super) fn silence(&self) -> Option<&str> {
        self.silence.as_deref()
    }

    /// Rules that others added.
    pub(super) fn added(&self) -> &[AddedRule] {
        &self.added
    }

    /// Why it cannot be read where others lead DNS.
    pub(super) fn resolvers_problem(&self) -> Option<&str> {
        self.resolvers_problem.as_deref()
    }

    /// Why the gate could not be loaded.
    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }
}

impl World {
    /// Takes in how the gate was found.
    pub(super) fn gate_looked(&mut self, look: GateLook) -> Vec<Effect> {
        let is_whole = matches!(look, GateLook::Whole(_));
        if !is_whole {
            // What met another gate may wait where it may not leave.
            self.limit.lets_wait();
        }
        let effects = self.gate.looked(look).into_iter();
        let ended = if is_whole { self.end_waiting() } else { Vec::new() };
        effects.chain(ended).collect()
    }

    /// Takes in what came of loading the gate.
    pub(super) fn gate_loaded(&mut self, outcome: Result<(), Why>) -> Vec<Effect> {
        let is_whole = outcome.is_ok();
        let told = self.gate.loaded(outcome).into_iter();
        let ended = if is_whole { self.end_waiting() } else { Vec::new() };
        told.chain(ended).collect()
    }

    /// Takes in which virtual resolvers nobody leads elsewhere. As long as that cannot be read, what
    /// was known before counts.
    pub(super) fn not_redirected(
        &mut self,
        resolvers: Result<BTreeSet<Ipv4Addr>, Why>,
    ) -> Vec<Effect> {
        let (changes, outcome) = match resolvers {
            Ok(resolvers) => (self.standings.set_not_redirected(resolvers), Ok(())),
            Err(why) => (Vec::new(), Err(why)),
        };
        let told = self.gate.read_redirections(outcome);
        told.into_iter().chain(self.follow_changes(changes)).collect()
    }
}
