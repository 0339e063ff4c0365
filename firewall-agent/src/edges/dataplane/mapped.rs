//! A BPF array in the agent's own memory: the kernel programs see a store at once, and a
//! store of one word as a whole.
//! Never stores where its caller did not say so; the caller knows which elements packets
//! can see.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::maps::MapData;
use firewall_common::abi::Counter;
use memmap2::{MmapOptions, MmapRaw};
use zerocopy::{FromBytes, IntoBytes};

/// The kernel gives each element of an array a multiple of 8 bytes
/// (`array_map_alloc` in kernel/bpf/arraymap.c).
const ALIGNMENT: usize = 8;

/// Some elements of a BPF array, mapped.
struct Window<T> {
    memory: MmapRaw,
    length: usize,
    _element: PhantomData<T>,
}

impl<T: FromBytes + IntoBytes> Window<T> {
    const STRIDE: usize = size_of::<T>().next_multiple_of(ALIGNMENT);

    /// Maps `length` elements, one or more, from `start` on. The kernel refuses what is
    /// beyond the end of the array's last page.
    fn open(map: &MapData, start: usize, length: usize) -> io::Result<Self> {
        let offset = u64::try_from(start * Self::STRIDE).map_err(|_| out_of_bounds())?;
        let file = map.fd().as_fd().as_raw_fd();
        let memory = MmapOptions::new().offset(offset).len(length * Self::STRIDE).map_raw(file)?;
        Ok(Self { memory, length, _element: PhantomData })
    }

    /// Where an element is, counted from the first one that is mapped.
    fn element(&self, index: usize) -> io::Result<*mut T> {
        if index >= self.length {
            return Err(out_of_bounds());
        }
        Ok(self.memory.as_mut_ptr().wrapping_add(index * Self::STRIDE).cast())
    }

    fn store(&mut self, start: usize, values: impl IntoIterator<Item = T>) -> io::Result<()> {
        for (index, value) in (start..).zip(values) {
            let element = self.element(index)?;
            // SAFETY: inside the mapping, aligned to 8 bytes, and no reference to it exists.
            unsafe { element.write_volatile(value) };
        }
        Ok(())
    }
}

/// A BPF array made with `BPF_F_MMAPABLE`, mapped as a whole.
pub struct MappedArray<T> {
    window: Window<T>,
    /// Keeps the kernel's map.
    _map: MapData,
}

impl<T: FromBytes + IntoBytes> MappedArray<T> {
    /// Maps an array of `length` elements.
    pub fn new(map: MapData, length: usize) -> io::Result<Self> {
        Ok(Self { window: Window::open(&map, 0, length)?, _map: map })
    }

    fn element(&self, index: u32) -> io::Result<*mut T> {
        self.window.element(position(index)?)
    }

    /// Stores elements from `start` on. Only for elements that no packet can see.
    pub fn store(&mut self, start: u32, values: impl IntoIterator<Item = T>) -> io::Result<()> {
        self.window.store(position(start)?, values)
    }
}

/// A BPF array of which only what is being written is in the agent's memory, since every
/// page that is mapped counts as the agent's.
pub struct StagedArray<T> {
    map: MapData,
    length: usize,
    _element: PhantomData<T>,
}

impl<T: FromBytes + IntoBytes> StagedArray<T> {
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
        let start = position(start)?;
        let count = values.len();
        if count == 0 {
            return Ok(());
        }
        if start.checked_add(count).is_none_or(|end| end > self.length) {
            return Err(out_of_bounds());
        }
        Window::open(&self.map, start, count)?.store(0, values)
    }
}

impl MappedArray<Counter> {
    /// What was counted so far; nothing beyond the end of the array. Packets and bytes are read
    /// one after the other, so a packet that comes in between is in one of them only.
    pub fn load(&self, index: u32) -> Counter {
        let Ok(element) = self.element(index) else {
            return Counter::default();
        };
        // SAFETY: inside the mapping and aligned; the kernel changes it while it is read,
        // one whole word at a time, which a volatile read of a word takes as it is.
        unsafe { element.read_volatile() }
    }
}

impl MappedArray<u32> {
    /// Replaces an element that packets do see, at once, after all stores before. An error means
    /// that there is no such element.
    pub fn publish(&self, index: u32, value: u32) -> io::Result<()> {
        let element = self.element(index)?;
        // SAFETY: inside the mapping, aligned, and only ever accessed as a whole word.
        let word = unsafe { AtomicU32::from_ptr(element) };
        word.store(value, Ordering::Release);
        Ok(())
    }
}

impl MappedArray<u64> {
    /// Replaces an element of 8 bytes that packets do see, at once, after all stores before. An
    /// error means that there is no such element.
    pub fn publish(&self, index: u32, value: u64) -> io::Result<()> {
        let element = self.element(index)?;
        // SAFETY: as above.
        let word = unsafe { AtomicU64::from_ptr(element) };
        word.store(value, Ordering::Release);
        Ok(())
    }
}

fn position(index: u32) -> io::Result<usize> {
    usize::try_from(index).map_err(|_| out_of_bounds())
}

fn out_of_bounds() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "index beyond the end of a map")
}
