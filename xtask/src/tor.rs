//! A real Tor for the tests of a Whonix gateway, unpacked below target/ and not installed: the
//! package would start a service that goes to the Tor network.
//! Never stops anything if there is none; the tests say what they skip.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::run::{root, run, say, which};

/// Where it is unpacked; `tests/src/whonix/real.rs` looks there.
fn directory() -> PathBuf {
    root().join("target/tor")
}

/// Sees to it that there is one, if that can be.
pub fn find_or_fetch() {
    if which("tor").is_some() || directory().join("root/usr/bin/tor").is_file() {
        return;
    }
    say("fetching tor, which is unpacked and not installed");
    if let Err(error) = fetch(&directory()) {
        say(&format!("no tor, so its tests are skipped: {error:#}"));
    }
}

/// Downloads the package, and what of its libraries is missing, and unpacks them.
fn fetch(directory: &Path) -> Result<()> {
    let apt = which("apt-get").context("no apt-get here")?;
    let packages = directory.join("packages");
    fs::create_dir_all(packages.join("partial"))?;
    let quiet = |arguments: &[&str]| -> Result<()> {
        let mut command = Command::new(&apt);
        command.args(["-q", "-y", "-o", "Dpkg::Use-Pty=0"]).args(arguments);
        run(command.stdout(Stdio::null()))
    };
    quiet(&["update"])?;
    let archives = format!("Dir::Cache::archives={}", packages.display());
    quiet(&["install", "--download-only", "--no-install-recommends", "-o", &archives, "tor"])?;
    for package in fs::read_dir(&packages)?.flatten().map(|it| it.path()) {
        if package.extension().is_some_and(|it| it == "deb") {
            run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(directory.join("root")))?;
        }
    }
    Ok(())
}
