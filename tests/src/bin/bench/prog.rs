//! Time of the program for one packet, under BPF_PROG_TEST_RUN, beside an empty program in
//! the same rounds.
//! Never attaches anything.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Result, ensure};
use comfy_table::Table;
use firewall_core::events::Installation;
use firewall_core::rules::question::Addresses;
use firewall_core::rules::question::Question;
use firewall_core::rules::resolve::Surroundings;
use firewall_tests::oracle::{Proto, Rule, Ruleset};
use firewall_tests::packets;
use firewall_tests::packets::family::{Family, PerFamily as _};
use firewall_tests::program::{Outcome, Program, client, host, proved};
use firewall_tests::traffic::kernel::{Processor, Shuffled, alone_on};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::machine::machine;
use crate::rounds::Rounds;
use crate::show::{self, Report};
use crate::statistics::Samples;

/// How to measure.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    rounds: Rounds<25, 7>,
}

const SIZES: [usize; 5] = [10, 100, 1_000, 10_000, 100_000];
/// Prefixes beyond these come from names: each rule has a counter, and there are 65,536.
const MOST_RULES: usize = 10_000;
/// Addresses of a name.
const OF_A_NAME: usize = 250;
/// Different destinations where they are spread.
const SPREAD: usize = 4_096;
/// Test runs in a round.
const REPEAT: u32 = 20_000;
/// What all rules are about.
const PORT: u16 = 443;

/// What is measured, in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Everything is accepted by default; there are no rules.
    AcceptAll,
    /// TCP to port 443 of so many networks is accepted.
    Prefixes(usize),
    /// The same, and the packet is for somebody else.
    Denied(usize),
}

/// A client with rules, and one packet of it.
struct Case {
    name: String,
    prefixes: usize,
    /// All that the policy takes in the kernel's maps.
    bytes: usize,
    lane: Lane,
}

/// A program and a packet, the same all the time or for one host after another.
struct Lane {
    program: Program,
    name: &'static str,
    frame: Vec<u8>,
    shuffled: Shuffled,
    same: Samples,
    spread: Samples,
}

/// Measures.
pub fn run(options: &Options) -> Result<Report> {
    let measured = measure(options)?;
    Ok(Report { text: measured.table().to_string(), json: measured.report() })
}

/// What was measured.
struct Measured {
    verified: u32,
    empty: Lane,
    cases: Vec<Case>,
}

fn measure(options: &Options) -> Result<Measured> {
    let rounds = options.rounds.count();
    let sizes = if options.rounds.quick { &SIZES[..4] } else { &SIZES[..] };
    let mut kinds = vec![Kind::AcceptAll];
    kinds.extend(sizes.iter().map(|size| Kind::Prefixes(*size)));
    kinds.push(Kind::Denied(1_000));
    alone_on(Processor::Last)?;
    let progress = show::progress(2 * kinds.len() + rounds)?;
    let mut random = StdRng::seed_from_u64(1);
    let mut cases = Vec::new();
    for family in Family::BOTH {
        for kind in &kinds {
            cases.push(Case::new(family, *kind, &mut random)?);
            progress.inc(1);
        }
    }
    let host = client(Family::V4);
    let frame = packets::plain(host, host, packets::TCP, PORT);
    let mut empty = Lane::new(Program::load()?, "baseline", frame, &[host])?;
    for _ in 0..rounds {
        // Case after case within a round, so that a slow moment hits all alike.
        for case in &mut cases {
            case.lane.measure()?;
        }
        empty.measure()?;
        progress.inc(1);
    }
    progress.finish_and_clear();
    let verified = empty.program.verified_instructions()?;
    Ok(Measured { verified, empty, cases })
}

impl Lane {
    fn new(
        mut program: Program,
        name: &'static str,
        frame: Vec<u8>,
        hosts: &[IpAddr],
    ) -> Result<Self> {
        let shuffled = Shuffled::new(&frame, hosts, program.descriptor(name)?)?;
        let (same, spread) = Default::default();
        Ok(Self { program, name, frame, shuffled, same, spread })
    }

    fn measure(&mut self) -> Result<()> {
        let time = self.program.time(self.name, &self.frame, REPEAT)?;
        self.same.add(time.as_nanos() as f64);
        self.spread.add(self.shuffled.time(REPEAT)?.as_nanos() as f64);
        Ok(())
    }
}

