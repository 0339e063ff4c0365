//! A kernel built from Debian's sources with `small.config`, kept for the next time.
//! Never builds one that is there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::packages::Packages;
use crate::run::{run, say};
use crate::setup;

const CONFIGURATION: &str = include_str!("small.config");

/// Builds a kernel of this version below `directory`, and returns where it is.
pub fn kernel(packages: &Packages, version: &str, directory: &Path) -> Result<PathBuf> {
    let sources = packages.unpack(&format!("linux-source-{version}"))?;
    let output = directory.join(format!("built-{version}"));
    let asked = output.join("small.config");
    let is_same = fs::read_to_string(&asked).is_ok_and(|then| then == CONFIGURATION);
    if is_same && output.join("arch/x86/boot/bzImage").is_file() {
        return Ok(output);
    }
    setup::for_kernel_builds()?;
    say(&format!("building Linux {version} without BTF (about ten minutes)"));
    let tree = directory.join(format!("linux-source-{version}"));
    if !tree.is_dir() {
        let archive = sources.join(format!("usr/src/linux-source-{version}.tar.xz"));
        run(Command::new("tar").arg("-xJf").arg(&archive).arg("-C").arg(directory))?;
    }
    fs::create_dir_all(&output)?;
    let make = |target: &[&str]| {
        let mut make = Command::new("make");
        make.current_dir(&tree).arg("-s").arg(format!("O={}", output.display())).args(target);
        run(&mut make)
    };
    make(&["tinyconfig"])?;
    fs::write(output.join("fragment"), CONFIGURATION)?;
    run(Command::new("scripts/kconfig/merge_config.sh")
        .current_dir(&tree)
        .args(["-m", "-O"])
        .args([&output, &output.join(".config"), &output.join("fragment")])
        .stdout(fs::File::create(output.join("merge.log"))?))?;
    make(&["olddefconfig"])?;
    let made = fs::read_to_string(output.join(".config"))?;
    let lost: Vec<&str> = lost(CONFIGURATION, &made).collect();
    ensure!(lost.is_empty(), "Linux {version} does not know {}", lost.join(", "));
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    make(&[&format!("-j{jobs}"), "bzImage"]).context("the kernel does not build")?;
    fs::write(asked, CONFIGURATION)?;
    Ok(output)
}

/// Options that were asked for and are not as asked.
fn lost<'a>(asked: &'a str, made: &'a str) -> impl Iterator<Item = &'a str> {
    let options = asked.lines().filter(|line| line.starts_with("CONFIG_"));
    options.filter(|option| !made.lines().any(|line| line == *option))
}
