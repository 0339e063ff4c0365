//! A BPF hash map of addresses, each with one byte, and the filter in front of it.
//! Never knows whose they are, or what the byte means.

use std::collections;
use std::net::IpAddr;

use aya::maps::{Array, HashMap, MapData, MapError};
use firewall_common::abi::{Address, FILTER_WORDS};

use super::plain::Plain;

/// Addresses in the kernel.
pub struct AddressMap {
    map: HashMap<MapData, Plain<Address>, u8>,
    filter: Array<MapData, u64>,
    /// What the filter holds.
    words: Vec<u64>,
}

impl AddressMap {
    /// No addresses, in maps that nobody wrote yet.
    pub fn new(map: HashMap<MapData, Plain<Address>, u8>, filter: Array<MapData, u64>) -> Self {
        Self { map, filter, words: vec![0; FILTER_WORDS] }
    }

    /// Makes the map hold exactly these. What is new comes before what is old goes. On error,
    /// some may be there and some not; the filter lets all of them pass that are.
    pub fn set(&mut self, entries: impl Iterator<Item = (IpAddr, u8)>) -> Result<(), MapError> {
        let entries = entries.map(|(address, byte)| (Address::from(address), byte));
        let wanted: collections::HashMap<Address, u8> = entries.collect();
        let known =
            self.map.iter().map(|entry| entry.map(|(Plain(address), byte)| (address, byte)));
        let known = known.collect::<Result<collections::HashMap<Address, u8>, _>>()?;
        self.let_pass(wanted.keys().chain(known.keys()))?;
        for (address, byte) in &wanted {
            if known.get(address) != Some(byte) {
                self.map.insert(Plain(*address), byte, 0)?;
            }
        }
        for address in known.keys().filter(|address| !wanted.contains_key(address)) {
            self.map.remove(&Plain(*address))?;
        }
        self.let_pass(wanted.keys())
    }

    /// Makes the filter let exactly these pass, and what it cannot tell from them.
    fn let_pass<'a>(
        &mut self,
        addresses: impl Iterator<Item = &'a Address>,
    ) -> Result<(), MapError> {
        let mut wanted = vec![0; FILTER_WORDS];
        for address in addresses {
            let (word, bit) = address.filter_bit();
            if let Some(word) = usize::try_from(word).ok().and_then(|it| wanted.get_mut(it)) {
                *word |= bit;
            }
        }
        for (index, (word, wanted)) in (0..).zip(self.words.iter_mut().zip(wanted)) {
            if *word != wanted {
                self.filter.set(index, wanted, 0)?;
                *word = wanted;
            }
        }
        Ok(())
    }
}
