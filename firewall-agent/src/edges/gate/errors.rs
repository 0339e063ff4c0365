//! What can go wrong with the gate, and what is in force then.
//! Never guesses: whether anything closes was looked at, or is said not to be known.

use thiserror::Error;

use super::nft::NftError;

/// The gate cannot be loaded, read or removed.
#[derive(Debug, Error)]
pub enum GateError {
    /// `nft` did not do what it was asked for.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// What `nft` lists is not understood.
    #[error("what `nft -j list table` prints is not understood: {0}")]
    Listing(#[from] serde_json::Error),
    /// The gate was refused, and a closed one is in force.
    #[error("{why}; the gate in force is closed: {closed}")]
    Closed {
        /// What was wrong with the gate.
        why: Box<Refusal>,
        /// What is in force instead.
        closed: &'static str,
    },
    /// The gate was refused, and nothing else closes.
    #[error("OPEN, nothing stops what clients send: {0}")]
    Open(NftError),
    /// The gate was refused, and nobody knows what is in force.
    #[error("whether anything stops what clients send is NOT KNOWN: {0}")]
    Unknown(NftError),
    /// The gate was loaded, as `nft` says, and cannot be looked at.
    #[error("whether anything stops what clients send is NOT KNOWN: {0}")]
    Unseen(Box<GateError>),
}

/// Why the kernel did not take the gate.
#[derive(Debug, Error)]
pub enum Refusal {
    /// Kernel modules that the gate needs are not there: their names.
    #[error(
        "the kernel has no {}: load what is missing with `modprobe`, or boot a kernel that \
         has it", .0.join(", ")
    )]
    Modules(Vec<&'static str>),
    /// `nft` refused the gate for another reason.
    #[error(transparent)]
    Other(NftError),
}
