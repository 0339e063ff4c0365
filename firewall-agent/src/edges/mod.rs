//! The edges: what the agent hears from outside, does there, and answers.
//! Never decides, and no edge knows another one, but for the [`links::Pattern`] of vifs in the
//! gate.
//!
//! | module | is an edge towards |
//! |---|---|
//! | [`sources`] | QubesDB and files, where rules come from |
//! | [`links`], [`resolv_conf`], [`dns`] | links, the netvm's DNS servers, and those servers |
//! | [`dataplane`], [`gate`], [`conntrack`] | eBPF, nftables, and connection tracking |
//! | [`neighbours`] | what waits in the kernel for the address of a neighbour |
//! | [`control`], [`systemd`], [`desktop`], [`metrics`] | whoever asks, and whoever is told |
//! | [`memory`] | the next agent |
//! | [`regular`], [`wait`] | files, and changes that come too fast: shared by other edges |

pub mod conntrack;
pub mod control;
pub mod dataplane;
pub mod desktop;
pub mod dns;
pub mod gate;
pub mod links;
pub mod memory;
pub mod metrics;
pub mod neighbours;
pub mod regular;
pub mod resolv_conf;
pub mod sources;
pub mod systemd;
pub mod wait;
