//! The vocabulary of the test suites: networks, traffic, and what came back.
//! Never part of the product, and knows nothing of its insides.

pub mod agent;
pub mod difference;
pub mod frames;

pub mod generate;
mod icmp;
mod leftovers;
pub mod namespace;
pub mod oracle;
pub mod packets;
pub mod probe;
pub mod program;
pub mod rig;
pub mod server;
pub mod shots;
pub mod sightings;
pub mod stock;
pub mod twins;
mod wait;
