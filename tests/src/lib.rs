//! The vocabulary of the test suites: networks, traffic, and what came back.
//! Never part of the product, and knows nothing of its insides.

pub mod frames;
mod icmp;
mod leftovers;
pub mod namespace;
pub mod probe;
pub mod rig;
pub mod server;
mod wait;
