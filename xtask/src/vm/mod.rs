//! Runs the tests on other kernels, each booted in a virtual machine that needs nothing of the
//! processor, with the binaries that were just built, and prints what became of them.
//! Never runs a test on this machine's own kernel.

mod built;
pub mod image;
pub mod kernels;
pub mod machine;
mod matrix;
pub mod packages;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use self::kernels::{KERNELS, Kernel, Source};
use self::machine::End;
use self::matrix::Row;
use self::packages::Packages;
use crate::run::{root, say};
use crate::{setup, suites};

/// Binaries of tests that run in the guest: those that ask the kernel.
const RINGS: [&str; 2] = ["program", "rig"];

/// Options of `vm`.
#[derive(clap::Args)]
pub struct Options {
    /// Which kernels; all of them, if none is named. `--list` tells the names.
    kernels: Vec<String>,
    /// Only say which kernels there are.
    #[arg(long)]
    list: bool,
    /// Print the matrix as JSON.
    #[arg(long)]
    json: bool,
    /// How long one kernel may take, in minutes.
    #[arg(long, value_name = "MINUTES", default_value = "120")]
    patience: u64,
    /// Only tests whose path contains one of these, like `program::` or `rig::life`.
    #[arg(last = true)]
    filters: Vec<String>,
}

/// Runs the tests on the kernels that were asked for. An error if one failed anywhere.
pub fn run(options: &Options) -> Result<()> {
    if options.list {
        KERNELS.iter().for_each(|kernel| println!("{:<24} {}", kernel.name, kernel.about));
        return Ok(());
    }
    let wanted = wanted(&options.kernels)?;
    suites::prepare("virtual machines")?;
    setup::for_kernels()?;
    let directory = root().join("target/vm");
    let binaries = binaries(&directory)?;
    let packages = Packages::read(directory.join("packages"))?;
    let mut rows = Vec::new();
    for kernel in wanted {
        let patience = Duration::from_secs(60 * options.patience);
        let job = job(&kernel, &binaries, &options.filters);
        // What is wrong with one kernel is nothing to the others.
        rows.push(on(kernel, &packages, &directory, &job, patience).unwrap_or_else(|error| {
            let mut row = Row::new(kernel);
            row.heard.problem = Some(format!("{error:#}"));
            row
        }));
    }
    if options.json {
        println!("{:#}", matrix::to_json(&rows));
    } else {
        print!("{}", matrix::text(&rows));
    }
    if !rows.iter().all(|row| row.heard.is_good()) {
        bail!("not all tests passed on all kernels");
    }
    Ok(())
}

fn wanted(names: &[String]) -> Result<Vec<Kernel>> {
    if names.is_empty() {
        return Ok(KERNELS.to_vec());
    }
    let known = |name: &String| {
        let kernel = KERNELS.iter().find(|kernel| kernel.name == name);
        let names = || KERNELS.map(|kernel| kernel.name).join(", ");
        kernel.copied().with_context(|| format!("no kernel `{name}`; there are {}", names()))
    };
    names.iter().map(known).collect()
}

/// Runs a job on a kernel.
fn on(
    kernel: Kernel,
    packages: &Packages,
    directory: &Path,
    job: &str,
    patience: Duration,
) -> Result<Row> {
    let unpacked = match kernel.source {
        Source::Package(version) => packages.unpack(&packages.newest_kernel(Some(version))?)?,
        Source::Newest => packages.unpack(&packages.newest_kernel(None)?)?,
        Source::Built(version) => built::kernel(packages, version, directory)?,
    };
    let image = image::make(&unpacked, kernel.without, directory, job)?;
    say(&format!("booting {}", kernel.name));
    let mut row = Row::new(kernel);
    let mut has_ended = false;
    let start = Instant::now();
    let end = machine::boot(&image, kernel.arguments, patience, |line| {
        eprintln!("{} {:4} s| {line}", kernel.name, start.elapsed().as_secs());
        has_ended |= line == "VM job ended with 0";
        row.hear(line);
    })?;
    let problem = match end {
        End::TimedOut => Some(format!("not over after {} minutes", patience.as_secs() / 60)),
        End::PoweredOff if row.release.is_empty() => Some("it does not boot".to_owned()),
        End::PoweredOff if !has_ended => Some("the tests did not come to their end".to_owned()),
        End::PoweredOff => None,
    };
    row.heard.problem = row.heard.problem.or(problem);
    Ok(row)
}

/// The tests and the agent, without what only debuggers read: the guest reads them over a slow line.
fn binaries(directory: &Path) -> Result<PathBuf> {
    suites::cargo(&["build", "--locked"])?;
    let to = directory.join("binaries");
    fs::create_dir_all(&to)?;
    let mut all = vec![("firewall-agent", root().join("target/debug/firewall-agent"))];
    for ring in RINGS {
        all.push((ring, suites::test_binary(ring)?));
    }
    for (name, from) in all {
        crate::run::run(Command::new("strip").arg("-o").arg(to.join(name)).arg(from))?;
    }
    Ok(to)
}

/// The script that runs in the guest.
fn job(kernel: &Kernel, binaries: &Path, filters: &[String]) -> String {
    let mut job = String::from("set -u\nexport FIREWALL_BRIEF=1\n");
    for (name, value) in kernel.sysctls {
        job += &format!("echo {value} > /proc/sys/{name} || exit 1\n");
    }
    let mut filters: Vec<String> = filters.iter().map(|it| format!("'{it}'")).collect();
    if let Some(oddity) = kernel.oddity {
        job += &format!("export FIREWALL_WITHOUT={}\n", oddity.name);
        filters = oddity.tests.iter().map(|&it| it.to_owned()).collect();
    }
    let filters = filters.join(" ");
    let (binaries, directory) = (binaries.display(), root().join("tests"));
    for ring in RINGS {
        // A test that failed is heard from the tests themselves.
        job += &format!(
            "cd '{}' && '{binaries}/{ring}' --test-threads=2 --nocapture {filters} 2>&1\n\
             [ $? -le 101 ] || exit 1\n",
            directory.display()
        );
    }
    job + "exit 0\n"
}
