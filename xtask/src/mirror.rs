//! Where this machine gets Debian's packages from, and whose signatures it believes.
//! Never fetches one.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::run::output_of;

/// The keys of Debian's archive.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where this machine gets Debian's packages from.
pub fn mirror() -> Result<String> {
    let format = ["indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Created-By: Packages"];
    let targets = output_of("apt-get", &format).context("`apt-get indextargets` fails")?;
    let debian = |line: &str| {
        let (address, component) = line.split_once(' ')?;
        let is_it = component == "main" && address.trim_end_matches('/').ends_with("/debian");
        is_it.then(|| address.to_owned())
    };
    match targets.lines().find_map(debian) {
        Some(mirror) if Path::new(KEYRING).is_file() => Ok(mirror),
        _ => bail!("this takes packages of Debian, and this machine gets none of these"),
    }
}
