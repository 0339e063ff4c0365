//! Builds and runs what a person asks for: the agent, the demo, the tests, the benches.
//! Never knows what they do.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::run::{output_of, root, run, say};
use crate::sum::Sum;
use crate::{ebpf, setup, tor};

/// Options of `demo`.
#[derive(clap::Args)]
pub struct Demo {
    /// Leave rig and agent running for exploring, and say how to enter.
    #[arg(long)]
    keep: bool,
}

/// Options of `test`.
#[derive(clap::Args)]
pub struct Test {
    /// Only tests whose path contains this, like `pure::` or `rig::life`.
    filter: Option<String>,
    /// Go round the random tests several times as often; takes a quarter of an hour, and the
    /// attacker's ring (`attack`) one hour.
    #[arg(long)]
    soak: bool,
    /// Repeat a random run that printed this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Have the kernel blind the constants of all programs meanwhile, as Whonix and others do
    /// (net.core.bpf_jit_harden=2). It is one setting for the whole machine, and what was there
    /// before comes back at the end.
    #[arg(long)]
    hardened: bool,
}

/// Options of `bench`.
#[derive(clap::Args)]
pub struct Bench {
    /// What to measure, and how; see `cargo xtask bench --help`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// Builds the agent for use.
pub fn build() -> Result<PathBuf> {
    ebpf::build()?;
    cargo(&["build", "--release", "--locked", "-p", "firewall-agent"])?;
    let agent = root().join("target/release/firewall-agent");
    say(&format!("the agent is {}", agent.display()));
    Ok(agent)
}

/// Runs the demo.
pub fn demo(options: &Demo) -> Result<()> {
    prepare("the demo")?;
    cargo(&["build", "--locked", "-p", "firewall-agent", "-p", "firewall-tests"])?;
    let mut demo = Command::new(root().join("target/debug/demo"));
    if options.keep {
        demo.arg("--keep");
    }
    run(&mut demo)
}

/// Runs all tests and ends with one line that sums them up.
pub fn test(options: &Test) -> Result<()> {
    prepare("the tests")?;
    setup::for_packages()?;
    setup::for_machines()?;
    tor::find_or_fetch();
    cargo(&["build", "--locked"])?;
    let _hardened = if options.hardened { Some(Hardened::new()?) } else { None };
    say("running the tests");
    let mut tests = Command::new("cargo");
    tests.current_dir(root()).args(["test", "--locked", "--no-fail-fast"]);
    tests.args(options.filter.as_slice());
    if options.soak {
        tests.env("FIREWALL_SOAK", "1");
    }
    if let Some(seed) = options.seed {
        tests.env("FIREWALL_SEED", seed.to_string());
    }
    let mut sum = Sum::default();
    let mut is_success = add_up(&mut tests, &mut sum)?;
    if options.filter.as_deref().is_some_and(|filter| filter.starts_with("pure")) {
        // What must not compile belongs to that ring, under names that say nothing of it.
        let mut documented = Command::new("cargo");
        documented.current_dir(root()).args(["test", "--locked", "--doc", "-p", "firewall-common"]);
        is_success &= add_up(&mut documented, &mut sum)?;
    }
    let passed = sum.passed.saturating_sub(sum.ran_not);
    println!("{passed} passed, {} failed, {} skipped", sum.failed, sum.skipped);
    if !is_success || sum.failed > 0 {
        bail!("not all tests passed");
    }
    if passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// Runs tests and adds what they say to a sum; returns whether cargo takes it for a success.
fn add_up(tests: &mut Command, sum: &mut Sum) -> Result<bool> {
    let mut tests = tests.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let output = tests.stdout.take().context("no output")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        sum.add(&line);
    }
    Ok(tests.wait()?.success())
}

/// Constants of programs are blinded as long as this is there.
struct Hardened {
    before: String,
}

impl Hardened {
    const SETTING: &str = "/proc/sys/net/core/bpf_jit_harden";

    fn new() -> Result<Self> {
        let before = fs::read_to_string(Self::SETTING)?;
        say(&format!("net.core.bpf_jit_harden=2 meanwhile; it was {}", before.trim()));
        fs::write(Self::SETTING, "2")?;
        Ok(Self { before })
    }
}

impl Drop for Hardened {
    fn drop(&mut self) {
        if let Err(error) = fs::write(Self::SETTING, &self.before) {
            say(&format!("{} stays 2: {error}", Self::SETTING));
        }
    }
}

/// Measures.
pub fn bench(bench: &Bench) -> Result<()> {
    prepare("the benchmarks")?;
    setup::for_bench()?;
    cargo(&["build", "--release", "--locked", "-p", "firewall-agent", "-p", "firewall-tests"])?;
    run(Command::new(root().join("target/release/bench")).args(&bench.options))
}

/// Everything that running in a rig takes.
pub fn prepare(what: &str) -> Result<()> {
    if output_of("id", &["-u"]).as_deref() != Some("0") {
        bail!("{what} load eBPF programs and make network namespaces: run this as root");
    }
    setup::for_rig()?;
    ebpf::build()
}

pub fn cargo(arguments: &[&str]) -> Result<()> {
    run(Command::new("cargo").current_dir(root()).args(arguments))
}

/// Builds the tests of a ring, and returns where they are.
pub fn test_binary(ring: &str) -> Result<PathBuf> {
    let build = ["test", "--no-run", "--locked", "-p", "firewall-tests", "--message-format=json"];
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root()).args(build).args(["--test", ring]);
    let output = cargo.stderr(Stdio::inherit()).output()?;
    let messages = String::from_utf8(output.stdout)?;
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_it = message.get("target")?.get("name")? == ring;
        let path = message.get("executable")?.as_str()?;
        is_it.then(|| PathBuf::from(path))
    };
    messages.lines().find_map(executable).with_context(|| format!("no tests of the ring {ring}"))
}
