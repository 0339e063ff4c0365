//! What is told about a file of rules: the types of `check`'s JSON.
//! Never reads the file.

use std::net::IpAddr;
use std::ops::Range;

use schemars::JsonSchema;
use serde::Serialize;

/// All that was found in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Report {
    /// The version of this form.
    pub schema: u32,
    /// The file.
    pub file: String,
    /// Whose rules they are.
    pub client: IpAddr,
    /// How many of them can be used.
    pub rules: usize,
    /// How many findings block the client.
    pub errors: usize,
    /// How many do not.
    pub warnings: usize,
    /// What was found, in the order of lines.
    pub findings: Vec<Finding>,
}

/// Something to mend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// From 1; nothing if it is about the file as a whole.
    pub line: Option<usize>,
    /// In characters, from 1.
    pub column: Option<usize>,
    /// The line.
    pub text: String,
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub hint: String,
    /// Which bytes of the line; not told.
    #[serde(skip)]
    pub place: Range<usize>,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The client would be blocked.
    Error,
    /// Allowed, but hardly meant.
    Warning,
}
