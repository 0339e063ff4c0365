//! What a guest of Xen boots with: an initramfs of busybox, the modules of its network, and the program
//! that obeys its console, with the libraries that this needs.
//! Never has a disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::run::output_of;
use crate::vm::image;

const INIT: &str = include_str!("init.sh");
const MODULES: [&str; 2] = ["xen_netfront", "af_packet"];

/// Makes the initramfs of guests with the kernel in `unpacked`.
pub fn initramfs(unpacked: &Path, binaries: &Path, directory: &Path) -> Result<PathBuf> {
    let root = directory.join("guest");
    image::begin(&root)?;
    fs::write(root.join("init"), INIT)?;
    image::pack_modules(unpacked, &MODULES, None, &root)?;
    let program = binaries.join("xen");
    fs::copy(&program, root.join("bin/xen"))?;
    for library in libraries(&program)? {
        let to = root.join(library.strip_prefix("/").unwrap_or(&library));
        fs::create_dir_all(to.parent().context("a library in no directory")?)?;
        fs::copy(&library, to)?;
    }
    let initramfs = directory.join("guest.cpio");
    image::pack(&root, &initramfs)?;
    crate::run::run(Command::new("gzip").args(["-1", "-f"]).arg(&initramfs))?;
    Ok(directory.join("guest.cpio.gz"))
}

/// Paths of the libraries that a program is linked to, its loader among them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let program = program.to_string_lossy();
    let text = output_of("ldd", &[&program]).context("`ldd` does not understand the program")?;
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}
