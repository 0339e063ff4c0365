//! What more rules and more clients cost: to compile, prove and install them, and for each
//! packet, in the kernel's maps alone.
//! Never attaches anything.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use anyhow::{Result, ensure};
use firewall_agent::edges::sources::rule_files;
use firewall_core::client::ClientId;
use firewall_core::events::Installation;
use firewall_core::rules::resolve::{self, Surroundings};
use firewall_core::rules::{Family, check, compile};
use firewall_tests::oracle::{Proto, Rule};
use firewall_tests::packets;
use firewall_tests::program::{Outcome, Program, VIF, proved};
use firewall_tests::traffic::kernel::{PORT, Processor, Shuffled, alone_on};
use serde_json::{Value, json};

use crate::machine::machine;
use crate::peers::{hosts, rule, ruleset};
use crate::rounds::Rounds;
use crate::show::{self, Report};
use crate::statistics::Samples;

/// How to measure.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    rounds: Rounds<7, 3>,
}

const RULES: [usize; 4] = [10, 100, 1_000, 10_000];
const CLIENTS: [usize; 4] = [1, 10, 100, 1_000];
/// Rules of each client where clients are many; all of them differ.
const RULES_EACH: usize = 10;
const REPEAT: u32 = 20_000;

/// So many rules of one client, in milliseconds.
#[derive(Default)]
struct ByRules {
    rules: usize,
    parse: Samples,
    compile: Samples,
    prove: Samples,
    install: Samples,
    /// The store that ends settling: the same that makes a policy live.
    flip: Samples,
    tidy: Samples,
}

/// So many clients.
struct ByClients {
    clients: usize,
    /// Milliseconds to put one more in force.
    install: Samples,
    /// Nanoseconds of a packet, each from another client.
    packet: Samples,
    /// The same for the empty program.
    nothing: Samples,
}

