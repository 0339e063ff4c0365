//! Time of the program for one packet, by number of destination prefixes, under
//! BPF_PROG_TEST_RUN, beside an empty program in the same rounds.
//! Never attaches anything.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::Result;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use firewall_agent::rules::resolve::Surroundings;
use firewall_tests::oracle::{Proto, Rule, Ruleset};
use firewall_tests::packets;
use firewall_tests::program::{Outcome, Program};
use indicatif::ProgressBar;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;

use crate::machine::machine;

/// How to measure.
#[derive(clap::Args)]
pub struct Options {
    /// Rounds; each measures every size once.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];
/// Different destinations in a round, so that not only one path of a trie is hot.
const DESTINATIONS: usize = 64;
/// Test runs for each destination in a round.
const REPEAT: u32 = 5_000;

/// A client with rules, and packets of it.
struct Case {
    name: String,
    program: Program,
    frames: Vec<Vec<u8>>,
    policy_bytes: usize,
    nanoseconds: Vec<f64>,
}

/// Measures, and prints.
pub fn run(options: &Options) -> Result<()> {
    let Options { rounds, json: as_json } = *options;
    let progress = ProgressBar::new((rounds * SIZES.len() * 2) as u64);
    progress.println("building policies");
    let mut random = StdRng::seed_from_u64(1);
    let mut cases = Vec::new();
    for v4 in [true, false] {
        for size in SIZES {
            cases.push(Case::new(v4, size, &mut random)?);
        }
    }
    let verified = cases[0].program.verified_instructions()?;
    let mut baseline = Vec::new();
    for _ in 0..rounds {
        // Size after size within a round, so that a slow moment hits all alike.
        for case in &mut cases {
            let mut total = Duration::ZERO;
            for frame in &case.frames {
                total += case.program.time("from_client", frame, REPEAT)?;
            }
            case.nanoseconds.push(total.as_nanos() as f64 / case.frames.len() as f64);
            progress.inc(1);
        }
        let first = &mut cases[0];
        let empty = first.program.time("baseline", &first.frames[0], REPEAT * 10)?;
        baseline.push(empty.as_nanos() as f64);
    }
    progress.finish_and_clear();
    let empty = spread(&mut baseline);
    let rows: Vec<(String, usize, [f64; 3])> = cases
        .iter_mut()
        .map(|case| (case.name.clone(), case.policy_bytes, spread(&mut case.nanoseconds)))
        .collect();
    if as_json {
        print_json(&rows, empty, verified)
    } else {
        print_table(&rows, empty, verified);
        Ok(())
    }
}

impl Case {
    /// Networks of 24 to 32 (48 to 128) bits in a small part of the address space, each
    /// with a TCP port of its own: the tries are as deep as they get.
    fn new(v4: bool, size: usize, random: &mut StdRng) -> Result<Self> {
        let client: IpAddr = if v4 {
            Ipv4Addr::new(10, 137, 0, 12).into()
        } else {
            Ipv6Addr::new(0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0xa89, 0xc).into()
        };
        let mut rules = Vec::new();
        let mut frames = Vec::new();
        for index in 0..size {
            let (address, length): (IpAddr, u8) = if v4 {
                let bits = 0x0800_0000 | random.random_range(0..1 << 26);
                (Ipv4Addr::from_bits(bits).into(), random.random_range(24..=32))
            } else {
                let bits = 0x2001_0db8_u128 << 96 | random.random::<u128>() >> 32;
                (Ipv6Addr::from_bits(bits).into(), random.random_range(48..=128))
            };
            let port = 1 + (index % 60_000) as u16;
            rules.push(Rule {
                network: Some((address, length)),
                proto: Some(Proto::Tcp),
                ports: Some((port, port)),
                ..Rule::all(true)
            });
            if index * DESTINATIONS / size >= frames.len() {
                frames.push(packets::plain(client, address, packets::TCP, port));
            }
        }
        let ruleset = Ruleset { default_accept: false, rules };
        let known = Surroundings::default();
        let policy = firewall_tests::program::proved(client, &ruleset.file(), &known)?;
        let policy = policy.policy();
        let policy_bytes =
            policy.prefixes.len() * 96 + policy.classes.len() * 40 + policy.segments.len() * 8;
        let mut program = Program::load()?;
        program.put(client, &ruleset, &known)?;
        for frame in &frames {
            // A wrong packet would be measured just as well.
            anyhow::ensure!(program.send(frame)? == Outcome::ACCEPTED, "not accepted");
        }
        let family = if v4 { "IPv4" } else { "IPv6" };
        let name = format!("{family}, {size} prefixes");
        Ok(Self { name, program, frames, policy_bytes, nanoseconds: Vec::new() })
    }
}

/// Minimum, median and maximum.
fn spread(values: &mut [f64]) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [values[0], values[values.len() / 2], values[values.len() - 1]]
}

fn print_table(rows: &[(String, usize, [f64; 3])], empty: [f64; 3], verified: u32) {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header([
        "program",
        "policy kB",
        "min ns",
        "median ns",
        "max ns",
        "median over empty",
        "to 10 prefixes",
    ]);
    let [min, median, max] = empty.map(|it| format!("{it:.0}"));
    table.add_row(["empty", "", &min, &median, &max, "", ""]);
    for (index, (name, bytes, spread)) in rows.iter().enumerate() {
        let ten = rows[index / SIZES.len() * SIZES.len()].2[1];
        let [min, median, max] = spread.map(|it| format!("{it:.0}"));
        table.add_row([
            name.clone(),
            format!("{:.0}", *bytes as f64 / 1000.0),
            min,
            median,
            max,
            format!("{:.0}", spread[1] - empty[1]),
            format!("{:.2}x", spread[1] / ten),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    println!(
        "one accepted TCP packet, parsed, classified, counted and marked; {DESTINATIONS} \
         destinations,\n{REPEAT} times each in a row, so caches are warm; includes what the \
         empty program costs\n\
         instructions verified: {verified} of a budget of 250000\n\
         {}",
        machine()
    );
}

fn print_json(rows: &[(String, usize, [f64; 3])], empty: [f64; 3], verified: u32) -> Result<()> {
    let row = |name: &str, bytes: usize, [min, median, max]: [f64; 3]| {
        json!({
            "name": name, "policy_bytes": bytes,
            "min_ns": min, "median_ns": median, "max_ns": max,
        })
    };
    let mut all = vec![row("empty", 0, empty)];
    all.extend(rows.iter().map(|(name, bytes, spread)| row(name, *bytes, *spread)));
    let report = json!({
        "schema": 1, "machine": machine(), "verified_instructions": verified, "programs": all,
    });
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
