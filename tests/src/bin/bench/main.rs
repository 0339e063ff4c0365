//! Measurements: `cargo xtask bench`.
//! Never asserts a time: it prints what it saw, with the spread, and what it means.

mod document;
mod firewalls;
mod flood;
mod handled;
mod machine;
mod net;
mod peers;
mod plots;
mod prog;
mod rounds;
mod scale;
mod show;
mod statistics;
mod tcp;
mod update;

use std::thread;

use anyhow::{Result, anyhow};
use clap::{Parser, Subcommand};
use firewall_tests::program::weight;

use crate::show::Report;

/// Measures the firewall on this machine.
///
/// Without a command it measures everything, which takes ten minutes, and writes
/// what it found into docs/performance.md and the directory docs/performance.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    json: bool,
    /// Write what one command finds into the document as well.
    #[arg(long, global = true)]
    write: bool,
    /// Everything in fewer rounds, for a first look.
    #[arg(long)]
    quick: bool,
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
    /// What one client notices while another one floods the netvm with what it must not
    /// send.
    Flood(flood::Options),
    /// How long new rules take to be in force, and whether a packet is ever misjudged while
    /// they are replaced.
    Update(update::Options),
    /// How long it takes until QubesDB says that new rules were handled, beside what `nft` alone
    /// takes for today's.
    Handled(handled::Options),
    /// What more rules and more clients cost, to put in force and for each packet.
    Scale(scale::Options),
    /// What the programs and some packets weigh, by no clock, beside the baseline.
    Baseline {
        /// Make what they weigh now the baseline.
        #[arg(long)]
        accept: bool,
    },
}

impl Command {
    /// How it is called, and where its findings are in the document.
    fn name(&self) -> &'static str {
        match self {
            Self::Prog(_) => "prog",
            Self::Net(_) => "net",
            Self::Tcp(_) => "tcp",
            Self::Flood(_) => "flood",
            Self::Update(_) => "update",
            Self::Handled(_) => "handled",
            Self::Scale(_) => "scale",
            Self::Baseline { .. } => "baseline",
        }
    }

    /// In a thread of its own: some go before all ordinary threads, and whatever is started
    /// after them must not.
    fn measure(&self) -> Result<Report> {
        let measure = || match self {
            Self::Prog(options) => prog::run(options),
            Self::Net(options) => net::run(options),
            Self::Tcp(options) => tcp::run(options),
            Self::Flood(options) => flood::run(options),
            Self::Update(options) => update::run(options),
            Self::Handled(options) => handled::run(options),
            Self::Scale(options) => scale::run(options),
            Self::Baseline { accept } => baseline(*accept),
        };
        let outcome = thread::scope(|scope| scope.spawn(measure).join());
        outcome.map_err(|_| anyhow!("`{}` panicked", self.name()))?
    }
}

fn main() -> Result<()> {
    let Arguments { command, json, write, quick } = Arguments::parse();
    let Some(command) = command else {
        return document::everything(quick);
    };
    let report = command.measure()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report.json)?);
    } else {
        println!("{}\n\n{}", report.text, machine::machine());
    }
    if write {
        document::write(command.name(), &report)?;
    }
    Ok(())
}

fn baseline(accept: bool) -> Result<Report> {
    let now = weight::measure()?;
    let mut text = Vec::new();
    if let Ok(then) = weight::baseline() {
        let (heavier, lighter) = weight::compare(&now, &then);
        text.extend(heavier.iter().map(|sentence| format!("heavier: {sentence}")));
        text.extend(lighter.iter().map(|sentence| format!("lighter: {sentence}")));
    }
    if text.is_empty() {
        text.push("as heavy as the baseline".to_owned());
    }
    if accept {
        weight::accept(&now)?;
        text.push("accepted; say why in the commit".to_owned());
    }
    Ok(Report { text: text.join("\n"), json: serde_json::to_value(&now)? })
}
