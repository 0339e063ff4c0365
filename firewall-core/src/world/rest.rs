//! When the kernel's maps are put in order for the next policies, which makes the kernel wait: a
//! moment after something was done, when nobody waits for the agent.
//! Never says what is to be put in order.

use std::time::Duration;

use crate::time::Moment;

/// How long the agent has to be left alone. By then the source was told that rules were handled,
/// which takes some words with QubesDB.
const PAUSE: Duration = Duration::from_millis(50);

/// Whether maps have to be put in order, and when.
#[derive(Debug, Default)]
pub(super) struct Rest {
    due: Option<Moment>,
}

impl Rest {
    /// Nothing is left to do now, but to put maps in order, unless they are.
    pub(super) fn begin(&mut self, is_prepared: bool, now: Moment) {
        let due = self.due.unwrap_or(now + PAUSE);
        self.due = (!is_prepared).then_some(due);
    }

    /// Somebody waits: not before a moment has passed.
    pub(super) fn put_off(&mut self, now: Moment) {
        self.due = self.due.map(|_| now + PAUSE);
    }

    /// Whether it is time. That counts as done from then on.
    pub(super) fn take_due(&mut self, now: Moment) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }

    /// When it is time; `None` if there is nothing to do.
    pub(super) fn next(&self) -> Option<Moment> {
        self.due
    }
}
