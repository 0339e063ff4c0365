//! Measurements: `cargo xtask bench`.
//! Never asserts a time: it prints what it saw, with the spread, and what it means.

mod machine;
mod net;
mod peers;
mod prog;
mod show;
mod statistics;
mod tcp;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures the firewall on this machine.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Time of the program from_client for one packet, by number of destination prefixes,
    /// under BPF_PROG_TEST_RUN, beside an empty program in the same rounds.
    Prog(prog::Options),
    /// Time of the whole way of a packet through a netvm, beside other firewalls in the
    /// same rounds: established, many and new flows, and denied packets.
    Net(net::Options),
    /// TCP through a netvm, beside other firewalls in the same rounds: connections, single
    /// bytes there and back, and bulk.
    Tcp(tcp::Options),
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Prog(options) => prog::run(&options),
        Command::Net(options) => net::run(&options),
        Command::Tcp(options) => tcp::run(&options),
    }
}
