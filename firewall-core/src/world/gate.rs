//! What is known of the gate: whether it is in force, and where it leads DNS.
//! Never knows its rules.

use std::net::Ipv4Addr;

use crate::events::{Effect, GateLook, Notice, Why};
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
}

impl Gate {
    /// The gate that is in force as the agent starts.
    pub(super) fn new(mode: Mode, redirections: Redirections) -> Self {
        Self { mode, redirections, problem: None }
    }

    /// Takes in how the gate was found. Without it, everything is forwarded: it is loaded again.
    pub(super) fn looked(&mut self, look: GateLook) -> Vec<Effect> {
        let notice = match look {
            GateLook::Whole => {
                self.problem = None;
                return Vec::new();
            }
            GateLook::Changed(how) => self.problem.is_none().then_some(Notice::GateChanged(how)),
            GateLook::Unknown(why) => Some(Notice::GateUnknown(why)),
        };
        notice.map(Effect::Tell).into_iter().chain([Effect::LoadGate]).collect()
    }

    /// Takes in what came of loading the gate.
    pub(super) fn loaded(&mut self, outcome: Result<(), Why>) -> Option<Effect> {
        self.problem = outcome.err().map(|Why(why)| why);
        self.problem.clone().map(|why| Effect::Tell(Notice::GateNotLoaded(why)))
    }

    /// Leads DNS elsewhere. In mode standalone, the gate's own rules do that.
    pub(super) fn redirect(&mut self, redirections: Redirections) -> Vec<Effect> {
        let is_other = self.redirections != redirections;
        self.redirections.clone_from(&redirections);
        let is_loaded = match self.mode {
            Mode::Qubes => false,
            Mode::Standalone => is_other,
        };
        let load = is_loaded.then_some(Effect::LoadGate);
        [Effect::Redirect(redirections)].into_iter().chain(load).collect()
    }

    /// Who translates addresses.
    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    /// Why the gate could not be loaded.
    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }
}
