//! What can be wrong with rules, and where.
//! Never decides what becomes of rules that are wrong.

use std::fmt;
use std::ops::Range;

use thiserror::Error;

use super::Family;

/// Longest value that QubesDB keeps, in bytes (`QDB_MAX_DATA` in `qubesdb.h` of
/// qubes-core-qubesdb).
pub(super) const MAX_VALUE: usize = 3072;

/// Why a client's rules cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulesetError {
    /// Line in a file, from 1; `None` if the error is about the whole, or in no file.
    pub line: Option<usize>,
    /// The key whose value is wrong; `None` if the error is about a line without a key, or about
    /// the whole.
    pub key: Option<String>,
    /// The offending text, as far as it is worth quoting.
    pub text: String,
    /// Which bytes of `text` are wrong; empty if none in particular.
    pub place: Range<u32>,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for RulesetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        write!(f, "{}", self.problem)?;
        if !self.text.is_empty() {
            write!(f, " in `{}`", self.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for RulesetError {}

impl RulesetError {
    /// An error that is about no line in particular.
    pub fn of_whole(problem: Problem) -> Self {
        Self { line: None, key: None, text: String::new(), place: 0..0, problem }
    }
}

/// What can be wrong with rules.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Problem {
    #[error("there is no `policy`")]
    NoPolicy,
    #[error("`{0}` is neither `accept` nor `drop`")]
    NotAnAction(String),
    #[error("`{0}` is neither `policy` nor four digits")]
    UnknownKey(String),
    #[error("the key `{0}` stands twice")]
    KeyTwice(String),

    #[error("longer than {MAX_VALUE} bytes")]
    TooLong,
    #[error("an option is empty: options are separated by exactly one space")]
    EmptyOption,
    #[error("`{0}` is not of the form option=value")]
    NotAnOption(String),
    #[error("unknown option `{0}`")]
    UnknownOption(String),
    #[error("the option `{0}` stands twice")]
    OptionTwice(String),
    #[error("the option `{0}` must stand before `{1}`")]
    OutOfOrder(String, String),
    #[error("a rule starts with `action=`")]
    NoAction,
    #[error("more than one of dst4, dst6 and dsthost")]
    TwoDestinations,
    #[error("`{0}` is not a network of the form address/prefix-length")]
    NotANetwork(String),
    #[error("{0} in the rules of an {1} client")]
    OtherFamily(String, Family),
    #[error("`{0}` is not a host name")]
    NotAName(String),
    #[error("`{0}` is not one of tcp, udp and icmp")]
    UnknownProtocol(String),
    #[error("unknown special target `{0}`")]
    UnknownTarget(String),
    #[error("`{0}` is not a port or a range of ports")]
    NotPorts(String),
    #[error("`{0}` is not a number from 0 to 255")]
    NotAnIcmpType(String),
    #[error("{0} does not go with {1}")]
    Conflict(&'static str, &'static str),
    // What a source adds; the parser itself never says these.
    #[error("the last line is not `commit`: the file is not complete")]
    NoCommit,
    #[error("text after `commit`")]
    AfterCommit,
    #[error("not of the form `key = value`")]
    NotAnEntry,
    #[error("lines end with a carriage return, as on Windows")]
    CarriageReturn,
    #[error("cannot be read: {0}")]
    Unreadable(String),
}