/// Measures.
pub fn run(options: &Options) -> Result<Report> {
    let rounds = options.rounds.count();
    let progress = show::progress(RULES.len() * rounds + CLIENTS.len())?;
    let mut by_rules = Vec::new();
    for rules in RULES {
        progress.set_message(format!("{rules} rules"));
        let mut all = ByRules { rules, ..ByRules::default() };
        let mut program = Program::load()?;
        for _ in 0..rounds {
            all.measure(&mut program)?;
            progress.inc(1);
        }
        by_rules.push(all);
    }
    let mut by_clients = Vec::new();
    for clients in CLIENTS {
        progress.set_message(format!("{clients} clients"));
        by_clients.push(ByClients::measure(clients, rounds)?);
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(Report { text: table(&by_rules, &by_clients), json: report(&by_rules, &by_clients) })
}

/// Does something, and notes how many milliseconds it took.
fn timed<T>(to: &mut Samples, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let made = work()?;
    to.add(start.elapsed().as_secs_f64() * 1000.0);
    Ok(made)
}

impl ByRules {
    fn measure(&mut self, program: &mut Program) -> Result<()> {
        let address = client(0);
        let id = ClientId { vif: VIF, address };
        let known = Surroundings::default();
        let text = ruleset(self.rules, Proto::Tcp).file();
        let ruleset = timed(&mut self.parse, || Ok(rule_files::ruleset(address, &text)?))?;
        let (resolved, policy) = timed(&mut self.compile, || {
            let resolved = resolve::resolve(Family::from(address), &ruleset, &known);
            let policy = compile::compile(&resolved)?;
            Ok((resolved, policy))
        })?;
        let policy = timed(&mut self.prove, || Ok(check::prove(&resolved, policy)?))?;
        let rules = u32::try_from(self.rules)?;
        let installation = Installation::Policy { policy, rules };
        let maps = &mut program.maps;
        timed(&mut self.install, || Ok(maps.put(id, &installation, 1)?))?;
        timed(&mut self.flip, || Ok(maps.settle(id)?))?;
        // Something else in its place, so that the next round does not share it.
        maps.put(id, &Installation::Blocked, 2)?;
        timed(&mut self.tidy, || Ok(maps.tidy()?))
    }
}

impl ByClients {
    fn measure(clients: usize, rounds: usize) -> Result<Self> {
        let mut program = Program::load()?;
        let mut install = Samples::default();
        let all = hosts(clients * RULES_EACH);
        let addresses: Vec<IpAddr> = (0..clients).map(client).collect();
        // What all of them may reach, so that one packet will do.
        let shared = Rule { proto: Some(Proto::Udp), ..Rule::all(true) };
        for (address, own) in addresses.iter().zip(all.chunks(RULES_EACH)) {
            let own = own.iter().map(|host| rule(*host, Proto::Tcp));
            let rules = own.chain([shared.clone()]).collect();
            let ruleset = firewall_tests::oracle::Ruleset { default_accept: false, rules };
            let policy = proved(*address, &ruleset.file(), &Surroundings::default())?;
            let rules = u32::try_from(ruleset.rules.len())?;
            let installation = Installation::Policy { policy, rules };
            let id = ClientId { vif: VIF, address: *address };
            timed(&mut install, || Ok(program.maps.put(id, &installation, 1)?))?;
            program.maps.settle(id)?;
            program.maps.tidy()?;
        }
        let frame = |from: &IpAddr| packets::plain(*from, all[0], packets::UDP, PORT);
        for address in &addresses {
            // A wrong packet would be measured just as well.
            ensure!(program.send(&frame(address))? == Outcome::ACCEPTED, "{address} is denied");
        }
        alone_on(Processor::Last)?;
        let judge = program.descriptor("from_client")?;
        let mut shuffled = Shuffled::by_source(&frame(&addresses[0]), &addresses, judge)?;
        let judge = program.descriptor("baseline")?;
        let mut empty = Shuffled::by_source(&frame(&addresses[0]), &addresses, judge)?;
        let (mut packet, mut nothing) = (Samples::default(), Samples::default());
        for _ in 0..rounds * 3 {
            nothing.add(empty.time(REPEAT)?.as_nanos() as f64);
            packet.add(shuffled.time(REPEAT)?.as_nanos() as f64);
        }
        Ok(Self { clients, install, packet, nothing })
    }
}

/// The address of a client, by its number.
fn client(number: usize) -> IpAddr {
    let [high, low] = (number as u16 + 2).to_be_bytes();
    Ipv4Addr::new(10, 137, high, low).into()
}

fn table(by_rules: &[ByRules], by_clients: &[ByClients]) -> String {
    let row = |it: &ByRules| {
        let all = [&it.parse, &it.compile, &it.prove, &it.install, &it.tidy];
        let mut row = vec![it.rules.to_string()];
        row.extend(all.map(|samples| format!("{:.2}", samples.median())));
        row.push(format!("{:.1}", it.flip.median() * 1000.0));
        row
    };
    let header = ["rules", "parse ms", "compile", "prove", "install", "give back", "flip us"];
    let rules = show::table(header, by_rules.iter().map(row).collect());
    let row = |it: &ByClients| {
        vec![
            it.clients.to_string(),
            format!("{:.2}", it.install.median()),
            format!("{:.2}", it.install.quantile(1.0)),
            format!("{:.0}", it.packet.minimum()),
            format!("{:.0}", it.packet.median()),
            format!("{:.0}", it.packet.over(&it.nothing)),
        ]
    };
    let header =
        ["clients", "to put one in force ms", "most", "packet min ns", "median", "over empty"];
    format!("{rules}\n\n{}", show::table(header, by_clients.iter().map(row).collect()))
}

fn report(by_rules: &[ByRules], by_clients: &[ByClients]) -> Value {
    let rules = |it: &ByRules| {
        json!({
            "rules": it.rules, "parse_ms": it.parse.median(), "compile_ms": it.compile.median(),
            "prove_ms": it.prove.median(), "install_ms": it.install.median(),
            "flip_us": it.flip.median() * 1000.0, "give_back_ms": it.tidy.median(),
        })
    };
    let clients = |it: &ByClients| {
        json!({
            "clients": it.clients, "install_ms": it.install.median(),
            "install_max_ms": it.install.quantile(1.0),
            "packet_min_ns": it.packet.minimum(), "packet_median_ns": it.packet.median(),
            "packet_over_empty_ns": it.packet.over(&it.nothing),
        })
    };
    json!({
        "machine": machine(),
        "rules": by_rules.iter().map(rules).collect::<Vec<Value>>(),
        "clients": by_clients.iter().map(clients).collect::<Vec<Value>>(),
    })
}
