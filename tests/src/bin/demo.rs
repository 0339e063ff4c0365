//! The main job, shown: the real agent in a rig, three qubes with different rules, real
//! packets, and what became of each. Ends with an error if anything is not as the rules
//! say. Never believes the agent: what is expected comes from the tests' own oracle.

use std::io::IsTerminal as _;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use comfy_table::presets::NOTHING;
use comfy_table::{Cell, Color, Table};
use firewall_core::told::status::{ClientStatus, State};
use firewall_tests::oracle::{self, Proto, Rule, Ruleset};
use firewall_tests::packets;
use firewall_tests::packets::family::{Family, PerFamily as _};
use firewall_tests::rig::agent::{self, Agent, PATIENCE};
use firewall_tests::rig::server::EchoServer;
use firewall_tests::rig::{Client, ClientSpec, Rig};
use firewall_tests::traffic::probe::{OpenFlow, Outcome, Probe, Protocol, SILENCE};

/// Shows the firewall at work in network namespaces of its own. Needs root.
#[derive(Parser)]
#[command(name = "cargo xtask demo", bin_name = "cargo xtask demo")]
struct Arguments {
    /// Leave rig and agent running for exploring, and say how to enter.
    #[arg(long)]
    keep: bool,
}

/// Servers in the rig's internet: documentation addresses (RFC 5737, RFC 3849).
const WEB: [&str; 2] = ["198.51.100.7", "2001:db8:1::7"];
const LAN: [&str; 2] = ["192.168.1.10", "fd00:1a::10"];
const RESOLVER: &str = "198.51.100.53";
const VIRTUAL_RESOLVER: &str = "10.139.1.1";

