//! A hostile sequence as data: what the attacker sends, and what happens to its rules and to
//! the agent in between.
//! Never plays it.

use serde::{Deserialize, Serialize};

use super::frame::Frame;

/// A sequence, with a name by which a failure tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    /// What it tries.
    pub name: String,
    /// One after the other; the attacker has rules that deny everything at first.
    pub steps: Vec<Step>,
}

impl Sequence {
    /// Of these steps.
    pub fn new(name: impl Into<String>, steps: impl IntoIterator<Item = Step>) -> Self {
        Self { name: name.into(), steps: steps.into_iter().collect() }
    }
}

/// One thing that happens. The next one comes when all of it has been handled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// The attacker sends frames.
    Send(Vec<Frame>),
    /// It sends one frame so often, each time with another number in it.
    Flood(Frame, u16),
    /// It gets other rules; without an agent they are only written down.
    Rules(Rules),
    /// It is audited from now on, or no longer; nothing happens without an agent.
    Audit(bool),
    /// The agent is killed.
    Kill,
    /// A new agent is started, if none runs.
    Start,
}

/// Rules of the attacker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rules {
    /// Nothing is accepted.
    Deny,
    /// Everything is accepted.
    Accept,
    /// They cannot be read.
    Broken,
    /// There are none.
    Gone,
}
