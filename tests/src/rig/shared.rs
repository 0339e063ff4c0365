//! What the threads of a server and its test both know, and how one hears of the other.
//! Never says what it is.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A state, and news of it.
#[derive(Default)]
pub(crate) struct Shared<T> {
    state: Mutex<T>,
    /// Told after each change that somebody may wait for.
    pub(crate) changed: Condvar,
}

impl<T> Shared<T> {
    /// The state, whatever became of a thread that had it before.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
