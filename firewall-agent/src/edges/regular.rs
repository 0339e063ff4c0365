//! Files that the agent reads, which are regular ones, and files that it replaces as a whole.
//! Never waits for anybody, but in [`read_all`]: a pipe under the name of a file is an error.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use nix::fcntl::OFlag;
use tempfile::NamedTempFile;

/// Reads a file as a whole. An error if it is no regular file, or larger than `most` bytes.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    // A pipe is opened at once then, whether somebody writes to it or not.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    read_all(file, most)
}

/// Reads an open file, or pipe, to its end. An error if it has more than `most` bytes.
pub fn read_all(file: File, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("larger than {most} bytes")));
    }
    Ok(bytes)
}

/// Puts a file with these permissions, whatever the umask, in the place of whatever is there. It is
/// on the disk before it has its name, so whoever reads finds all of one file. After an error, what
/// was there before is still there.
pub fn replace(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
    let mut file = NamedTempFile::new_in(directory.unwrap_or(Path::new(".")))?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
