//! The kernel's maps, read by their numbers.
//! Never writes to one.

use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapFd, MapInfo, MapType};
use aya_obj::generated::{bpf_attr__bindgen_ty_2, bpf_attr__bindgen_ty_2__bindgen_ty_1, bpf_cmd};
use nix::errno::Errno;
use nix::libc;

/// A map of the kernel.
pub struct Map {
    /// Its name, as far as the kernel keeps it.
    pub name: String,
    descriptor: MapFd,
    info: MapInfo,
}

impl Map {
    /// The map that has this number in the kernel.
    pub fn numbered(id: u32) -> Result<Self> {
        let info = MapInfo::from_id(id)?;
        let name = info.name_as_str().unwrap_or_default().to_owned();
        Ok(Self { name, descriptor: info.fd()?, info })
    }

    /// Whether this is the map that an object calls so: the kernel cuts names off after 15 bytes.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.name.len() == 15 && name.starts_with(&self.name)
    }

    /// Bytes of a key.
    pub fn key_size(&self) -> usize {
        self.info.key_size() as usize
    }

    /// Whether its values are numbers of maps.
    pub fn is_outer(&self) -> bool {
        matches!(self.info.map_type(), Ok(MapType::ArrayOfMaps | MapType::HashOfMaps))
    }

    /// The value behind a key, as the kernel has it.
    pub fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        ensure!(key.len() == self.key_size(), "a key of {} bytes", key.len());
        let mut value = vec![0; self.info.value_size() as usize];
        let attributes = bpf_attr__bindgen_ty_2 {
            map_fd: u32::try_from(self.descriptor.as_fd().as_raw_fd())?,
            key: key.as_ptr() as u64,
            __bindgen_anon_1: bpf_attr__bindgen_ty_2__bindgen_ty_1 {
                value: value.as_mut_ptr() as u64,
            },
            flags: 0,
        };
        let (command, size) = (bpf_cmd::BPF_MAP_LOOKUP_ELEM, size_of_val(&attributes));
        // SAFETY: key and value are as long as the kernel itself says, and outlive the call.
        let outcome = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attributes, size) };
        match Errno::result(outcome) {
            Ok(_) => Ok(Some(value)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read `{}`", self.name)),
        }
    }
}
