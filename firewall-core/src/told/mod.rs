//! What a person or a script is told: the types of JSON, and sums of them.
//! Never asks anybody.

pub mod explanation;
pub mod news;
pub mod status;
pub mod totals;
