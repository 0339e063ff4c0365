//! What the agent decides.
//! Never acts: neither it nor a dependency uses files, sockets, clocks or the kernel.
//!
//! | module | owns |
//! |---|---|
//! | [`client`], [`connection`], [`time`] | who is a client, what it has open, when something happens |
//! | [`protocol`] | numbers of protocols |
//! | [`tor`] | Tor's ports in a Whonix gateway, and what becomes of packets there |
//! | [`uplinks`] | the only links by which clients' packets may leave |
//! | [`options`] | by which keys dom0 sets options of the agent |
//! | [`introductions`] | which qube has which address, as dom0 says |
//! | [`rules`] | text to proved policy |
//! | [`names`] | what is known about host names |
//! | [`world`] | all memory of the agent |
//! | [`events`], [`readings`] | the words between the world and the edges |
//! | [`told`] | what a person or a script is told |

pub mod client;
pub mod connection;
pub mod events;
pub mod introductions;
pub mod names;
pub mod options;
pub mod protocol;
pub mod readings;
pub mod rules;
pub mod time;
pub mod told;
pub mod tor;
pub mod uplinks;
pub mod world;
