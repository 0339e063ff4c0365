//! The agent, as a library for its binary and for the tests.
//!
//! | module | owns |
//! |---|---|
//! | [`daemon`] | the event loop, what comes before it, and when it goes for good |
//! | [`edges`] | everything outside: what tells, what obeys, who listens |
//! | [`cli`] | what a person sees |
//!
//! What is decided, and why, is in firewall-core.

pub mod cli;
pub mod daemon;
pub mod edges;
