//! What `doctor` found out about a machine: the types of its JSON.
//! Never looks at anything.

use schemars::JsonSchema;
use serde::Serialize;

/// All that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Examination {
    /// The version of this form of JSON.
    pub schema: u32,
    /// Version of the program that looked.
    pub version: String,
    /// Whether addresses are replaced by numbers.
    pub masked: bool,
    /// How many problems there are.
    pub problems: usize,
    /// What was looked at, in that order.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Check {
    /// What was looked at.
    pub subject: String,
    /// Whether that is as it should be.
    pub health: Health,
    /// What was found.
    pub found: String,
    /// What that means, and what to do; nothing if there is nothing to say.
    pub meaning: Option<String>,
}

/// Whether something is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// As it should be.
    Good,
    /// All works, but not as well, or not as one may think.
    Odd,
    /// Something does not work.
    Bad,
}

impl Health {
    /// The word in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Odd => "odd",
            Self::Bad => "bad",
        }
    }

    /// What people read.
    pub fn told(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Odd => "note",
            Self::Bad => "PROBLEM",
        }
    }
}
