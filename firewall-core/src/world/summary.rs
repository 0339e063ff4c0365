//! One line about everything, for whoever asks the service manager.
//! Never changes anything.

use std::fmt::Write as _;

use super::World;
use crate::time::Moment;
use crate::told::status::State;

impl World {
    /// One line about everything: what is broken, or else how many clients are in which state.
    pub fn summary(&self, now: Moment) -> String {
        if let Some(problem) = self.gate.problem() {
            return format!("the gate could not be loaded: {problem}");
        }
        if let Some(problem) = self.source.problem() {
            return format!("cannot read rules: {problem}");
        }
        let all = self.presences().into_iter();
        let states: Vec<State> = all.map(|presence| self.state(presence).0).collect();
        let count = |state| states.iter().filter(|it| **it == state).count();
        let [live, blocked, waiting] = [State::Live, State::Blocked, State::Waiting].map(count);
        let mut text =
            format!("clients: {live} live, {blocked} blocked, {waiting} waiting for rules");
        let failing = self.retries.statuses(now).len();
        if failing > 0 {
            let _ = write!(text, "; {failing} PROBLEMS: see `firewall-agent status`");
        }
        let audited: Vec<String> =
            self.clients.audits().clients().map(|it| it.to_string()).collect();
        if !audited.is_empty() {
            let _ = write!(text, "; AUDIT, nothing is rejected: {}", audited.join(", "));
        }
        text
    }
}
