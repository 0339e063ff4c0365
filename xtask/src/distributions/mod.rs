//! Tries the product among the programs of other distributions, in a tree of each: its packages by
//! that dpkg and that systemd, and the gate by that nft, with the binaries that were just built.
//! Never changes what is installed on this machine, nor the tree.

mod inside;
mod tree;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::heard::{Heard, table};
use crate::run::{root, say};
use crate::{package, setup, suites};

/// A distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Distribution {
    /// What a person calls it by, and Debian's mirrors too.
    name: &'static str,
    /// Why it is in the list.
    about: &'static str,
}

/// All of them. (What this machine has, `cargo xtask test` tries.)
const DISTRIBUTIONS: [Distribution; 1] =
    [Distribution { name: "trixie", about: "Debian 13: systemd 257, nft 1.1" }];

/// Tests about what a distribution brings: its packages and service manager, and what its nft
/// understands and prints.
const ABOUT: [&str; 15] = [
    "rig::closed",
    "rig::input",
    "rig::life",
    "rig::nat",
    "rig::openings",
    "rig::others",
    "rig::own_",
    "rig::packages",
    "rig::repair",
    "rig::scene",
    "rig::service",
    "rig::strangers",
    "rig::strict",
    "rig::uplinks",
    "rig::whonix",
];

/// The versions that packages are made of: one is installed, and the other is the next one.
const VERSIONS: [&str; 2] = ["0.1.0", "0.1.1"];

/// Options of `distributions`.
#[derive(clap::Args)]
pub struct Options {
    /// Which distributions; all of them, if none is named. `--list` tells the names.
    distributions: Vec<String>,
    /// Only say which distributions there are.
    #[arg(long)]
    list: bool,
    /// Make the trees anew, of today's packages; otherwise one that is there is taken.
    #[arg(long)]
    anew: bool,
    /// Print what became of the tests as JSON.
    #[arg(long)]
    json: bool,
    /// How long the tests of one distribution may take, in minutes.
    #[arg(long, value_name = "MINUTES", default_value = "60")]
    patience: u64,
    /// Only tests whose path contains one of these, like `rig::packages`; `rig::` are all of the
    /// rig. Without any, those about packages, systemd and nft.
    #[arg(last = true)]
    filters: Vec<String>,
}

/// What became of the tests in one distribution.
struct Row {
    distribution: Distribution,
    /// The versions of what it brings; nothing if it did not come so far.
    versions: String,
    heard: Heard,
}

/// Tries the product in the distributions that were asked for. An error if a test failed anywhere.
pub fn run(options: &Options) -> Result<()> {
    if options.list {
        DISTRIBUTIONS.iter().for_each(|it| println!("{:<16} {}", it.name, it.about));
        return Ok(());
    }
    let wanted = wanted(&options.distributions)?;
    suites::prepare("the tests in other distributions")?;
    setup::for_packages()?;
    let directory = root().join("target/distributions");
    let ready = Ready::make(&directory)?;
    let mut filters: Vec<&str> = options.filters.iter().map(String::as_str).collect();
    if filters.is_empty() {
        filters = ABOUT.into();
    }
    let mut rows = Vec::new();
    for distribution in wanted {
        let tree = tree::of(distribution.name, &directory, options.anew)?;
        let patience = Duration::from_secs(60 * options.patience);
        rows.push(try_in(distribution, &tree, &ready.job(&filters), patience)?);
    }
    if options.json {
        println!("{:#}", json!({ "distributions": rows.iter().map(to_json).collect::<Vec<_>>() }));
    } else {
        let rows = rows.iter().map(|it| (it.distribution.name, it.versions.as_str(), &it.heard));
        print!("{}", table("distribution", rows));
    }
    if !rows.iter().all(|row| row.heard.is_good()) {
        bail!("not all tests passed in all distributions");
    }
    Ok(())
}

fn wanted(names: &[String]) -> Result<Vec<Distribution>> {
    if names.is_empty() {
        return Ok(DISTRIBUTIONS.to_vec());
    }
    let known = |name: &String| {
        let found = DISTRIBUTIONS.iter().find(|it| it.name == name);
        let names = || DISTRIBUTIONS.map(|it| it.name).join(", ");
        found.copied().with_context(|| format!("no distribution `{name}`; there are {}", names()))
    };
    names.iter().map(known).collect()
}

fn to_json(row: &Row) -> Value {
    let mut object = row.heard.to_json();
    object.insert("distribution".to_owned(), json!(row.distribution.name));
    object.insert("versions".to_owned(), json!(row.versions));
    Value::Object(object)
}

/// Runs a job in a distribution.
fn try_in(distribution: Distribution, tree: &Path, job: &str, patience: Duration) -> Result<Row> {
    say(&format!("trying it in {}", distribution.name));
    let (versions, heard) = Default::default();
    let mut row = Row { distribution, versions, heard };
    let is_over = inside::run(distribution.name, tree, job, patience, |line| {
        eprintln!("{}| {line}", distribution.name);
        match line.strip_prefix("DISTRIBUTION is ") {
            Some(versions) => versions.clone_into(&mut row.versions),
            None => row.heard.hear(line),
        }
    })?;
    row.heard.problem = match is_over {
        None => Some(format!("not over after {} minutes", patience.as_secs() / 60)),
        Some(true) => None,
        Some(false) => Some("the tests did not come to their end".to_owned()),
    };
    Ok(row)
}

/// What was built on this machine and is tried elsewhere.
struct Ready {
    rig: PathBuf,
    packages: PathBuf,
}

impl Ready {
    fn make(directory: &Path) -> Result<Self> {
        suites::cargo(&["build", "--locked"])?;
        let rig = suites::test_binary("rig")?;
        let packages = directory.join("packages");
        for version in VERSIONS {
            let agent = root().join("target/debug/firewall-agent");
            package::build(&package::Options::quick(agent, version, &packages))?;
        }
        Ok(Self { rig, packages })
    }

    /// The script that runs in a distribution.
    fn job(&self, filters: &[&str]) -> String {
        let (rig, packages) = (self.rig.display(), self.packages.display());
        let filters: Vec<String> = filters.iter().map(|it| format!("'{it}'")).collect();
        let filters = filters.join(" ");
        format!(
            "set -u\n\
             . /etc/os-release\n\
             nft=$(nft --version | sed 's/^nftables v\\([^ ]*\\).*/\\1/') || exit 1\n\
             systemd=$(systemctl --version | sed -n '1s/^systemd \\([0-9]*\\).*/\\1/p') || exit 1\n\
             echo \"DISTRIBUTION is $PRETTY_NAME, nft $nft, systemd $systemd\"\n\
             # Somebody at the screen.\n\
             useradd --create-home --uid 1000 user || exit 1\n\
             cd '{}' && FIREWALL_PACKAGES='{packages}' '{rig}' --test-threads=2 --nocapture {filters} 2>&1\n\
             # A test that failed is heard from the tests themselves.\n\
             [ $? -le 101 ]\n",
            root().join("tests").display()
        )
    }
}
