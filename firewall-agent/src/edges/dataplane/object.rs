//! What is taken out of the loaded object and out of its tables, and what can go wrong there.
//! Never puts anything in.

use std::io;
use std::ops::Range;

use aya::maps::{Map, MapData, MapError};
use thiserror::Error;

use super::ranges::Ranges;
use super::with_sources;

/// A map could not be had, or something could not be put into the maps; what was in force
/// still is.
#[derive(Debug, Error)]
pub enum MapsError {
    /// A table is full.
    #[error("no room for {needed} more {what}; there is room for {most} of all clients together")]
    Full {
        /// What there is no room for.
        what: &'static str,
        /// How many were needed.
        needed: u32,
        /// Size of the table.
        most: usize,
    },
    /// The kernel refused.
    #[error("the kernel refuses: {}", with_sources(.0))]
    Kernel(#[from] MapError),
    /// The mapping of an array refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The object has no such map.
    #[error("the eBPF object has no usable map `{0}`")]
    Missing(&'static str),
}

impl MapsError {
    /// Whether what failed may work later, with no other rules: other clients give room back, and
    /// the kernel has memory again. In doubt it may.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Full { needed, most, .. } => {
                usize::try_from(*needed).is_ok_and(|needed| needed <= *most)
            }
            Self::Kernel(_) | Self::Io(_) | Self::Missing(_) => true,
        }
    }
}

/// Takes a map out of the object.
pub(super) fn take<T: TryFrom<Map>>(
    ebpf: &mut aya::Ebpf,
    name: &'static str,
) -> Result<T, MapsError> {
    let map = ebpf.take_map(name).ok_or(MapsError::Missing(name))?;
    T::try_from(map).map_err(|_| MapsError::Missing(name))
}

/// Takes an array out of the object, to be mapped.
pub(super) fn take_array(ebpf: &mut aya::Ebpf, name: &'static str) -> Result<MapData, MapsError> {
    match ebpf.take_map(name) {
        Some(Map::Array(map)) => Ok(map),
        _ => Err(MapsError::Missing(name)),
    }
}

/// All indices of a table whose first `reserved` are not handed out.
pub(super) fn indices(reserved: u32, size: usize) -> Ranges {
    Ranges::new(reserved..u32::try_from(size).unwrap_or(u32::MAX))
}

/// Takes so many indices of a table.
pub(super) fn take_range(
    free: &mut Ranges,
    needed: u32,
    what: &'static str,
    most: usize,
) -> Result<Range<u32>, MapsError> {
    free.take(needed).ok_or(MapsError::Full { what, needed, most })
}
