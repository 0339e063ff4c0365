//! Many names over many clients, with a real DNS server: figures, and an agent that answers
//! meanwhile.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use firewall_core::told::status::{State, Status};
use firewall_tests::rig::agent::{Agent, PATIENCE, write_rules};
use firewall_tests::rig::dns::{DnsServer, Reply};
use firewall_tests::rig::{Client, ClientSpec, Rig};
use firewall_tests::traffic::probe::{Outcome, Probe, SILENCE};

use super::named::{DNS, ONE, TWO, serve, servers};
use super::world::PROHIBITED4;

const CLIENTS: u8 = 50;
const NAMES: usize = 500;
/// Names in the rules of one client: ten of its own, and ten that its neighbour has too.
const OF_CLIENT: usize = 20;

struct Many {
    rig: Rig,
    dns: DnsServer,
    clients: Vec<(Client, IpAddr)>,
}

impl Many {
    fn new(label: &str) -> Result<Self> {
        let rig = Rig::new(label)?;
        rig.add_internet_address(DNS.parse()?)?;
        let dns = DnsServer::start(rig.internet(), DNS.parse()?)?;
        servers(&rig, &[DNS])?;
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let spec = ClientSpec { v6: None, ..ClientSpec::numbered(number + 10) };
            let client = rig.add_client(&spec)?;
            for address in spec.addresses() {
                let first = usize::from(number) * NAMES / usize::from(CLIENTS);
                let rules = (0..OF_CLIENT).map(|it| {
                    let name = name((first + it) % NAMES);
                    format!("{it:04} = action=accept dsthost={name} proto=tcp\n")
                });
                let text = format!("policy = drop\n{}commit\n", rules.collect::<String>());
                write_rules(rig.directory(), address, &text)?;
                clients.push((client.clone(), address));
            }
        }
        Ok(Self { rig, dns, clients })
    }

    /// All names lead there.
    fn say(&self, address: &str) {
        for index in 0..NAMES {
            let name = name(index);
            self.dns.say(&name, Reply::addresses(&name, 0, &[address]));
        }
    }

    #[track_caller]
    fn check(&self, to: &str, expected: Outcome) {
        let to = SocketAddr::new(to.parse().expect("an address"), 443);
        for (client, address) in self.clients.iter().step_by(10) {
            let outcome = Probe::tcp(client.namespace(), to).run(SILENCE).expect("a probe");
            assert_eq!(outcome, expected, "{address} to {to}");
        }
    }
}

fn name(index: usize) -> String {
    format!("n{index}.example")
}

/// Asks the agent until something is so, and returns how long that took, and the longest
/// that it took to answer.
fn watch(agent: &Agent, is_so: impl Fn(&Status) -> bool) -> Result<(Duration, Duration)> {
    let (start, mut longest) = (Instant::now(), Duration::ZERO);
    loop {
        let asked = Instant::now();
        let is_so = is_so(&agent.status()?);
        longest = longest.max(asked.elapsed());
        if is_so {
            return Ok((start.elapsed(), longest));
        }
        ensure!(start.elapsed() < 3 * PATIENCE, "never:\n{}", agent.log());
        // The machine is for the agent.
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn all_lead(status: &Status, address: &str) -> bool {
    let leads = status.names.iter().filter(|name| {
        let mut current = name.addresses.iter().filter(|it| it.in_answer);
        current.any(|it| it.address.to_string() == address)
    });
    leads.count() == NAMES
}

#[test]
fn five_hundred_names_over_fifty_clients_are_followed_while_the_agent_answers() -> Result<()> {
    let many = Many::new("many")?;
    let _servers = [serve(&many.rig, ONE)?, serve(&many.rig, TWO)?];
    many.say(ONE);
    let agent = Agent::start(&many.rig, &[])?;
    let (took, longest) = watch(&agent, |status| all_lead(status, ONE))?;
    println!("{NAMES} names known after {took:?}; status within {longest:?}");
    println!("{} KiB, {} of its own", agent.memory("VmRSS")?, agent.memory("RssAnon")?);
    many.check(ONE, Outcome::Accepted);
    many.check(TWO, PROHIBITED4);
    many.say(TWO);
    let (took, longest) = watch(&agent, |status| all_lead(status, TWO))?;
    println!("all of them elsewhere after {took:?}, 5 s of it waiting; status within {longest:?}");
    many.check(TWO, Outcome::Accepted);
    let asked = many.dns.count();
    ensure!(asked < 10 * NAMES, "{asked} questions");
    println!("{} KiB, {} of its own", agent.memory("VmRSS")?, agent.memory("RssAnon")?);
    Ok(())
}

#[test]
fn a_silent_dns_server_holds_nothing_up() -> Result<()> {
    let many = Many::new("silence")?;
    for index in 0..NAMES {
        many.dns.say(&name(index), Reply::silence());
    }
    let _server = serve(&many.rig, ONE)?;
    let agent = Agent::start(&many.rig, &[])?;
    let (took, longest) = watch(&agent, |status| {
        let live = status.clients.iter().filter(|it| it.state == State::Live).count();
        live == usize::from(CLIENTS) && status.names.iter().any(|name| name.failures > 0)
    })?;
    println!("live after {took:?}, while {NAMES} names wait; status within {longest:?}");
    let (_, client) = &many.clients[0];
    let text = format!("policy = drop\n0000 = action=accept dst4={ONE}\ncommit\n");
    write_rules(many.rig.directory(), *client, &text)?;
    let (took, longest) = watch(&agent, |status| {
        status.clients.iter().any(|it| it.address == *client && it.rules.len() == 1)
    })?;
    println!("a change in force after {took:?}; status within {longest:?}");
    let to = SocketAddr::new(ONE.parse()?, 443);
    let outcome = Probe::tcp(many.clients[0].0.namespace(), to).run(SILENCE)?;
    assert_eq!(outcome, Outcome::Accepted);
    Ok(())
}
