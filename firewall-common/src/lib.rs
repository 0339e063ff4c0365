//! What the kernel programs and the agent share: how a packet is read, how a policy
//! answers, what a verdict is, how the maps are laid out.
//! Never allocates, never panics, never knows where its bytes or tables come from.
#![no_std]

pub mod abi;
pub mod address;
pub mod answers;
pub mod fragments;
pub mod packet;
pub mod policy;
pub mod verdict;
