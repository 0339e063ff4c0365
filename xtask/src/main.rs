//! The project's own commands. Each arm calls one function of one module.
//! Nothing here knows anything about packets or rules.

mod ebpf;
mod run;
mod setup;
mod suites;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, shows, tests and measures the Qubes eBPF firewall.
///
/// Every command first installs what it needs and this machine lacks, and says
/// so. Commands that use the kernel (demo, test, bench) need root.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install the BPF toolchain, nftables and iproute2.
    Setup,
    /// Compile the kernel programs into the object that the agent embeds.
    BuildEbpf,
    /// Build the agent with its kernel programs inside; print where it is.
    Build,
    /// Run the real agent in a rig of network namespaces and show what happens.
    Demo(suites::Demo),
    /// Run all tests: formatting of nothing, skipping of nothing silently.
    Test(suites::Test),
    /// Run the formatter, the linter and all tests, as CI does.
    Ci,
    /// Measure.
    #[command(subcommand)]
    Bench(suites::Bench),
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Setup => setup::everything().map(drop),
        Command::BuildEbpf => ebpf::build().map(drop),
        Command::Build => suites::build().map(drop),
        Command::Demo(options) => suites::demo(&options),
        Command::Test(options) => suites::test(&options),
        Command::Ci => suites::ci(),
        Command::Bench(what) => suites::bench(&what),
    }
}
