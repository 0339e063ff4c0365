//! Pinned links: what keeps programs attached when no agent runs.
//! Never attaches anything.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use firewall_common::abi::ABI_VERSION;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{DataplaneError, with_sources};

/// What is in a directory of pins; nothing if there is no such directory.
pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>, DataplaneError> {
    let paths = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>());
    match paths {
        // Somebody unmounted what it was in.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        paths => paths.map_err(|error| DataplaneError::Pins { path: directory.to_owned(), error }),
    }
}

/// The directories of all versions of the maps' layout.
pub(super) fn subdirectories(pins: &Path) -> Result<Vec<PathBuf>, DataplaneError> {
    let is_version = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_prefix('v'));
        number.is_some_and(|number| number.parse::<u32>().is_ok()) && path.is_dir()
    };
    Ok(entries(pins)?.into_iter().filter(is_version).collect())
}

/// Under which name a link is pinned.
pub(super) fn link_name(program: &str, link: u32) -> String {
    format!("{program}-{link}")
}

/// Makes the directory for links of this version of the maps' layout.
pub(super) fn pin_directory(pins: &Path) -> Result<PathBuf, DataplaneError> {
    make_directory(pins).map_err(|error| DataplaneError::Pins { path: pins.to_owned(), error })
}

fn make_directory(pins: &Path) -> io::Result<PathBuf> {
    let links = pins.join(format!("v{ABI_VERSION}"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&links)?;
    if statfs(&links)?.filesystem_type() != BPF_FS_MAGIC {
        fs::remove_dir(&links)?;
        return Err(io::Error::other(
            "not on a BPF file system; mount one with `mount -t bpf bpf /sys/fs/bpf`",
        ));
    }
    Ok(links)
}

pub(super) fn pinned(path: &Path) -> Result<Option<PinnedLink>, DataplaneError> {
    match PinnedLink::from_pin(path) {
        Ok(link) => Ok(Some(link)),
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Pins a link, so that it stays when this process does not.
pub(super) fn pin_link(link: FdLink, pin: &Path) -> Result<(), DataplaneError> {
    link.pin(pin).map(drop).map_err(|error| DataplaneError::Pins {
        path: pin.to_owned(),
        error: io::Error::other(with_sources(&error)),
    })
}

/// Gives a pin another name.
pub(super) fn move_pin(from: &Path, to: &Path) -> Result<(), DataplaneError> {
    fs::rename(from, to).map_err(|error| DataplaneError::Pins { path: from.to_owned(), error })
}

pub(super) fn remove_pin(path: &Path) -> Result<(), DataplaneError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DataplaneError::Pins { path: path.to_owned(), error })
        }
        _ => Ok(()),
    }
}
