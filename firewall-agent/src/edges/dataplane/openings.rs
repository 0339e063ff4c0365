//! Connections that were opened towards clients before the programs could see it.
//! Never removes one, and never says that a connection is there: the kernel's table does.

use std::collections::BTreeSet;
use std::net::IpAddr;

use aya::maps::{HashMap, MapData};
use firewall_common::abi::FlowKey;
use firewall_common::answers::key;

use super::object::{MapsError, take};
use super::plain::Plain;
use firewall_core::client::ClientId;
use firewall_core::connection::Flow;

/// The map of connections towards clients.
pub struct Openings(HashMap<MapData, Plain<FlowKey>, u8>);

impl Openings {
    pub(super) fn new(ebpf: &mut aya::Ebpf) -> Result<Self, MapsError> {
        Ok(Self(take(ebpf, "OPENINGS")?))
    }

    /// Makes the programs know those of some connections that were opened towards these clients.
    pub fn note(&mut self, flows: &[Flow], clients: &BTreeSet<ClientId>) -> Result<(), MapsError> {
        for answer in flows.iter().filter_map(|flow| flow.answer.as_ref()) {
            let address: IpAddr = answer.source.into();
            for client in clients.iter().filter(|client| client.address == address) {
                let peer = (answer.destination, answer.port);
                let key = key(client.vif, peer, answer.source_port, answer, std::convert::identity);
                self.0.insert(Plain(key), 0, 0)?;
            }
        }
        Ok(())
    }
}
