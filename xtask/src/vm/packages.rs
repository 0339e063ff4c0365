//! Packages of Debian that are unpacked and not installed: kernels and their sources, of more suites
//! than this machine uses, from the mirror that it uses already.
//! Never changes what is installed, nor apt's own lists.

use std::cmp::Ordering;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::mirror::{KEYRING, mirror};
use crate::run::{run, say};

/// Suites that have kernels.
const SUITES: [&str; 6] =
    ["bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports", "sid"];

/// Lists of packages, and packages, in a directory of their own.
pub struct Packages {
    directory: PathBuf,
}

impl Packages {
    /// Reads the lists of all suites.
    pub fn read(directory: PathBuf) -> Result<Self> {
        let mirror = mirror()?;
        for part in ["lists/partial", "cache/archives/partial", "unpacked"] {
            fs::create_dir_all(directory.join(part))?;
        }
        let source = |suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        fs::write(directory.join("sources.list"), SUITES.map(source).concat())?;
        let at = directory.display();
        let configuration = format!(
            "Dir::Etc::sourcelist \"{at}/sources.list\";\nDir::Etc::sourceparts \"-\";\n\
             Dir::State::lists \"{at}/lists\";\nDir::Cache \"{at}/cache\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
             Acquire::Languages \"none\";\n"
        );
        fs::write(directory.join("apt.conf"), configuration)?;
        let packages = Self { directory };
        say("reading Debian's lists of kernels");
        run(packages.apt("apt-get").args(["-q", "update"]).stdout(Stdio::null()))?;
        Ok(packages)
    }

    /// Name of the newest package with a kernel of this version that is there with all its parts; of any,
    /// with `None`.
    pub fn newest_kernel(&self, version: Option<&str>) -> Result<String> {
        let output = self.apt("apt-cache").args(["pkgnames", "linux-image-"]).output()?;
        let names = String::from_utf8(output.stdout)?;
        let mut kernels: Vec<&str> =
            names.lines().filter(|name| is_kernel(name, version)).collect();
        kernels.sort_by(|one, other| compare(other, one));
        for kernel in kernels {
            // A mirror may keep some parts longer than others; only the kernel and its modules are used.
            let is_lost = |part: &String| {
                part.starts_with("<linux-binary-") || part.starts_with("<linux-modules-")
            };
            if !self.parts(kernel)?.iter().any(is_lost) {
                return Ok(kernel.to_owned());
            }
        }
        bail!("Debian has no kernel of {}", version.unwrap_or("any version"))
    }

    /// Unpacks a package, with the parts that it may be split into, unless that was done before.
    /// Returns where it is.
    pub fn unpack(&self, package: &str) -> Result<PathBuf> {
        let parts = || {
            let mut parts = self.parts(package)?;
            parts.retain(|part| !part.starts_with('<'));
            Ok([vec![package.to_owned()], parts].concat())
        };
        self.unpack_into(package, parts)
    }

    /// Unpacks packages of one suite into one tree, unless that was done before. Returns where it is.
    pub fn unpack_together(&self, tree: &str, suite: &str, packages: &[&str]) -> Result<PathBuf> {
        let of_suite = |package: &&str| format!("{package}/{suite}");
        self.unpack_into(tree, || Ok(packages.iter().map(of_suite).collect()))
    }

    fn unpack_into(
        &self,
        tree: &str,
        packages: impl FnOnce() -> Result<Vec<String>>,
    ) -> Result<PathBuf> {
        let to = self.directory.join("unpacked").join(tree);
        if to.is_dir() {
            return Ok(to);
        }
        say(&format!("fetching {tree}"));
        let archives = self.directory.join("cache/archives").join(tree);
        fs::create_dir_all(&archives)?;
        let mut download = self.apt("apt-get");
        download.current_dir(&archives).args(["-q", "download"]);
        run(download.args(packages()?).stdout(Stdio::null()))?;
        // Under another name until it is whole.
        let part = self.directory.join("unpacked/part");
        for file in fs::read_dir(&archives)? {
            run(Command::new("dpkg-deb").arg("-x").arg(file?.path()).arg(&part))?;
        }
        fs::rename(&part, &to)?;
        fs::remove_dir_all(&archives)?;
        Ok(to)
    }

    /// Packages that hold parts of this one: the kernel and its modules, in newer suites. Those that are
    /// not there have `<` and `>` around their names.
    fn parts(&self, package: &str) -> Result<Vec<String>> {
        let Some(version) = package.strip_prefix("linux-image-") else {
            return Ok(Vec::new());
        };
        let output = self.apt("apt-cache").args(["depends", "--important", package]).output()?;
        let text = String::from_utf8(output.stdout)?;
        let needs = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let parts = ["linux-base-", "linux-binary-", "linux-modules-"]
            .map(|part| format!("{part}{version}"));
        let is_part = |name: &&str| {
            let name = name.trim_matches(['<', '>']);
            parts.iter().any(|part| part == name)
        };
        Ok(needs.filter(is_part).map(str::to_owned).collect())
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.directory.join("apt.conf"));
        command
    }
}

/// Whether a package has a kernel for this machine, of this version.
fn is_kernel(package: &str, version: Option<&str>) -> bool {
    let middle = package.strip_prefix("linux-image-").and_then(|it| it.strip_suffix("-amd64"));
    let Some(middle) = middle.filter(|it| it.starts_with(|first: char| first.is_ascii_digit()))
    else {
        return false;
    };
    let is_plain = !["cloud", "rt", "unsigned"].iter().any(|other| middle.contains(other));
    let is_of = |version: &str| {
        middle.strip_prefix(version).is_some_and(|rest| rest.starts_with(['.', '-', '+']))
    };
    is_plain && version.is_none_or(is_of)
}

/// Compares two names number by number.
fn compare(one: &str, other: &str) -> Ordering {
    let numbers = |name: &str| -> Vec<u32> {
        name.split(|it: char| !it.is_ascii_digit()).filter_map(|it| it.parse().ok()).collect()
    };
    numbers(one).cmp(&numbers(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_one_of_its_version_and_the_newest_has_the_largest_numbers() {
        let names = [
            "linux-image-6.1.0-47-amd64",
            "linux-image-6.1.0-50-amd64",
            "linux-image-6.12.9+deb13-amd64",
            "linux-image-6.12.107+deb13-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64",
            "linux-image-6.12.107+deb13-rt-amd64",
            "linux-image-7.3.4+deb13-amd64",
            "linux-image-amd64",
            "linux-image-cloud-amd64",
        ];
        let newest = |version| {
            let kernels = names.iter().filter(|name| is_kernel(name, version));
            kernels.max_by(|one, other| compare(one, other)).copied()
        };
        assert_eq!(newest(Some("6.1")), Some("linux-image-6.1.0-50-amd64"));
        assert_eq!(newest(Some("6.12")), Some("linux-image-6.12.107+deb13-amd64"));
        assert_eq!(newest(Some("6.6")), None);
        assert_eq!(newest(None), Some("linux-image-7.3.4+deb13-amd64"));
    }
}
