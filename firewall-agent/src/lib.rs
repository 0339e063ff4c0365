//! The agent, as a library for its binary and for the tests.
//! Never decides: what is decided, and why, is in firewall-core.
//!
//! | module | owns |
//! |---|---|
//! | [`daemon`] | the event loop, what comes before it, and what comes when it goes for good |
//! | [`edges`] | everything outside: what tells, what obeys, who listens |
//! | [`cli`] | what a person sees |

pub mod cli;
pub mod daemon;
pub mod edges;