fn main() -> ExitCode {
    match demo(&Arguments::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(wrong) => {
            eprintln!("{wrong} lines are not as the rules say");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("the demo could not run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn say(message: &str) {
    eprintln!(">> {message}");
}

/// A qube with its rules.
struct Qube {
    name: &'static str,
    about: &'static str,
    client: Client,
    addresses: [IpAddr; 2],
    rules: [Ruleset; 2],
}

/// Returns how many lines were not as expected.
fn demo(arguments: &Arguments) -> Result<usize> {
    say("making namespaces: three qubes, a netvm, an internet");
    let rig = Rig::new("demo")?;
    let mut servers = Vec::new();
    for address in WEB.iter().chain(&LAN).chain([&RESOLVER]) {
        let address: IpAddr = address.parse()?;
        rig.add_internet_address(address)?;
        for port in [53, 80, 443] {
            servers.push(EchoServer::start(rig.internet(), SocketAddr::new(address, port))?);
        }
    }
    let qubes = [
        qube(&rig, "work", 12, "web servers by https, DNS and ping; nothing else", |family| {
            let https = Rule {
                network: Some((of_family(WEB, family), family.of([24, 48]))),
                proto: Some(Proto::Tcp),
                ports: Some((443, 443)),
                ..Rule::all(true)
            };
            let dns = Rule { dns: true, ..Rule::all(true) };
            let ping = Rule { proto: Some(Proto::Icmp), ..Rule::all(true) };
            vec![https, dns, ping]
        })?,
        qube(&rig, "browser", 13, "everything but the LAN", |family| {
            let lan = (of_family(LAN, family), family.of([16, 32]));
            vec![Rule { network: Some(lan), ..Rule::all(false) }, Rule::all(true)]
        })?,
        qube(&rig, "vault", 14, "nothing", |_| vec![])?,
    ];
    for qube in &qubes {
        for (address, rules) in qube.addresses.iter().zip(&qube.rules) {
            agent::write_rules(rig.directory(), *address, &rules.file())?;
        }
    }
    std::fs::write(rig.directory().join("resolv.conf"), format!("nameserver {RESOLVER}\n"))?;
    say("starting the agent in the netvm");
    let agent = Agent::start(&rig, &[])?;
    for qube in &qubes {
        for address in qube.addresses {
            agent.wait_for_state(address, State::Live)?;
        }
        agent.wait_for_vif(qube.client.vif())?;
    }

    println!();
    for qube in &qubes {
        println!("{} ({}): {}", qube.name, qube.client.vif(), qube.about);
        for rule in &qube.rules[0].rules {
            println!("    {}", rule.text());
        }
    }
    say("sending packets");
    let mut report = Report::new();
    for qube in &qubes {
        for family in Family::BOTH {
            let web: IpAddr = family.of(WEB).parse()?;
            let lan: IpAddr = family.of(LAN).parse()?;
            for (to, protocol, port) in [
                (web, Protocol::Tcp, 443),
                (web, Protocol::Tcp, 80),
                (web, Protocol::Udp, 443),
                (web, Protocol::Ping, 0),
                (lan, Protocol::Tcp, 443),
                (lan, Protocol::Ping, 0),
            ] {
                report.probe(&agent, qube, family, to, protocol, port)?;
            }
        }
        report.probe(&agent, qube, Family::V4, VIRTUAL_RESOLVER.parse()?, Protocol::Udp, 53)?;
    }
    report.spoof(&qubes[2])?;
    report.print();

    say("changing a rule under an open connection: work loses https");
    let mut change = Report::new();
    let [work, ..] = &qubes;
    let to = SocketAddr::new(WEB[0].parse()?, 443);
    let mut flow = OpenFlow::open(work.client.namespace(), to, PATIENCE)?;
    change.say("work's open connection, before", true, flow.exchange(PATIENCE)?);
    let without = Ruleset { rules: work.rules[0].rules[1..].to_vec(), ..work.rules[0].clone() };
    agent.put(work.addresses[0], &without)?;
    change.say("the same connection, after", false, flow.exchange(SILENCE)?);

    say("killing the agent: its policies go on, a new vif forwards nothing");
    let pid = agent.pid();
    let socket = agent.socket();
    agent.kill()?;
    let late = rig.add_client(&ClientSpec::numbered(15))?;
    let web: IpAddr = WEB[0].parse()?;
    let works = |client: &Client, protocol| -> Result<bool> {
        let from = client.namespace().clone();
        Ok(Probe { from, to: web, port: 443, protocol }.run(SILENCE)? == Outcome::Accepted)
    };
    change.say("agent dead: work pings the web", true, works(&work.client, Protocol::Ping)?);
    change.say("agent dead: work's https", false, works(&work.client, Protocol::Tcp)?);
    change.say("agent dead: a new qube's https", false, works(&late, Protocol::Tcp)?);
    agent::write_rules(rig.directory(), work.addresses[0], &work.rules[0].file())?;
    let agent = Agent::start(&rig, &[])?;
    agent.wait_for("back in force", |status| {
        status.clients.iter().any(|it| {
            it.address == work.addresses[0]
                && it.state == State::Live
                && it.rules.len() == work.rules[0].rules.len()
        })
    })?;
    change.say(
        "a new agent, the old rules: work's https",
        true,
        works(&work.client, Protocol::Tcp)?,
    );
    ensure!(agent.pid() != pid, "the same process");
    change.print();

    println!("Where the rules are: `firewall-agent show {}` in the netvm says", work.addresses[0]);
    println!();
    show(&socket, work.addresses[0])?;
    if arguments.keep {
        rig.keep()?;
        println!("\nThe rig stays. {}", rig.how_to_enter());
        println!(
            "Ask the agent: {} show --socket {}",
            agent::binary()?.display(),
            socket.display()
        );
        println!("End it: kill {}", agent.pid());
        // Dropping it would end it.
        std::mem::forget(agent);
        std::mem::forget(servers);
    }
    Ok(report.wrong + change.wrong)
}

/// What a person would type.
fn show(socket: &std::path::Path, client: IpAddr) -> Result<()> {
    let mut command = std::process::Command::new(agent::binary()?);
    command.args(["show", &client.to_string(), "--socket"]).arg(socket);
    ensure!(command.status()?.success(), "`firewall-agent show` fails");
    Ok(())
}

fn of_family(pair: [&str; 2], family: Family) -> IpAddr {
    family.of(pair).parse().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
}

fn qube(
    rig: &Rig,
    name: &'static str,
    number: u8,
    about: &'static str,
    rules: impl Fn(Family) -> Vec<Rule>,
) -> Result<Qube> {
    let spec = ClientSpec::numbered(number);
    let addresses =
        [spec.v4.context("no IPv4 address")?.into(), spec.v6.context("no IPv6 address")?.into()];
    let rules = Family::BOTH.map(|family| Ruleset { default_accept: false, rules: rules(family) });
    Ok(Qube { name, about, client: rig.add_client(&spec)?, addresses, rules })
}

/// A table, and how many of its lines are wrong.
struct Report {
    table: Table,
    wrong: usize,
    colours: bool,
}

impl Report {
    fn new() -> Self {
        let mut table = Table::new();
        table.load_preset(NOTHING);
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { table, wrong: 0, colours }
    }

    fn row(&mut self, cells: &[&str], right: bool) {
        let verdict = if right { "ok" } else { "WRONG" };
        let colour = if right { Color::Green } else { Color::Red };
        let verdict = Cell::new(verdict);
        let verdict = if self.colours { verdict.fg(colour) } else { verdict };
        let row = cells.iter().map(Cell::new).chain([verdict]);
        self.table.add_row(row.collect::<Vec<_>>());
        self.wrong += usize::from(!right);
    }

    /// A yes or no question.
    fn say(&mut self, what: &str, expected: bool, happened: bool) {
        self.header(&["what", "should work", "works"]);
        let word = |yes: bool| if yes { "yes" } else { "no" };
        self.row(&[what, word(expected), word(happened)], expected == happened);
    }

    fn header(&mut self, names: &[&str]) {
        if self.table.header().is_none() {
            self.table.set_header(names.iter().copied().chain([""]));
        }
    }

    /// Sends real packets, and finds the rule that decided by the counter that moved.
    fn probe(
        &mut self,
        agent: &Agent,
        qube: &Qube,
        family: Family,
        to: IpAddr,
        protocol: Protocol,
        port: u16,
    ) -> Result<()> {
        self.header(&["from", "to", "rules say", "happened", "rule", "packets"]);
        let (expected, expected_rule) =
            expected(family.of(qube.rules.each_ref()), to, protocol, port)?;
        let before = agent.client(family.of(qube.addresses))?;
        let from = qube.client.namespace().clone();
        let happened = Probe { from, to, port, protocol }.run(SILENCE)?;
        let after = agent.client(family.of(qube.addresses))?;
        let moved = moved(&before, &after);
        let rules: Vec<&str> = moved.iter().map(|(rule, _)| rule.as_str()).collect();
        let counted: Vec<String> = moved.iter().map(|(_, packets)| packets.to_string()).collect();
        let right = happened == expected && rules == [expected_rule.as_str()];
        let place = match protocol {
            Protocol::Tcp => format!("{to} tcp {port}"),
            Protocol::Udp => format!("{to} udp {port}"),
            Protocol::Ping => format!("{to} ping"),
        };
        let cells = [
            qube.name,
            &place,
            &format!("{expected}: {expected_rule}"),
            &happened.to_string(),
            &rules.join(", "),
            &counted.join(", "),
        ];
        self.row(&cells, right);
        Ok(())
    }

    /// Sends with another qube's address; nothing must come of it, nor anything back.
    fn spoof(&mut self, qube: &Qube) -> Result<()> {
        let namespace = qube.client.namespace();
        let stolen = "10.137.0.12/32";
        let interface = firewall_tests::rig::CLIENT_INTERFACE;
        namespace.ip(&["addr", "replace", stolen, "dev", interface])?;
        let own = format!("{}/32", qube.addresses[0]);
        namespace.ip(&["addr", "del", &own, "dev", interface])?;
        let to: IpAddr = WEB[0].parse()?;
        let happened = Probe::tcp(namespace, SocketAddr::new(to, 443)).run(SILENCE)?;
        let right = happened == Outcome::Silent;
        let place = format!("{to} tcp 443");
        let cells = ["vault as work", &place, "silent: spoofed", &happened.to_string(), "", ""];
        self.row(&cells, right);
        Ok(())
    }

    fn print(&self) {
        println!("\n{}\n", self.table);
    }
}

/// What the rules say, by the oracle; the gate rejects as "administratively prohibited".
fn expected(
    rules: &Ruleset,
    to: IpAddr,
    protocol: Protocol,
    port: u16,
) -> Result<(Outcome, String)> {
    let (number, port) = match (protocol, to) {
        (Protocol::Tcp, _) => (packets::TCP, port),
        (Protocol::Udp, _) => (packets::UDP, port),
        (Protocol::Ping, to) => (Family::from(to).icmp(), Family::from(to).echo().into()),
    };
    let packet = oracle::Probe { destination: to, protocol: number, port };
    let servers = [VIRTUAL_RESOLVER, "10.139.1.2", RESOLVER];
    let servers = servers.iter().map(|it| Ok(it.parse()?)).collect::<Result<Vec<IpAddr>>>()?;
    let (accept, rule) = rules.verdict(&packet, &servers);
    let outcome = match (accept, to) {
        (true, _) => Outcome::Accepted,
        (false, IpAddr::V4(_)) => Outcome::Rejected { icmp_type: 3, icmp_code: 13 },
        (false, IpAddr::V6(_)) => Outcome::Rejected { icmp_type: 1, icmp_code: 1 },
    };
    Ok((outcome, rule.map_or_else(|| "default".to_owned(), |rule| format!("rule {rule:04}"))))
}

/// The rules whose counters moved, and by how much.
fn moved(before: &ClientStatus, after: &ClientStatus) -> Vec<(String, u64)> {
    let rules = after.rules.iter().zip(&before.rules).map(|(after, before)| {
        let packets = after.counter.packets - before.counter.packets;
        (format!("rule {:04}", after.number), packets)
    });
    let default = after.default_counter.packets - before.default_counter.packets;
    rules.chain([("default".to_owned(), default)]).filter(|(_, packets)| *packets > 0).collect()
}
