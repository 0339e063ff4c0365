//! What a person or a script is told: the types of JSON, and sums of them.
//! Never asks anybody.

pub mod added;
pub mod examination;
pub mod explanation;
pub mod failure;
pub mod gateway;
pub mod news;
pub mod options;
pub mod own;
pub mod passage;
pub mod remains;
pub mod report;
pub mod schema;
pub mod screen;
pub mod status;
pub mod totals;
pub mod tried;
pub mod words;

/// Version of all JSON that is told, in its field `schema`. docs/json.md promises when it changes.
pub const SCHEMA: u32 = 2;
