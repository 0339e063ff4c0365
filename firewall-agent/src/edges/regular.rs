//! Files that the agent reads: regular ones.
//! Never waits for anybody: a pipe under the name of a file is an error.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::OFlag;

/// Reads a file as a whole, if it is no larger than this.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    // A pipe is opened at once then, whether somebody writes to it or not.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    read_all(file, most)
}

/// Reads all there is, if it is no more than this.
pub fn read_all(file: File, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("larger than {most} bytes")));
    }
    Ok(bytes)
}
