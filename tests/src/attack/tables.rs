//! What all clients of a netvm share in its kernel, and how much of it one may take.
//! Never changes a table.

use std::fs;

use anyhow::{Context as _, Result};

use crate::rig::namespace::Namespace;

/// Connections that conntrack may know because of one client whose rules accept nothing, with
/// all that honest flows take in the ring: a netvm of 500 MB has room for 3,800.
pub(crate) const CONNECTIONS: u64 = 1000;
/// Entries of the neighbour table, permanent ones included: the kernel keeps 1,024 for all.
pub(crate) const NEIGHBOURS: u64 = 300;
/// Bytes of fragments that wait for the rest of their datagram: the kernel keeps 4 MiB.
pub(crate) const FRAGMENTS: u64 = 1 << 20;

/// How full the tables are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tables {
    pub(crate) connections: u64,
    pub(crate) neighbours: u64,
    /// Of IPv4: no kernel tells that of conntrack's IPv6.
    pub(crate) fragments: u64,
}

impl Tables {
    /// Those of a netvm at present.
    pub(crate) fn of(netvm: &Namespace) -> Result<Self> {
        let (count, sockets) = netvm.run(|| {
            let count = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")?;
            Ok((count, fs::read_to_string("/proc/thread-self/net/sockstat")?))
        })?;
        let memory = sockets.lines().find_map(|line| line.strip_prefix("FRAG:"));
        let memory = memory.and_then(|line| line.split_whitespace().last());
        Ok(Self {
            connections: count.trim().parse()?,
            neighbours: netvm.ip(&["neighbour", "show"])?.lines().count() as u64,
            fragments: memory.context("no FRAG in sockstat")?.parse()?,
        })
    }

    /// What is more than one client's share.
    pub(crate) fn too_much(&self) -> Vec<String> {
        let shares = [
            ("connections", self.connections, CONNECTIONS),
            ("neighbours", self.neighbours, NEIGHBOURS),
            ("bytes of fragments", self.fragments, FRAGMENTS),
        ];
        let over = shares.iter().filter(|(_, taken, share)| taken > share);
        over.map(|(what, taken, share)| {
            format!("{taken} {what}, and no more than {share} are one client's share")
        })
        .collect()
    }
}
