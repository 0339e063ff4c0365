//! What DNS says about a name, and what of it outlives the agent.
//! Never asks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use thiserror::Error;

use crate::rules::question::Question;
use crate::time::Moment;

/// What DNS says about the addresses of a name in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The addresses; none if the name has none of this family.
    pub addresses: BTreeSet<IpAddr>,
    /// How long the addresses may be used, as whoever owns the name says.
    pub ttl: Duration,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Failure {
    /// Servers say that there is no such name.
    #[error("the name does not exist")]
    NoSuchName,
    /// No server says anything that can be used.
    #[error("{0}")]
    NoAnswer(String),
}

/// What came of a question.
pub type Outcome = Result<Answer, Failure>;

/// An answer that outlives the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// What was asked.
    pub question: Question,
    /// The addresses in the answer.
    pub addresses: BTreeSet<IpAddr>,
    /// When the answer came.
    pub at: Moment,
    /// Addresses of earlier answers that stay for a while, and when each was last in an answer or
    /// in use.
    pub leaving: BTreeMap<IpAddr, Moment>,
}
