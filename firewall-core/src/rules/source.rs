//! Rules that cannot be used, with the place where they stand.
//! Never reads that place.

use thiserror::Error;

use crate::rules::problem::RulesetError;

/// Rules that cannot be used, with the place they came from.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{origin}: {error}")]
pub struct SourceError {
    /// Where the rules come from: a file, or a path of QubesDB.
    pub origin: String,
    /// What is wrong with the rules.
    pub error: Box<RulesetError>,
}
