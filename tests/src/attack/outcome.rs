//! What came of sequences: what must not be, and how much was done.
//! Never looks anything up.

use std::fmt;
use std::ops::Add;

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A closed client's bytes were seen outside.
    Leaked(String),
    /// Somebody honest was harmed.
    Harmed(String),
    /// One client took more than its share.
    TookTooMuch(String),
    /// What was told is not so.
    Untrue(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leaked(what) => write!(f, "leaked: {what}"),
            Self::Harmed(what) => write!(f, "harmed: {what}"),
            Self::TookTooMuch(what) => write!(f, "took too much: {what}"),
            Self::Untrue(what) => write!(f, "untrue: {what}"),
        }
    }
}

/// What was done, and what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// Sequences played.
    pub sequences: u64,
    /// Frames that the attacker sent.
    pub sent: u64,
    /// Frames that were seen outside and by honest clients.
    pub seen: u64,
    /// Bytes of canaries among them.
    pub canary: u64,
    /// Times that honest flows were used.
    pub exchanges: u64,
    /// Times that something honest was harmed.
    pub harms: u64,
}

impl Add for Score {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            sequences: self.sequences + other.sequences,
            sent: self.sent + other.sent,
            seen: self.seen + other.seen,
            canary: self.canary + other.canary,
            exchanges: self.exchanges + other.exchanges,
            harms: self.harms + other.harms,
        }
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sequences, sent, seen, canary, exchanges, harms } = self;
        write!(
            f,
            "{sequences} sequences, {sent} packets sent, {seen} frames seen outside, \
             {canary} canary bytes outside, {exchanges} uses of honest flows, {harms} harmed"
        )
    }
}
