//! The tree of a distribution of Debian: made once by debootstrap, and kept for the next time.
//! Never takes one that is half made, or that was made of other packages than are asked for now.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::mirror::{KEYRING, mirror};
use crate::run::{run, say};
use crate::setup;

/// What is in a tree beyond what dpkg itself takes. The last line is what tests need; the rest is
/// what the product works with.
const PACKAGES: [&str; 8] = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "nftables",
    "iproute2",
    "procps",
    "systemd-container",
    "rpm",
];

/// What debootstrap leaves that nobody reads.
const UNREAD: [&str; 4] =
    ["var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"];

/// Where the tree of a distribution is; makes it, if it is not there or is to be made anew.
pub fn of(name: &str, directory: &Path, anew: bool) -> Result<PathBuf> {
    let tree = directory.join(name);
    let made_of = directory.join(format!("{name}.packages"));
    let packages = PACKAGES.join(",");
    let is_it = fs::read_to_string(&made_of).is_ok_and(|then| then == packages);
    if is_it && tree.is_dir() && !anew {
        return Ok(tree);
    }
    setup::for_trees()?;
    let mirror = mirror()?;
    say(&format!("making a tree of {name} (about three minutes)"));
    // Under another name until it is whole.
    let part = directory.join(format!("{name}.part"));
    for old in [&tree, &part] {
        if old.exists() {
            fs::remove_dir_all(old)?;
        }
    }
    fs::create_dir_all(directory)?;
    let log = directory.join(format!("{name}.log"));
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(["--variant=minbase", &format!("--include={packages}")]);
    debootstrap.arg(format!("--keyring={KEYRING}")).arg(name).arg(&part).arg(mirror);
    debootstrap.stdin(Stdio::null()).stdout(fs::File::create(&log)?);
    run(&mut debootstrap).inspect_err(|_| say(&format!("it says why in {}", log.display())))?;
    for unread in UNREAD {
        let place = part.join(unread);
        if place.is_dir() {
            fs::remove_dir_all(place)?;
        }
    }
    fs::rename(&part, &tree)?;
    fs::write(made_of, packages)?;
    Ok(tree)
}
