//! The attacker's ring: hostile sequences as data, the place where they are played, and what
//! must hold after each of them.
//! Never knows how the firewall does it: only what is seen outside, by honest clients, in the
//! kernel's tables and in what the agent tells.

pub mod arena;
mod attacker;
pub mod content;
mod counted;
pub mod frame;
pub mod generator;
mod honest;
pub mod keep;
mod mark;
mod may;
pub mod outcome;
pub mod place;
pub mod sequence;
mod tables;
mod watch;
