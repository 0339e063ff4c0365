//! The agent, as a library for its binary and for the tests.
//!
//! | module | owns |
//! |---|---|
//! | [`rules`] | text to proved policy; pure |
//! | [`world`] | all memory of the agent; pure |
//! | [`names`] | what is known about host names; pure |
//! | [`events`] | the words between the world and the edges |
//! | [`daemon`] | the event loop |
//! | [`sources`], [`links`], [`resolvers`] | edges that tell what happened |
//! | [`dataplane`], [`nft`], [`conntrack`] | edges that do what is to be done |
//! | [`pace`], [`watching`], [`regular`] | changes that come too fast; directories that change; files |
//! | [`logging`] | lines of the log, which nobody waits for |
//! | [`service`], [`desktop`] | edges towards systemd and the user's screen |
//! | [`prepare`], [`handover`] | what comes before the daemon, and when it goes for good |
//! | [`control`], [`status`], [`explanation`], [`cli`] | what a person sees, and the way it gets there |

pub mod cli;
pub mod conntrack;
pub mod control;
pub mod daemon;
pub mod dataplane;
pub mod desktop;
pub mod dns;
pub mod events;
pub mod explanation;
pub mod handover;
pub mod links;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod names;
pub mod news;
pub mod nft;
pub mod pace;
pub mod prepare;
pub mod regular;
pub mod resolvers;
pub mod rules;
pub mod service;
pub mod sources;
pub mod status;
pub mod totals;
pub mod watching;
pub mod world;
