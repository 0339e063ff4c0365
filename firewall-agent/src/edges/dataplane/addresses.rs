//! A BPF hash map of which only the keys matter, a set of addresses, and the filter in front
//! of it.
//! Never knows whose they are.

use std::collections::HashSet;
use std::net::IpAddr;

use aya::maps::{Array, HashMap, MapData, MapError};
use firewall_common::abi::{Address, FILTER_WORDS};

use super::plain::Plain;

/// A set of addresses in the kernel.
pub struct AddressSet {
    set: HashMap<MapData, Plain<Address>, u8>,
    filter: Array<MapData, u64>,
    /// What the filter holds.
    words: Vec<u64>,
}

impl AddressSet {
    /// An empty set, in maps that nobody wrote yet.
    pub fn new(set: HashMap<MapData, Plain<Address>, u8>, filter: Array<MapData, u64>) -> Self {
        Self { set, filter, words: vec![0; FILTER_WORDS] }
    }

    /// Makes it hold exactly these. What is new comes before what is old goes.
    pub fn set(&mut self, addresses: impl Iterator<Item = IpAddr>) -> Result<(), MapError> {
        let wanted: HashSet<Address> = addresses.map(Address::from).collect();
        let known = self.set.keys().map(|key| key.map(|Plain(address)| address));
        let known = known.collect::<Result<HashSet<Address>, _>>()?;
        self.let_pass(wanted.union(&known))?;
        for address in wanted.difference(&known) {
            self.set.insert(Plain(*address), 1, 0)?;
        }
        for address in known.difference(&wanted) {
            self.set.remove(&Plain(*address))?;
        }
        self.let_pass(wanted.iter())
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
