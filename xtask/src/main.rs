//! The project's own commands. Each arm calls one function of one module.
//! Nothing here knows anything about packets or rules.

mod distributions;
mod ebpf;
mod heard;
mod lines;
mod mirror;
mod package;
mod run;
mod setup;
mod suites;
mod sum;
mod tor;
mod vm;
mod xen;

use std::process::ExitCode;

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
    /// Compile the kernel programs into the object that the agent embeds, and one for tests.
    BuildEbpf,
    /// Build the agent with its kernel programs inside; print where it is.
    Build,
    /// Run the real agent in a rig of network namespaces and show what happens.
    Demo(suites::Demo),
    /// Run all tests: pure ones, the program in the kernel, the agent in a rig.
    Test(suites::Test),
    /// Run tests on other kernels, each in a virtual machine; print a matrix.
    Vm(vm::Options),
    /// Install the packages, and run tests, among the programs of other distributions.
    ///
    /// Of each, a tree is made by debootstrap, from the mirror that apt uses here, and kept in
    /// target/distributions for the next time. There, in namespaces of their own, the tests that were
    /// just built find that distribution's nft and ip, and its dpkg and systemd, as the first program
    /// of machines, take the packages that were made here. `cargo xtask test` does the same with what
    /// this machine has.
    Distributions(distributions::Options),
    /// Run the agent on real vifs of Xen, in a virtual machine; print what was checked.
    Xen(xen::Options),
    /// Make packages for Debian and Fedora of a release build.
    Package(package::Options),
    /// Measure. `cargo xtask bench --help` says what, and how.
    #[command(disable_help_flag = true)]
    Bench(suites::Bench),
}

fn main() -> ExitCode {
    match obey(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn obey(command: Command) -> Result<()> {
    match command {
        Command::Setup => setup::everything().map(drop),
        Command::BuildEbpf => ebpf::build(),
        Command::Build => suites::build().map(drop),
        Command::Demo(options) => suites::demo(&options),
        Command::Test(options) => suites::test(&options),
        Command::Vm(options) => vm::run(&options),
        Command::Distributions(options) => distributions::run(&options),
        Command::Xen(options) => xen::run(&options),
        Command::Package(options) => package::build(&options),
        Command::Bench(what) => suites::bench(&what),
    }
}
