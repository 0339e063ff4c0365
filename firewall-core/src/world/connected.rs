//! Which addresses belong to clients: those behind vifs, and those that the source names, which
//! knows of clients that are not running too.
//! Never asks who these clients are.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::events::Effect;

/// Addresses of clients.
#[derive(Debug, Default)]
pub(super) struct Connected {
    /// Addresses that the source names.
    named: BTreeSet<IpAddr>,
    /// Addresses that the source names or that are behind vifs, as the kernel knows them.
    all: BTreeSet<IpAddr>,
}

impl Connected {
    /// Takes in the addresses that the source names.
    pub(super) fn name(&mut self, named: BTreeSet<IpAddr>) {
        self.named = named;
    }

    /// Takes in the addresses behind vifs. Returns what to do if there are others now.
    pub(super) fn update(&mut self, present: &BTreeSet<IpAddr>) -> Option<Effect> {
        let all = present | &self.named;
        if all == self.all {
            return None;
        }
        self.all = all;
        Some(self.effect())
    }

    /// What makes the kernel know all addresses of clients.
    pub(super) fn effect(&self) -> Effect {
        Effect::SetConnected(self.all.clone())
    }

    /// Whether an address belongs to a client.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.all.contains(&address)
    }
}
