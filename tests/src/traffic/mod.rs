//! What is sent through a rig, and what came back: raw frames, a client's own sockets, and
//! floods that the kernel makes.
//! Never judges what the firewall did.

pub mod dawdler;
pub mod frames;
pub(crate) mod icmp;
pub mod kernel;
pub mod options;
pub mod probe;
pub mod shared;
pub(crate) mod wait;
