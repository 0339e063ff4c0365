//! What a script is told instead of an answer.
//! Never says what to do, but in the text for people.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SCHEMA;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorStatus {
    /// The version of this form of JSON.
    pub schema: u32,
    /// What is wrong, as people read it.
    pub error: String,
}

impl ErrorStatus {
    /// That there is no answer, for this reason.
    pub fn new(error: impl Into<String>) -> Self {
        Self { schema: SCHEMA, error: error.into() }
    }
}
