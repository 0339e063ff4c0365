//! A BPF hash map of which only the keys matter: a set of addresses.
//! Never knows whose they are.

use std::collections::HashSet;
use std::net::IpAddr;

use aya::maps::{HashMap, MapData, MapError};
use firewall_common::abi::Address;

/// A set of addresses in the kernel.
pub struct AddressSet(HashMap<MapData, Address, u8>);

impl AddressSet {
    /// The set that a map holds.
    pub fn new(map: HashMap<MapData, Address, u8>) -> Self {
        Self(map)
    }

    /// Makes it hold exactly these. What is new comes before what is old goes.
    pub fn set(&mut self, addresses: impl Iterator<Item = IpAddr>) -> Result<(), MapError> {
        let wanted: HashSet<Address> = addresses.map(Address::from).collect();
        let known = self.0.keys().collect::<Result<HashSet<Address>, _>>()?;
        for address in wanted.difference(&known) {
            self.0.insert(address, 1, 0)?;
        }
        for address in known.difference(&wanted) {
            self.0.remove(address)?;
        }
        Ok(())
    }
}
