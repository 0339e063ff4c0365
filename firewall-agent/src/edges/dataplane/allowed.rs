//! The links by which clients' packets may leave, where that is limited: what the gate says by names,
//! said to the programs by interface index, for packets that the gate has let pass already.
//! Never knows a name.

use std::collections::BTreeSet;

use aya::maps::{Array, HashMap, MapData};

use super::object::{MapsError, take};

/// The maps of these links.
pub struct Allowed {
    links: HashMap<MapData, u32, u8>,
    is_limited: Array<MapData, u32>,
}

impl Allowed {
    pub(super) fn new(ebpf: &mut aya::Ebpf) -> Result<Self, MapsError> {
        Ok(Self { links: take(ebpf, "ALLOWED")?, is_limited: take(ebpf, ".data.limited")? })
    }

    /// Makes the programs let clients' packets leave by these links alone; `None`: by any. On error,
    /// they leave by some of these at most, or by what was allowed before as well.
    pub fn set(&mut self, links: Option<&BTreeSet<u32>>) -> Result<(), MapsError> {
        let Some(links) = links else {
            return Ok(self.is_limited.set(0, 0, 0)?);
        };
        let known = self.links.keys().collect::<Result<BTreeSet<u32>, _>>()?;
        for link in known.difference(links) {
            self.links.remove(link)?;
        }
        self.is_limited.set(0, 1, 0)?;
        for link in links.difference(&known) {
            self.links.insert(link, 0, 0)?;
        }
        Ok(())
    }
}
