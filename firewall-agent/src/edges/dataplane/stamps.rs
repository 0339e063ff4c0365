//! Numbers that packets carry to the uplink: which of what was in force for a client let them
//! pass, and whether it still is.
//! Never gives out a number again before all others had their turn.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};

use aya::maps::{Array, MapData, MapError};
use firewall_common::abi::{MAX_STAMPS, STAMP_CURRENT, STAMP_OVER};

use super::object::MapsError;

/// Stamps are 1 and above.
const FIRST: u32 = 1;
const END: u32 = MAX_STAMPS as u32;
/// Where it is said what stamps count of which nothing is known.
const OTHERS: u32 = 0;

/// All stamps.
pub(super) struct Stamps {
    shown: Array<MapData, u32>,
    current: BTreeSet<u32>,
    /// Of what is not in force any more; packets on their way may carry them.
    retired: BTreeSet<u32>,
    next: u32,
}

impl Stamps {
    /// None is in force. Agents begin at random places: what an earlier one let pass is hardly
    /// taken for what this one does.
    pub(super) fn new(shown: Array<MapData, u32>) -> Self {
        let random = RandomState::new().hash_one(std::process::id());
        let next = FIRST + (random % u64::from(END - FIRST)) as u32;
        Self { shown, current: BTreeSet::new(), retired: BTreeSet::new(), next }
    }

    /// A stamp that packets may carry from now on.
    pub(super) fn take(&mut self) -> Result<u32, MapsError> {
        let in_turn = (self.next..END).chain(FIRST..self.next);
        let is_used = |stamp: &u32| self.current.contains(stamp) || self.retired.contains(stamp);
        let free = in_turn.into_iter().find(|stamp| !is_used(stamp));
        let full = MapsError::Full { what: "stamps", needed: 1, most: MAX_STAMPS };
        let stamp = free.ok_or(full)?;
        self.shown.set(stamp, STAMP_CURRENT, 0)?;
        self.current.insert(stamp);
        self.next = stamp + 1;
        Ok(stamp)
    }

    /// No packet is given this stamp any more. A stamp that is not in use, as 0, is left alone.
    pub(super) fn retire(&mut self, stamp: u32) {
        if self.current.remove(&stamp) {
            self.retired.insert(stamp);
        }
    }

    /// Packets with a retired stamp leave by no uplink any more. Called when those have left that
    /// were on their way and did not wait. On error nothing is lost.
    pub(super) fn end_retired(&mut self) -> Result<(), MapError> {
        while let Some(stamp) = self.retired.first().copied() {
            self.shown.set(stamp, STAMP_OVER, 0)?;
            self.retired.remove(&stamp);
        }
        Ok(())
    }

    /// Packets with a stamp that an earlier agent gave out leave by no uplink any more.
    pub(super) fn end_others(&mut self) -> Result<(), MapError> {
        self.shown.set(OTHERS, STAMP_OVER, 0)
    }
}