impl Case {
    fn new(family: Family, kind: Kind, random: &mut StdRng) -> Result<Self> {
        let client = client(family);
        let (prefixes, expected) = match kind {
            Kind::AcceptAll => (0, Outcome::ACCEPTED),
            Kind::Prefixes(prefixes) => (prefixes, Outcome::ACCEPTED),
            Kind::Denied(prefixes) => (prefixes, Outcome::NOT_PERMITTED),
        };
        let mut known = Surroundings::default();
        let (default_accept, rules) = (kind == Kind::AcceptAll, Vec::new());
        let mut ruleset = Ruleset { default_accept, rules };
        let (networks, text) = if prefixes <= MOST_RULES {
            let networks = networks(family, prefixes, random);
            ruleset.rules = networks.iter().map(|network| rule(*network)).collect();
            (networks, ruleset.file())
        } else {
            let networks = networks(family, prefixes, random);
            let text = names(family, &networks, &mut known);
            (networks, text)
        };
        let policy = proved(client, &text, &known)?;
        let tables = policy.policy();
        // A node of a trie, a class and a segment (kernel/bpf/lpm_trie.c, abi.rs).
        let (prefixes, classes) = (tables.prefixes.len(), tables.classes.len());
        let bytes = prefixes * 96 + classes * 40 + tables.segments.len() * 8;
        let mut program = Program::load()?;
        let rules = u32::try_from(text.lines().count())?;
        program.install(client, &Installation::Policy { policy, rules }, 1)?;
        let hosts: Vec<IpAddr> = match kind {
            Kind::Prefixes(_) => {
                let step = networks.len().div_ceil(SPREAD);
                networks.into_iter().step_by(step).map(|(host, _)| host).collect()
            }
            // Outside of all networks.
            Kind::AcceptAll | Kind::Denied(_) => {
                (0..SPREAD).map(|_| host(family, random.random::<u32>() >> 2 | 1 << 30)).collect()
            }
        };
        let frame = |host: &IpAddr| packets::plain(client, *host, packets::TCP, PORT);
        for host in &hosts {
            // A wrong packet would be measured just as well.
            ensure!(program.send(&frame(host))? == expected, "{host} is not {expected:?}");
        }
        let name = match kind {
            Kind::AcceptAll => format!("{family}, accept all"),
            Kind::Prefixes(prefixes) => format!("{family}, {prefixes} prefixes"),
            Kind::Denied(prefixes) => format!("{family}, denied by {prefixes}"),
        };
        let lane = Lane::new(program, "from_client", frame(&hosts[0]), &hosts)?;
        Ok(Self { name, prefixes, bytes, lane })
    }
}

/// Networks of 24 to 32 (120 to 128) bits in a small part of the address space: the tries
/// are as deep as they get.
fn networks(family: Family, count: usize, random: &mut StdRng) -> Vec<(IpAddr, u8)> {
    let shortest = family.bits() - 8;
    let mut network = || {
        let bits = 0x0800_0000 | random.random_range(0..1 << 26);
        (host(family, bits), random.random_range(shortest..=shortest + 8))
    };
    (0..count).map(|_| network()).collect()
}

fn rule(network: (IpAddr, u8)) -> Rule {
    Rule {
        network: Some(network),
        proto: Some(Proto::Tcp),
        ports: Some((PORT, PORT)),
        ..Rule::all(true)
    }
}

/// A file of rules for names that have the addresses of these networks.
fn names(family: Family, networks: &[(IpAddr, u8)], known: &mut Surroundings) -> String {
    let mut text = String::from("policy = drop\n");
    for (number, some) in networks.chunks(OF_A_NAME).enumerate() {
        let name = format!("host{number}.example");
        text += &format!(
            "{number:04} = action=accept dsthost={name} proto=tcp dstports={PORT}-{PORT}\n"
        );
        let accept: BTreeSet<IpAddr> = some.iter().map(|(host, _)| *host).collect();
        known.names.insert(Question { name, family }, Addresses { accept, drop: None });
    }
    text + "commit\n"
}

impl Measured {
    fn table(&self) -> Table {
        let header = [
            "one packet",
            "policy kB",
            "min ns",
            "median ns",
            "90 %",
            "over empty",
            "spread min",
            "spread median",
            "over empty",
        ];
        let empty = &self.empty;
        let no_case = [("empty".to_owned(), 0, empty)];
        let cases = self.cases.iter().map(|case| (case.name.clone(), case.bytes, &case.lane));
        let row = |(name, bytes, lane): (String, usize, &Lane)| {
            let over = |one: &Samples, other: &Samples| format!("{:.0}", one.over(other));
            vec![
                name,
                format!("{:.0}", bytes as f64 / 1000.0),
                format!("{:.0}", lane.same.minimum()),
                format!("{:.0}", lane.same.median()),
                format!("{:.0}", lane.same.quantile(0.9)),
                over(&lane.same, &empty.same),
                format!("{:.0}", lane.spread.minimum()),
                format!("{:.0}", lane.spread.median()),
                over(&lane.spread, &empty.spread),
            ]
        };
        show::table(header, no_case.into_iter().chain(cases).map(row).collect())
    }

    fn report(&self) -> Value {
        let lane = |name: &str, lane: &Lane| {
            let samples = |samples: &Samples, empty: &Samples| {
                json!({
                    "min_ns": samples.minimum(), "median_ns": samples.median(),
                    "p90_ns": samples.quantile(0.9), "over_empty_ns": samples.over(empty),
                })
            };
            json!({
                "name": name,
                "same": samples(&lane.same, &self.empty.same),
                "spread": samples(&lane.spread, &self.empty.spread),
            })
        };
        let cases = self.cases.iter().map(|case| {
            let mut it = lane(&case.name, &case.lane);
            it["prefixes"] = case.prefixes.into();
            it["policy_bytes"] = case.bytes.into();
            it
        });
        let cases: Vec<Value> = std::iter::once(lane("empty", &self.empty)).chain(cases).collect();
        json!({
            "machine": machine(), "verified_instructions": self.verified, "prog": cases,
        })
    }
}
