//! A BPF array in the agent's own memory: the kernel programs see a store at once, and a
//! store of one word as a whole.
//! Never stores where its caller did not say so; the caller knows which elements packets
//! can see.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::Pod;
use aya::maps::MapData;
use firewall_common::abi::Counter;
use memmap2::{MmapOptions, MmapRaw};

/// The kernel gives each element of an array a multiple of 8 bytes
/// (`array_map_alloc` in kernel/bpf/arraymap.c).
const ALIGNMENT: usize = 8;

/// A BPF array made with `BPF_F_MMAPABLE`.
pub struct MappedArray<T> {
    memory: MmapRaw,
    length: usize,
    /// Keeps the kernel's map.
    _map: MapData,
    _element: PhantomData<T>,
}

impl<T: Pod> MappedArray<T> {
    const STRIDE: usize = size_of::<T>().next_multiple_of(ALIGNMENT);

    /// Maps an array of `length` elements.
    pub fn new(map: MapData, length: usize) -> io::Result<Self> {
        let bytes = (length * Self::STRIDE).next_multiple_of(page_size());
        let file = map.fd().as_fd().as_raw_fd();
        let memory = MmapOptions::new().len(bytes).map_raw(file)?;
        Ok(Self { memory, length, _map: map, _element: PhantomData })
    }

    fn element(&self, index: u32) -> Option<*mut T> {
        let index = usize::try_from(index).ok().filter(|index| *index < self.length)?;
        Some(self.memory.as_mut_ptr().wrapping_add(index * Self::STRIDE).cast())
    }

    /// Stores elements from `start` on. Only for elements that no packet can see.
    pub fn store(&mut self, start: u32, values: impl IntoIterator<Item = T>) -> io::Result<()> {
        for (index, value) in (start..).zip(values) {
            let element = self.element(index).ok_or_else(out_of_bounds)?;
            // SAFETY: inside the mapping, aligned to 8 bytes, and no reference to it exists;
            // any bytes are a valid T for the kernel, which checks every access.
            unsafe { element.write_volatile(value) };
        }
        Ok(())
    }
}

/// A BPF array of which only what is being written is in the agent's memory, since every
/// page that is mapped counts as the agent's.
pub struct StagedArray<T> {
    map: MapData,
    length: usize,
    _element: PhantomData<T>,
}

impl<T: Pod> StagedArray<T> {
    /// An array of `length` elements.
    pub fn new(map: MapData, length: usize) -> Self {
        Self { map, length, _element: PhantomData }
    }

    /// Stores elements from `start` on. Only for elements that no packet can see.
    pub fn store(
        &mut self,
        start: u32,
        values: impl ExactSizeIterator<Item = T>,
    ) -> io::Result<()> {
        let start = usize::try_from(start).map_err(|_| out_of_bounds())?;
        let count = values.len();
        if count == 0 {
            return Ok(());
        }
        if start.checked_add(count).is_none_or(|end| end > self.length) {
            return Err(out_of_bounds());
        }
        let stride = MappedArray::<T>::STRIDE;
        let offset = u64::try_from(start * stride).map_err(|_| out_of_bounds())?;
        let file = self.map.fd().as_fd().as_raw_fd();
        let memory = MmapOptions::new().offset(offset).len(count * stride).map_raw(file)?;
        for (index, value) in (0..count).zip(values) {
            let element: *mut T = memory.as_mut_ptr().wrapping_add(index * stride).cast();
            // SAFETY: inside the mapping, aligned to 8 bytes, and no reference to it exists;
            // any bytes are a valid T for the kernel, which checks every access.
            unsafe { element.write_volatile(value) };
        }
        Ok(())
    }
}

impl MappedArray<Counter> {
    /// What was counted so far. Packets and bytes are read one after the other, so a
    /// packet that comes in between is in one of them only.
    pub fn load(&self, index: u32) -> Counter {
        let Some(element) = self.element(index) else {
            return Counter::default();
        };
        // SAFETY: inside the mapping and aligned; the kernel changes it while it is read,
        // one whole word at a time, which a volatile read of a word takes as it is.
        unsafe { element.read_volatile() }
    }
}

impl MappedArray<u32> {
    /// Replaces an element that packets do see, at once, after all stores before.
    pub fn publish(&self, index: u32, value: u32) -> io::Result<()> {
        let element = self.element(index).ok_or_else(out_of_bounds)?;
        // SAFETY: inside the mapping, aligned, and only ever accessed as a whole word.
        let word = unsafe { AtomicU32::from_ptr(element) };
        word.store(value, Ordering::Release);
        Ok(())
    }
}

impl MappedArray<u64> {
    /// The same for a double word.
    pub fn publish(&self, index: u32, value: u64) -> io::Result<()> {
        let element = self.element(index).ok_or_else(out_of_bounds)?;
        // SAFETY: as above.
        let word = unsafe { AtomicU64::from_ptr(element) };
        word.store(value, Ordering::Release);
        Ok(())
    }
}

fn out_of_bounds() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "index beyond the end of a map")
}

fn page_size() -> usize {
    // 4,096 on every machine Qubes OS runs on; a larger multiple maps as well.
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| usize::try_from(size).ok())
        .unwrap_or(4096)
}
