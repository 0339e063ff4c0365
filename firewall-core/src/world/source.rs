//! Whether the source of rules can be read, and whether somebody waits for its answer.
//! Never knows a rule.

use crate::events::{Effect, Notice};

/// Whether the service manager waits for the source to answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Answer {
    #[default]
    Awaited,
    /// There is one, of which the service manager does not know.
    Untold,
    Told,
}

/// The source of rules.
#[derive(Debug, Default)]
pub(super) struct Source {
    problem: Option<String>,
    answer: Answer,
}

impl Source {
    /// All rules were told.
    pub(super) fn answered(&mut self) {
        if self.answer == Answer::Awaited {
            self.answer = Answer::Untold;
        }
    }

    /// The source cannot be read, and why; or it can be again.
    pub(super) fn set_problem(&mut self, problem: Option<String>) -> Option<Effect> {
        if problem.is_some() {
            self.answered();
        }
        if self.problem == problem {
            return None;
        }
        self.problem.clone_from(&problem);
        Some(Effect::Tell(Notice::Source(problem)))
    }

    /// Everything is to be read again.
    pub(super) fn reload(&mut self) -> [Effect; 2] {
        self.answer = Answer::Awaited;
        [Effect::Reloading, Effect::ReloadSource]
    }

    /// Tells the service manager of an answer for which it waits, when all is done that comes of
    /// the answer.
    pub(super) fn ready(&mut self) -> Option<Effect> {
        if self.answer != Answer::Untold {
            return None;
        }
        self.answer = Answer::Told;
        Some(Effect::Ready)
    }

    /// Why the source cannot be read; what it said before is in force.
    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }
}
