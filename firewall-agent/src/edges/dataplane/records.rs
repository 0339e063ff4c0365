//! What the kernel programs send: drop records, and the lines of their log.
//! Never names vifs or rules: a record has indices, `World` has names.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use firewall_common::abi::DropRecord;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zerocopy::FromBytes as _;

use super::object::MapsError;

/// The ring buffer of drop records, and the means to wait for records.
pub struct Records {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Records {
    /// Takes the ring buffer of a loaded object. Must be called inside a tokio runtime.
    pub fn new(ebpf: &mut Ebpf) -> Result<Self, MapsError> {
        let map = ebpf.take_map("RECORDS").ok_or(MapsError::Missing("RECORDS"))?;
        let ring = RingBuf::try_from(map)?;
        Ok(Self { ring: readable(ring)? })
    }

    /// Waits for records and takes all there are, which can be none.
    pub async fn next(&mut self) -> io::Result<Vec<DropRecord>> {
        let mut ready = self.ring.readable_mut().await?;
        let mut records = Vec::new();
        while let Some(item) = ready.get_inner_mut().next() {
            records.extend(DropRecord::read_from_bytes(&item));
        }
        ready.clear_ready();
        Ok(records)
    }
}

/// The programs' own log, which they write only where the tables contradict themselves.
pub struct Log {
    logger: AsyncFd<EbpfLogger<&'static dyn log::Log>>,
}

impl Log {
    /// Takes the log of a loaded object. Must be called inside a tokio runtime.
    pub fn new(ebpf: &mut Ebpf) -> io::Result<Self> {
        let logger = EbpfLogger::init(ebpf).map_err(io::Error::other)?;
        Ok(Self { logger: readable(logger)? })
    }

    /// Waits for lines and passes them on to the agent's log.
    pub async fn pass_on(&mut self) -> io::Result<()> {
        let mut ready = self.logger.readable_mut().await?;
        ready.get_inner_mut().flush();
        ready.clear_ready();
        Ok(())
    }
}

fn readable<T: AsFd + AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: it has `AsFd`, so its descriptor is open and the same as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(owner, Interest::READABLE) }?)
}
