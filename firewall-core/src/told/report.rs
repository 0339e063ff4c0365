//! What is told about a file of rules: the types of `check`'s JSON.
//! Never reads the file.

use std::net::IpAddr;
use std::ops::Range;

use schemars::JsonSchema;
use serde::Serialize;

/// All that was found in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Report {
    /// The version of this form of JSON.
    pub schema: u32,
    /// Path of the file, as it was given.
    pub file: String,
    /// Address of the client whose rules the file has.
    pub client: IpAddr,
    /// How many rules can be used.
    pub rules: usize,
    /// How many findings block the client.
    pub errors: usize,
    /// How many findings do not block the client.
    pub warnings: usize,
    /// What was found, in the order of lines.
    pub findings: Vec<Finding>,
}

/// Something to mend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Finding {
    /// How bad the finding is.
    pub severity: Severity,
    /// Line in the file, from 1; nothing if the finding is about the file as a whole.
    pub line: Option<usize>,
    /// Column in the line, in characters, from 1; nothing without a line.
    pub column: Option<usize>,
    /// Text of the line.
    pub text: String,
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub hint: String,
    /// Which part of the line the finding is about; not told.
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
