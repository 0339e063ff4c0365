//! What is in force for the attacker, and so what it may send.
//! Never puts anything in force.

use super::sequence::Rules;

/// What is in force for the attacker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// Which rules are.
    pub(crate) in_force: Rules,
    /// What its file says, which counts when there is an agent.
    pub(crate) written: Rules,
    /// Whether an audit suspends them.
    pub(crate) is_audited: bool,
}

/// What the attacker may send at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum May {
    Nothing,
    Everything,
    /// It is audited, but has no rules that an audit could suspend.
    Perhaps,
}

impl Now {
    /// What the attacker may send by that.
    pub(crate) fn may(self) -> May {
        match (self.in_force, self.is_audited) {
            (Rules::Accept, _) | (Rules::Deny, true) => May::Everything,
            (_, false) => May::Nothing,
            (Rules::Broken | Rules::Gone, true) => May::Perhaps,
        }
    }
}
